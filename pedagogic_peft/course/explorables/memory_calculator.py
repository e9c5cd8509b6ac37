"""The memory of a training step for models and cards of the reader's choice."""

import json
from collections.abc import Mapping
from typing import Any

from pedagogic_peft.course.explorables.calculator import calculator_explorable
from pedagogic_peft.course.explorables.controls import Check, Select, Slider
from pedagogic_peft.course.explorables.core import MovingFigure, read_script
from pedagogic_peft.course.memory import (
    KEPT,
    METHODS,
    MOMENTS,
    NF4_BYTES,
    PRECISIONS,
    Decoder,
    budget,
    loss_memory,
)

CHUNK = 1024  # tokens of a chunked loss
# What nvidia-smi shows of a card, in MiB.
CARDS = {
    "T4, 16 GB": 15_360,
    "24 GB": 24_564,
    "A100, 40 GB": 40_960,
    "A100, 80 GB": 81_920,
}


def memory_calculator(models: Mapping[str, Decoder], start: str) -> MovingFigure:
    """Let the reader compute the memory of one training step, beside that of a card.

    Args:
        models: name: sizes.
        start: the model that is shown first.
    """

    def gigabytes(model: str, chunked: bool, **choice: Any) -> dict[str, float]:
        shape, chunk = models[model], CHUNK if chunked else None
        found = vars(budget(shape, **choice, chunk=chunk))
        found["the loss"] = loss_memory(shape, choice["batch"], choice["sequence"], chunk)
        return {part: size / 1e9 for part, size in found.items()}

    return calculator_explorable(
        gigabytes,
        _formula(models),
        [
            Select("model", "model", list(models), start=list(models).index(start)),
            Select("method", "method", METHODS, start=0),
            Slider("r", "rank of LoRA", (1, 2, 4, 8, 16, 32, 64), start=3),
            Select("precision", "precision", list(PRECISIONS), start=1),
            Select("optimizer", "optimiser", list(MOMENTS)),
            Slider("batch", "rows in a batch", (1, 2, 4, 8, 16, 32), start=2),
            Slider("sequence", "tokens in a row", (128, 256, 512, 1024, 2048, 4096), start=3),
            Check("checkpointing", "gradient checkpointing"),
            Check("chunked", "chunked cross-entropy"),
            Select(
                "card",
                "card",
                [round(mib * 2**20 / 1e9, 1) for mib in CARDS.values()],
                start=3,
                shown=tuple(CARDS),
            ),
        ],
        alt="One bar for the memory of a training step, in five parts, beside the memory of a card.",
        unit="GB",
        total="a training step",
        limit="card",
        caption="Memory of one training step by formula, and what a card has.",
    )


def _formula(models: Mapping[str, Decoder]) -> str:
    """Return the body of the JavaScript function, with its tables."""
    tables: dict[str, Any] = {"MODELS": {name: _facts(shape) for name, shape in models.items()}}
    tables |= {"PRECISIONS": PRECISIONS, "MOMENTS": MOMENTS, "NF4": NF4_BYTES, "CHUNK": CHUNK}
    lines = [f"const {name} = {json.dumps(table)};" for name, table in tables.items()]
    return "\n".join([*lines, read_script("memory_calculator.js")])


def _facts(shape: Decoder) -> dict[str, Any]:
    """Return what the browser needs to know of a model."""
    kept = {how: KEPT[shape.kind, "LoRA" if how == "QLoRA" else how] for how in METHODS}
    per_rank = {how: shape.trained(how, r=1) for how in METHODS}
    linear = shape.layers * sum(d_in * d_out for d_in, d_out in shape.maps())
    return vars(shape) | {"N": shape.parameters(), "kept": kept, "linear": linear, "each": per_rank}
