"""The book's figure style, and figures the reader moves. Only notebooks import this module.

A figure that moves is one self-contained piece of HTML: rounded data, sliders, and a few lines of
JavaScript that draw the data. It needs no kernel and no network, so it works on the static page, in
JupyterLab and on Colab. Its ids are hashes of its content: the same data give the same output.
"""

import hashlib
import html
import io
import json
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Okabe and Ito's palette: told apart with any colour vision (https://jfly.uni-koeln.de/color/).
PALETTE = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "vermillion": "#D55E00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "yellow": "#F0E442",
    "black": "#000000",
}


def use_style() -> None:
    """Give every later matplotlib figure the book's colours, sizes and light background."""
    import matplotlib.pyplot as plt
    from cycler import cycler

    plt.rcParams.update(
        {
            "axes.prop_cycle": cycler(color=list(PALETTE.values())),
            "axes.grid": True,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlesize": "medium",
            "figure.constrained_layout.use": True,
            "figure.dpi": 140,  # sharp on a page 700 px wide, and still a small file
            "figure.facecolor": "white",
            "figure.figsize": (6.0, 3.2),
            "font.size": 10,
            "grid.alpha": 0.3,
            "image.cmap": "cividis",
            "legend.frameon": False,
        }
    )


@dataclass(frozen=True)
class Slider:
    """One control of an explorable: the reader picks one of ``values``.

    Args:
        name: what the script calls it; a JavaScript identifier.
        label: what the reader sees beside it.
        values: at least two values, in the order of the track; numbers or strings.
        start: position of the value shown first.
    """

    name: str
    label: str
    values: Sequence[Any]
    start: int = 0

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"name={self.name!r}: expected a JavaScript identifier, such as 'r'")
        if len(self.values) < 2:
            raise ValueError(f"values={self.values!r}: expected at least two")
        if not 0 <= self.start < len(self.values):
            last = len(self.values) - 1
            raise ValueError(f"start={self.start}: expected a position from 0 to {last}")


class MovingFigure:
    """What a notebook shows: HTML on a page, a still picture in print, a sentence in a terminal."""

    def __init__(self, html: str, png: bytes, text: str):
        self.html, self.png, self.text = html, png, text

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        picture = b64encode(self.png).decode("ascii")
        return {"text/html": self.html, "image/png": picture, "text/plain": self.text}

    def __repr__(self) -> str:
        return self.text


def explorable(
    data: Any,
    sliders: Sequence[Slider],
    script: str,
    *,
    alt: str,
    still: Any,
    summary: str = "",
    caption: str = "",
) -> MovingFigure:
    """Make a figure that the reader moves, drawn in the browser from ``data``.

    ``script`` is the body of a JavaScript function ``(stage, data, at)``. It runs at the start and
    at every move. ``stage`` is the element to draw in; ``at.NAME.value`` and ``at.NAME.index`` tell
    where slider NAME stands. It returns a sentence, which is shown and read out to who cannot see.

    Args:
        data: anything JSON can hold. Round it: digits that differ between machines are noise.
        sliders: the controls, each of which has a name of its own.
        script: JavaScript; draw with ``currentColor`` so that it is legible in light and dark.
        alt: what the figure shows, for a reader who does not see it.
        still: a `matplotlib.figure.Figure` for print and for viewers that run no scripts.
        summary: the numbers of the figure that a test should compare, rounded, in words.
        caption: shown below the figure; plain text.
    """
    if len(alt) < 20:
        raise ValueError(f"alt={alt!r}: expected a sentence that says what the figure shows")
    fields = {
        "ALT": html.escape(alt),
        "CAPTION": f"<figcaption>{html.escape(caption)}</figcaption>" if caption else "",
        "CONTROLS": "".join(map(_control, sliders)),
        "VALUES": _json({slider.name: list(slider.values) for slider in sliders}),
        "SCRIPT": script.strip(),
        "DATA": _json(data),
    }
    page = _PAGE
    for name, value in fields.items():
        page = page.replace(f"@{name}@", value)
    digest = hashlib.sha256(page.encode()).hexdigest()[:10]
    text = f"{alt}\n{summary}".strip()
    return MovingFigure(page.replace("@ID@", f"fig-{digest}"), _png(still), text)


