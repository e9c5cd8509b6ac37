const formula = (at) => {
@FORMULA@
};
const parts = formula(Object.fromEntries(Object.entries(at).map(([name, { value }]) => [name, value])));
const names = Object.keys(parts), total = names.reduce((sum, name) => sum + parts[name], 0);
const round = (value) => value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
const dress = (value) => `${round(value)} ${data.unit}`, limit = at[data.limit]?.value;
const longest = Math.max(total, limit ?? 0) || 1, ink = "currentColor";
const svg = node("svg", { viewBox: "0 0 400 46", width: 560, "font-size": 13 });
svg.append(node("rect", { x: 0.5, y: 4.5, width: 399, height: 24, fill: "none", stroke: ink, opacity: 0.4 }));
let x = 0.5;
names.forEach((name, i) => {
  const width = 399 * parts[name] / longest;
  svg.append(node("rect", { x, y: 4.5, width, height: 24, stroke: ink, "stroke-width": 0.7,
    fill: data.colours[i % data.colours.length] }));
  if (width > 14) svg.append(
    node("text", { x: x + width / 2, y: 43, fill: ink, "text-anchor": "middle" }, i + 1));
  x += width;
});
if (limit) svg.append(node("line", { x1: 399 * limit / longest, x2: 399 * limit / longest, y1: 0, y2: 32,
  stroke: ink, "stroke-width": 3 }));
const list = document.createElement("ol");
list.style.cssText = "margin: .25rem 0; padding-left: 1.6rem; columns: 2 13rem";
names.forEach((name, i) => {
  const line = document.createElement("li"), mark = document.createElement("span");
  mark.style.cssText = "display: inline-block; width: .8em; height: .8em; margin-right: .4em; " +
    `border: 1px solid currentColor; background: ${data.colours[i % data.colours.length]}`;
  line.append(mark, `${name}: ${dress(parts[name])}`);
  list.append(line);
});
stage.replaceChildren(svg, list);
const verdict = total <= limit ? "fits into" : "does not fit into";
const table = [["part", data.unit], ...names.map((name) => [name, round(parts[name])]),
  [data.total, round(total)]];
return { parts, table, checks: data.checks,  // the last for tests
  say: `${data.total}: ${dress(total)}${limit ? `; ${verdict} ${dress(limit)}` : ""}` };
