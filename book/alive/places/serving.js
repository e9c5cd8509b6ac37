// Page 2.4: two LoRAs on one base; each has a weight, and each row of one batch has its own.

import { checkpointButtons } from "../checkpoints.js";
import { button, calm, el, number, percent, problem, slider, table, text } from "../parts.js";
import { TrainingPanel } from "../training_panel.js";

const ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
const SKILLS = {
  reviews: { task: "sentiment", data: { n: 2000, seed: 1, longest: 16 }, score: "test accuracy", tested: 100 },
  tales: { task: "tale", data: { n: 1000, seed: 1 }, score: "sentences told as a tale", tested: 6 },
};

export async function build(box, engine, about, stored) {
  const seed = number("Seed", 0, { min: 0, max: 1e9 }), steps = number("Steps each", 60, { min: 10, max: 500 });
  const there = {}, panels = {}, weights = {};
  for (const [name, { task, data, score, tested }] of Object.entries(SKILLS)) {
    panels[name] = new TrainingPanel(engine, {
      name, score,
      request: () => {
        for (const { input } of [seed, steps]) if (!input.checkValidity()) throw new Error(`${input.value || "nothing"} is not from ${input.min} to ${input.max}`);
        return { method: "lora", settings: { r: 8, alpha: 16, target_modules: ALL }, lr: 0.01, steps: Number(steps.input.value),
          seed: Number(seed.input.value), batchSize: 8, data: { task, ...data }, watch: { task, n: 30, seed: 3 }, test: { task, n: tested, seed: 2 } };
      },
      finished: async (result) => { there[name] = Boolean(result); await serve(); },
    });
    panels[name].button.setAttribute("aria-describedby", `alive-${name}`);
    weights[name] = slider(`Weight of “${name}”`, 1, { min: 0, max: 1.5, step: 0.1, shown: (v) => Number(v).toFixed(1) });
  }

  const review = text("A review", "although the soup was tasty , the inn was dirty they");
  const opening = text("A first sentence", "leo went to the old park .");
  const shown = el("div"), said = el("output", { ariaLive: "polite" });
  const serve = async () => {
    try {
      const names = Object.keys(SKILLS).filter((name) => there[name]);
      const typed = await Promise.all([review, opening].map(({ input }) => engine.ask("tidy", { text: input.value })));
      const w = Object.fromEntries(names.map((name) => [name, Number(weights[name].input.value)]));
      const kinds = [["none", {}], ...names.map((name) => [name, { [name]: w[name] }]), ...(names.length > 1 ? [["both, weighted", w]] : [])];
      const rows = typed.flatMap((prompt) => kinds.map(([kind, own]) => ({ prompt, kind, own })));
      // One batch: every adaptation has a weight for each row, 0 where the row does without it.
      const batch = (some) => ({ texts: some.map((row) => row.prompt), names,
        weights: Object.fromEntries(names.map((name) => [name, some.map((row) => row.own[name] ?? 0)])) });
      const together = await engine.ask("write", { ...batch(rows), most: 12 });
      const likely = await engine.ask("next", batch(rows)), single = [];
      for (const row of rows) single.push((await engine.ask("next", batch([row])))[0]);
      const apart = Math.max(...likely.map((found, i) => Math.abs(found[0].share - single[i][0].share)));
      shown.replaceChildren(table([["row", "adaptation", "goes on with"], ...rows.map(({ prompt, kind }, i) => [prompt, kind, together[i] || "(the text ends here)"])],
        `${rows.length} rows in one batch`));
      said.textContent = names.length ? `Each row is as if it were alone: the largest difference of a probability is ${apart ? apart.toExponential(0) : 0}.`
        : "Train one adaptation, or both.";
    } catch (error) { said.textContent = problem(error); }
  };
  const soon = calm(serve, 400);
  for (const { input } of [review, opening, ...Object.values(weights)]) input.addEventListener("input", soon);

  const files = checkpointButtons(engine, {
    name: "reviews", folder: "my-reviews", status: panels.reviews.status,
    opened: async (found) => {
      if (found.method !== "LORA") throw new Error(`this is ${found.method}, no LoRA`);
      there.reviews = true;
      panels.reviews.status.textContent = "Opened, in the place of “reviews”.";
      await serve();
    },
  });
  box.append(el("div", { className: "controls" }, steps.node, seed.node),
    ...Object.entries(panels).flatMap(([name, panel]) => [el("p", { id: `alive-${name}`, className: "part", textContent: `The adaptation “${name}”` }), panel.node]),
    el("div", { className: "part" }, ...Object.values(weights).map(({ node }) => node), review.node, opening.node, said, shown), files.node);
  await serve();
}
