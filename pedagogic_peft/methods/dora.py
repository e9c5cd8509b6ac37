"""DoRA: Weight-Decomposed Low-Rank Adaptation (Liu et al. 2024, arXiv:2402.09353).

A weight W_0 (d_out x d_in) is split into the length of each row and its direction. LoRA trains the
direction, a vector m the lengths:

    W' = diag(m / ‖V‖) V,    V = W_0 + (α / r) B A,    m and ‖V‖: one number for each row

‖V‖ counts as a constant in the backward pass (section 4.3). At the start m = ‖W_0‖ and V = W_0, so
W' = W_0. (The paper writes of columns; the authors' code takes one norm for each output, as here.)
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pedagogic_peft.core.delta import Delta, Reference
from pedagogic_peft.core.targets import check_weight, is_conv1d
from pedagogic_peft.methods.lora import LoRA, LoRAEmbedding, LoRALinear


class Decomposed(Delta):
    """What makes a LoRA delta, the other parent class, a DoRA delta."""

    scaling: float
    delta_weight: Any  # of the other parent
    _factors: Any  # of the subclass
    base: Any

    def measure(self, base: nn.Module) -> None:
        """Start m at ‖W_0‖; ``base`` holds W_0, and is only referred to."""
        self.base = Reference(base)
        self.lora_magnitude_vector = nn.Parameter(self.row_norms())  # m: (d_out,)

    @torch.no_grad()
    def row_norms(self) -> Tensor:
        """Return ‖W_0 + s B A‖ of each row: (d_out,), in float32, with s = α / r.

        B A is not formed: ‖w + s b A‖² = ‖w‖² + 2 s (w Aᵀ) · b + s² b (A Aᵀ) · b for a row w of W_0
        and b of B. The bound keeps a row of zeros from giving 0 / 0.
        """
        base, s = self.base.module, self.scaling
        kind = base.weight.device.type.replace("meta", "cpu")  # autocast does not know "meta"
        with torch.autocast(kind, enabled=False):
            W, (A, B) = base.weight.float(), (factor.float() for factor in self._factors())
            if isinstance(base, nn.Linear):
                squares, WA = torch.linalg.vector_norm(W, dim=1).square(), W @ A.T  # WA: (d_out, r)
            else:  # tables and Conv1D are (d_in, d_out); through W.T this would take ten times as long
                squares, WA = W.square().sum(0), (A @ W).T
            squares += 2 * s * (WA * B).sum(1) + s * s * ((B @ (A @ A.T)) * B).sum(1)
            norms: Tensor = squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()
            return norms

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return y + (g - 1) (y - bias) + g (α / r) B A x, for y: (..., d_out) and g = m / ‖V‖."""
        g = self.lora_magnitude_vector / self.row_norms()  # (d_out,); exactly 1 at the start
        update: Tensor = super().forward(x, y.new_zeros(()))  # LoRA's: (..., d_out)
        bias = getattr(self.base.module, "bias", None)
        product = y if bias is None else y - bias
        return (y + (g - 1).to(y.dtype) * product + g.to(y.dtype) * update).to(y.dtype)

    @torch.no_grad()
    def merge_into(self, base: Any) -> None:
        """Write W' into the base: computed in float32 (at least), then rounded once."""
        g = self.lora_magnitude_vector / self.row_norms()
        delta = self.delta_weight()
        W = base.weight + (delta.T if is_conv1d(base) else delta)
        base.weight.copy_(W * (g[:, None] if isinstance(base, nn.Linear) else g))
        bias = getattr(base, "bias", None)
        if bias is not None:  # other than the original one if an (IA)^3 was merged first
            bias += (g - 1) * (bias - self.base.module.bias)


class DoRALinear(Decomposed, LoRALinear):
    """DoRA beside a linear map."""

    def _factors(self) -> tuple[Tensor, Tensor]:
        return self.lora_A.weight, self.lora_B.weight


class DoRAEmbedding(Decomposed, LoRAEmbedding):
    """DoRA beside an embedding table W_0: (num, dim), taken as the map W_0ᵀ of one-hot inputs.

    So m has one number for each of the dim features, as in PEFT, not for each token.
    """

    def _factors(self) -> tuple[Tensor, Tensor]:
        return self.lora_embedding_A, self.lora_embedding_B


class DoRA(LoRA):
    """The hyper-parameters of a DoRA adaptation: those of `LoRA`, but no ``parts``.

    Checkpoints are PEFT's of LoRA with ``use_dora``. Dropout acts on the input of A only; in PEFT
    it acts in training on the change of the lengths too.

    Raises:
        ValueError: as `LoRA`; when attached, a weight is packed, as by bitsandbytes.

    Example:
        >>> from pedagogic_peft import DoRA, attach, count_parameters, load_base
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> print(count_parameters(attach(model, DoRA(r=4))))
        trainable: 1,728 of 77,904 (2.22 %)
    """

    peft = replace(LoRA.peft, flag="use_dora")
    OF_LINEAR, OF_EMBEDDING = DoRALinear, DoRAEmbedding

    def delta(self, path: str, module: Any) -> Any:
        """Return the delta for one module."""
        check_weight(f"DoRA at {path!r}", module)
        delta = super().delta(path, module).to(module.weight.device)
        delta.measure(module)
        return delta
