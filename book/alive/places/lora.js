// Page 2.2: train a LoRA on reviews, watch it, type a review, merge and unmerge, move α.

import { open } from "../begin.js";
import { checkpointButtons } from "../checkpoints.js";
import { button, calm, el, number, percent, problem, select, slider, text } from "../parts.js";
import { TrainingPanel } from "../training_panel.js";

const ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
const TARGETS = { "all linear maps": ALL, "queries and values": ["q_proj", "v_proj"] };
const NAME = "lora", OWN = 2;
const DATA = { task: "sentiment", n: 2000, seed: 1, longest: 16 };  // as on the page
const WATCH = { task: "sentiment", n: 40, seed: 3 }, TEST = { task: "sentiment", n: 100, seed: 2 };

export async function build(box, engine, { verdicts, vocabulary }, stored) {
  const base = select("Base", ["pocket-gpt", "pocket-gpt-small", "pocket-gpt-tiny"], "pocket-gpt");
  const rank = select("Rank r", [1, 2, 4, 8, 16], 8), alpha = number("α", 16, { min: 0.5, max: 256, step: 0.5 });
  const rate = select("Learning rate", [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1], 0.01);
  const targets = select("Where", Object.keys(TARGETS), "all linear maps");
  const steps = number("Steps", 100, { min: 10, max: 1000 }), seed = number("Seed", 0, { min: 0, max: 1e9 });
  const settings = [base, rank, alpha, rate, targets, steps, seed];
  const own = text("One a line, as in: the soup was not dull they = smiled", "", { rows: 5 });
  own.input.placeholder = "nobody found the soup dull they = smiled\nthe cake was sweet but the room was dark they = frowned";
  const useOwn = el("input", { type: "checkbox" });

  const request = async () => {
    for (const { input } of settings) if (!input.checkValidity()) {
      input.focus();
      throw new Error(`${input.previousElementSibling.textContent} is ${input.value || "empty"}: expected ${input.min} to ${input.max}`);
    }
    return {
      method: "lora", settings: { r: Number(rank.input.value), alpha: Number(alpha.input.value), target_modules: TARGETS[targets.input.value] },
      lr: Number(rate.input.value), steps: Number(steps.input.value), seed: Number(seed.input.value), batchSize: 8,
      data: DATA, own: useOwn.checked ? await ownExamples(engine, own.input.value, verdicts) : undefined, watch: WATCH, test: TEST,
    };
  };

  let trained = false, merged = false;
  const lock = () => {  // a run that waits goes on with its own settings
    for (const { input } of settings) input.disabled = panel.running || panel.waiting;
  };
  const panel = new TrainingPanel(engine, {
    name: NAME, request, score: "test accuracy", stored: { name: "full fine-tuning (stored run)", ...stored.full },
    finished: async (result) => { trained = Boolean(result); merged = false; tellMerged(); await judge(); },
    changed: () => lock(),
  });
  const full = panel.stored;

  base.input.addEventListener("change", async () => {
    panel.status.textContent = `Loading ${base.input.value}.`;
    try {
      await open(engine, base.input.value, panel.bar);
      panel.stored = base.input.value === "pocket-gpt" ? full : {};  // it is of that base
      panel.clear();
      trained = merged = false;
      panel.status.textContent = `${base.input.value} is loaded.`;
      await judge();
    } catch (error) { panel.status.textContent = problem(error); }
  });

  // --- type a review
  const review = text("Your review", "although the soup was tasty , the inn was dirty");
  const verdict = el("output", { ariaLive: "polite" });
  const weight = slider("Multiply α by", 1, { min: 0, max: 2, step: 0.1, shown: (v) => Number(v).toFixed(1) });
  const judge = async () => {
    try {
      const typed = await engine.ask("tidy", { text: review.input.value }), full = / they$/.test(` ${typed}`) ? typed : `${typed} they`;
      const unknown = await engine.ask("unknown", { texts: [full] }), w = Number(weight.input.value);
      const ask = async (name) => (await engine.ask("next", { texts: [full], name, words: verdicts, weights: name ? { [name]: [w] } : {} }))[0];
      const shown = (found) => found.map(({ word, share }) => `${word} ${percent(share)}`).join(", ");
      const lines = merged ? [] : [`Frozen base: ${shown(await ask())}.`];
      if (trained) lines.push(`${merged ? "Merged into the weights" : "With your LoRA"}: ${shown(await ask(NAME))}.`);
      if (unknown.length) lines.push(`Not among its ${vocabulary.length} words, so read as <unk>: ${unknown.join(", ")}.`);
      verdict.textContent = lines.join("\n");
    } catch (error) { verdict.textContent = problem(error); }
  };
  review.input.addEventListener("input", calm(judge));

  // --- merge, unmerge, α
  const score = el("output", { ariaLive: "polite" });
  const merge = button("Merge", async () => {
    try {
      if (!merged && !trained) throw new Error("train first, or open a checkpoint");
      const before = await logits();
      await engine.ask(merged ? "unmerge" : "merge", { name: NAME, weight: Number(weight.input.value) });
      merged = !merged;
      const after = await logits(), apart = Math.max(...before.map((x, i) => Math.abs(x - after[i])));
      tellMerged();
      score.textContent = `${merged ? "W₀ + ΔW stands in the place of W₀" : "W₀ is back, bit for bit, and ΔW stands beside it"}. ` +
        `The largest change of a logit: ${apart ? apart.toExponential(0) : 0}.`;
      await judge();
    } catch (error) { score.textContent = problem(error); }
  });
  const logits = async () => (await engine.ask("logits", { ids: [[1, 20, 30, 40, 50]], name: NAME, weights: [Number(weight.input.value)] }))[0];
  const tellMerged = () => { merge.textContent = merged ? "Unmerge" : "Merge"; weight.input.disabled = merged; };
  const measure = calm(async () => {
    if (!trained) return;
    const accuracy = await engine.ask("score", { name: NAME, test: TEST, weight: Number(weight.input.value) });
    score.textContent = `α times ${Number(weight.input.value).toFixed(1)}: test accuracy ${percent(accuracy)}.`;
  }, 400);
  weight.input.addEventListener("input", calm(judge, 100));
  weight.input.addEventListener("change", measure);

  const files = checkpointButtons(engine, {
    name: NAME, folder: "my-lora", status: panel.status,
    opened: async (about) => {
      if (about.method !== "LORA") throw new Error(`this is ${about.method}, no LoRA`);
      panel.clear();
      trained = true;
      merged = false;
      tellMerged();
      panel.status.textContent = `Opened: a LoRA of ${about.count.toLocaleString("en")} numbers, α = ${about.settings.alpha}.`;
      await judge();
      measure();
    },
  });

  box.append(
    el("div", { className: "controls" }, ...settings.map(({ node }) => node)),
    el("details", {}, el("summary", { textContent: "Train on reviews of your own" }), own.node,
      el("label", {}, useOwn, el("span", { textContent: "Train on these alone (ten make a good start)" }))),
    panel.node,
    el("div", { className: "part" }, review.node, verdict),
    el("div", { className: "part" }, el("div", { className: "buttons" }, weight.node, merge), score),
    files.node,
  );
  await judge();
}

// The reader's lines as examples; errors name the line.
async function ownExamples(engine, typed, verdicts) {
  const lines = typed.split("\n").filter((line) => line.trim());
  if (lines.length < OWN) throw new Error(`${lines.length} reviews of your own: write at least ${OWN}, one a line`);
  return Promise.all(lines.map(async (line, i) => {
    const [prompt, answer] = line.split("=").map((part) => part.trim().toLowerCase());
    if (!verdicts.includes(answer)) throw new Error(`line ${i + 1} ends with ${JSON.stringify(answer ?? "")}: expected "= ${verdicts.join('" or "= ')}"`);
    const tidy = await engine.ask("tidy", { text: prompt }), unknown = await engine.ask("unknown", { texts: [tidy] });
    if (unknown.length) throw new Error(`line ${i + 1}: the model does not know ${unknown.join(", ")}`);
    return { prompt: tidy.endsWith(" they") ? tidy : `${tidy} they`, answer };
  }));
}
