const chosen = data.questions.map((name) => [name, at[name].shown]);
const verdicts = Object.entries(data.options).map(([option, rules]) => {
  const found = chosen.map(([name, answer]) => rules[name]?.[answer]).filter(Boolean);
  const out = found.some(([points]) => points === null);
  const points = out ? -Infinity : found.reduce((sum, [points]) => sum + points, 0);
  return { option, out, points, reasons: found.map(([points, why]) =>
    `${points === null ? "✗" : points > 0 ? "+".repeat(points) : "−".repeat(-points)} ${why}`) };
}).sort((a, b) => b.points - a.points);
const list = document.createElement("ol");
list.style.cssText = "margin: 0; padding-left: 1.6rem";
for (const { option, out, reasons } of verdicts) {
  const line = document.createElement("li"), title = document.createElement(out ? "s" : "strong");
  title.textContent = option;
  line.append(title, reasons.length ? `: ${reasons.join("; ")}` : "");
  list.append(line);
}
stage.replaceChildren(list);
const left = verdicts.filter(({ out }) => !out);
const best = left.filter(({ points }) => points === left[0].points).map(({ option }) => option);
return best.length ? `Start with ${best.join(" or ")}.`
  : "No option here fits all of this: relax one answer.";
