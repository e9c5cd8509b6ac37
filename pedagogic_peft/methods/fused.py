"""A LoRA in fewer steps, for a model that writes token by token; what is computed is `LoRALinear`'s.

Each step of torch costs some microseconds, however few numbers it handles. At one token that is more than
the arithmetic, so the scaling and the sum are one step here. It has no gradient.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pedagogic_peft.core.delta import FUSED
from pedagogic_peft.methods.lora import LoRALinear


def fused_lora(delta: LoRALinear, x: Tensor, y: Tensor) -> Tensor:
    """Return y + (α / r) B A x, for x: (..., d_in) and y: (..., d_out), in three steps.

    The sum is rounded once instead of twice, so the last digit may differ where α / r is no power of
    two. With dropout, hooks, another precision or autocast it is the delta's own forward.
    """
    parts: Any = delta._modules  # past torch's look-up of attributes, which is a step as well
    A = parts["lora_A"]._parameters.get("weight")
    B = parts["lora_B"]._parameters.get("weight")
    hooked = delta._forward_hooks or delta._forward_pre_hooks or parts["dropout"].training
    replica = A is None or B is None  # of `DataParallel`: it has them as plain attributes
    if replica or hooked or not x.dtype is y.dtype is A.dtype:
        return delta(x, y)  # type: ignore[no-any-return]
    if torch.is_autocast_enabled(x.device.type):
        return delta(x, y)  # type: ignore[no-any-return]
    return torch.add(y, F.linear(F.linear(x, A), B), alpha=delta.scaling)


FUSED[LoRALinear] = fused_lora
