const m = MODELS[at.model], [frozen, weight, gradient, moment] = PRECISIONS[at.precision];
const llama = m.kind === "llama", full = at.method === "full", norm = llama ? 4 : frozen;
const n = m.each[at.method] * (full ? 1 : at.r), [widths, ffn, ranks] = m.kept[at.method];
let weights = n * weight;
if (at.method === "QLoRA") weights += m.linear * NF4 + (m.N - m.linear) * frozen;
else if (!full) weights += m.N * frozen;
const elements = (widths - 2) * m.width + 2 * m.kv_width + ffn * m.ffn + ranks * at.r;
let layer = 2 * norm * m.width + frozen * elements + 4 * m.heads + 4 * (llama ? 2 : 4);
const both = m.width + m.kv_width;
if (m.head_norms) layer += (norm + (full ? frozen : 0)) * both + 4 * both * m.heads / m.width;
let last = full ? norm * m.width + frozen * m.width * (llama ? 2 : 1) : 0;
if (m.head_norms && at.method === "LoRA, q and v") last -= norm * m.kv_width + 4 * m.kv_width * m.heads / m.width;
const inputs = at.checkpointing ? m.layers * m.width * frozen + layer : m.layers * layer;
const tokens = at.batch * at.sequence, logits = 4 * m.vocabulary;
const kept = tokens * (inputs + last + (at.chunked ? 0 : logits));
const loss = at.chunked ? 3 * Math.min(CHUNK, tokens) * logits : 2 * tokens * logits;
const [count, size] = MOMENTS[at.optimizer], GB = 1e9;
return { weights: weights / GB, gradients: n * gradient / GB,
  moments: n * count * (size ?? moment) / GB, activations: kept / GB, "the loss": loss / GB };
