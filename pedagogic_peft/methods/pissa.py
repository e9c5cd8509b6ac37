"""PiSSA: Principal Singular Values and Singular Vectors Adaptation (Meng et al. 2024).

arXiv:2404.02948. LoRA with another start: A and B begin as the r greatest singular values of W_0,
with their vectors,

    W_0 = U diag(σ) Vᵀ,   s B_0 A_0 = U_r diag(σ_r) V_rᵀ,   s = α / r

so that training moves the principal part of W_0, in its own coordinates, from the first step on.
The paper freezes the rest, W_0 - s B_0 A_0, in place of W_0. Here W_0 stays, because it is not ours
to change, and the delta is s (B A - B_0 A_0) x with A_0 and B_0 constant:

    W_0 x + s (B A - B_0 A_0) x = (W_0 - s B_0 A_0) x + s B A x

The two are the same function with the same gradients. At the start ours is W_0 x bit for bit.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pedagogic_peft.core.delta import Tensors
from pedagogic_peft.core.targets import check_weight, is_conv1d, is_linear, sizes
from pedagogic_peft.methods.lora import LoRA, LoRALinear


class PiSSALinear(LoRALinear):
    """s (B A - B_0 A_0) beside a linear map.

    A_0 and B_0 are buffers in the state dict, because training needs them to go on.

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
    def init_from_base(self, base: nn.Module) -> None:
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

    def to_checkpoint(self) -> dict[str, Tensor]:
        """Return the tensors of the ordinary LoRA of rank 2 r that this equals."""
        A = torch.cat([self.lora_A.weight, self.A0])  # (2 r, d_in)
        B = torch.cat([self.lora_B.weight, -self.B0], dim=1)  # (d_out, 2 r)
        return {"lora_A.weight": A, "lora_B.weight": B}

    def from_checkpoint(self, tensors: Tensors) -> None:
        """Take the values of what `to_checkpoint` returned."""
        A, A0 = tensors["lora_A.weight"].chunk(2)
        B, minus_B0 = tensors["lora_B.weight"].chunk(2, dim=1)
        for own, new in zip(self.state_dict().values(), (A0, -minus_B0, A, B), strict=True):
            own.copy_(new)

    def delta_weight(self) -> Tensor:
        """Return ΔW: (d_out, d_in), in float32; exactly zero at the start."""
        now = self.lora_B.weight.float() @ self.lora_A.weight.float()
        return self.scaling * (now - self.B0.float() @ self.A0.float())


class PiSSA(LoRA):
    """The hyper-parameters of a PiSSA adaptation: those of `LoRA`, but no ``parts``.

    `attach` takes a singular value decomposition of each target: O(d³), seconds for d = 4096.
    Targets are linear maps. Dropout acts on the input of the whole change s (B A - B_0 A_0).

    A checkpoint is the ordinary LoRA of rank 2 r with B' = [B, -B_0] and A' = [A; A_0], which PEFT
    loads beside the original W_0; `load` makes it a PiSSA again, to go on training.

    Raises:
        ValueError: as `LoRA`; when attached, a weight is packed, as by bitsandbytes.

    Example:
        >>> from pedagogic_peft import PiSSA, attach, count_parameters, load_base
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> print(count_parameters(attach(model, PiSSA(r=4))))
        trainable: 1,536 of 77,712 (1.98 %)
    """

    peft = replace(LoRA.peft, flag="pissa")
    OF_LINEAR = PiSSALinear

    def delta(self, path: str, module: Any) -> Any:
        """Return the delta for one module."""
        r, (d_in, d_out) = self.rank_of(path), sizes(module)
        if not is_linear(module) or r > min(d_in, d_out):
            what = f"{path!r} ({type(module).__name__}, {d_in} -> {d_out}): PiSSA with r={r}"
            raise ValueError(f"{what} needs a linear map with at least r inputs and outputs")
        check_weight(f"PiSSA at {path!r}", module)
        return super().delta(path, module)
