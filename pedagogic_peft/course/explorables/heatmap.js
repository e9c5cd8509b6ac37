const map = data.frames[data.order.map((name) => at[name].index).join()];
const side = 22, longest = (names) => Math.max(...names.map((name) => name.length));
const left = 8 + 7 * longest(map.rows), top = 8 + 7 * longest(map.columns) * (map.slanted ? 0.75 : 0.3);
const width = left + side * map.columns.length + (map.slanted ? top * 0.6 : 8);
const height = top + side * map.rows.length + 2;
const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, width: 1.2 * width, "font-size": 12.5 });
if (width > 340) svg.classList.add("wide");
map.columns.forEach((name, j) => {
  const x = left + side * (j + 0.5), turn = map.slanted ? `rotate(-50 ${x} ${top - 5})` : "";
  svg.append(node("text", { x, y: top - 5, fill: "currentColor", transform: turn,
    "text-anchor": map.slanted ? "start" : "middle" }, name));
});
const low = data.low, span = data.high - data.low || 1;
map.values.forEach((row, i) => {
  svg.append(node("text", { x: left - 5, y: top + side * (i + 0.7), fill: "currentColor",
    "text-anchor": "end" }, map.rows[i]));
  row.forEach((value, j) => {
    const part = Math.max(0, Math.min(1, (value - low) / span));
    const position = part * (data.colours.length - 1), k = Math.floor(position);
    const here = data.colours[k], next = data.colours[Math.min(k + 1, data.colours.length - 1)];
    const fill = here.map((channel, c) => Math.round(channel + (position - k) * (next[c] - channel)));
    const box = node("rect", { x: left + side * j, y: top + side * i, width: side - 1,
      height: side - 1, fill: `rgb(${fill})` });
    box.append(node("title", {}, `${map.rows[i]}, ${map.columns[j]}: ${value}${data.unit}`));
    svg.append(box);
  });
});
const scale = document.createElement("div");
scale.style.cssText = "display: flex; gap: .5rem; align-items: center; font-size: .85em; margin: .4rem 0";
const strip = document.createElement("span");
strip.style.cssText = "flex: 0 1 10rem; height: .8rem; border: 1px solid currentColor; background: " +
  `linear-gradient(to right, ${data.colours.map((colour) => `rgb(${colour})`)})`;
scale.append(`${data.low}${data.unit}`, strip, `${data.high}${data.unit}`);
stage.replaceChildren(svg, scale);
return { say: map.say, table: [["", ...map.columns],
  ...map.values.map((row, i) => [map.rows[i], ...row])] };
