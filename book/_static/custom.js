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

  // A figure that moves is drawn when the reader comes near; all are, before the page is printed, and where
  // the address names a place on the page, which must not move afterwards.
  const figures = [...document.querySelectorAll('script[type="text/figure"]')];
  const start = (waiting) => {
    const script = document.createElement("script");
    script.textContent = waiting.textContent;
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

  // The theme lets go of its switch when it is pressed: who goes by keyboard would start again from the top.
  addEventListener("click", (event) => {
    const button = event.target.closest("button.theme-switch-button");
    if (button) setTimeout(() => button.focus());
  });

  // Paper is white, and can't be unfolded. What is changed for it is put back. Printing does not wait for the
  // fonts of formulas that were not met yet: they are decoded when there is nothing else to do.
  const decode = () => document.fonts.forEach((font) => {
    if (font.family.includes("MJX")) font.load();
  });
  if (window.requestIdleCallback) requestIdleCallback(decode, { timeout: 2000 });
  else setTimeout(decode, 2000);
  const root = document.documentElement;
  let opened = [], theme = "";
  addEventListener("beforeprint", () => {
    theme = root.dataset.theme;
    root.dataset.theme = "light";
    opened = [...document.querySelectorAll("article details:not([open], .explorable *)")];
    opened.forEach((fold) => { fold.open = true; });
    all();
  });
  addEventListener("afterprint", () => {
    root.dataset.theme = theme;
    opened.forEach((fold) => { fold.open = false; });
  });
}
