"""Several deltas of one adaptation at one module, one after the other."""

from typing import Any

from torch import Tensor, nn

from pedagogic_peft.core.delta import Delta, Deltas, Tensors


class Together(Delta):
    """What several deltas do to one module's output, in order: each gets the output of the last.

    It serves a LoRA whose target's own bias is trained too. Each delta's tensors keep their names in a
    checkpoint.

    Args:
        parts: deltas that change the output only, and have tensors of different names.
    """

    def __init__(self, parts: list[Any]):
        super().__init__()
        self.parts: Any = nn.ModuleList(parts)

    def init_from_base(self, base: Any) -> None:
        """Let each set the values that depend on the module."""
        for part in self.parts:
            part.init_from_base(base)

    def forward(self, x: Any, y: Any) -> Any:
        """Return the output after all of them, in y's shape."""
        for part in self.parts:
            y = part(x, y)
        return y

    def merge_into(self, base: Any) -> None:
        """Write the change of each into the base."""
        for part in self.parts:
            part.merge_into(base)

    def to_checkpoint(self) -> dict[str, Tensor]:
        """Return the tensors of all."""
        return {k: tensor for part in self.parts for k, tensor in part.to_checkpoint().items()}

    def from_checkpoint(self, tensors: Tensors) -> None:
        """Take the values of what `to_checkpoint` returned."""
        for part in self.parts:
            part.from_checkpoint({key: tensors[key] for key in part.to_checkpoint()})


def together(*groups: Deltas) -> Deltas:
    """Return ``{path: delta}`` of all groups; where several have a delta, they are one `Together`."""
    found: dict[str, list[nn.Module]] = {}
    for group in groups:
        for path, delta in group.items():
            found.setdefault(path, []).append(delta)
    return {path: Together(all_) if all_[1:] else all_[0] for path, all_ in found.items()}
