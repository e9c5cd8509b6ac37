// Predict, then reveal: what the reader typed or chose beside what was printed. Only this browser keeps it.
// The forms are made by book/tools/guesses.py. Loaded by custom.js on pages that have one.
{
  const KEY = "peft-guesses", forms = [];
  let kept = {};
  try { kept = JSON.parse(localStorage.getItem(KEY)) ?? {}; } catch { /* a browser that keeps nothing */ }
  const keep = (form, value) => {
    try { kept = JSON.parse(localStorage.getItem(KEY)) ?? kept; } catch { /* as above */ }
    if (value) kept[form.dataset.key] = value;
    else delete kept[form.dataset.key];
    try { localStorage.setItem(KEY, JSON.stringify(kept)); } catch { /* as above */ }
  };

  const asksOf = (form) => [...form.querySelectorAll(".guess-ask")];
  const givenOf = (ask) => (ask.querySelector("input:checked, input[type=text]")?.value ?? "").trim();
  const give = (ask, value) => ask.querySelectorAll("input").forEach((input) => {
    if (input.type === "radio") input.checked = input.value === value;
    else input.value = value;
  });

  // 97,792 and 97 792 and 1,5 and 1e-3 and 1/2 and 40 % are numbers.
  const valueOf = (text) => {
    const plain = text.replace(/\u2212/g, "-").replace(/\s/g, "").replace(/,(?=\d{3}(?!\d))/g, "").replace(",", ".");
    const [, first, second] = plain.match(/^~?([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)(?:\/(\d+))?/i) ?? [];
    return first === undefined ? NaN : Number(first) / Number(second ?? 1);
  };
  const short = (number) => Number(number.toPrecision(2)).toLocaleString("en");
  const howFar = (guess, value, unit) => {
    const side = guess > value ? "high" : "low", ratio = guess / value;
    if (unit.startsWith("%")) return `${short(Math.abs(guess - value))} points too ${side}`;
    if (ratio >= 2) return `${short(ratio)} times as much`;
    if (ratio > 0 && ratio <= 0.5) return `${short(1 / ratio)} times too ${side}`;
    return value ? `${short(Math.abs(100 * (ratio - 1)))}\u00a0% too ${side}` : `too ${side}`;
  };

  // {right: true, false or neither, said: in words}; of an exercise the words do not give the answer away.
  const judge = (ask, given, checks) => {
    const { kind, answer, unit = "" } = ask.dataset, space = unit && `\u00a0${unit}`;
    if (kind === "free") return { said: `You said: ${given}. What do you think now?` };
    if (kind === "choice") {
      const right = given === answer;
      if (checks) return { right, said: right ? `${answer}: right.` : `${given}: not that one.` };
      return { right, said: right ? `You said: ${given}. So it is.` : `You said: ${given}. It is: ${answer}.` };
    }
    const guess = valueOf(given), value = Number(ask.dataset.value);
    const right = Math.abs(guess - value) <= Number(ask.dataset.near) * (1 + 1e-9);
    const far = howFar(guess, value, unit), exact = guess === value;
    if (checks) return { right, said: right ? `${given}${space}: right${exact ? "" : ` (${answer}${space})`}.` :
      `${given}${space}: not yet, too ${guess > value ? "high" : "low"}.` };
    return { right, said: `You said ${given}${space}. It printed ${answer}${space}: ` +
      `${exact ? "just so" : right ? "near enough" : far}.` };
  };

  const line = (text, kind, about) => {
    const made = document.createElement("p"), name = document.createElement("b");
    if (about) name.textContent = about;
    made.append(...(about ? [name, " "] : []), text);
    if (kind) made.className = kind;
    return made;
  };
  const say = (form, ...lines) => form.querySelector(".guess-said").replaceChildren(...lines);
  const isCheck = (form) => form.classList.contains("guess-check");
  const foldsOf = (form) => document.querySelectorAll(`.tag_${CSS.escape(form.id)}`);
  const answersOf = (form) => [
    ...document.querySelectorAll(`details[data-guess="${form.id}"]`),
    ...(form.nextElementSibling?.matches("details") ? [form.nextElementSibling] : []),
  ];

  const unfold = (form, open) => {
    foldsOf(form).forEach((cell) => cell.classList.toggle("shown", open));
    document.querySelectorAll(`.guess-waits[data-guess="${form.id}"]`).forEach((one) => { one.hidden = open; });
    answersOf(form).forEach((fold) => { fold.open = open; });
    form.querySelectorAll(".guess-why").forEach((one) => { one.hidden = !open; });
  };
  const end = (form, over) => {
    form.querySelectorAll("input").forEach((input) => { input.disabled = over; });
    form.querySelectorAll("[type=submit], .guess-show").forEach((button) => { button.hidden = over; });
    form.querySelector(".guess-again").hidden = !over;
    form.classList.toggle("guess-over", over);
  };

  // Show what was guessed beside what was printed. What was left open is shown, too, but for an exercise.
  const verdict = (form, given) => {
    const checks = isCheck(form), asks = asksOf(form);
    const found = asks.map((ask, i) => given[i] ? judge(ask, given[i], checks) :
      { said: !checks && ask.dataset.answer ? `${ask.dataset.kind === "choice" ? "It is: " : "It printed "}` +
        `${ask.dataset.answer}${ask.dataset.unit ? `\u00a0${ask.dataset.unit}` : ""}.` : "" });
    const about = (i) => asks.length > 1 ? asks[i].querySelector("legend, label").textContent.replace(/[^?]$/, "$&:") : "";
    const lines = found.map(({ right, said }, i) =>
      said && line(said, right ? "guess-right" : right === false && "guess-wrong", about(i)));
    const over = !checks || found.every(({ right }) => right);
    if (!over) lines.push(line(form.querySelector("details") ? "Try again, or open the hint." : "Try again."));
    say(form, ...lines.filter(Boolean));
    end(form, over);
    if (!checks) unfold(form, true);
    return over;
  };

  const complaint = (form, given) => {
    if (!given.some(Boolean)) return isCheck(form) ? "Type or pick an answer first." :
      "Type or pick a guess first: a wrong one helps, too.";
    const wrong = asksOf(form).findIndex((ask, i) => ask.dataset.kind === "number" && given[i] && isNaN(valueOf(given[i])));
    return wrong < 0 ? "" : `"${given[wrong]}" is no number: type digits, such as 1200 or 0.5.`;
  };

  const show = (form, given, focus) => {
    const over = verdict(form, given);
    keep(form, { given, right: over && isCheck(form) });
    if (focus && over) form.querySelector(".guess-said").focus({ preventScroll: true });
    score();
  };

  // Make a form answer, with what was answered before.
  const set = (form) => {
    forms.push(form);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const given = asksOf(form).map(givenOf), wrong = complaint(form, given);
      if (wrong) say(form, line(wrong));
      else show(form, given, true);
    });
    form.querySelector(".guess-show")?.addEventListener("click", () => show(form, asksOf(form).map(() => ""), true));
    form.querySelector(".guess-again").addEventListener("click", () => {
      keep(form);
      asksOf(form).forEach((ask) => give(ask, ""));
      say(form);
      end(form, false);
      unfold(form, false);
      form.querySelector("input").focus();
      score();
    });
    const mine = kept[form.dataset.key];
    if (!mine) return;
    asksOf(form).forEach((ask, i) => give(ask, mine.given[i] ?? ""));
    verdict(form, mine.given);
  };

  // Of the question bank: its forms wait in templates until the reader comes near, since a browser looks at every
  // field of a page when it is loaded (half a second and more of a phone).
  const fill = (section) => section.querySelectorAll("template.guess").forEach((waiting) => {
    const form = waiting.content.querySelector("form");
    waiting.replaceWith(form);
    set(form);
  });
  const near = new IntersectionObserver((seen) => {
    seen.filter((one) => one.isIntersecting).forEach((one) => {
      near.unobserve(one.target);
      fill(one.target);
    });
    score();
  }, { rootMargin: "100%" });

  // How far the reader has come in each section.
  const score = () => document.querySelectorAll(".guess-score").forEach((place) => {
    const section = place.closest("section");
    const mine = [...section.querySelectorAll("form.guess")], all = mine.length + section.querySelectorAll("template.guess").length;
    const judged = mine.filter((form) => kept[form.dataset.key]);
    const hit = judged.filter((form) => {
      const { given } = kept[form.dataset.key], asks = asksOf(form);
      return asks.every((ask, i) => ask.dataset.kind === "free" || (given[i] && judge(ask, given[i]).right));
    });
    place.textContent = `Answered ${judged.length} of ${all}` + (judged.length ? `, ${hit.length} of them right.` : ".");
    place.hidden = !all;
  });

  document.querySelectorAll("form.guess").forEach(set);
  document.querySelectorAll("template.guess").forEach((one) => {
    const form = one.content.querySelector("form");
    if (kept[form.dataset.key]) fill(one.closest("section"));
    else near.observe(one.closest("section"));
  });
  score();

  // An address that names a place inside of what is folded unfolds it.
  const goTo = () => {
    const place = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const cell = place && place.closest(".tag_guessed:not(.shown)");
    const form = cell && forms.find((one) => cell.classList.contains(`tag_${one.id}`));
    if (!form) return;
    unfold(form, true);
    place.scrollIntoView();
  };
  addEventListener("hashchange", goTo);
  goTo();
}
