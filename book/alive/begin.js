// Called when a reader presses "Start" on a figure: loads the engine, and puts the place's controls into it.

import { Engine } from "./client.js";
import { el, problem } from "./parts.js";

const sizes = { "pocket-gpt": 2.7, "pocket-gpt-small": 0.8, "pocket-gpt-tiny": 0.2 };

export async function begin(figure) {
  const style = el("link", { rel: "stylesheet", href: new URL("alive.css", import.meta.url).href });
  await new Promise((loaded) => { style.onload = style.onerror = loaded; document.head.append(style); });
  const { build } = await import(`./places/${figure.dataset.alive}.js`);
  const box = el("div", { className: "alive-box", role: "group", ariaLabel: "Train in this page", tabIndex: -1 });
  const status = el("output", { ariaLive: "polite" }), bar = el("progress", { max: 1, ariaLabel: "Loading the model" });
  box.append(status, bar);
  figure.querySelector(".alive-still").after(box);
  status.textContent = `Loading the model: ${sizes["pocket-gpt"]} MB.`;
  try {
    const engine = new Engine();
    const about = await open(engine, "pocket-gpt", bar);
    const stored = await (await fetch(new URL("data/stored.json", import.meta.url))).json();
    bar.remove();
    figure.querySelector(".alive-still").hidden = true;
    status.remove();
    if (about.kernel === "JavaScript") box.append(el("p", { textContent: "This browser has no WebAssembly with vector instructions. All works, about four times slower." }));
    await build(box, engine, about, stored);
    box.focus({ preventScroll: true });
  } catch (error) {
    box.remove();
    throw Object.assign(error, { message: problem(error) });
  }
}

// Load a base; the bar shows how much has come.
export async function open(engine, base, bar) {
  const came = {};
  return engine.ask("open", { base }, ({ name, bytes }) => {
    came[name] = bytes;
    bar.value = Math.min(1, Object.values(came).reduce((a, b) => a + b, 0) / (1e6 * sizes[base]));
  });
}
