"""NF4: a frozen base of about 4 bits a weight, the ground of QLoRA (Dettmers et al. 2023,
arXiv:2305.14314, section 3).

Trained weights are nearly normal, so the 16 values that 4 bits can name are quantiles of the normal
distribution. The weight is cut into blocks of 64; each is divided by its largest magnitude (absmax)
and every entry replaced by the nearest of the 16. The absmax are quantised in turn::

    quantize_nf4(model)           # the frozen base shrinks
    attach(model, LoRA(r=8))      # QLoRA: A and B stay in float32
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pedagogic_peft.core import validation
from pedagogic_peft.core.sites import Model, View, replace_modules, sites
from pedagogic_peft.core.targets import Targets, find_targets, is_conv1d, refuse_ignored

ABSMAX_BLOCK = 256  # blocks whose absmax are quantised together


def quantize_nf4(
    model: Model,
    target_modules: Targets = None,
    block_size: int = 64,
    double_quant: bool = True,
) -> Model:
    """Replace linear maps by `NF4Linear`, in place.

    A weight then takes 4 + 8/64 + 32/(64·256) = 4.127 bits, or 4 + 32/64 = 4.5 without double
    quantisation. Embeddings, normalisations, biases and the head stay as they are. Save a quantised
    model with `torch.save(model.state_dict(), ...)`; load that into a model quantised alike.

    Args:
        model: a model without adaptations.
        target_modules: names, a regular expression or "all-linear", as in `LoRA`; None means
            "all-linear", every linear map except the head.
        block_size: weights that share one absmax; even.
        double_quant: quantise the absmax too.

    Returns:
        The same model.

    Raises:
        ValueError: nothing matches; a weight is not floating-point or not finite; a bad block size.
        RuntimeError: the model carries adaptations.

    Example:
        >>> from pedagogic_peft import LoRA, attach, load_base, model_bytes, quantize_nf4
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> before = model_bytes(model)
        >>> model = attach(quantize_nf4(model), LoRA(r=4))  # QLoRA
        >>> model_bytes(model) < before
        True
    """
    even = validation.count("block_size", block_size) % 2 == 0
    validation.expect(
        even, "block_size", block_size, "an even number, because two codes fill a byte"
    )
    validation.flag("double_quant", double_quant)
    view = View(model)
    _refuse_adapted(view)
    names = "all-linear" if target_modules is None else target_modules
    found = find_targets(view, validation.targets("target_modules", names), _can_quantise)
    refuse_ignored(view, found)
    for path, module in found.items():
        weight: Any = module.weight
        if not weight.is_floating_point():
            raise ValueError(f"{path}.weight is {weight.dtype}: expected floating-point")
        if not weight.isfinite().all():
            raise ValueError(f"{path}.weight is not finite everywhere: it cannot be quantised")
    new = {base: NF4Linear(base, block_size, double_quant) for base in found.values()}
    replace_modules(view, new)
    return model


def dequantize_nf4(model: Model) -> Model:
    """Replace every `NF4Linear` by the ordinary linear map that computes the same, in place.

    Raises:
        RuntimeError: the model carries adaptations.

    Example:
        >>> from pedagogic_peft import dequantize_nf4, load_base, quantize_nf4
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> model = dequantize_nf4(quantize_nf4(model))
        >>> type(model.model.layers[0].self_attn.q_proj).__name__
        'Linear'
    """
    view = View(model)
    _refuse_adapted(view)
    quantised = (module for module in view.modules.values() if isinstance(module, NF4Linear))
    replace_modules(view, {module: module.unquantised() for module in quantised})
    return model


@cache
def nf4_code() -> Tensor:
    """Return the 16 values, ascending from -1 to 1: (16,), float32.

    Quantiles of the normal distribution at evenly spaced probabilities, 8 from the middle down and 9
    from the middle up, which share the exact zero in the middle; divided by the largest. The
    outermost probability is that of the authors' code.
    """
    down, up = (
        torch.special.ndtri(torch.linspace(0.5, 0.9677083, n, dtype=torch.float64, device="cpu"))
        for n in (8, 9)
    )
    return torch.cat([-down[1:].flip(0), up]).div(up[-1]).float()


@cache
def _values_of_bytes(device: torch.device) -> Tensor:
    """Return the two values that each byte stands for: (256, 2)."""
    byte = torch.arange(256, device="cpu")
    return nf4_code()[torch.stack([byte // 16, byte % 16], dim=1)].to(device)


def quantise(weight: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """Return the codes, two a byte: (entries / 2,), uint8, and the absmax: (blocks,), float32.

    The last block is filled up with zeros.
    """
    entries = weight.detach().float().flatten()
    blocks = F.pad(entries, (0, -len(entries) % block_size)).view(-1, block_size)
    absmax = blocks.abs().amax(dim=1)
    scaled = blocks / absmax.clamp_min(torch.finfo(torch.float32).tiny)[:, None]  # in [-1, 1]
    code = nf4_code().to(weight.device)
    nearest = torch.bucketize(scaled, (code[1:] + code[:-1]) / 2, out_int32=True)  # 0 to 15
    first, second = nearest.view(-1, 2).to(torch.uint8).unbind(dim=1)
    return first * 16 + second, absmax


def quantise_absmax(absmax: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise the absmax to 8 bits: (blocks,), int8; a scale for each 256: float32; their mean.

    All are positive, so their mean is taken off first. The paper stores 8-bit floats; whole numbers
    from -127 to 127 take as much, and what is near a mean is met more closely by an even grid.
    """
    mean = absmax.mean()
    blocks = F.pad(absmax - mean, (0, -len(absmax) % ABSMAX_BLOCK)).view(-1, ABSMAX_BLOCK)
    scale = blocks.abs().amax(dim=1) / 127
    whole = (blocks / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round()
    return whole.to(torch.int8).flatten()[: len(absmax)], scale, mean


class NF4Linear(nn.Linear):
    """A frozen linear map whose weight is kept in NF4 and computed whenever it is needed.

    To those who ask it is an `nn.Linear`: ``weight`` is (out_features, in_features), also when it
    stands for GPT-2's `Conv1D`. But that is a fresh tensor each time, and writing to it has no effect.

    ``codes`` is a parameter that cannot be trained. It and the absmax keep their dtypes in ``.to``,
    ``.half`` and the like; those decide the dtype of ``weight`` only.

    Args:
        base: an `nn.Linear` or a `Conv1D`; its bias is taken over.
        block_size, double_quant: as in `quantize_nf4`.
    """

    absmax: Tensor
    absmax_scale: Tensor | None
    absmax_mean: Tensor | None

    def __init__(self, base: Any, block_size: int = 64, double_quant: bool = True):
        nn.Module.__init__(self)  # nn.Linear's own would make a weight
        self.kind: Any = type(base) if is_conv1d(base) else nn.Linear
        weight = base.weight.T if is_conv1d(base) else base.weight
        self.out_features, self.in_features = weight.shape
        self.dtype, self.training = weight.dtype, base.training
        codes, absmax = quantise(weight, block_size)
        of_absmax = quantise_absmax(absmax) if double_quant else (absmax, None, None)
        for name, buffer in zip(("", "_scale", "_mean"), of_absmax, strict=True):
            self.register_buffer("absmax" + name, buffer)
        self.codes, self.bias = nn.Parameter(codes, requires_grad=False), base.bias

    @torch.no_grad()
    def dequantise(self) -> Tensor:
        """Return the weight: (out_features, in_features), float32."""
        absmax = self.absmax
        if self.absmax_scale is not None and self.absmax_mean is not None:
            scale = self.absmax_scale.repeat_interleave(ABSMAX_BLOCK)[: len(absmax)]
            absmax = absmax * scale + self.absmax_mean
        values = F.embedding(self.codes.int(), _values_of_bytes(self.codes.device))
        blocks = values.view(len(absmax), -1) * absmax[:, None]  # (blocks, block_size)
        d_out, d_in = self.out_features, self.in_features
        return blocks.flatten()[: d_out * d_in].view(d_out, d_in)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The dequantised weight, in the model's dtype."""
        return self.dequantise().to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return W x + b, for x: (..., in_features), computed in the dtype of x."""
        y: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def unquantised(self) -> nn.Module:
        """Return an ordinary linear map with the dequantised weight."""
        W = self.weight if self.kind is nn.Linear else self.weight.T.contiguous()
        with torch.device("meta"):  # its own weight is never made
            plain: nn.Module = self.kind(*W.T.shape)  # nn.Linear(d_in, d_out), Conv1D(d_out, d_in)
        plain.weight, plain.bias = nn.Parameter(W), self.bias
        return plain.train(self.training)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "NF4Linear":
        """Move all tensors with the model, but round no absmax to another dtype."""
        exact = {id(buffer) for buffer in self.buffers()}
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if id(tensor) in exact else moved

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        return self


class _Product(torch.autograd.Function):
    """W x without a dequantised W kept for the backward pass: it is made again there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: NF4Linear) -> Tensor:
        ctx.linear, ctx.dtype = linear, x.dtype
        return F.linear(x, linear.dequantise().to(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # Under autocast the gradient has the lower precision of y, not that of x.
        W = ctx.linear.dequantise().to(gradient.dtype)
        return (gradient @ W).to(ctx.dtype), None


def _can_quantise(module: nn.Module) -> bool:
    return is_conv1d(module) or type(module).forward is nn.Linear.forward


def _refuse_adapted(view: View) -> None:
    if any(sites(view)):
        raise RuntimeError("The model carries adaptations: detach (quantise first, then attach)")
