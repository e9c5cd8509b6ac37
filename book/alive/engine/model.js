// pocket-gpt: Llama's architecture (Touvron et al. 2023, arXiv:2302.13971), with every head its own keys and values.

import { Frozen, Tape } from "./tape.js";

export const MAPS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
  "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"];

export class Model {
  // weights: {name as in the checkpoint: {shape, values}}; config: transformers' config.json.
  constructor(memory, kernel, config, weights) {
    const get = (name) => {
      if (!weights[name]) throw new Error(`the base has no tensor ${name}`);
      const { shape: [rows, cols], values } = weights[name];
      return cols ? new Frozen(memory, rows, cols, values) : new Frozen(memory, 1, rows, values);
    };
    Object.assign(this, { memory, kernel, config, layers: [] });
    this.width = config.hidden_size;
    this.heads = config.num_attention_heads;
    if ((config.num_key_value_heads ?? this.heads) !== this.heads || !config.tie_word_embeddings)
      throw new Error("the engine is written for models whose heads share nothing and whose head is the embedding");
    this.embedding = get("model.embed_tokens.weight");
    this.lastNorm = get("model.norm.weight");
    for (let i = 0; i < config.num_hidden_layers; i++) {
      const at = `model.layers.${i}`;
      const maps = Object.fromEntries(MAPS.map((name) => [name, get(`${at}.${name}.weight`)]));
      this.layers.push({ at, maps, norm1: get(`${at}.input_layernorm.weight`), norm2: get(`${at}.post_attention_layernorm.weight`) });
    }
    this.angles = angles(this.width / this.heads, config.max_position_embeddings, config.rope_parameters.rope_theta);
    this.mark = memory.mark();  // below lie the weights, above a step's tensors
  }

  // Run `work(tape)` and give its tensors back, whatever happens.
  step(records, work) {
    try {
      return work(new Tape(this.memory, this.kernel, records));
    } finally {
      this.memory.free(this.mark);
    }
  }

  // {path: [outputs, inputs]} of every linear map.
  shapes() {
    const found = {};
    for (const { at, maps } of this.layers) for (const name of MAPS) found[`${at}.${name}`] = [maps[name].rows, maps[name].cols];
    return found;
  }

  map(path) {
    const [, layer, name] = path.match(/^model\.layers\.(\d+)\.(.*)$/);
    return this.layers[layer].maps[name];
  }

  // The last hidden states of some texts (arrays of token ids), under adaptations that were begun on this tape.
  // Returns {hidden: (tokens, width), texts: [{start, length, before}]}; `before` counts a soft prompt's rows.
  forward(tape, texts, deltas = []) {
    const rows = [], layout = [], positions = [];
    const prompt = deltas.map((delta) => delta.prompt).find(Boolean), shifted = deltas.find((delta) => delta.prefix)?.prefix.rows ?? 0;
    for (const ids of texts) {
      const before = prompt?.rows ?? 0;
      layout.push({ start: rows.length, length: before + ids.length, before });
      for (let i = 0; i < before; i++) rows.push([prompt, i]);
      for (const id of ids) rows.push([this.embedding, id]);
      for (let i = 0; i < before + ids.length; i++) positions.push(shifted + i);
    }
    const limit = this.config.max_position_embeddings, most = Math.max(...positions) + 1;
    if (most > limit) throw new Error(`a text of ${most} tokens, with what stands before it: the model has ${limit} positions`);
    let x = tape.pick(rows, this.width);
    for (const [i, layer] of this.layers.entries()) {
      const mapped = (name, input) => deltas.reduce((y, delta) => delta.change?.(tape, `${layer.at}.${name}`, input, y, layout) ?? y,
        tape.linear(input, layer.maps[name]));
      const h = tape.norm(x, layer.norm1, this.config.rms_norm_eps);
      const [q, k] = ["self_attn.q_proj", "self_attn.k_proj"].map((name) => tape.rotate(mapped(name, h), positions, this.angles));
      const prefix = deltas.map((delta) => delta.prefix).find(Boolean);
      const seen = tape.attention(q, k, mapped("self_attn.v_proj", h), layout, this.heads,
        prefix && { tensor: prefix, keys: 2 * i * this.width, values: (2 * i + 1) * this.width });
      x = tape.add(x, mapped("self_attn.o_proj", seen));
      const g = tape.norm(x, layer.norm2, this.config.rms_norm_eps);
      x = tape.add(x, mapped("mlp.down_proj", tape.swiglu(mapped("mlp.gate_proj", g), mapped("mlp.up_proj", g))));
    }
    return { hidden: x, texts: layout };
  }

  // The logits, (rows, vocabulary), of some rows of the hidden states.
  logits(tape, hidden, rows) {
    const picked = tape.pick(rows.map((row) => [hidden, row]), this.width);
    return tape.linear(tape.norm(picked, this.lastNorm, this.config.rms_norm_eps), this.embedding);
  }
}

function angles(size, positions, theta) {
  const half = size / 2, cos = new Float32Array(positions * half), sin = new Float32Array(positions * half);
  for (let p = 0; p < positions; p++) for (let j = 0; j < half; j++) {
    const angle = Math.fround(p * Math.fround(1 / theta ** (2 * j / size)));  // float32, as PyTorch computes it
    cos[p * half + j] = Math.cos(angle);
    sin[p * half + j] = Math.sin(angle);
  }
  return { cos, sin, half };
}
