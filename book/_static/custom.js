// What scrolls sideways in a box of its own can be reached, and scrolled, by keyboard.
const boxes = "div.math, mjx-container, pre, .pst-scrollable-table-container, .table-wrapper, " +
  ".cell_output table";
const reachable = () => document.querySelectorAll(`article :is(${boxes})`).forEach((box) => {
  if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  else if (box.tabIndex === 0) box.removeAttribute("tabindex");
});
addEventListener("load", reachable);
addEventListener("resize", reachable);
