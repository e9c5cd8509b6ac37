const step = at[data.slider].index, names = Object.keys(data.bars), ink = "currentColor";
const said = (length) => `${length} ${data.unit}`.trim(), widths = Object.values(data.bars).flat();
// The widest number that any setting shows has its place on the right, so that nothing jumps.
const full = 392 - 7.8 * Math.max(...widths.map((length) => said(length).length));
// A frame is read as "of 100 %": where the unit is a share it is one, and a longer bar leaves it.
const share = data.unit.startsWith("%") && data.longest > 50, whole = share ? 100 : data.longest;
const X = (length) => full * length / Math.max(whole, data.longest), H = 44 * names.length;
const svg = node("svg", { viewBox: `0 0 400 ${H + 18}`, width: 520, "font-size": 13 });
names.forEach((name, i) => {
  const y = 44 * i + 15, length = data.bars[name][step];
  svg.append(
    node("text", { x: 0, y: y - 2, fill: ink }, name),
    node("rect", { x: 0.5, y: y + 3, width: X(whole), height: 18, fill: "none", stroke: ink, opacity: 0.4 }),
    node("rect", { x: 0.5, y: y + 3, width: X(length), height: 18, fill: data.colour }),
    node("text", { x: Math.max(X(whole), X(length)) + 6, y: y + 17, fill: ink }, said(length)));
});
svg.append(node("text", { x: 0, y: H + 12, fill: ink }, "0"),
  node("text", { x: X(whole), y: H + 12, fill: ink, "text-anchor": "end" }, said(whole)));
stage.replaceChildren(svg);
const table = [["", data.label, ...data.shown],
  ...names.map((name) => [name, data.unit, ...data.bars[name]])];
return { say: data.sentences[step], table };
