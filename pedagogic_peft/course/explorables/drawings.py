"""Drawings of how something works, which stand still: LoRA in a layer, a prefix in attention, and others.

All are in one style, that of `diagram_explorable`: what is frozen is grey-blue, what is trained is yellow,
bold and has a thick border, a sum is round. Each is 360 units wide, as a phone's page is, and no letter is
smaller than eleven. Lines have the colour of the text around them: in the dark they are light.
"""

import html
from collections.abc import Callable
from dataclasses import dataclass, field

from pedagogic_peft.course.explorables.diagram import Box

WIDTH, LETTERS, SMALL = 360, 12.5, 11
Point = tuple[float, float]


class Drawing:
    """What a notebook shows: HTML on a page, an SVG elsewhere, a sentence in a terminal."""

    def __init__(self, html: str, svg: str, text: str):
        self.html, self.svg, self.text = html, svg, text

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/html": self.html, "image/svg+xml": self.svg, "text/plain": self.text}

    def __repr__(self) -> str:
        return self.text


@dataclass
class Sketch:
    """The parts of a drawing, in the order in which they are drawn; y grows downwards, as in SVG."""

    height: float
    parts: list[str] = field(default_factory=list)

    def text(
        self, x: float, y: float, text: str, anchor: str = "middle", size: float = LETTERS
    ) -> None:
        """Write a line; ``y`` is its middle."""
        place = f'x="{x:g}" y="{y + 0.36 * size:g}" text-anchor="{anchor}"'
        self.parts.append(f'<text {place} font-size="{size:g}">{html.escape(text)}</text>')

    def box(
        self, x: float, y: float, w: float, h: float, text: str = "", kind: str = "frozen"
    ) -> None:
        """Draw a rectangle with its left upper corner at (x, y). ``kind`` is one of a `Box`."""
        fill = Box.KINDS[kind] if kind in ("frozen", "trained") else "none"
        trained = kind == "trained"
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="3" fill="{fill}" '
            f'stroke="currentColor" stroke-width="{2.5 if trained else 1}"/>'
        )
        if text:
            colour = "currentColor" if fill == "none" else "#000"
            weight = ' font-weight="700"' if trained else ""
            self.parts.append(
                f'<text x="{x + w / 2:g}" y="{y + h / 2 + 0.36 * LETTERS:g}" text-anchor="middle" '
                f'font-size="{LETTERS:g}" fill="{colour}"{weight}>{html.escape(text)}</text>'
            )

    def line(
        self, *points: Point, head: bool = True, dashed: bool = False, width: float = 1.5
    ) -> None:
        """Draw a line through the points, with an arrow's head at its end."""
        dash = ' stroke-dasharray="3 3"' if dashed else ""
        corners = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.parts.append(
            f'<polyline points="{corners}" fill="none" stroke="currentColor" '
            f'stroke-width="{width:g}"{dash}/>'
        )
        if head:
            (x0, y0), (x1, y1) = points[-2:]
            length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
            dx, dy = (x1 - x0) / length, (y1 - y0) / length
            wings = [(x1 - 7 * dx - s * dy, y1 - 7 * dy + s * dx) for s in (4, -4)]
            corners = " ".join(f"{x:g},{y:g}" for x, y in [(x1, y1), *wings])
            self.parts.append(f'<polygon points="{corners}" stroke="none"/>')

    def join(self, x: float, y: float, text: str = "+") -> None:
        """Draw a sum or a product, as a circle round (x, y)."""
        self.parts.append(
            f'<circle cx="{x:g}" cy="{y:g}" r="9" fill="none" stroke="currentColor"/>'
        )
        self.text(x, y, text)

    def svg(self, alt: str, more: str = "") -> str:
        """Return the drawing; ``more`` goes into its first tag."""
        return (
            f'<svg viewBox="0 0 {WIDTH} {self.height:g}" width="{1.25 * WIDTH:g}" role="img" '
            f'fill="currentColor" {more}aria-label="{html.escape(alt)}">{"".join(self.parts)}</svg>'
        )


def drawing(name: str) -> Drawing:
    """Return a drawing: "lora", "prefix", "rows", "fusion", "family" or "ring".

    Raises:
        ValueError: there is no such drawing.
    """
    if name not in DRAWINGS:
        raise ValueError(f"name={name!r}: expected one of {', '.join(DRAWINGS)}")
    draw, caption, alt = DRAWINGS[name]
    sketch = draw()
    drawn = sketch.svg(alt, 'style="max-width: 100%; height: auto" ')
    page = (
        f'<figure class="drawing" data-figure="drawing-{name}">\n{drawn}\n'
        f"<figcaption>{html.escape(caption)}</figcaption>\n</figure>"
    )
    # By itself it is black on white: an image does not know the colours around it.
    alone = 'xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" style="background: #fff" '
    return Drawing(page, sketch.svg(alt, alone), f"{caption}\n{alt}")


