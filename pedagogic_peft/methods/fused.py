"""A LoRA in fewer steps, for a model that writes token by token; what is computed is `LoRALinear`'s.

Each step of torch or of Python costs some microseconds, however few numbers it handles. At one token that
is more than the arithmetic, so no module is called here, not even the frozen map, and the scaling and the
sum are one step. It has no gradient.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from pedagogic_peft.core.delta import FUSED
from pedagogic_peft.core.targets import is_conv1d
from pedagogic_peft.methods.lora import LoRALinear


def fused_lora(delta: LoRALinear, base: Any, x: Tensor) -> Tensor:
    """Return W_0 x + b + (α / r) B A x, for x: (..., d_in), in three steps; the result is (..., d_out).

    The sum is rounded once instead of twice, so the last digit may differ where α / r is no power of
    two. The modules are called where they do more: with dropout, hooks, another precision, autocast, or
    a base that is neither a plain `nn.Linear` nor GPT-2's `Conv1D`.
    """
    parts: Any = delta._modules  # past torch's look-up of attributes, which is a step as well
    A, B = parts["lora_A"]._parameters.get("weight"), parts["lora_B"]._parameters.get("weight")
    W, b, y = base._parameters.get("weight"), base._parameters.get("bias"), None
    # A replica of `DataParallel` has them as plain attributes; a packed weight is of another type.
    plain = type(A) is type(B) is type(W) is nn.Parameter and x.dtype is A.dtype is W.dtype
    if plain and not (parts["dropout"].training or watched(delta) or watched(base)):
        flat = x.reshape(-1, x.shape[-1])
        if (linear := type(base) is nn.Linear) or is_conv1d(base):
            y = F.linear(flat, W, b) if linear else torch.addmm(b, flat, W)
    if y is None or y.dtype is not x.dtype:  # autocast changes it
        return delta(x, base(x))  # type: ignore[no-any-return]
    y.addmm_(F.linear(flat, A), B.t(), alpha=delta.scaling)  # no one else has this y
    return y.view(x.shape[:-1] + y.shape[-1:])


def watched(module: nn.Module) -> Any:
    """Tell whether calling the module does more than its class's forward."""
    hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return hooked or _global_forward_hooks or _global_forward_pre_hooks


FUSED[LoRALinear] = fused_lora