def frame_slider(
    draw: Callable[[Any, Any], None],
    values: Sequence[Any],
    *,
    label: str,
    alt: str,
    caption: str = "",
    start: int = 0,
) -> MovingFigure:
    """Make a figure with one matplotlib picture per value, and a slider between them.

    Prefer `explorable` for anything the browser can draw: it is smaller, and sharp at any size.

    Args:
        draw: called as ``draw(figure, value)`` with an empty `matplotlib.figure.Figure`.
        values: the values of the slider, at most 20.
        label: the name of what moves, such as ``"rank"``.
        alt, caption, start: as in `explorable` and `Slider`.
    """
    if len(values) > 20:
        raise ValueError(f"{len(values)} frames: expected at most 20, as each is a whole picture")
    from matplotlib.figure import Figure

    frames = []
    for value in values:
        frames.append(Figure(figsize=(6.0, 3.2), dpi=110, layout="constrained"))
        draw(frames[-1], value)
    data = ["data:image/png;base64," + b64encode(_png(frame)).decode("ascii") for frame in frames]
    names = [f"{label} = {value}" for value in values]
    sliders = [Slider("frame", label, names, start)]
    return explorable(data, sliders, _FRAMES, alt=alt, still=frames[start], caption=caption)


def bars_explorable(
    slider: Slider,
    bars: Mapping[str, Sequence[float]],
    sentences: Sequence[str],
    *,
    alt: str,
    unit: str = "%",
    caption: str = "",
) -> MovingFigure:
    """Draw one bar for each name; the reader moves a slider, and the bars and a sentence change.

    In print the bars are curves over the values of the slider.

    Args:
        slider: what the reader moves.
        bars: {name: its length at each value of the slider}, none negative; printed as given.
        sentences: what to say at each value.
        alt, caption: as in `explorable`.
        unit: of the lengths.

    Raises:
        ValueError: a name or the sentences have another number of entries than the slider.
    """
    from matplotlib.figure import Figure

    n = len(slider.values)
    for what, given in {**bars, "sentences": sentences}.items():
        if len(given) != n:
            raise ValueError(f"{what}: {len(given)} entries for the {n} values of the slider")
    still = Figure(figsize=(6.0, 2.6), dpi=110, layout="constrained")
    axes = still.subplots()
    for (name, lengths), marker in zip(bars.items(), "osD^vP*X", strict=False):
        axes.plot(range(n), list(lengths), marker=marker, label=name)
    axes.set_xticks(range(n), [str(value) for value in slider.values])
    axes.set(xlabel=slider.label, ylabel=unit)
    axes.legend()
    data = {
        "bars": {name: list(lengths) for name, lengths in bars.items()},
        "colours": list(PALETTE.values()),
        "longest": max(max(lengths) for lengths in bars.values()) or 1,
        "sentences": list(sentences),
        "slider": slider.name,
        "unit": unit,
    }
    numbers = [f"{name}: {', '.join(map(str, lengths))} {unit}" for name, lengths in bars.items()]
    summary = "\n".join([f"{slider.label}: {', '.join(map(str, slider.values))}", *numbers])
    return explorable(data, [slider], _BARS, alt=alt, still=still, summary=summary, caption=caption)


