"""PiSSA: Principal Singular Values and Singular Vectors Adaptation (Meng et al. 2024).

arXiv:2404.02948. LoRA with another start: A and B begin as the r greatest singular values of W_0,
with their vectors,

    W_0 = U diag(σ) Vᵀ,   s B_0 A_0 = U_r diag(σ_r) V_rᵀ,   s = α / r

so that training moves the principal part of W_0, in its own coordinates, from the first step on.
The paper freezes the rest, W_0 - s B_0 A_0, in place of W_0. Here W_0 stays, for it is not ours to
change, and the delta is s (B A - B_0 A_0) x with A_0 and B_0 constant:

    W_0 x + s (B A - B_0 A_0) x = (W_0 - s B_0 A_0) x + s B A x

The two are the same function with the same gradients. At the start ours is W_0 x bit for bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pedagogic_peft.lora import LoRA, LoRALinear, is_linear, lora_of, sizes
from pedagogic_peft.sites import base_modules
from pedagogic_peft.targets import is_conv1d


@dataclass(frozen=True)
class PiSSA(LoRA):
    """The hyper-parameters of a PiSSA adaptation: those of `LoRA`, but no ``parts``.

    `attach` takes a singular value decomposition of each target: O(d³), seconds for d = 4096.
    Targets are linear maps. Dropout acts on the input of the whole change s (B A - B_0 A_0).

    A checkpoint is the ordinary LoRA of rank 2 r with B' = [B, -B_0] and A' = [A; A_0], which PEFT
    loads beside the original W_0; `load` makes it a PiSSA again, to go on training.

    Raises:
        TypeError, ValueError: as `LoRA`.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parts:
            raise ValueError(f"parts={self.parts!r}: only LoRA adapts parts of a projection")

    def plan(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return ``{path: delta}`` for this model, which is not changed.

        Raises:
            ValueError: as `LoRA.plan`; or a target is no linear map, or smaller than r.
        """
        deltas, modules = super().plan(model), base_modules(model)
        for path, delta in deltas.items():
            if isinstance(delta, PiSSALinear):
                delta.start_at(modules[path])
        return deltas

    def to_peft(
        self, model: nn.Module, deltas: Mapping[str, nn.Module]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the configuration and tensors of a LoRA of rank 2 r, with a key "pissa"."""
        return self._to_wider_peft(model, deltas, 2, "pissa")

    @classmethod
    def from_peft(
        cls, model: nn.Module, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> tuple[Self, dict[str, nn.Module]]:
        """Return the hyper-parameters and the filled deltas.

        Raises:
            ValueError: the checkpoint has no key "pissa", or as for LoRA.
        """
        if not config.get("pissa"):
            raise ValueError("There is no 'pissa' in the configuration: this is an ordinary LoRA")
        return cls._from_wider_peft(model, config, tensors, "pissa")

    def _classes(self) -> tuple[Any, Any]:
        return PiSSALinear, None

    def _delta(self, path: str, base: Any) -> Any:
        r, (d_in, d_out) = self.rank_of(path), sizes(base)
        if not is_linear(base) or r > min(d_in, d_out):
            raise ValueError(
                f"{path!r} ({type(base).__name__}, {d_in} -> {d_out}): PiSSA with r={r} needs a "
                "linear map with at least r inputs and outputs"
            )
        return super()._delta(path, base)


class PiSSALinear(LoRALinear):
    """s (B A - B_0 A_0) beside a linear map.

    A_0 and B_0 are buffers in the state dict, for they are needed to go on training.

    Args:
        d_in, d_out, r, alpha, dropout, use_rslora: as in `LoRALinear`.
    """

    A0: Tensor
    B0: Tensor

    def __init__(self, d_in: int, d_out: int, r: int = 8, *options: Any):
        super().__init__(d_in, d_out, r, *options)
        self.register_buffer("A0", torch.zeros(r, d_in))
        self.register_buffer("B0", torch.zeros(d_out, r))

    @torch.no_grad()
    def start_at(self, base: nn.Module) -> None:
        """Set A, A_0 and B, B_0 to the r principal components of the base's weight."""
        W = (base.weight.T if is_conv1d(base) else base.weight).float()  # (d_out, d_in)
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)  # S: (min(d_out, d_in),), descending
        r = len(self.A0)
        root = (S[:r] / self.scaling).sqrt()  # half of σ / s for each factor
        for A, B in ((self.A0, self.B0), (self.lora_A.weight, self.lora_B.weight)):
            A.copy_(root[:, None] * Vh[:r])
            B.copy_(U[:, :r] * root)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return y + s (B A - B_0 A_0) x, for x: (..., d_in) and y: (..., d_out)."""
        x = self.dropout(x)
        now = self._product(x, self.lora_A.weight, self.lora_B.weight)
        return y + (now - self._product(x, self.A0, self.B0))  # at the start the same numbers

    def _product(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return F.linear(self.scaling * F.linear(x, A.to(x.dtype)), B.to(x.dtype))

    @torch.no_grad()
    def as_lora(self) -> LoRALinear:
        """Return the ordinary LoRA of rank 2 r that this equals: [B, -B_0] [A; A_0]."""
        A = torch.cat([self.lora_A.weight, self.A0])  # (2 r, d_in)
        B = torch.cat([self.lora_B.weight, -self.B0], dim=1)  # (d_out, 2 r)
        return lora_of(A, B, self.scaling)

    @torch.no_grad()
    def take(self, lora: LoRALinear) -> None:
        """Take the values of what `as_lora` returned."""
        (A, A0), (B, minus_B0) = lora.lora_A.weight.chunk(2), lora.lora_B.weight.chunk(2, dim=1)
        self.lora_A.weight.copy_(A)
        self.lora_B.weight.copy_(B)
        self.A0.copy_(A0)
        self.B0.copy_(-minus_B0)

    def delta_weight(self) -> Tensor:
        """Return ΔW: (d_out, d_in), in float32; exactly zero at the start."""
        now = self.lora_B.weight.float() @ self.lora_A.weight.float()
        change: Tensor = self.scaling * (now - self.B0.float() @ self.A0.float())
        return change
