// What Sphinx's search finds, in the order a reader wants it: lessons before reference, with their numbers; with
// misspelt words corrected from the index, and with less than all words where all are found nowhere. It is loaded
// after Sphinx's own scripts, at the first use of a search field (custom.js), and on the page of results.
{
  const found = Search._performSearch, NEAR = 3;

  // The numbers and the order of the chapters stand in the side bar.
  const root = new URL(document.documentElement.dataset.content_root, location.href).href;
  const names = new Map([...document.querySelectorAll(".bd-sidebar-primary nav a[href]")].map((link, place) =>
    [link.href.replace(root, "").replace(/\.html.*$/, ""), { place, name: link.textContent.trim() }]));

  // How many letters have to be changed, added, left out or swapped; NEAR where it is surely more than `most`.
  const distance = (a, b, most) => {
    if (Math.abs(a.length - b.length) > most) return NEAR;
    let [older, old] = [[], [...b].map((_, j) => j + 1)];
    old.unshift(0);
    for (let i = 0; i < a.length; i++) {
      const row = [i + 1];
      for (let j = 0; j < b.length; j++) {
        row.push(Math.min(old[j] + (a[i] !== b[j]), old[j + 1] + 1, row[j] + 1));
        if (i && j && a[i] === b[j - 1] && a[i - 1] === b[j]) row[j + 1] = Math.min(row[j + 1], older[j - 1] + 1);
      }
      [older, old] = [old, row];
    }
    return old[b.length];
  };

  // What others call it, and what the book does.
  const CALLED = { catastrophic: "forgetting", adaptor: "adapter", adaptors: "adapters", finetuning: "fine-tuning",
    finetune: "fine-tune", hyperparameter: "hyper-parameter", hyperparameters: "hyper-parameters",
    softprompt: "soft prompt", softprompts: "soft prompts", rlhf: "preferences" };

  const stemOf = (word) => new Stemmer().stemWord(word.toLowerCase());

  // A word that no page has, nor the beginning or part of one, becomes the nearest that one has.
  const corrected = (word) => {
    const lower = word.toLowerCase(), stem = stemOf(word), british = lower.replace(/z(?=e|ing|ation)/, "s");
    const files = (term) => [Search._index.terms[term] ?? []].flat().length;
    const terms = new Set([...Object.keys(Search._index.terms), ...Object.keys(Search._index.titleterms)]);
    if (CALLED[lower]) return CALLED[lower];
    if (files(stemOf(british)) > files(stem)) return british;
    if (word.length < 4 || [...terms].some((term) => term.includes(stem))) return word;
    const called = Object.keys(CALLED).find((name) => name.startsWith(lower) || name.length > 7 && distance(lower, name, 2) < NEAR);
    if (called) return CALLED[called];
    const most = word.length < 8 ? 1 : 2;
    // The index holds stems; of a misspelt word the stem may be cut off elsewhere ("mrging" is near "merging", not near "merg").
    const endings = ["s", "ed", "ing"].filter((ending) => lower.endsWith(ending));
    const far = (term) => Math.min(distance(stem, term, most),
      ...endings.map((ending) => distance(lower, term + ending, most)));
    const near = [...terms].map((term) => [far(term), -files(term), term])
      .filter(([far]) => far <= most).sort(([a, n], [b, m]) => a - b || n - m);
    return near.length ? near[0][2] : word;
  };
  Search.correct = (query) => splitQuery(query).reduce((text, word) => text.replace(word, corrected(word)), query)
    .split(" ").filter((word, i, words) => words.findIndex((other) => stemOf(other) === stemOf(word)) === i).join(" ");

  // [page, title, anchor, description, score, file] -> the same, as this book shows and ranks it.
  const dress = ([page, title, anchor, about, score, file], words) => {
    const { place = 99, name } = names.get(page) ?? {};
    const section = title.includes(" > ") ? title.split(" > ").slice(1).join(" > ") : "";
    const term = page === "book/glossary" && anchor.startsWith("#term-");
    let shown = name && !about ? [name, section].filter(Boolean).join(" > ") : title;
    if (term) shown = `${decodeURIComponent(anchor.slice(6)).replaceAll("-", " ")} (glossary)`;
    // A page's address says in other words what its page is about: "forgetting" of "What is forgotten".
    const address = page.startsWith("chapters/") && !section ? page.split("/").pop().replaceAll("_", " ") : "";
    const said = ` ${shown.toLowerCase()} ${address} `;
    const all = words.every((word) => said.includes(word) || said.includes(stemOf(word)));
    const kind = page.startsWith("chapters/") ? 30 : page.startsWith("book/api/") ? -20 : 0;
    // A title that holds all words is better, most of all at its start; among equals the earlier page.
    const starts = shown.toLowerCase().replace(/^[\d.]+ /, "").startsWith(words.join(" "));
    const share = all ? 30 + (starts ? 5 : 0) - (section ? 15 : 0) : 0;
    return [page, shown, anchor, about, Math.min(term ? 15 : score, 15) + kind + share - place / 100, file];
  };

  const once = (query) => found(...Search._parseQuery(query));
  Search.find = (query) => {
    const asked = Search.correct(query), words = splitQuery(asked.toLowerCase());
    const every = once(asked);
    // Some words of several: each that is found counts.
    const some = words.length > 1 && every.length < NEAR ? words.flatMap((word) => once(word)) : [];
    if (some.length) Search._parseQuery(asked);  // it notes the words to mark
    const best = new Map();
    const keep = (result, more) => {
      const key = result[0] + result[2];
      result[4] += more;
      if (!best.has(key) || best.get(key)[4] < result[4]) best.set(key, result);
    };
    every.forEach((result) => keep(dress(result, words), 100));
    some.forEach((result) => keep(dress(result, words), 0));
    const results = [...best.values()].sort((a, b) => a[4] - b[4]);  // the best last, as Sphinx has it
    // Lessons first: the glossary is second at best.
    if (results.at(-1)?.[1].endsWith("(glossary)")) results.push(...results.splice(-2, 1));
    return { asked, results };
  };
  Search._performSearch = (query) => Search.find(query).results;
  const nothing = "Your search did not match any documents. Please make sure that all words are spelled correctly and " +
    "that you've selected enough categories.";
  Documentation.TRANSLATIONS[nothing] = "Nothing was found, nor anything spelt nearly so. Try one word, or another.";

  // Sphinx's scripts empty the fields when they start; what was typed meanwhile is put back.
  const typed = document.documentElement.dataset.typed;
  if (typed) document.querySelectorAll('input[name="q"]').forEach((field) => { field.value = typed; });
}
