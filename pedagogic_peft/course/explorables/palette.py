"""Colours: the book's, and those of curves and heat maps."""

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


LINES = [PALETTE[name] for name in ("blue", "vermillion", "green", "purple", "orange", "sky")]


ONE_SIDED = [[255, 255, 255], [159, 202, 230], [0, 114, 178], [0, 45, 75]]


TWO_SIDED = [[0, 60, 100], [0, 114, 178], [255, 255, 255], [213, 94, 0], [120, 45, 0]]
