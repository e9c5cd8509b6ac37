const step = at[data.slider].index, names = Object.keys(data.bars), ink = "currentColor";
const svg = node("svg", { viewBox: `0 0 400 ${44 * names.length}`, width: 520, "font-size": 13 });
names.forEach((name, i) => {
  const y = 44 * i + 15, length = data.bars[name][step], end = 318 * length / data.longest;
  svg.append(
    node("text", { x: 0, y: y - 2, fill: ink }, name),
    node("rect", { x: 0.5, y: y + 3, width: 318, height: 18, fill: "none", stroke: ink, opacity: 0.4 }),
    node("rect", { x: 0.5, y: y + 3, width: end, height: 18, fill: data.colours[i % data.colours.length] }),
    node("text", { x: 326, y: y + 17, fill: ink }, `${length} ${data.unit}`));
});
stage.replaceChildren(svg);
const table = [["", data.label, ...data.shown],
  ...names.map((name) => [name, data.unit, ...data.bars[name]])];
return { say: data.sentences[step], table };
