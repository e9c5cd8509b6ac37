// Page 3.2: one base, an adapter a task. Switch between the stored ones, and train a fourth on examples of one's own.

import { checkpointButtons } from "../checkpoints.js";
import { button, calm, el, number, problem, select, text } from "../parts.js";
import { TrainingPanel } from "../training_panel.js";

const STORED = { translation: "translation into Toli", summary: "a story in short", questions: "questions, some without an answer" };
const OWN = "own", NONE = "none";
const SAMPLE = "anna had a red ball . = oh , a red ball !\ntom had a blue hat . = oh , a blue hat !\nmia had a green kite . = oh , a green kite !\n" +
  "ben had a black cup . = oh , a black cup !\nnora had a white book . = oh , a white book !\nleo had a pink drum . = oh , a pink drum !\n" +
  "ruth had a yellow bell . = oh , a yellow bell !\nsam had a brown lamp . = oh , a brown lamp !\nida had a purple scarf . = oh , a purple scarf !\npaul had a grey key . = oh , a grey key !";

export async function build(box, engine, about, stored) {
  const named = { [NONE]: "no adapter", ...STORED, [OWN]: "your own, trained below" };
  const which = select("Active adapter", Object.keys(named), NONE, (name) => named[name]);
  const prompt = text("Prompt", "leo saw the red ball . in toli :", { rows: 3 }), written = el("output", { ariaLive: "polite" });
  const there = new Set([NONE]);

  const write = async () => {
    const name = which.input.value;
    try {
      if (name in STORED && !there.has(name)) {  // 0.1 MB each, fetched when it is first wanted
        written.textContent = `Loading the adapter for ${STORED[name]}.`;
        await engine.ask("fetchAdapter", { name, folder: name });
        there.add(name);
      }
      if (!there.has(name)) throw new Error("there is none yet: train it below, or open a checkpoint");
      const typed = await engine.ask("tidy", { text: prompt.input.value }), unknown = await engine.ask("unknown", { texts: [typed] });
      if (!typed) throw new Error("the prompt is empty: write some words of the story world");
      const start = performance.now(), [answer] = await engine.ask("write", { texts: [typed], names: name === NONE ? [] : [name], most: 14 });
      written.textContent = [`${named[name]}: ${answer || "(the text ends here)"}`, `${Math.round(performance.now() - start)} ms on your processor.`,
        unknown.length && `Read as <unk>: ${unknown.join(", ")}.`].filter(Boolean).join("\n");
    } catch (error) { written.textContent = problem(error); }
  };
  which.input.addEventListener("change", write);
  prompt.input.addEventListener("input", calm(write, 600));
  let drawn = 2;  // seeds of examples: none of these was trained on
  const example = button("Another prompt of this task", async () => {
    const task = which.input.value in STORED ? which.input.value : "translation";
    const [found] = await engine.ask("drawn", { task, n: 1, seed: 1000 + drawn++ });
    prompt.input.value = found.prompt;
    await write();
    written.textContent += `\nRight would be: ${found.answer}`;
  });

  const own = text("Your examples, one a line: prompt = answer", SAMPLE, { rows: 6 });
  const size = select("Bottleneck", [4, 8, 16, 32], 16), rate = select("Learning rate", [0.001, 0.003, 0.01, 0.03], 0.01);
  const steps = number("Steps", 60, { min: 10, max: 1000 }), seed = number("Seed", 0, { min: 0, max: 1e9 });
  const settings = [size, rate, steps, seed];
  const examples = async () => {
    const lines = own.input.value.split("\n").filter((line) => line.trim());
    if (lines.length < 2) throw new Error(`${lines.length} examples: write at least 2, one a line; ten make a good start`);
    return Promise.all(lines.map(async (line, i) => {
      const [before, after] = await Promise.all(line.split("=").slice(0, 2).map((part) => engine.ask("tidy", { text: part })));
      if (!before || !after) throw new Error(`line ${i + 1} is ${JSON.stringify(line)}: expected a prompt, "=" and an answer`);
      const unknown = await engine.ask("unknown", { texts: [before, after] });
      if (unknown.length) throw new Error(`line ${i + 1}: the model does not know ${unknown.join(", ")}`);
      return { prompt: before, answer: after };
    }));
  };
  const panel = new TrainingPanel(engine, {
    name: OWN, score: "your examples answered exactly",
    request: async () => {
      for (const { input } of [steps, seed]) if (!input.checkValidity())
        throw new Error(`${input.previousElementSibling.textContent} is ${input.value || "empty"}: expected ${input.min} to ${input.max}`);
      const mine = await examples();
      return { method: "bottleneck", settings: { bottleneck_size: Number(size.input.value), placement: "houlsby" }, lr: Number(rate.input.value),
        steps: Number(steps.input.value), seed: Number(seed.input.value), batchSize: 8, own: mine, watch: mine, test: mine };
    },
    finished: async (result) => {
      if (result) there.add(OWN); else there.delete(OWN);
      which.input.value = result ? OWN : NONE;
      await write();
    },
    changed: () => { for (const { input } of settings) input.disabled = panel.running || panel.waiting; },
  });
  const files = checkpointButtons(engine, {
    name: OWN, folder: "my-adapter", status: panel.status,
    opened: async ({ method, count }) => {
      there.add(OWN);
      which.input.value = OWN;
      panel.clear();
      panel.status.textContent = `Opened: ${method}, ${count.toLocaleString("en")} numbers.`;
      await write();
    },
  });

  box.append(el("div", { className: "controls" }, which.node), prompt.node, el("div", { className: "buttons" }, example), written,
    el("div", { className: "part" }, own.node, el("div", { className: "controls" }, ...settings.map(({ node }) => node)), panel.node), files.node);
  await write();
}