def rank_explorable(
    matrix: Any, max_rank: int = 8, *, name: str = "ΔW", alt: str = "", caption: str = ""
) -> MovingFigure:
    """Show a matrix, its best copy of rank r, and what the copy misses; the reader moves r.

    The best copy keeps the r largest singular triplets (Eckart and Young 1936). The error is
    ‖matrix − copy‖ / ‖matrix‖ in Frobenius norms, in per cent.

    Args:
        matrix: (rows, columns), an array or a tensor on the CPU, at most 200 on a side.
        max_rank: the last rank on the slider, from 2 to the smaller side.
        name: what to call the matrix.
        alt, caption: as in `explorable`; by default ``alt`` names the matrix and its size.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.ndim != 2 or max(matrix.shape) > 200:
        raise ValueError(f"matrix of shape {matrix.shape}: expected two dimensions of at most 200")
    if not 2 <= max_rank <= min(matrix.shape):
        raise ValueError(f"max_rank={max_rank}: expected from 2 to {min(matrix.shape)}")
    peak = np.abs(matrix).max()
    if not 0 < peak < np.inf:
        raise ValueError(f"matrix: expected finite entries, not all zero; the largest is {peak}")
    left, sizes, right = np.linalg.svd(matrix / peak, full_matrices=False)
    lost = np.append(np.cumsum(sizes[::-1] ** 2)[::-1], 0)  # lost[r]: squares left out at rank r
    errors = 100 * np.sqrt(lost / lost[0])[1 : max_rank + 1]
    # A singular pair's sign is free: make the largest entry positive, whatever the machine chose.
    signs = np.sign(left[np.abs(left).argmax(axis=0), np.arange(left.shape[1])])
    root = signs * np.sqrt(sizes)
    data = {
        "name": name,
        "matrix": np.rint(255 * matrix / peak).astype(int).tolist(),
        "left": (left * root).T[:max_rank].round(3).tolist(),
        "right": (right.T * root).T[:max_rank].round(3).tolist(),
        "errors": [round(float(error), 1) for error in errors],
    }
    copy = (left[:, :max_rank] * sizes[:max_rank]) @ right[:max_rank]
    rows, columns = matrix.shape
    default = f"Heat maps of {name} ({rows} by {columns}), its best copy of rank r and the rest."
    left_over = ", ".join(f"rank {r}: {error:.0f} %" for r, error in enumerate(errors, start=1))
    panels = {name: matrix / peak, f"rank {max_rank}": copy, "missing": matrix / peak - copy}
    return explorable(
        data,
        [Slider("r", "rank r", range(1, max_rank + 1))],
        _RANKS,
        alt=alt or default,
        still=_still(panels),
        summary=f"Error that is left: {left_over}",
        caption=caption,
    )


def _control(slider: Slider) -> str:
    name, label, last = slider.name, html.escape(slider.label), len(slider.values) - 1
    return (
        f'<label><span>{label}</span><input type="range" name="{name}" min="0" max="{last}" '
        f'step="1" value="{slider.start}"></label>'
    )


def _json(value: Any) -> str:
    """JSON that may stand inside a script element, and reads the same on every machine."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("</", "<\\/")


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _still(panels: dict[str, np.ndarray]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 2.4), dpi=110, layout="constrained")
    for axes, (title, panel) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        axes.imshow(panel, cmap="RdBu_r", vmin=-1, vmax=1)
        axes.set(title=title, xticks=[], yticks=[])
    return figure


# The page of one figure. It loads nothing; its colours are those of the text around it.
_PAGE = """<figure class="explorable" data-figure="@ID@">
<style>
.explorable { margin: 1rem 0; max-width: 46rem; }
.explorable .stage { min-height: 2rem; }
.explorable .stage img { max-width: 100%; height: auto; background: #fff; }
.explorable label { display: flex; gap: .75rem; align-items: center; margin: .5rem 0; }
.explorable input { flex: 1; min-width: 6rem; height: 2rem; accent-color: #0072b2; }
.explorable output { display: block; font-variant-numeric: tabular-nums; }
.explorable figcaption { font-size: .9em; }
</style>
<div class="stage" role="img" aria-label="@ALT@">Run this cell to move the figure.</div>
@CONTROLS@
<output aria-live="polite"></output>
@CAPTION@
</figure>
<script>
(() => {
const data = @DATA@;
const values = @VALUES@;
const draw = (stage, data, at) => {
@SCRIPT@
};
for (const figure of document.querySelectorAll('[data-figure="@ID@"]:not([data-ready])')) {
  figure.dataset.ready = "";
  const inputs = [...figure.querySelectorAll("input")];
  const show = () => {
    const at = {};
    for (const input of inputs) {
      const index = Number(input.value), value = values[input.name][index];
      at[input.name] = { index, value };
      input.setAttribute("aria-valuetext", String(value));
    }
    figure.querySelector("output").textContent = draw(figure.querySelector(".stage"), data, at);
  };
  for (const input of inputs) input.addEventListener("input", show);
  figure.querySelector(".stage").textContent = "";
  show();
}
})();
</script>"""