def _lora() -> Sketch:
    """A layer of a Llama, from below, and one of its maps enlarged."""
    s = Sketch(400)

    def linear(x: float, y: float, w: float, text: str) -> None:
        """Draw a linear map and, at its corner, its A and B."""
        s.box(x, y, w, 22, text)
        s.box(x + w - 5, y - 5, 10, 10, kind="trained")

    def up(x: float, y0: float, y1: float, head: bool = True) -> None:
        s.line((x, y0), (x, y1), head=head)

    up(20, 396, 199)
    s.join(20, 190)
    up(20, 181, 31)
    s.join(20, 22)
    up(20, 13, 1)
    s.line((20, 380), (96, 380), (96, 366))  # the attention
    s.box(64, 344, 64, 22, "norm", "data")
    s.line((96, 344), (96, 332), (54, 332), (138, 332), head=False)
    for x, text in ((36, "q"), (78, "k"), (120, "v")):
        up(x + 18, 332, 320)
        linear(x, 298, 36, text)
        up(x + 18, 298, 276)
    s.box(36, 254, 120, 22, "attention", "data")
    up(96, 254, 234)
    linear(74, 212, 44, "o")
    s.line((96, 212), (96, 190), (29, 190))
    s.line((20, 172), (96, 172), (96, 164))  # the feed-forward network
    s.box(64, 142, 64, 22, "norm", "data")
    s.line((96, 142), (96, 131), (68, 131), (124, 131), head=False)
    for x, side, text in ((68, -1, "gate"), (124, 1, "up")):
        up(x, 131, 119)
        linear(x - 24, 97, 48, text)
        s.line((x, 97), (x, 77), (96 + 9 * side, 77))
    s.join(96, 77, "×")
    up(96, 68, 56)
    linear(70, 34, 52, "down")
    s.line((96, 34), (96, 22), (29, 22))
    for start, end in (((158, 298), (208, 98)), ((158, 320), (208, 356))):  # what is enlarged
        s.line(start, end, head=False, dashed=True, width=1)
    s.line(
        (208, 98), (356, 98), (356, 356), (208, 356), (208, 98), head=False, dashed=True, width=1
    )
    s.text(240, 346, "x")
    up(240, 336, 300)
    s.box(216, 214, 48, 86, "W₀")
    up(240, 214, 155)
    s.join(240, 146)
    up(240, 137, 122)
    s.text(240, 113, "h")
    s.line((240, 320), (318, 320), (318, 300))
    s.box(290, 282, 56, 18, "A", "trained")
    up(318, 282, 258)
    s.text(326, 270, "r", "start")
    s.box(307, 200, 22, 58, "B", "trained")
    up(318, 200, 186)
    s.box(294, 164, 48, 22, "× α/r", "data")
    s.line((318, 164), (318, 146), (249, 146))
    s.box(210, 368, 10, 10, kind="trained")
    s.text(226, 373, "trained", "start")
    s.box(290, 368, 10, 10)
    s.text(306, 373, "frozen", "start")
    return s


def _prefix() -> Sketch:
    """Who looks at whom, with two virtual tokens in front."""
    s = Sketch(284)
    words, n = ["lily", "met", "tom", "."], 2
    left, top, w, h = 92, 62, 42, 27
    bottom = top + h * len(words)
    for y, name in ((top - 38, "keys"), (bottom + 12, "values")):
        s.text(left - 8, y + 12, name, "end")
        for i, text in enumerate([*(f"P{i + 1}" for i in range(n)), *words]):
            s.box(left + w * i + 2, y, w - 4, 24, text, "trained" if i < n else "frozen")
    for row, word in enumerate(words):
        middle = top + h * (row + 0.5)
        s.text(left - 8, middle, f"{word} asks", "end")
        for column in range(n + len(words)):
            s.box(left + w * column + 2, middle - h / 2 + 2, w - 4, h - 4, kind="data")
            if column - n <= row:  # a word sees the prefix, itself and what stands before it
                kind = "trained" if column < n else "frozen"
                s.box(left + w * (column + 0.5) - 7, middle - 7, 14, 14, kind=kind)
    s.text(left + w, 12, "trained", size=SMALL)
    s.text(left + w * 4, 12, "made from the text", size=SMALL)
    y = bottom + 42
    for x0, x1, text in (
        (left, left + 2 * w, "share λ"),
        (left + 2 * w, left + 6 * w, "share 1 − λ"),
    ):
        s.line((x0 + 4, y), (x0 + 4, y + 5), (x1 - 4, y + 5), (x1 - 4, y), head=False)
        s.text((x0 + x1) / 2, y + 16, text)
    s.text(WIDTH / 2, y + 42, "More columns, no more rows:")
    s.text(WIDTH / 2, y + 60, "a prefix is looked at, and looks at nothing.")
    return s


