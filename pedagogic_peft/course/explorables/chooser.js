const place = data.questions.reduce((sum, [name, n]) => sum * n + at[name].index, 0);
const ranking = data.rankings[data.cases[place]].map((i) => data.lines[i]);
const list = (kind, lines) => {
  const made = document.createElement(kind);
  made.style.cssText = "margin: 0 0 .5rem; padding-left: 2.2rem";
  made.append(...lines.map(([title, , reasons]) => {
    const line = document.createElement("li");
    line.append(cell("strong", data.texts[title]), `: ${reasons.map((i) => data.texts[i]).join("; ")}`);
    return line;
  }));
  return made;
};
const FIRST = 3;  // places that are always shown; the others unfold
const fit = ranking.filter(([, fits]) => fits), out = ranking.filter(([, fits]) => !fits);
const more = document.createElement("details"), later = list("ol", fit.slice(FIRST));
more.open = !fit.length || Boolean(stage.querySelector("details")?.open);
later.start = FIRST + 1;
const rest = [[later.childElementCount, "more"], [out.length, "excluded"]].filter(([n]) => n);
more.append(cell("summary", rest.map((each) => each.join(" ")).join(", ")));
if (fit.length > FIRST) more.append(later);
if (out.length) more.append(cell("div", "Excluded:"), list("ul", out));
stage.replaceChildren(...fit.length ? [list("ol", fit.slice(0, FIRST))] : [], ...rest.length ? [more] : []);
return fit.length ? `Start with ${data.texts[fit[0][0]]}.` : data.none;
