// Page 4.1: train a soft prompt from a text of the reader's own, and see the words nearest to its rows.

import { checkpointButtons } from "../checkpoints.js";
import { calm, el, number, percent, problem, select, table, text } from "../parts.js";
import { TrainingPanel } from "../training_panel.js";

const NAME = "prompt";
const STYLES = { tale: "a tale (… , so they say .)", shout: "a shout (wow , … !)", pirate: "a pirate's song, new to the model" };

export async function build(box, engine, { vocabulary }, stored) {
  const init = text("Words that the prompt begins as", "leo was happy , so they say .");
  const style = select("Teach it to tell", Object.keys(STYLES), "tale", (name) => STYLES[name]);
  const method = select("Method", ["prompt", "prefix"], "prompt", (kind) => ({ prompt: "soft prompt", prefix: "prefix, random at the start" })[kind]);
  const rate = select("Learning rate", [0.01, 0.03, 0.1, 0.3], 0.1);
  const steps = number("Steps", 100, { min: 10, max: 1000 }), seed = number("Seed", 0, { min: 0, max: 1e9 });
  const settings = [style, method, rate, steps, seed, init], begun = { words: [] };

  const request = async () => {
    for (const { input } of [steps, seed]) if (!input.checkValidity()) {
      input.focus();
      throw new Error(`${input.previousElementSibling.textContent} is ${input.value || "empty"}: expected ${input.min} to ${input.max}`);
    }
    const typed = await engine.ask("tidy", { text: init.input.value }), words = typed.split(" ").filter(Boolean);
    const unknown = await engine.ask("unknown", { texts: [typed] });
    if (!words.length || words.length > 40) throw new Error(`the prompt begins as ${words.length} words: write 1 to 40`);
    if (unknown.length) throw new Error(`the model does not know ${unknown.join(", ")}: its ${vocabulary.length} words are those of the story world`);
    begun.words = words;
    const task = style.input.value, ids = words.map((word) => vocabulary.indexOf(word));
    return {
      method: method.input.value, settings: { num_virtual_tokens: words.length, init: ids }, lr: Number(rate.input.value),
      steps: Number(steps.input.value), seed: Number(seed.input.value), batchSize: 8,
      data: { task, n: 1000, seed: 1 }, watch: { task, n: 40, seed: 3 }, test: { task, n: 10, seed: 2 },
    };
  };

  const nearest = el("div", { ariaLive: "polite" }), opening = text("A first sentence of yours", "one morning lily went to the old park .");
  const written = el("output", { ariaLive: "polite" });
  let trained = false;
  const look = async () => {
    if (!trained || method.input.value !== "prompt") return nearest.replaceChildren();
    const found = await engine.ask("nearest", { name: NAME }), same = found.filter(({ word }, i) => word === begun.words[i]).length;
    const rows = [["began as", "nearest now", "cosine"], ...found.map(({ word, cosine }, i) => [begun.words[i] ?? "", word, cosine.toFixed(2)])];
    nearest.replaceChildren(table(rows, begun.words.length ? `The nearest words: ${same} of ${found.length} are still where they began.` : "The nearest words"));
  };
  const write = async () => {
    try {
      const typed = await engine.ask("tidy", { text: opening.input.value }), unknown = await engine.ask("unknown", { texts: [typed] });
      const ask = async (names) => (await engine.ask("write", { texts: [typed], names, most: 16 }))[0] || "(the text ends here)";
      const lines = [`Frozen base: ${await ask([])}`];
      if (trained) lines.push(`With your prompt: ${await ask([NAME])}`);
      if (unknown.length) lines.push(`Read as <unk>: ${unknown.join(", ")}.`);
      written.textContent = lines.join("\n");
    } catch (error) { written.textContent = problem(error); }
  };
  opening.input.addEventListener("input", calm(write, 500));

  const panel = new TrainingPanel(engine, {
    name: NAME, request, score: "sentences in the style", stored: { name: "the library's run (stored)", ...stored.prompt },
    finished: async (result) => { trained = Boolean(result); await look(); await write(); },
    changed: () => { for (const { input } of settings) input.disabled = panel.running || panel.waiting; },
  });
  const own = panel.stored;
  const compare = () => {  // the stored run began as other words perhaps, but told the same style
    panel.stored = style.input.value === "tale" && method.input.value === "prompt" ? own : {};
    panel.draw();
  };
  for (const { input } of [style, method]) input.addEventListener("change", compare);

  const files = checkpointButtons(engine, {
    name: NAME, folder: "my-prompt", status: panel.status,
    opened: async (about) => {
      if (!["PROMPT_TUNING", "PREFIX_TUNING"].includes(about.method)) throw new Error(`this is ${about.method}, no prompt and no prefix`);
      panel.clear();
      trained = true;
      begun.words = [];
      method.input.value = about.method === "PROMPT_TUNING" ? "prompt" : "prefix";
      compare();
      panel.status.textContent = `Opened: ${about.settings.num_virtual_tokens} virtual tokens, ${about.count.toLocaleString("en")} numbers.`;
      await look();
      await write();
    },
  });

  box.append(init.node, el("div", { className: "controls" }, ...settings.slice(0, 5).map(({ node }) => node)), panel.node, nearest,
    el("div", { className: "part" }, opening.node, written), files.node);
  await write();
}
