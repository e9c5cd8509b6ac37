// The engine's own thread: it holds the model and the adaptations, and answers one request after another.
// A request is {id, action, ...}; the answer {id, result} or {id, error}; before it may come {id, progress}.

import { METHODS } from "./adaptations.js";
import { fromFolder, toFolder } from "./checkpoint.js";
import { makeKernel } from "./kernel.js";
import { Memory, OutOfMemory } from "./memory.js";
import { Model } from "./model.js";
import { Random } from "./random.js";
import { readSafetensors } from "./safetensors.js";
import { Tokenizer } from "./tokenizer.js";
import { Run, continuations, meanLoss, nextLogits } from "./training.js";
import { World, examples } from "./world.js";

const state = { adaptations: {}, runs: {}, merged: null, stopping: false };
const here = (name) => new URL(name, import.meta.url);

async function download(name, tell) {
  const answer = await fetch(here(`../data/${name}`)).catch(() => null);
  if (!answer?.ok) throw new Error(`the site did not send ${name}${answer ? ` (${answer.status})` : ""}; is the network there?`);
  const reader = answer.body.getReader(), parts = [];
  for (let bytes = 0;;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    tell({ name, bytes: bytes += value.length });
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

const json = async (name, tell) => JSON.parse(new TextDecoder().decode(await download(name, tell)));

const tasks = {
  sentiment: (world) => world.sentiment,
  questions: (world) => world.openQuestions,
  summary: (world) => world.summary,
  translation: (world) => world.translation,
  tale: (world) => world.styled("tale", 1),
  shout: (world) => world.styled("shout", 1),
  pirate: (world) => world.styled("pirate", 1),
};

function drawn({ task, n, seed, longest = Infinity }) {
  const write = tasks[task](state.world);
  return examples(write, n, new Random(seed)).filter((e) => e.prompt.split(" ").length <= longest);
}

const named = (name) => {
  if (!name) return [];
  if (!state.adaptations[name]) throw new Error(`no adaptation ${name}`);
  return state.merged?.name === name ? [] : [state.adaptations[name]];  // a merged one is in the weights
};

function measure({ watch, test }, adaptations) {
  const found = { validation: meanLoss(state.model, watch, adaptations) };
  const { labels, texts, answers } = test;
  if (labels) {
    const logits = nextLogits(state.model, texts, adaptations);
    found.accuracy = logits.filter((row, i) => labels.every((label) => row[answers[i]] >= row[label])).length / texts.length;
  } else if (test.wanted) {
    const written = continuations(state.model, texts, adaptations, { most: 12 }).map((ids) => state.tokenizer.decode(ids));
    found.accuracy = written.filter((text, i) => text === test.wanted[i]).length / texts.length;
  } else if (test.style) {
    const written = continuations(state.model, texts, adaptations).map((ids) => state.tokenizer.decode(ids));
    const counts = written.map((text) => state.world.wears(text, test.style));
    found.accuracy = counts.reduce((sum, [right]) => sum + right, 0) / Math.max(1, counts.reduce((sum, [, all]) => sum + all, 0));
  }
  return found;
}

// Examples that are to be drawn, or the reader's own.
const given = (wanted) => Array.isArray(wanted) ? wanted : drawn(wanted);

function testFor(wanted) {
  const { tokenizer, world } = state, { task } = wanted, some = given(wanted), texts = some.map((e) => tokenizer.encode(e.prompt));
  if (task === "sentiment") return { labels: world.verdicts.map((word) => tokenizer.ids[word]), texts, answers: some.map((e) => tokenizer.ids[e.answer]) };
  return task in world.styles ? { style: task, texts } : { wanted: some.map((e) => e.answer), texts };
}

// Wait for the messages that came meanwhile, such as the wish to stop.
const pause = () => new Promise((go) => { setTimeout(go); });

const actions = {
  async open({ base, plain }, tell) {
    const [kernel, about, world, weights] = await Promise.all([download("kernel.wasm", tell), json(`${base}.json`, tell), json("world.json", tell), download(`${base}.safetensors`, tell)]);
    return actions.place({ base, kernel: plain ? null : kernel, about, world, weights });
  },

  async place({ base, kernel, about, world, weights }) {
    const memory = new Memory(), made = await makeKernel(memory, kernel);
    const model = new Model(memory, made, about.config, readSafetensors(weights));
    Object.assign(state, { base, model, world: new World(world), tokenizer: new Tokenizer(about.vocabulary), adaptations: {}, runs: {}, merged: null });
    return { kernel: made.name, vocabulary: state.tokenizer.words, verdicts: state.world.verdicts };
  },

  // Begin a run, or go on with one that was stopped. method: "lora", ...; own: the reader's examples.
  async train({ name, method, settings, seed, steps, batchSize, lr, data, own, watch, test, every = 20, fixed }, tell) {
    const { tokenizer } = state;
    if (state.merged) actions.unmerge();
    let run = state.runs[name];
    if (!run || run.finished) {
      const random = new Random(seed);
      const adaptation = fixed ? fromFolder(fixed.files, state.model) : new METHODS[method](settings).start(state.model, random);
      const raw = own ?? (fixed ? null : drawn(data));
      run = new Run(state.model, adaptation, fixed?.examples ?? raw.map((e) => tokenizer.example(e)), { steps, batchSize, lr, random, batches: fixed?.batches });
      run.measures = { watch: watch ? given(watch).map((e) => tokenizer.example(e)) : [], test: test ? testFor(test) : {} };
      state.adaptations[name] = adaptation;
      state.runs[name] = run;
      if (watch) tell({ step: 0, steps, count: adaptation.count, ...measure(run.measures, [adaptation]) });
    }
    state.stopping = false;
    let before = performance.now();
    while (run.done < run.steps && !state.stopping) {
      const loss = run.step(), at = { step: run.done, steps: run.steps, loss };
      if (watch && (run.done % every === 0 || run.done === run.steps)) Object.assign(at, measure(run.measures, [run.adaptation]));
      tell({ ...at, ms: performance.now() - before });
      before = performance.now();
      await pause();
    }
    run.finished = run.done === run.steps;
    return { done: run.done, steps: run.steps, finished: run.finished, count: run.adaptation.count };
  },

  stop() { state.stopping = true; },
  forget({ name }) { delete state.runs[name]; delete state.adaptations[name]; if (state.merged?.name === name) actions.unmerge(); },

  // The test accuracy with ΔW (LoRA's) multiplied by a weight.
  score({ name, test, weight = 1 }) {
    const { texts, labels, answers } = testFor(test), rows = nextLogits(state.model, texts, named(name), [texts.map(() => weight)]);
    return rows.filter((row, i) => labels.every((label) => row[answers[i]] >= row[label])).length / rows.length;
  },

  // The probabilities of some words after each text, and of the likeliest words. weights: {name: one a text}.
  next({ texts, name, names = [name], weights = {}, words }) {
    const { tokenizer } = state, all = names.flatMap(named);
    const rows = nextLogits(state.model, texts.map((text) => tokenizer.encode(text)), all, names.map((one) => weights[one]));
    return rows.map((row) => {
      const ids = words?.map((word) => tokenizer.ids[word]) ?? row.map((_, id) => id), most = Math.max(...ids.map((id) => row[id]));
      const shares = ids.map((id) => Math.exp(row[id] - most)), sum = shares.reduce((a, b) => a + b, 0);
      const found = ids.map((id, i) => ({ word: tokenizer.words[id], share: shares[i] / sum }));
      return words ? found : found.sort((a, b) => b.share - a.share).slice(0, 5);
    });
  },

  logits({ ids, name, weights }) { return nextLogits(state.model, ids, named(name), [weights]); },

  write({ texts, name, names = [name], weights = {}, most = 24 }) {
    const ids = texts.map((text) => state.tokenizer.encode(text));
    return continuations(state.model, ids, names.flatMap(named), { most, weights: names.map((one) => weights[one]) }).map((new_) => state.tokenizer.decode(new_));
  },

  // W_0 + weight · ΔW takes the place of W_0; what stood there is kept, so that unmerging gives it back bit for bit.
  merge({ name, weight = 1 }) {
    if (state.merged) actions.unmerge();
    const before = {};
    for (const [path, delta] of Object.entries(state.adaptations[name].changes(weight))) {
      const map = state.model.map(path);
      before[path] = map.data.slice();
      map.set(map.data.map((w, i) => w + delta[i]));
    }
    state.merged = { name, before };
  },

  unmerge() {
    for (const [path, values] of Object.entries(state.merged?.before ?? {})) state.model.map(path).set(values);
    state.merged = null;
  },

  save({ name }) { return toFolder(state.adaptations[name], state.model, state.base); },

  load({ name, files }) {
    const adaptation = state.adaptations[name] = fromFolder(files, state.model);
    delete state.runs[name];
    return { method: adaptation.constructor.type, settings: adaptation.settings, count: adaptation.count };
  },

  async fetchAdapter({ name, folder }, tell) {
    const files = {};
    for (const file of ["adapter_config.json", "adapter_model.safetensors"]) files[file] = await download(`${folder}/${file}`, tell);
    return actions.load({ name, files });
  },

  drawn: (wanted) => drawn(wanted),
  unknown: ({ texts }) => [...new Set(texts.flatMap((text) => state.tokenizer.unknown(text)))],
  tidy: ({ text }) => state.tokenizer.tidy(text),

  // The word whose embedding has the largest cosine with each row of a soft prompt: [{word, cosine}].
  nearest({ name }) {
    const { values, rows, cols } = state.adaptations[name].parameters.prompt_embeddings, table = state.model.embedding;
    const E = table.data, norm = (X, from) => Math.hypot(...X.subarray(from, from + cols));
    const norms = Array.from({ length: table.rows }, (_, id) => norm(E, id * cols));
    return Array.from({ length: rows }, (_, i) => {
      let best = { cosine: -2 };
      for (let id = 0; id < table.rows; id++) {
        let dot = 0;
        for (let d = 0; d < cols; d++) dot += values[i * cols + d] * E[id * cols + d];
        const cosine = dot / (norms[id] * norm(values, i * cols));
        if (cosine > best.cosine) best = { word: state.tokenizer.words[id], cosine };
      }
      return best;
    });
  },
};

addEventListener("message", async ({ data: { id, action, ...wanted } }) => {
  try {
    postMessage({ id, result: await actions[action](wanted, (progress) => postMessage({ id, progress })) });
  } catch (error) {
    postMessage({ id, error: error.message, kind: error instanceof OutOfMemory || error instanceof RangeError ? "memory" : "" });
  }
});
