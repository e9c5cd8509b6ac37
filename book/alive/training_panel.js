// A training that the reader watches: Start, Stop and Resume, a bar, the losses and the score, and what is said of them.

import { button, chart, el, percent, problem } from "./parts.js";

const SLEPT = 20_000;  // no step for so many milliseconds while the tab was hidden: it was asleep
export const COLOURS = { train: "#56B4E9", validation: "#0072B2", stored: "#D55E00" };

export class TrainingPanel {
  // request(): what the engine's "train" wants, or an error for the reader. stored: curves of a run to compare with.
  // finished(result): called after the last step, and after a stop; null when all is forgotten. changed(): called
  // when a run begins or ends.
  constructor(engine, { name, request, stored = {}, score, finished, changed }) {
    Object.assign(this, { engine, name, request, stored, score, finished, changed, running: false, waiting: false });
    this.status = el("output", { ariaLive: "polite" });
    this.bar = el("progress", { max: 1, value: 0, ariaLabel: "Progress of the training" });
    this.button = button("Train", () => this.press());
    this.again = button("Start over", () => this.over());
    this.again.hidden = true;
    this.loss = chart("Losses by step", { label: "loss, nats", log: true, ticks: [0.1, 0.3, 1, 3, 10] }, 100);
    this.right = chart(`${score} by step`, { label: score, ticks: [0, 0.25, 0.5, 0.75, 1], shown: percent }, 100);
    this.details = el("details", {}, el("summary", { textContent: "The numbers" }), el("pre", { tabIndex: 0 }));
    this.node = el("div", {}, el("div", { className: "buttons" }, this.button, this.again, this.bar), this.status,
      el("div", { className: "charts" }, this.loss.node, this.right.node), this.details);
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
    document.addEventListener("visibilitychange", () => { if (document.hidden) this.hidden = true; });
    this.clear();
  }

  clear() {
    Object.assign(this, { losses: [], validation: [], scores: [], waiting: false });
    this.bar.value = 0;
    this.button.textContent = "Train";
    this.again.hidden = true;
    this.draw();
  }

  async over() {
    await this.engine.ask("forget", { name: this.name });
    this.clear();
    this.status.textContent = "Forgotten. Train starts from the beginning.";
    this.button.focus();
    this.finished?.(null);
    this.changed?.();
  }

  async press() {
    if (this.running) return this.engine.ask("stop");
    let wanted;
    try {
      wanted = await this.request();
    } catch (error) {
      this.status.textContent = problem(error);
      return;
    }
    if (!this.waiting) this.clear();
    this.running = true;
    this.changed?.();
    this.button.textContent = "Stop";
    this.again.hidden = true;
    this.began = this.last = Date.now();
    this.slept = 0;
    try {
      const result = await this.engine.ask("train", { name: this.name, ...wanted }, (at) => this.show(at));
      this.waiting = !result.finished;
      if (this.waiting) this.status.textContent = `Stopped at step ${result.done} of ${result.steps}. Resume goes on from there.`;
      await this.finished?.(result);
    } catch (error) {
      this.waiting = false;
      this.status.textContent = problem(error);
    } finally {
      this.running = false;
      this.button.textContent = this.waiting ? "Resume" : "Train again";
      this.again.hidden = !this.waiting;
      this.changed?.();
    }
  }

  show(at) {
    const now = Date.now();
    if (this.hidden && now - this.last > SLEPT) this.slept = now - this.last;
    Object.assign(this, { last: now, hidden: document.hidden });
    if (at.count) this.count = at.count;
    this.steps = at.steps;
    this.bar.max = at.steps;
    this.bar.value = at.step;
    this.bar.textContent = `${at.step} of ${at.steps}`;
    if (at.loss !== undefined) this.losses.push([at.step, at.loss]);
    const measured = at.validation !== undefined;
    if (measured) {
      this.validation.push([at.step, at.validation]);
      if (at.accuracy !== undefined) this.scores.push([at.step, at.accuracy]);
      this.say(at);
    }
    if (measured || !this.still.matches) this.draw();
  }

  // Each measurement is said, so that who does not see the charts hears it.
  say({ step, steps, validation, accuracy }) {
    const recent = this.losses.slice(-20), mean = recent.reduce((sum, [, loss]) => sum + loss, 0) / recent.length;
    const parts = [`Step ${step} of ${steps}`];
    if (!step) parts[0] = `Before training (${this.count.toLocaleString("en")} numbers to train)`;
    parts.push([step && `training loss ${mean.toFixed(2)}`, `validation loss ${validation.toFixed(2)}`,
      accuracy !== undefined && `${this.score} ${percent(accuracy)}`].filter(Boolean).join(", "));
    if (step === steps) parts.push(`${Math.round((Date.now() - this.began) / 1000)} s since Train was pressed`);
    if (this.slept) parts.push(`the tab was asleep for ${Math.round(this.slept / 1000)} s; nothing is lost`);
    this.slept = 0;
    this.status.textContent = `${parts.slice(0, 2).join(": ")}. ${parts.slice(2).map((part) => `${part[0].toUpperCase()}${part.slice(1)}.`).join(" ")}`.trim();
    this.details.lastElementChild.textContent += `${this.status.textContent}\n`;
  }

  draw() {
    const { train, validation, stored } = COLOURS, dash = "6 3", own = this.stored;
    const lines = {
      "training loss": { points: this.losses, colour: train },
      "validation loss": { points: this.validation, colour: validation, dots: true },
    };
    if (own.validation) lines[`validation loss, ${own.name}`] = { points: own.validation, colour: stored, dash };
    this.loss.draw(lines, this.steps ?? 100);
    const scores = { [this.score]: { points: this.scores, colour: validation, dots: true } };
    if (own.accuracy) scores[own.name] = { points: own.accuracy, colour: stored, dash };
    this.right.draw(scores, this.steps ?? 100);
    if (!this.losses.length && !this.validation.length) this.details.lastElementChild.textContent = "";
  }
}
