{
  // A box that scrolls can be reached, and scrolled, by keyboard. To look costs a layout of the box, so it
  // waits until the reader comes near, or takes the keyboard. The theme would look at all boxes at once, and
  // again after every change of a figure (a quarter of a second more that a phone does not answer): its question
  // for all of them finds none. Asked in other words by another version of the theme, it only costs time again.
  const find = document.querySelectorAll.bind(document);
  document.querySelectorAll = (query) => find(String(query).startsWith("pre, .nboutput") ? ":not(*)" : query);
  const boxes = [...document.querySelectorAll(":is(pre, div.math, mjx-container, .cell_output > .output, " +
    ".table-wrapper, .pst-scrollable-table-container, .cell_output table):is(article *)")];
  const reachable = (some) => {
    const scrolls = some.map((box) =>
      box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight + 1);
    some.forEach((box, i) => {
      if (scrolls[i]) box.tabIndex = 0;
      else if (box.tabIndex === 0) box.removeAttribute("tabindex");
    });
  };
  const came = (seen) => seen.filter((one) => one.isIntersecting).map((one) => one.target);
  const near = new IntersectionObserver((seen) => reachable(came(seen)), { rootMargin: "100%" });
  const look = () => boxes.forEach((box) => { near.unobserve(box); near.observe(box); });
  look();
  addEventListener("resize", look);
  addEventListener("keydown", () => reachable(boxes), { once: true });

  // Another script of the site.
  const root = document.documentElement;
  const fetched = (name) => new Promise((done, failed) => {
    const script = Object.assign(document.createElement("script"), { onload: done, onerror: failed });
    script.src = root.dataset.content_root + name;
    document.head.append(script);
  });

  // A figure that moves is drawn when the reader comes near; all are, before the page is printed, and where
  // the address names a place on the page, which must not move afterwards. One with much data has it in a file.
  const figures = [...document.querySelectorAll('script[type="text/figure"]')];
  const start = async (waiting) => {
    const { from } = waiting.dataset;
    if (from && !window.FIGURES?.[from]) await fetched(`_static/figures/${from}.js`);
    if (!waiting.isConnected) return;
    const script = document.createElement("script");
    script.textContent = from ? `FIGURES["${from}"]()` : waiting.textContent;
    waiting.replaceWith(script);
  };
  const scriptOf = (figure) => figures.find((script) => script.previousElementSibling === figure);
  const closer = new IntersectionObserver((seen) => came(seen).forEach((figure) => {
    closer.unobserve(figure);
    const script = scriptOf(figure);
    if (script) start(script);
  }), { rootMargin: "200%" });
  const all = () => figures.filter((script) => script.isConnected).forEach(start);
  if (location.hash) all();
  else figures.forEach((script) => closer.observe(script.previousElementSibling));

  // A picture is larger than a phone: its button shows it in a window of its own, where it scrolls.
  const enlarge = (image) => {
    const dialog = document.createElement("dialog"), box = document.createElement("div");
    const close = document.createElement("button"), picture = new Image();
    dialog.className = "enlarged";
    dialog.setAttribute("aria-label", "Enlarged figure");
    close.textContent = "Close";
    close.className = "btn";
    box.tabIndex = 0;
    Object.assign(picture, { src: image.src, alt: image.alt });
    picture.style.width = `max(100%, ${0.75 * image.getAttribute("width")}px)`;
    box.append(picture);
    dialog.append(close, box);
    close.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
  };
  for (const image of document.querySelectorAll("article :is(.cell_output, figure) img[width]:not(.still)")) {
    const button = document.createElement("button");
    button.className = "enlarge";
    button.setAttribute("aria-label", "Enlarge the figure");
    button.addEventListener("click", () => enlarge(image));
    image.parentElement.classList.add("has-enlarge");
    image.after(button);
  }

  // A figure in which the reader trains loads what it needs when its button is pressed.
  for (const figure of document.querySelectorAll("figure.alive")) {
    const button = figure.querySelector(".alive-start button"), said = button.nextElementSibling;
    button.hidden = false;
    said.setAttribute("aria-live", "polite");
    said.textContent = "It stays in this page: nothing that you type or train is sent anywhere. " +
      "The weights come rounded to 16 bits, which moves a logit by 0.0001 on average.";
    button.addEventListener("click", async () => {
      button.disabled = true;
      const from = `${document.documentElement.dataset.content_root}_static/alive/begin.js`;
      try {
        const { begin } = await import(new URL(from, location.href).href);
        await begin(figure);
      } catch (error) {
        button.disabled = false;
        said.textContent = location.protocol === "file:"
          ? "A page opened as a file may not start a worker. Open the book's site, or run make serve."
          : `It did not start. ${error.message} Press the button again, or reload the page.`;
      }
    });
  }

  // What a question's cells printed is folded until the reader has guessed. If its script does not come, it is not.
  if (document.querySelector("form.guess")) {
    const script = Object.assign(document.createElement("script"), {
      src: `${document.documentElement.dataset.content_root}_static/guesses.js`,
      onerror: () => {
        document.documentElement.classList.add("unfolded");
        document.querySelectorAll("form.guess, .guess-waits").forEach((one) => { one.hidden = true; });
      },
    });
    document.head.append(script);
  }

  // The search quotes what it found from a page's text, not from the list of contents above it.
  addEventListener("DOMContentLoaded", () => {
    if (typeof Search === "undefined") return;
    const textOf = Search.htmlToText;
    Search.htmlToText = (html, anchor) => {
      const page = new DOMParser().parseFromString(html, "text/html");
      const article = page.querySelector("article");
      return textOf(`<div role="main">${article ? article.outerHTML : ""}</div>`, anchor);
    };
  });

  // A search field shows what it finds while the reader types. Its scripts and its index are loaded at the first
  // use. Enter leads to the page of all results.
  const fields = [...document.querySelectorAll('input[name="q"]')];
  const PARTS = ["_static/language_data.js", "_static/searchtools.js", "_static/search.js", "searchindex.js"];
  const allParts = async () => {
    if (typeof Search === "undefined") for (const name of PARTS) await fetched(name);
  };
  let loading;
  const load = () => loading ??= allParts();
  const list = (field) => {
    const made = document.createElement("div");
    made.className = "found";
    made.setAttribute("aria-live", "polite");
    field.closest("form").after(made);
    return made;
  };
  const show = (field, place) => {
    const query = field.value.trim();
    if (query.length < 2) return place.replaceChildren();
    const { asked, results } = Search.find(query), marked = localStorage.getItem("sphinx_highlight_terms");
    localStorage.removeItem("sphinx_highlight_terms");  // only the page that is chosen marks them
    const words = document.createElement("p"), lines = document.createElement("ul");
    const best = results.slice(-8).reverse();
    words.textContent = !best.length ? "Nothing found." : asked === query ? `${results.length} found` :
      `${results.length} found for "${asked}"`;
    for (const [page, title, anchor, about] of best) {
      const line = document.createElement("li"), link = document.createElement("a");
      link.href = `${root.dataset.content_root}${page}.html${anchor}`;
      link.innerHTML = title;
      link.addEventListener("click", () => localStorage.setItem("sphinx_highlight_terms", marked));
      line.append(link, about ? ` (${about})` : "");
      lines.append(line);
    }
    place.replaceChildren(words, lines);
  };
  for (const field of fields) {
    let place;
    field.addEventListener("focus", load, { once: true });
    field.addEventListener("input", () => {
      root.dataset.typed = field.value;
      load().then(() => show(field, place ??= list(field)));
    });
    field.addEventListener("keydown", (event) => {
      const first = place?.querySelector("a");
      if (event.key === "ArrowDown" && first) first.focus(), event.preventDefault();
    });
  }

  // A card shows what a link to a term, a paper or an equation leads to: for a mouse and for the keyboard. It
  // stays while the mouse is on it, moves with its link when the page is scrolled (the Tab key scrolls to a link
  // that it reaches), and Escape closes it.
  const HAS_CARD = 'article a.reference.internal:is([href*="glossary.html#term-"], [href*="references.html#"], ' +
    '[href*="#equation-"])';
  const base = new URL(root.dataset.content_root, location.href).href;
  const keyOf = (link) => link.href.replace(base, "").replace(".html", "");
  const card = Object.assign(document.createElement("div"), { className: "card-of-link", id: "card-of-link", hidden: true });
  card.setAttribute("role", "tooltip");
  document.body.append(card);
  let cards, over, leaving;
  const close = () => {
    over?.removeAttribute("aria-describedby");
    card.hidden = true;
    over = undefined;
  };
  const place = () => {
    if (!over) return;
    const at = over.getBoundingClientRect(), size = card.getBoundingClientRect();
    if (at.bottom < 0 || at.top > innerHeight) return close();
    const below = at.bottom + size.height + 8 < innerHeight;
    card.style.left = `${Math.max(8, Math.min(at.left, document.documentElement.clientWidth - size.width - 8))}px`;
    card.style.top = `${Math.max(8, below ? at.bottom + 4 : at.top - size.height - 4)}px`;
  };
  const open = async (link) => {
    clearTimeout(leaving);
    if (over === link) return;
    close();
    over = link;
    await (cards ??= fetched("_static/cards.js"));
    const text = window.CARDS[keyOf(link)];
    if (over !== link || !text) return;
    link.removeAttribute("title");  // it would be shown twice
    link.setAttribute("aria-describedby", card.id);
    card.innerHTML = text;
    card.hidden = false;
    place();
  };
  const leave = () => { leaving = setTimeout(close, 250); };
  for (const link of document.querySelectorAll(HAS_CARD)) {
    link.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && open(link));
    link.addEventListener("focus", () => link.matches(":focus-visible") && open(link));
    link.addEventListener("pointerleave", leave);
    link.addEventListener("blur", close);
  }
  card.addEventListener("pointerenter", () => clearTimeout(leaving));
  card.addEventListener("pointerleave", leave);
  addEventListener("keydown", (event) => event.key === "Escape" && close());
  addEventListener("scroll", place, { passive: true });

  // What was read is ticked in the side bar, and the landing page says where to go on. Only this browser knows.
  const page = location.href.replace(base, "").replace(/\.html.*$/, "");
  const noted = (name, otherwise) => {
    try { return JSON.parse(localStorage.getItem(name)) ?? otherwise; } catch { return otherwise; }
  };
  const note = (name, value) => {
    try { localStorage.setItem(name, JSON.stringify(value)); } catch { /* a browser that keeps nothing */ }
  };
  const lessons = [...document.querySelectorAll('.bd-sidebar-primary nav a[href]')]
    .filter((link) => link.href.includes("/chapters/") || link.getAttribute("href") === "#");
  const tick = () => {
    const read = noted("peft-read", []);
    lessons.forEach((link) => link.classList.toggle("was-read",
      read.includes(link.getAttribute("href") === "#" ? page : link.href.replace(base, "").replace(/\.html.*$/, ""))));
  };
  const foot = document.querySelector(".prev-next-footer");
  if (page.startsWith("chapters/") && foot) {
    note("peft-last", { page, title: document.title.split(" \u2014 ")[0] });
    new IntersectionObserver((seen) => {
      if (!came(seen).length) return;
      note("peft-read", [...new Set([...noted("peft-read", []), page])]);
      tick();
    }).observe(foot);
  }
  tick();
  const last = noted("peft-last"), starts = document.querySelector(".start-buttons p");
  if (starts && last) {
    const link = document.createElement("a"), named = lessons.find((one) => one.href.includes(last.page));
    link.href = `${root.dataset.content_root}${last.page}.html`;
    link.textContent = `Go on at ${named?.textContent.trim() ?? last.title}`;
    starts.prepend(link);
  }

  // The theme lets go of its switch when it is pressed: who goes by keyboard would start again from the top.
  addEventListener("click", (event) => {
    const button = event.target.closest("button.theme-switch-button");
    if (button) setTimeout(() => button.focus());
  });

  // Paper is white, and can't be unfolded. What is changed for it is put back. Printing does not wait for the
  // fonts of formulas that were not met yet, nor for data of figures: they come when there is nothing else to do.
  const prepare = () => {
    document.fonts.forEach((font) => {
      if (font.family.includes("MJX")) font.load();
    });
    figures.filter((script) => script.isConnected && script.dataset.from)
      .forEach((script) => fetched(`_static/figures/${script.dataset.from}.js`));
  };
  const idle = () => window.requestIdleCallback ? requestIdleCallback(prepare, { timeout: 2000 }) : setTimeout(prepare, 2000);
  if (document.readyState === "complete") idle();
  else addEventListener("load", idle);
  let opened = [], theme = "";
  addEventListener("beforeprint", () => {
    theme = root.dataset.theme;
    root.dataset.theme = "light";
    opened = [...document.querySelectorAll("article details:not([open], .explorable *)")];
    opened.forEach((fold) => { fold.open = true; });
    root.classList.add("unfolded");
    all();
  });
  addEventListener("afterprint", () => {
    root.dataset.theme = theme;
    root.classList.remove("unfolded");
    opened.forEach((fold) => { fold.open = false; });
  });
}