_FRAMES = """
const image = stage.firstChild || stage.appendChild(document.createElement("img"));
image.src = data[at.frame.index];
image.alt = at.frame.value;
return at.frame.value;
"""

_BARS = """
const step = at[data.slider].index, NS = "http://www.w3.org/2000/svg";
const names = Object.keys(data.bars);
const svg = document.createElementNS(NS, "svg");
svg.setAttribute("viewBox", `0 0 460 ${30 * names.length}`);
svg.setAttribute("font-size", 13);
const put = (tag, place, text = "") => {
  const node = svg.appendChild(document.createElementNS(NS, tag));
  for (const [key, value] of Object.entries(place)) node.setAttribute(key, value);
  node.textContent = text;
};
names.forEach((name, i) => {
  const y = 30 * i + 3, length = data.bars[name][step], ink = "currentColor";
  put("text", { x: 0, y: y + 16, fill: ink }, name);
  put("rect", { x: 110, y, width: 270, height: 22, fill: "none", stroke: ink, opacity: 0.4 });
  put("rect", { x: 110, y, width: 270 * length / data.longest, height: 22,
    fill: data.colours[i % data.colours.length] });
  put("text", { x: 388, y: y + 16, fill: ink }, `${length} ${data.unit}`);
});
stage.replaceChildren(svg);
return data.sentences[step];
"""

_RANKS = """
const rows = data.matrix.length, columns = data.matrix[0].length, r = at.r.value;
const copy = data.matrix.map((_, i) => data.matrix[0].map((_, j) => {
  let sum = 0;
  for (let k = 0; k < r; k++) sum += data.left[k][i] * data.right[k][j];
  return 255 * sum;
}));
const missing = data.matrix.map((row, i) => row.map((value, j) => value - copy[i][j]));
const colour = (value) => {  // blue below zero, white at zero, vermillion above
  const part = Math.min(1, Math.abs(value) / 255), end = value < 0 ? [0, 114, 178] : [213, 94, 0];
  return end.map((channel) => 255 + part * (channel - 255));
};
const panel = (title, matrix) => {
  const box = document.createElement("div"), canvas = document.createElement("canvas");
  box.style.textAlign = "center";
  canvas.style.cssText = "width: 100%; image-rendering: pixelated; border: 1px solid currentColor";
  canvas.width = columns;
  canvas.height = rows;
  const pen = canvas.getContext("2d"), pixels = pen.createImageData(columns, rows);
  matrix.flat().forEach((value, i) => pixels.data.set([...colour(value), 255], 4 * i));
  pen.putImageData(pixels, 0, 0);
  box.append(title, canvas);
  return box;
};
stage.style.cssText = "display: grid; gap: .75rem; align-items: end; " +
  "grid-template-columns: repeat(auto-fit, minmax(6rem, 1fr))";
stage.replaceChildren(
  panel(data.name, data.matrix), panel(`best copy of rank ${r}`, copy), panel("missing", missing));
return `rank ${r}: ${r * (rows + columns)} numbers instead of ${rows * columns}, ` +
  `error ${data.errors[r - 1]} %`;
"""
