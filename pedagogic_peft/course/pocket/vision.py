"""Digits: real images of 8 x 8 pixels, and the domains that pocket-vit did not see.

They are the 1,797 handwritten digits that scikit-learn brings along (Alpaydin and Kaynak 1998, UCI
"Optical Recognition of Handwritten Digits"). Pixels are numbers from 0 to 1, ink is 1.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

# The first digits of the data set train, the last ones test: other people wrote those.
SPLITS = {"train": slice(0, 1100), "validation": slice(1100, 1300), "test": slice(1300, None)}


def upright(images: np.ndarray) -> np.ndarray:
    """Return the images as they are: what pocket-vit was pretrained on."""
    return images


def rotated(images: np.ndarray) -> np.ndarray:
    """Turn the images (..., height, width) by a quarter, counter-clockwise."""
    return np.rot90(images, axes=(-2, -1))


def inverted(images: np.ndarray) -> np.ndarray:
    """White on black becomes black on white."""
    return 1 - images


def outlined(images: np.ndarray) -> np.ndarray:
    """Draw only the edges: how far a pixel is from the mean of its four neighbours."""
    wide = np.pad(images, [(0, 0)] * (images.ndim - 2) + [(1, 1), (1, 1)])
    up, down, left, right = np.s_[:-2, 1:-1], np.s_[2:, 1:-1], np.s_[1:-1, :-2], np.s_[1:-1, 2:]
    around = sum(wide[(..., *side)] for side in (up, down, left, right))
    return np.asarray(np.abs(images - around / 4))


DOMAINS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "upright": upright,
    "rotated": rotated,
    "inverted": inverted,
    "outlined": outlined,
}


def known(name: str, table: Mapping[str, Any]) -> Any:
    """Return the entry of that name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in table:
        raise ValueError(f"no {name!r}: expected one of {', '.join(table)}")
    return table[name]


def digits(domain: str = "upright", split: str = "train") -> list[dict[str, Any]]:
    """Return examples for :func:`pedagogic_peft.train`.

    Args:
        domain: a name in ``DOMAINS``.
        split: ``"train"`` (1,100 images), ``"validation"`` (200) or ``"test"`` (497).

    Returns:
        One ``{"pixel_values": (1, 8, 8) in float32, "labels": 0 to 9}`` for each image.

    Raises:
        ValueError: there is no such domain or split.
    """
    shift, part = known(domain, DOMAINS), known(split, SPLITS)
    images, labels = _all()
    pixels = torch.tensor(shift(images[part]).copy(), dtype=torch.float32)
    return [
        {"pixel_values": image[None], "labels": int(label)}
        for image, label in zip(pixels, labels[part], strict=True)
    ]


@torch.no_grad()
def predictions(model: Any, examples: Sequence[dict[str, Any]]) -> Tensor:
    """Return the likeliest class of each image: (n,)."""
    found = []
    for i in range(0, len(examples), 500):  # photographs would not fit all at once
        images = torch.stack([e["pixel_values"] for e in examples[i : i + 500]])
        found.append(model(pixel_values=images.to(model.device)).logits.argmax(-1).cpu())
    return torch.cat(found)


def accuracy(model: Any, examples: Sequence[dict[str, Any]]) -> float:
    """Return the share of images (0 to 1) that are named rightly; chance is a tenth."""
    right = predictions(model, examples) == torch.tensor([e["labels"] for e in examples])
    return right.float().mean().item()


@cache
def _all() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.images / 16, found.target
