"""The book's figure style, and figures the reader moves. Only notebooks import this module.

A figure that moves is one self-contained piece of HTML: rounded data, controls, and a few lines of
JavaScript that draw the data. It needs no kernel and no network, so it works on the static page, in
JupyterLab and on Colab. Its ids are hashes of its content: the same data give the same output. Each
is a file of its own in the folder ``explorables``, with its script beside it.

| the reader asks | figure |
|---|---|
| how good is a copy of rank r? | `rank_explorable` |
| how do a few numbers change with one setting? | `bars_explorable` |
| how do curves change with some settings? | `curves_explorable` |
| who looks at whom, by how much? | `heatmap_explorable` |
| what sits where, and what runs next? | `diagram_explorable` |
| what does my own case cost? | `calculator_explorable` |
| what does my training step hold? | `memory_calculator` |
| which one should I take? | `chooser_explorable` |
| what happens when I train it? | `alive` |
| how does it work, at one look? | `drawing` (it stands still) |
| (anything matplotlib can draw) | `frame_slider` |
| (anything JavaScript can draw) | `explorable` |

`live` shows controls that run the page's own Python, where a kernel is at hand.
"""

from pedagogic_peft.course.explorables.alive import alive
from pedagogic_peft.course.explorables.bars import bars_explorable
from pedagogic_peft.course.explorables.calculator import calculator_explorable
from pedagogic_peft.course.explorables.chooser import chooser_explorable
from pedagogic_peft.course.explorables.controls import Check, Select, Slider
from pedagogic_peft.course.explorables.core import MovingFigure, explorable
from pedagogic_peft.course.explorables.curves import Curves, curves_explorable
from pedagogic_peft.course.explorables.diagram import Box, Diagram, diagram_explorable
from pedagogic_peft.course.explorables.drawings import Drawing, drawing
from pedagogic_peft.course.explorables.frames import frame_slider
from pedagogic_peft.course.explorables.heatmap import HeatMap, heatmap_explorable
from pedagogic_peft.course.explorables.labels import check_when_shown, collisions, name_dots
from pedagogic_peft.course.explorables.live import live
from pedagogic_peft.course.explorables.memory_calculator import memory_calculator
from pedagogic_peft.course.explorables.palette import PALETTE
from pedagogic_peft.course.explorables.ranks import rank_explorable

__all__ = [
    "Box",
    "Check",
    "Curves",
    "Diagram",
    "Drawing",
    "HeatMap",
    "MovingFigure",
    "PALETTE",
    "Select",
    "Slider",
    "alive",
    "bars_explorable",
    "calculator_explorable",
    "chooser_explorable",
    "collisions",
    "curves_explorable",
    "diagram_explorable",
    "drawing",
    "explorable",
    "frame_slider",
    "heatmap_explorable",
    "live",
    "memory_calculator",
    "name_dots",
    "rank_explorable",
    "use_style",
]


def use_style() -> None:
    """Give every later matplotlib figure the book's colours, sizes and light background.

    In the gate a figure whose words collide is then an error (`collisions`).
    """
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
    check_when_shown()
