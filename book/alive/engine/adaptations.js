// What is trained beside the frozen model: LoRA, bottleneck adapters, a soft prompt, a prefix.
//
// An adaptation holds its parameters, {name: {rows, cols, values}}, named as in a PEFT checkpoint. `begin` puts
// them on a tape and returns what the model calls: `change` for the output of a linear map, `prompt`, `prefix`.

import { MAPS } from "./model.js";

const matrix = (rows, cols, draw = () => 0) => ({ rows, cols, values: Float32Array.from({ length: rows * cols }, draw) });

class Adaptation {
  constructor(settings) {
    Object.assign(this, { settings, parameters: {} });
  }

  get count() {
    return Object.values(this.parameters).reduce((sum, p) => sum + p.values.length, 0);
  }

  on(tape) {
    return Object.fromEntries(Object.entries(this.parameters).map(([name, p]) => [name, tape.parameter(p)]));
  }
}

// Hu et al. 2021, arXiv:2106.09685: y + (α / r) B A x; A uniform in ±1/√inputs, B zero.
export class LoRA extends Adaptation {
  static type = "LORA";

  start(model, random) {
    const { r, target_modules: names } = this.settings;
    for (const [path, [outputs, inputs]] of Object.entries(model.shapes())) {
      if (!names.some((name) => path.endsWith(`.${name}`))) continue;
      const bound = 1 / Math.sqrt(inputs);
      this.parameters[`${path}.lora_A.weight`] = matrix(r, inputs, () => random.between(-bound, bound));
      this.parameters[`${path}.lora_B.weight`] = matrix(outputs, r);
    }
    return this;
  }

  scaling(path) {  // each map's own rank, for a checkpoint may have several
    const r = this.parameters[`${path}.lora_A.weight`].rows;
    return this.settings.alpha / (this.settings.use_rslora ? Math.sqrt(r) : r);
  }

  // weights: one number for each text of the batch, by which its ΔW is multiplied; none means 1.
  begin(tape, weights) {
    const own = this.on(tape);
    return {
      tensors: own,
      change: (tape, path, x, y, texts) => {
        const A = own[`${path}.lora_A.weight`], B = own[`${path}.lora_B.weight`];
        if (!A) return y;
        const factors = new Float32Array(x.rows), scaling = this.scaling(path);
        texts.forEach(({ start, length }, i) => factors.fill(scaling * (weights?.[i] ?? 1), start, start + length));
        return tape.linear(tape.times(tape.linear(x, A), factors), B, y);
      },
    };
  }

  // {path: weight · ΔW, (outputs, inputs)}
  changes(weight = 1) {
    const found = {};
    for (const [name, A] of Object.entries(this.parameters)) {
      if (!name.endsWith(".lora_A.weight")) continue;
      const path = name.slice(0, -".lora_A.weight".length), B = this.parameters[`${path}.lora_B.weight`];
      const delta = found[path] = new Float32Array(B.rows * A.cols), scaling = weight * this.scaling(path);
      for (let i = 0; i < B.rows; i++) for (let l = 0; l < A.rows; l++) {
        const b = scaling * B.values[i * B.cols + l];
        for (let j = 0; j < A.cols; j++) delta[i * A.cols + j] += b * A.values[l * A.cols + j];
      }
    }
    return found;
  }
}

// Houlsby et al. 2019, arXiv:1902.00751: y + W_up relu(W_down y), after attention and feed-forward network.
export class Bottleneck extends Adaptation {
  static type = "BOTTLENECK";

  places(model) {
    const names = this.settings.placement === "houlsby" ? [MAPS[3], MAPS[6]] : [MAPS[6]];
    return Object.entries(model.shapes()).filter(([path]) => names.some((name) => path.endsWith(name)));
  }

  start(model, random) {
    const m = this.settings.bottleneck_size;
    const small = () => random.normal(0.01, 2);  // cut off at two standard deviations
    for (const [path, [width]] of this.places(model)) Object.assign(this.parameters, {
      [`${path}.adapter_down.weight`]: matrix(m, width, small), [`${path}.adapter_down.bias`]: matrix(1, m),
      [`${path}.adapter_up.weight`]: matrix(width, m, small), [`${path}.adapter_up.bias`]: matrix(1, width),
    });
    return this;
  }

  begin(tape) {
    const own = this.on(tape), get = (path, end) => own[`${path}.adapter_${end}`];
    return {
      tensors: own,
      change: (tape, path, x, y) => {
        if (!get(path, "down.weight")) return y;
        const z = tape.relu(tape.biased(tape.linear(y, get(path, "down.weight")), get(path, "down.bias")));
        return tape.add(y, tape.biased(tape.linear(z, get(path, "up.weight")), get(path, "up.bias")));
      },
    };
  }
}

// Lester et al. 2021, arXiv:2104.08691: n trained vectors before the text; they begin as embeddings of `init`.
export class SoftPrompt extends Adaptation {
  static type = "PROMPT_TUNING";

  start(model, random) {
    const { num_virtual_tokens: n, init } = this.settings, table = model.embedding;
    const ids = init ?? Array.from({ length: n }, () => random.below(table.rows));
    const made = this.parameters.prompt_embeddings = matrix(n, table.cols);
    for (let i = 0; i < n; i++) {
      const id = ids[i % ids.length];
      made.values.set(table.data.subarray(id * table.cols, (id + 1) * table.cols), i * table.cols);
    }
    return this;
  }

  begin(tape) {
    const own = this.on(tape);
    return { tensors: own, prompt: own.prompt_embeddings };
  }
}

// Li & Liang 2021, arXiv:2101.00190: n keys and values before those of the text, in every layer.
export class Prefix extends Adaptation {
  static type = "PREFIX_TUNING";

  start(model, random) {
    const cols = 2 * model.layers.length * model.width;
    this.parameters.prompt_embeddings = matrix(this.settings.num_virtual_tokens, cols, () => random.normal(0.02));
    return this;
  }

  begin(tape) {
    const own = this.on(tape);
    return { tensors: own, prefix: own.prompt_embeddings };
  }
}

export const METHODS = { lora: LoRA, bottleneck: Bottleneck, prompt: SoftPrompt, prefix: Prefix };
