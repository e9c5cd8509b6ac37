// Files put together in a zip archive, uncompressed, and taken out of one (PKWARE's APPNOTE, sections 4.3 and 4.4).

const crcTable = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function crc32(bytes) {
  let crc = -1;
  for (const byte of bytes) crc = crcTable[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

// Numbers of two or four bytes, as [value, bytes].
function fields(...numbers) {
  const view = new DataView(new ArrayBuffer(numbers.reduce((sum, [, width]) => sum + width, 0)));
  let at = 0;
  for (const [value, width] of numbers) {
    if (width === 2) view.setUint16(at, value, true); else view.setUint32(at, value, true);
    at += width;
  }
  return new Uint8Array(view.buffer);
}

export function zip(files) {
  const parts = [], entries = [];
  let at = 0;
  const add = (bytes) => { parts.push(bytes); at += bytes.length; };
  for (const [path, bytes] of Object.entries(files)) {
    const name = new TextEncoder().encode(path), start = at;
    // version 2.0; no flags; stored; midnight of 1 January 1980; then checksum, sizes and lengths
    const common = [[20, 2], [0, 2], [0, 2], [0, 2], [33, 2], [crc32(bytes), 4], [bytes.length, 4], [bytes.length, 4], [name.length, 2], [0, 2]];
    add(fields([0x04034b50, 4], ...common));
    add(name);
    add(bytes);
    entries.push([fields([0x02014b50, 4], [20, 2], ...common, [0, 2], [0, 2], [0, 2], [0, 4], [start, 4]), name]);
  }
  const directory = at;
  entries.flat().forEach(add);
  add(fields([0x06054b50, 4], [0, 2], [0, 2], [entries.length, 2], [entries.length, 2], [at - directory, 4], [directory, 4], [0, 2]));
  return new Blob(parts, { type: "application/zip" });
}

// {path: bytes} of an archive whose files are stored or deflated.
export async function unzip(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length), files = {};
  let end = bytes.length - 22;
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0) throw new Error("the file is no zip archive");
  let at = view.getUint32(end + 16, true);
  for (let i = 0; i < view.getUint16(end + 10, true); i++) {
    const method = view.getUint16(at + 10, true), size = view.getUint32(at + 20, true), start = view.getUint32(at + 42, true);
    const lengths = [28, 30, 32].map((offset) => view.getUint16(at + offset, true));
    const path = new TextDecoder().decode(bytes.subarray(at + 46, at + 46 + lengths[0]));
    const from = start + 30 + view.getUint16(start + 26, true) + view.getUint16(start + 28, true);
    const stored = bytes.slice(from, from + size);
    if (method === 0) files[path] = stored;
    else if (method === 8) files[path] = new Uint8Array(await new Response(new Blob([stored]).stream().pipeThrough(new DecompressionStream("deflate-raw"))).arrayBuffer());
    else throw new Error(`${path} is packed by method ${method}; store or deflate it`);
    at += 46 + lengths[0] + lengths[1] + lengths[2];
  }
  return files;
}
