// The file format of Hugging Face's safetensors: eight bytes for the header's length, JSON, then the numbers.

const WIDTHS = { F32: 4, F16: 2, BF16: 2, I16: 2, I8: 1 }, SCALE = ".scale";

export function readSafetensors(buffer) {
  const bytes = buffer instanceof Uint8Array ? buffer : new Uint8Array(buffer), view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (bytes.length < 8) throw new Error("the file is too short for safetensors");
  const length = Number(view.getBigUint64(0, true));
  if (length > bytes.length - 8) throw new Error("the file is cut off, or no safetensors");
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length))), found = {};
  for (const [name, { dtype, shape, data_offsets: [from, to] }] of Object.entries(header).filter(([name]) => name !== "__metadata__")) {
    const part = bytes.slice(8 + length + from, 8 + length + to), count = shape.reduce((a, b) => a * b, 1);
    const width = WIDTHS[dtype];
    if (!width) throw new Error(`${name} is of type ${dtype}; what can be read is ${Object.keys(WIDTHS).join(", ")}`);
    if (part.length !== width * count) throw new Error(`${name}: ${part.length} bytes for ${count} numbers of ${dtype}`);
    found[name] = { shape, values: toFloats(part, dtype) };
  }
  return scaled(found);
}

// A tensor of whole numbers, as the site's own files have them, times the scale of each row.
function scaled(tensors) {
  for (const [name, { values: scales }] of Object.entries(tensors).filter(([name]) => name.endsWith(SCALE))) {
    delete tensors[name];
    const { shape: [, cols], values } = tensors[name.slice(0, -SCALE.length)];
    for (let i = 0; i < values.length; i++) values[i] *= scales[Math.floor(i / cols)];
  }
  return tensors;
}

function toFloats(bytes, dtype) {
  if (dtype === "F32") return new Float32Array(bytes.buffer);
  if (dtype === "I16") return Float32Array.from(new Int16Array(bytes.buffer));
  if (dtype === "I8") return Float32Array.from(new Int8Array(bytes.buffer));
  const halves = new Uint16Array(bytes.buffer);
  if (dtype === "BF16") return new Float32Array(Uint32Array.from(halves, (h) => h << 16).buffer);
  return Float32Array.from(halves, (h) => {
    const exponent = (h >> 10) & 31, rest = h & 1023, sign = h & 0x8000 ? -1 : 1;
    if (exponent === 31) return rest ? NaN : sign * Infinity;
    return sign * (exponent ? (1 + rest / 1024) * 2 ** (exponent - 15) : rest * 2 ** -24);
  });
}

// tensors: {name: {shape, values}}; returns the bytes of a file in float32.
export function writeSafetensors(tensors, metadata = {}) {
  const header = { __metadata__: metadata };
  let at = 0;
  for (const name of Object.keys(tensors).sort()) {
    const { shape, values } = tensors[name];
    header[name] = { dtype: "F32", shape, data_offsets: [at, at += 4 * values.length] };
  }
  let text = JSON.stringify(header);
  text += " ".repeat((8 - new TextEncoder().encode(text).length % 8) % 8);  // the numbers begin at a multiple of 8
  const head = new TextEncoder().encode(text), bytes = new Uint8Array(8 + head.length + at);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(head.length), true);
  bytes.set(head, 8);
  for (const [name, { values }] of Object.entries(tensors)) {
    const [from] = header[name].data_offsets;
    bytes.set(new Uint8Array(values.buffer, values.byteOffset, 4 * values.length), 8 + head.length + from);
  }
  return bytes;
}
