const frame = data.frames[data.order.map((name) => at[name].index).join()], ink = "currentColor";
const W = 400, H = 250, L = 46, B = 40, T = 10, R = 8, { x0, x1, y0, y1 } = data.box;
const scale = (value, low, high, log) => log
  ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
const X = (x) => L + (W - L - R) * scale(x, x0, x1, data.logX);
const Y = (y) => H - B - (H - B - T) * scale(y, y0, y1, data.logY);
const svg = node("svg", { viewBox: `0 0 ${W} ${H}`, width: 560, "font-size": 12 });
for (const [x, text] of data.ticksX) svg.append(
  node("line", { x1: X(x), x2: X(x), y1: T, y2: H - B, stroke: ink, opacity: 0.15 }),
  node("text", { x: X(x), y: H - B + 15, fill: ink, "text-anchor": "middle" }, text));
for (const [y, text] of data.ticksY) svg.append(
  node("line", { x1: L, x2: W - R, y1: Y(y), y2: Y(y), stroke: ink, opacity: 0.15 }),
  node("text", { x: L - 5, y: Y(y) + 4, fill: ink, "text-anchor": "end" }, text));
svg.append(node("text", { x: (L + W) / 2, y: H - 6, fill: ink, "text-anchor": "middle" }, data.x),
  node("text", { x: 11, y: H / 2 - B / 2, fill: ink, "text-anchor": "middle",
    transform: `rotate(-90 11 ${H / 2 - B / 2})` }, data.y));
const dashes = ["", "6 3", "2 3", "8 3 2 3"];
const key = document.createElement("div");
key.style.cssText = "display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .9em";
Object.entries(frame.lines).forEach(([name, points], i) => {
  const colour = data.colours[i % data.colours.length], dash = dashes[i % dashes.length];
  svg.append(node("polyline", { points: points.map(([x, y]) => `${X(x)},${Y(y)}`).join(" "),
    fill: "none", stroke: colour, "stroke-width": 2.5, "stroke-dasharray": dash }));
  if (points.length < 20) for (const [x, y] of points)
    svg.append(node("circle", { cx: X(x), cy: Y(y), r: 3.5, fill: colour }));
  const sample = node("svg", { viewBox: "0 0 30 8", width: 30, height: 8 });
  sample.append(node("line", { x1: 0, x2: 30, y1: 4, y2: 4, stroke: colour, "stroke-width": 3,
    "stroke-dasharray": dash }));
  const entry = document.createElement("span");
  entry.style.cssText = "display: flex; gap: .4rem; align-items: center";
  entry.append(sample, name);
  key.append(entry);
});
stage.replaceChildren(svg, key);
const table = [["", data.x, data.y]];
for (const [name, points] of Object.entries(frame.lines))
  for (const point of points.slice(0, 60)) table.push([name, ...point]);
return { say: frame.say, table };
