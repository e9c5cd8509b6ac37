// Adaptations as folders of Hugging Face PEFT: adapter_config.json and adapter_model.safetensors.

import { Bottleneck, LoRA, Prefix, SoftPrompt } from "./adaptations.js";
import { readSafetensors, writeSafetensors } from "./safetensors.js";

const CONFIG = "adapter_config.json", TENSORS = "adapter_model.safetensors", BEFORE = "base_model.model.";

// {name of a file: its bytes}
export function toFolder(adaptation, model, base) {
  const { settings } = adaptation, kind = adaptation.constructor;
  const sizes = { num_virtual_tokens: settings.num_virtual_tokens, num_layers: model.layers.length, token_dim: model.width,
    num_attention_heads: model.heads, num_transformer_submodules: 1 };
  const own = {
    LORA: () => ({ r: settings.r, lora_alpha: settings.alpha, target_modules: settings.target_modules, lora_dropout: 0, bias: "none",
      use_rslora: Boolean(settings.use_rslora), fan_in_fan_out: false, task_type: "CAUSAL_LM" }),
    BOTTLENECK: () => ({ bottleneck_size: settings.bottleneck_size, placement: settings.placement, non_linearity: "relu",
      reduction_factor: 16, scaling: null, leave_out: [] }),
    PROMPT_TUNING: () => ({ ...sizes, task_type: "CAUSAL_LM" }),
    PREFIX_TUNING: () => ({ ...sizes, prefix_projection: false, encoder_hidden_size: null, task_type: "CAUSAL_LM" }),
  }[kind.type]();
  const config = { peft_type: kind.type, base_model_name_or_path: base, inference_mode: true, ...own };
  const virtual = kind === SoftPrompt || kind === Prefix, tensors = {};
  for (const [name, { rows, cols, values }] of Object.entries(adaptation.parameters))
    tensors[virtual ? name : BEFORE + name] = { shape: name.endsWith("bias") ? [cols] : [rows, cols], values };
  return {
    [CONFIG]: new TextEncoder().encode(`${JSON.stringify(config, null, 2)}\n`),
    [TENSORS]: writeSafetensors(tensors, { format: "pt" }),
  };
}

// files: {name: bytes}, in whatever folder of a zip they lay. Refuses what the engine does not compute.
export function fromFolder(files, model) {
  const find = (name) => Object.entries(files).find(([path]) => path.split("/").at(-1) === name)?.[1];
  const [text, bytes] = [CONFIG, TENSORS].map(find);
  if (!text || !bytes) throw new Error(`expected ${CONFIG} and ${TENSORS}, got ${Object.keys(files).join(", ") || "no file"}`);
  let config;
  try { config = JSON.parse(new TextDecoder().decode(text)); } catch { throw new Error(`${CONFIG} is not JSON`); }
  const read = READERS[config.peft_type];
  if (!read) throw new Error(`peft_type is ${JSON.stringify(config.peft_type)}: the page reads ${Object.keys(READERS).join(", ")}`);
  const adaptation = read(config), shapes = model.shapes();
  for (const [name, { shape, values }] of Object.entries(readSafetensors(bytes))) {
    if (!values.every(Number.isFinite)) throw new Error(`${name} has a number that is not finite`);
    const [rows, cols] = shape.length > 1 ? shape : [1, shape[0]];
    adaptation.parameters[name.replace(BEFORE, "")] = { rows, cols, values };
  }
  check(adaptation, model, shapes);
  return adaptation;
}

const off = (config, keys) => {  // what is not computed here must be off
  for (const key of keys) {
    const value = config[key], nothing = value === undefined || value === null || value === false || value === 0 || value === "none" ||
      (typeof value === "object" && !Object.keys(value).length);
    if (!nothing) throw new Error(`${CONFIG}: ${key} is ${JSON.stringify(value)}, which the page does not compute`);
  }
};

const READERS = {
  LORA(config) {
    off(config, ["use_dora", "rank_pattern", "alpha_pattern", "bias", "lora_bias", "modules_to_save", "trainable_token_indices", "target_parameters"]);
    if (/pissa|olora|corda|loftq|lora_ga/.test(config.init_lora_weights))
      throw new Error(`${CONFIG}: init_lora_weights is ${config.init_lora_weights}: it was trained on a changed base, which the page does not have`);
    return new LoRA({ r: config.r, alpha: config.lora_alpha, target_modules: [], use_rslora: Boolean(config.use_rslora) });
  },
  BOTTLENECK(config) {
    const { placement, non_linearity: f, scaling } = config;
    if (!["houlsby", "pfeiffer"].includes(placement) || f !== "relu" || (scaling ?? 1) !== 1)
      throw new Error(`${CONFIG}: the page computes placement houlsby or pfeiffer, non_linearity relu and scaling 1, ` +
        `not ${placement}, ${f} and ${scaling}`);
    off(config, ["leave_out", "modules_to_save", "target_modules"]);
    return new Bottleneck({ bottleneck_size: config.bottleneck_size, placement });
  },
  PROMPT_TUNING(config) {
    off(config, ["modules_to_save"]);
    return new SoftPrompt({ num_virtual_tokens: config.num_virtual_tokens });
  },
  PREFIX_TUNING(config) {
    off(config, ["prefix_projection", "modules_to_save"]);
    return new Prefix({ num_virtual_tokens: config.num_virtual_tokens });
  },
};

// Every tensor must have its place and its partner, and the right shape.
function check(adaptation, model, shapes) {
  const { parameters, settings } = adaptation, kind = adaptation.constructor;
  const expect = (name, rows, cols) => {
    const p = parameters[name];
    if (!p) throw new Error(`the file has no ${name}`);
    if (p.rows !== rows || p.cols !== cols) throw new Error(`${name} is ${p.rows} × ${p.cols}; this base needs ${rows} × ${cols}. Was it made for another one?`);
    expected.add(name);
  };
  const expected = new Set();
  if (kind === LoRA) {
    const paths = Object.keys(parameters).filter((name) => name.endsWith(".lora_A.weight")).map((name) => name.slice(0, -14));
    for (const path of paths) {
      if (!shapes[path]) throw new Error(`the base has no linear map ${path}`);
      const { rows: r } = parameters[`${path}.lora_A.weight`];
      expect(`${path}.lora_A.weight`, r, shapes[path][1]);
      expect(`${path}.lora_B.weight`, shapes[path][0], r);
    }
    if (!paths.length) throw new Error("the file has no lora_A.weight");
    settings.target_modules = [...new Set(paths.map((path) => path.split(".").at(-1)))];
  } else if (kind === Bottleneck) {
    for (const [path, [width]] of adaptation.places(model)) {
      const m = parameters[`${path}.adapter_down.weight`]?.rows ?? settings.bottleneck_size;
      expect(`${path}.adapter_down.weight`, m, width);
      expect(`${path}.adapter_down.bias`, 1, m);
      expect(`${path}.adapter_up.weight`, width, m);
      expect(`${path}.adapter_up.bias`, 1, width);
    }
  } else {
    const n = parameters.prompt_embeddings?.rows ?? settings.num_virtual_tokens;
    expect("prompt_embeddings", n, kind === SoftPrompt ? model.width : 2 * model.layers.length * model.width);
    settings.num_virtual_tokens = n;
  }
  const others = Object.keys(parameters).filter((name) => !expected.has(name));
  if (others.length) throw new Error(`${others[0]} has no place in this base`);
}
