// What the places are made of: elements, controls, charts, and words for what went wrong.

// ARIA is set as attributes, since some browsers lack it as properties.
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("aria")) made.setAttribute(`aria-${key.slice(4).toLowerCase()}`, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

export const percent = (share) => `${Math.round(100 * share)} %`;

// A control with its label; `input` is the element that has the value.
export function select(label, values, value, shown = String) {
  const input = el("select", {}, ...values.map((v) => el("option", { value: v, textContent: shown(v), selected: v === value })));
  return { input, node: el("label", {}, el("span", { textContent: label }), input) };
}

export function number(label, value, { min, max, step = 1 }) {
  const input = el("input", { type: "number", value, min, max, step, required: true });
  return { input, node: el("label", {}, el("span", { textContent: label }), input) };
}

export function slider(label, value, { min, max, step, shown = String }) {
  const input = el("input", { type: "range", min, max, step, value }), at = el("span", { className: "at" });
  const tell = () => { at.textContent = shown(input.value); input.setAttribute("aria-valuetext", at.textContent); };
  input.addEventListener("input", tell);
  tell();
  return { input, node: el("label", {}, el("span", { textContent: label }), input, at) };
}

export function text(label, value, { rows = 1 } = {}) {
  const input = rows > 1 ? el("textarea", { rows, value }) : el("input", { type: "text", value });
  Object.assign(input, { spellcheck: false, autocomplete: "off", autocapitalize: "off" });
  return { input, node: el("label", { className: "wide" }, el("span", { textContent: label }), input) };
}

export function button(label, press) {
  const made = el("button", { type: "button", textContent: label });
  made.addEventListener("click", press);
  return made;
}

// Call `work` when the reader pauses, never twice at once, and once more if something changed meanwhile.
export function calm(work, wait = 250) {
  let timer, running = false, again = false;
  const go = async () => {
    if (running) { again = true; return; }
    running = true;
    try { await work(); } finally { running = false; }
    if (again) { again = false; go(); }
  };
  return () => { clearTimeout(timer); timer = setTimeout(go, wait); };
}

// What happened, and what to do.
export function problem({ message, kind }) {
  if (kind === "memory") return `There is not enough memory: ${message}. Close other tabs, or take a smaller base or batch.`;
  if (kind === "worker") return `The engine stopped: ${message}. Reload the page and press Start again; what you saved is in your downloads.`;
  return `${message[0].toUpperCase()}${message.slice(1)}.`.replace(/\.\.$/, ".");
}

// --- charts: lines over steps

const NS = "http://www.w3.org/2000/svg", W = 340, H = 190, L = 46, R = 10, T = 10, B = 34;
const node = (tag, place, content = "") => {
  const made = document.createElementNS(NS, tag);
  for (const [key, value] of Object.entries(place)) made.setAttribute(key, value);
  made.textContent = content;
  return made;
};

// y: {label, ticks, log}; steps: where x ends. draw({name: {points, colour, dash, dots}}) draws all anew.
export function chart(label, y, steps) {
  const svg = node("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": label, "font-size": 12 });
  const key = el("div", { className: "key" }), [low, high] = [y.ticks[0], y.ticks.at(-1)];
  const X = (step, end) => L + (W - L - R) * step / end;
  const Y = (v) => {
    const at = y.log ? Math.log(Math.max(v, low) / low) / Math.log(high / low) : (v - low) / (high - low);
    return H - B - (H - T - B) * Math.min(1, Math.max(0, at));
  };
  const draw = (lines, end = steps) => {
    svg.replaceChildren();
    for (const tick of y.ticks) svg.append(
      node("line", { x1: L, x2: W - R, y1: Y(tick), y2: Y(tick), stroke: "currentColor", opacity: 0.15 }),
      node("text", { x: L - 5, y: Y(tick) + 4, "text-anchor": "end", fill: "currentColor" }, y.shown?.(tick) ?? tick));
    for (const part of [0, 0.5, 1]) svg.append(
      node("text", { x: X(part * end, end), y: H - B + 15, "text-anchor": part === 1 ? "end" : "middle", fill: "currentColor" }, Math.round(part * end)));
    svg.append(node("text", { x: (L + W) / 2, y: H - 4, "text-anchor": "middle", fill: "currentColor" }, `step  (${y.label})`));
    key.replaceChildren();
    for (const [name, { points, colour, dash = "", dots }] of Object.entries(lines)) {
      svg.append(node("polyline", { points: points.map(([x, v]) => `${X(x, end).toFixed(1)},${Y(v).toFixed(1)}`).join(" "), fill: "none",
        stroke: colour, "stroke-width": dots ? 2.5 : 1.5, "stroke-dasharray": dash }));
      if (dots) for (const [x, v] of points) svg.append(node("circle", { cx: X(x, end), cy: Y(v), r: 3, fill: colour }));
      const sample = node("svg", { viewBox: "0 0 30 8", width: 30, height: 8, "aria-hidden": true });
      sample.append(node("line", { x1: 0, x2: 30, y1: 4, y2: 4, stroke: colour, "stroke-width": 3, "stroke-dasharray": dash }));
      key.append(el("span", {}, sample, name));
    }
  };
  return { node: el("div", { className: "chart" }, svg, key), draw };
}

// Rows of cells as a table; the first row is the head.
export function table(rows, caption) {
  const made = el("table", {}, el("caption", { textContent: caption }));
  for (const [i, row] of rows.entries())
    made.append(el("tr", {}, ...row.map((cell, j) => el(i && j ? "td" : "th", i && j ? {} : { scope: i ? "row" : "col" }, cell))));
  return el("div", { className: "scroll", tabIndex: 0, role: "group", ariaLabel: caption }, made);
}