def _rows() -> Sketch:
    """One batch of four rows, one product with the base, an update of its own for each."""
    s = Sketch(264)
    names, first, step = [None, "shout", "tale", "recipes"], 96, 44
    last = first + step * (len(names) - 1)
    s.line((12, last + 1.5), (12, 40), (104, 40), width=3)
    s.box(104, 18, 148, 44, "W₀, once for all rows")
    s.line((252, 40), (300, 40), (300, first - 9), width=3)
    for i, name in enumerate(names):
        y, number = first + step * i, "₁₂₃₄"[i]
        s.line((12, y), (26, y), head=False, width=3)
        s.box(26, y - 12, 32, 24, f"x{number}", "data")
        if name:
            for x, part in ((76, "A"), (172, "B")):
                s.line((x - 18, y), (x, y))
                s.box(x, y - 13, 78, 26, f"{part} {name}", "trained")
            s.line((250, y), (291, y))
        else:
            s.text(167, y, "no adaptation: the base", size=SMALL)
        s.join(300, y)
        if i + 1 < len(names):
            s.line((300, y + 9), (300, y + step - 9), width=3)
        s.line((309, y), (324, y))
        s.box(324, y - 12, 32, 24, f"h{number}", "data")
    s.text(348, last + 28, "To each row its own row of what W₀ gave is added.", "end", SMALL)
    return s


def _fusion() -> Sketch:
    """Adapters as the words of an attention, from below."""
    s = Sketch(336)
    names, middles = ["translation", "summary", "questions"], [118, 208, 298]
    s.box(2, 308, 36, 24, "h", "data")
    s.line((20, 308), (20, 51))
    s.join(20, 42)
    s.line((20, 33), (20, 6))
    s.text(30, 12, "h′", "start")
    s.line((20, 290), (middles[-1], 290), head=False)
    s.line((60, 290), (60, 200))
    s.box(42, 176, 36, 24, "Q", "trained")
    s.line((60, 176), (60, 140), (80, 140))
    for x, name, number in zip(middles, names, "₁₂₃", strict=True):
        s.line((x, 290), (x, 272))
        s.box(x - 42, 246, 84, 26, name)
        s.line((x, 246), (x, 200))
        s.text(x + 6, 230, f"z{number}", "start")
        s.line((x, 176), (x, 152))
        s.line((x, 128), (x, 106))
        s.text(x + 6, 117, f"a{number}", "start")
    s.line((middles[0], 212), (352, 212), (352, 94), (336, 94))
    s.box(80, 176, 256, 24, "K", "trained")
    s.box(80, 128, 256, 24, "softmax of (Q h) · (K z)", "data")
    s.box(80, 82, 256, 24, "a₁ z₁ + a₂ z₂ + a₃ z₃", "data")
    s.line((208, 82), (208, 54))
    s.box(190, 30, 36, 24, "V", "trained")
    s.line((190, 42), (29, 42))
    return s


def _family() -> Sketch:
    """LoRA, DoRA and VeRA beside one frozen map."""
    s = Sketch(356)
    trained = {"LoRA": "A, B", "DoRA": "A, B, m", "VeRA": "b, d"}
    for middle, (name, some) in zip((60, 180, 300), trained.items(), strict=True):
        left, right = middle - 28, middle + 26  # the frozen way and the trained one
        vera, dora = name == "VeRA", name == "DoRA"
        kind = "frozen" if vera else "trained"
        s.text(middle, 10, name, size=14)
        s.text(left, 316, "x")
        s.line((left, 306), (left, 270))
        s.box(left - 24, 196, 48, 74, "W₀")
        s.line((left, 196), (left, 127))
        s.join(left, 118)
        s.line((left, 290), (right, 290), (right, 270))
        s.box(right - 26, 252, 52, 18, "A", kind)
        s.line((right, 252), (right, 242 if vera else 210))
        if vera:
            s.box(right - 20, 222, 40, 20, "× d", "trained")
            s.line((right, 222), (right, 210))
        s.box(right - 11, 162, 22, 48, "B", kind)
        s.line((right, 162), (right, 152))
        s.box(right - 24, 132, 48, 20, *(("× b", "trained") if vera else ("× α/r", "data")))
        s.line((right, 132), (right, 118), (left + 9, 118))
        s.line((left, 109), (left, 90 if dora else 36))
        if dora:
            s.box(left - 27, 70, 88, 20, "÷ row length", "data")
            s.line((left, 70), (left, 62))
            s.box(left - 24, 42, 48, 20, "× m", "trained")
            s.line((left, 42), (left, 36))
        s.text(left, 28, "h")
        s.text(middle, 336, f"trains {some}", size=SMALL)
    s.text(300, 350, "one A, B for all", size=SMALL)
    return s


