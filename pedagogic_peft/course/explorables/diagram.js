const picture = data.frames[data.order.map((name) => at[name].index).join()], ink = "currentColor";
const svg = node("svg", { viewBox: `0 0 ${picture.width} ${picture.height}`, width: picture.width * 1.25,
  "font-size": 13 });
for (const points of picture.arrows) {
  const [[x0, y0], [x1, y1]] = points.slice(-2), length = Math.hypot(x1 - x0, y1 - y0);
  const [dx, dy] = [(x1 - x0) / length, (y1 - y0) / length];
  const wing = (side) => [x1 - 7 * dx - side * dy, y1 - 7 * dy + side * dx];
  const head = [[x1, y1], wing(4), wing(-4)];
  svg.append(node("polyline", { points: points.join(" "), fill: "none", stroke: ink, "stroke-width": 1.5 }),
    node("polygon", { points: head.join(" "), fill: ink }));
}
for (const { x, y, w, h, text, kind } of picture.boxes) {
  const trained = kind === "trained", round = kind === "join" ? h / 2 : 4;
  const box = node("rect", { x, y, width: w, height: h, rx: round, stroke: ink,
    "stroke-width": trained ? 2.5 : 1, fill: data.fills[kind] });
  const label = node("text", { x: x + w / 2, y: y + h / 2 + 4.5, "text-anchor": "middle",
    "font-weight": trained ? 700 : 400, fill: "#000" }, text);
  svg.append(box, label);
}
stage.replaceChildren(svg);
return { say: picture.say, table: [["part", "kind"], ...picture.boxes.map((box) => [box.text, box.kind])] };
