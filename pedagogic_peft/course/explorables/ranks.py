"""A matrix, its best copy of rank r, and what the copy misses."""

from typing import Any

import numpy as np

from pedagogic_peft.course.explorables.controls import Slider
from pedagogic_peft.course.explorables.core import MovingFigure, explorable, read_script


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
        read_script("ranks.js"),
        alt=alt or default,
        still=_still(panels),
        summary=f"Error that is left: {left_over}",
        caption=caption,
    )


def _still(panels: dict[str, np.ndarray]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 2.4), dpi=110, layout="constrained")
    for axes, (title, panel) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        axes.imshow(panel, cmap="RdBu_r", vmin=-1, vmax=1)
        axes.set(title=title, xticks=[], yticks=[])
    return figure