def _ring() -> Sketch:
    """Four processes that add up their vectors, one piece a round."""
    s = Sketch(296)
    places = [(16, 30), (232, 30), (232, 112), (16, 112)]
    for i, (x, y) in enumerate(places):
        s.text(x + 56, y - 10 if i < 2 else y + 34, f"process {i}", size=SMALL)
        for piece in range(4):
            s.box(x + 28 * piece, y, 28, 22, str(piece), "frozen" if piece == i else "data")
    s.line((128, 41), (232, 41))
    s.line((288, 52), (288, 112))
    s.line((232, 123), (128, 123))
    s.line((72, 112), (72, 52))
    s.text(180, 32, "sends piece 0", size=SMALL)
    s.text(282, 82, "piece 1", "end", SMALL)
    s.text(180, 114, "piece 2", size=SMALL)
    s.text(78, 82, "piece 3", "start", SMALL)
    names = {0: "at the start", 1: "1 round", 3: "3 rounds", 6: "6 rounds"}
    for i, (rounds, name) in enumerate(names.items()):
        x, y = 11 + 90 * i, 186
        s.text(x + 34, y - 11, name, size=SMALL)
        for process, counts in enumerate(_summed(4, rounds)):
            for piece, count in enumerate(counts):
                kind = "trained" if count == 4 else "data"
                s.box(x + 17 * piece, y + 17 * process, 17, 17, str(count), kind)
    s.text(225, 265, "reduce-scatter", size=SMALL)
    s.text(315, 265, "all-gather", size=SMALL)
    s.text(180, 286, "Row: process. Column: piece. Number: vectors added up in it.", size=SMALL)
    return s


def _summed(processes: int, rounds: int) -> list[list[int]]:
    """How many vectors each process has added up in each piece, as page 6.6's `ring_all_reduce` does."""
    held = [[1] * processes for _ in range(processes)]
    for step in range(rounds):
        adding = step < processes - 1
        before = [list(pieces) for pieces in held]
        for i in range(processes):
            piece = (i - step + (not adding) * processes) % processes
            right = (i + 1) % processes
            held[right][piece] = before[i][piece] + (before[right][piece] if adding else 0)
    return held


DRAWINGS: dict[str, tuple[Callable[[], Sketch], str, str]] = {
    "lora": (
        _lora,
        "A layer of pocket-gpt, read from below. Each of its seven maps has an A and a B; one is enlarged.",
        "A layer from below: norm, the maps q, k and v, attention, the map o, a sum; norm, the maps gate "
        "and up, their product, the map down, a sum. Each map has a small yellow mark. One is enlarged: x "
        "goes up through W₀, frozen, and beside it through A, flat, to r numbers, through B, tall, times "
        "alpha over r; both meet in a sum, h.",
    ),
    "prefix": (
        _prefix,
        "Attention of one head, with a prefix of two vectors. A mark: the word asks there.",
        "A grid: four words ask, one a row; six keys can be asked, one a column. The first two columns, P1 "
        "and P2, are trained and marked in every row; of the text each word has marks up to itself. Below "
        "stand as many values. A brace gives the prefix the share λ and the text 1 − λ.",
    ),
    "rows": (
        _rows,
        "A batch whose rows ask for different adaptations. W₀ runs once; each row has its own A and B.",
        "Four rows, x1 to x4. All go together through one grey box, W₀. The first has nothing else; the "
        "others go each through an A and a B of its own: shout, tale, recipes. At each row's sum its part "
        "of what W₀ gave is added, and h1 to h4 come out.",
    ),
    "fusion": (
        _fusion,
        "AdapterFusion at one place, read from below. The adapters are frozen; Q, K and V are trained.",
        "From below: h goes to Q and to three frozen adapters, translation, summary and questions, which "
        "give z1 to z3. Q h and K z meet in a softmax, whose weights a1 to a3 mix the z. The mix goes "
        "through V, and a sum adds it to h, which has gone straight up on the left.",
    ),
    "family": (
        _family,
        "LoRA, DoRA and VeRA beside one frozen map, read from below.",
        "Three drawings. LoRA: x goes through W₀ and beside it through A, B and times alpha over r, into a "
        "sum; A and B are trained. DoRA: the same, then divided by the row's length and times m, which is "
        "trained too. VeRA: A and B are frozen; times d stands between them and times b behind; only those "
        "two are trained.",
    ),
    "ring": (
        _ring,
        "An all-reduce of four processes in a ring. Above the first round, below what each piece holds.",
        "Four processes in a ring, each with pieces 0 to 3 of its vector; process 0 sends piece 0 to "
        "process 1, and so on round. Below four tables of how many vectors a piece holds: all ones at the "
        "start; a two in each row after one round; one complete piece, a four, in each row after three: the"
        " reduce-scatter; all fours after six: the all-gather.",
    ),
}
