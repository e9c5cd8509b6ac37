"""LoRA of parameters, for the experts of a mixture (Hu et al. 2021, arXiv:2106.09685, section 4.1).

In transformers 5 the E experts of a layer are no linear maps. One parameter W_0: (E, d_out, d_in) has
the weights of all (GPT-OSS keeps them as (E, d_in, d_out)), and a forward of its own takes from it what
the tokens need. So each expert's update of rank r is added to the weight itself,

    W_e = W_0,e + ΔW_e,    ΔW_e = (α / r) B_e A_e,    B_e: d_out x r,  A_e: r x d_in,  e = 1 ... E

and the experts run once with W in the place of W_0, whichever way they compute (their ``eager``,
``batched_mm`` or ``grouped_mm``). Hugging Face PEFT calls this ``target_parameters``; the shapes of A
and B and their names in files are the same.
"""

import copy
import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from pedagogic_peft.core.delta import Delta
from pedagogic_peft.core.sites import Modules, View
from pedagogic_peft.core.targets import Names, is_linear, match


class LoRAParameter(nn.Module):
    """W_0 + (α / r) B_e A_e for each expert e of one parameter.

    A starts random and B at zero, as in `LoRALinear`, so W = W_0. A has the rows of A_1, then those of
    A_2 and so on. B has the first column of each B_e, then the second of each, as in PEFT.

    Args:
        module: what has the parameter; where it says ``is_transposed``, W_0 is (E, d_in, d_out).
        name: the parameter's name. One of two dimensions, (d_out, d_in), counts as one expert.
        r, alpha, rslora: as in `LoRALinear`.
    """

    def __init__(self, module: Any, name: str, r: int, alpha: float, rslora: bool = False):
        super().__init__()
        W = getattr(module, name)
        self.num_experts = E = len(W) if W.dim() == 3 else 1
        self.transposed = W.dim() == 3 and getattr(module, "is_transposed", False)
        d_in, d_out = W.shape[-2:] if self.transposed else W.shape[-2:][::-1]
        self.lora_A = nn.Linear(d_in, E * r, bias=False)  # A: (E r, d_in)
        self.lora_B = nn.Linear(E * r, d_out, bias=False)  # B: (d_out, r E)
        self.scaling = alpha / (math.sqrt(r) if rslora else r)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, W: Tensor) -> Tensor:
        """Return the changed weight in the shape and dtype of W, where the sum is rounded once."""
        E = self.num_experts
        A = self.lora_A.weight.to(W.dtype).unflatten(0, (E, -1))  # (E, r, d_in)
        B = self.lora_B.weight.to(W.dtype).unflatten(1, (-1, E)).permute(2, 0, 1)  # (E, d_out, r)
        left, right = (A.mT, B.mT) if self.transposed else (B, A)
        with torch.autocast(W.device.type, enabled=False):  # a weight keeps its dtype
            return torch.baddbmm(W, left, right, alpha=self.scaling).reshape(W.shape)


class LoRAExperts(Delta):
    """LoRA of some parameters of one module, which runs with the changed weights in their place.

    The changed weights are made once for each forward pass, so for as long as the layer runs there is
    a second copy of them; in training until ``backward``, unless activations are recomputed
    (gradient checkpointing). `merge` spares the copy and the sum.

    Attributes:
        loras: {name of the parameter: its `LoRAParameter`}, in the order of the module's parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loras: Any = nn.ModuleDict()

    def stand_in(self, module: nn.Module) -> nn.Module:
        """Return a twin of the module that shares all but these weights with it.

        A twin for each call, so that threads that share the model do not see each other's weights.
        """
        twin = copy.copy(module)
        vars(twin).pop("forward", None)  # one that was put there since then is bound to the module
        for name, lora in self.loras.items():
            vars(twin)[name] = lora(getattr(module, name))  # is found before the module's parameter
        return twin

    def forward(self, x: Tensor, y: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return y, the output of the twin, as it is; x: (tokens, d) and y: (tokens, d)."""
        return y

    @torch.no_grad()
    def merge_into(self, base: Any) -> None:
        """Add ΔW to the parameters: summed in float32 (at least), then rounded once."""
        for name, lora in self.loras.items():
            W = getattr(base, name)
            W.copy_(lora(W.to(torch.promote_types(W.dtype, torch.float32))))


def find_parameters(view: View, names: Names) -> Modules:
    """Return ``{path of the parameter: the module that has it}``, in the model's order.

    Args:
        view: the model.
        names: ends of the parameters' paths, such as "gate_up_proj" or "1.mlp.experts.down_proj".

    Raises:
        ValueError: a name matches no parameter, or one that cannot be adapted.
    """
    there = {
        f"{path}.{name}": module
        for path, module in view.modules.items()
        for name, _ in module.named_parameters(recurse=False)
        if path
    }
    found = match(view, there, there, names)
    for full, module in found.items():
        path, _, name = full.rpartition(".")
        if problem := _problem(module, name, view.modules[path.rpartition(".")[0]]):
            raise ValueError(f"target_parameters: {full!r} {problem}")
    return found


def _problem(module: Any, name: str, parent: nn.Module) -> str:
    """Say why this parameter of the module cannot be adapted; "" if it can."""
    W = getattr(module, name)
    if is_linear(module) or isinstance(module, nn.Embedding):
        return f"belongs to a {type(module).__name__}: name the module in target_modules"
    if W.dim() not in (2, 3) or not W.is_floating_point():
        return f"is {tuple(W.shape)}, {W.dtype}: expected floats, (experts, out, in) or (out, in)"
    # A forward may be replaced, as accelerate does for models on several devices.
    if name not in _read(module) or name in _read(parent) or "forward" in vars(module):
        return f"is not read by the {type(module).__name__}'s forward alone: it would be ignored"
    return ""


def _read(module: nn.Module) -> set[str]:
    """Return the names of all attributes that the methods of a module's class mention."""
    methods = inspect.getmembers(type(module), inspect.isfunction)
    codes = [inspect.unwrap(method).__code__ for key, method in methods if key != "__init__"]
    for code in codes:  # which grows by the functions inside
        codes += [inner for inner in code.co_consts if inspect.iscode(inner)]
    return {name for code in codes for name in code.co_names}
