"""Average the parameters of several adaptations: AdapterSoup (Chronopoulou et al. 2023).

The mean of adapters trained on different domains, or from different seeds, costs at inference what
one of them costs. It is a mean of parameters, not of outputs: for LoRA of A and of B, and the
product of the means is not the mean of the products B A. So average adaptations that were trained
from one start.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn

from pedagogic_peft.adaptation import adaptations_of, check_can_attach, install
from pedagogic_peft.peft_format import fill, tensors_of
from pedagogic_peft.sites import sites


def average(
    model: nn.Module,
    names: Sequence[str],
    weights: Sequence[float] | None = None,
    name: str = "average",
) -> nn.Module:
    """Attach a new adaptation whose parameters are the weighted mean of those of others.

    It is the only active one and can be trained; the others stay. Modules trained in full
    (`modules_to_save`) are averaged too.

    Args:
        model: a model that carries the adaptations; changed in place.
        names: the adaptations; their methods have equal hyper-parameters.
        weights: one number for each, which sum to 1; None means equal weights.
        name: what to call the new adaptation.

    Returns:
        The same model.

    Raises:
        ValueError: no names, or an unknown one; different hyper-parameters; weights of another
            number, or whose sum is not 1; the new name is taken.
        RuntimeError: an adaptation is merged.
    """
    methods = adaptations_of(model).methods
    check_can_attach(model, name)
    if isinstance(names, str) or not names or any(n not in methods for n in names):
        raise ValueError(f"names={names!r}: expected a list of adaptations of {list(methods)}")
    method, used = methods[names[0]], {n: methods[n] for n in names}
    if any(other != method for other in used.values()):
        raise ValueError(f"{list(names)} have different hyper-parameters: {used}")
    shares = [1 / len(names)] * len(names) if weights is None else list(weights)
    if len(shares) != len(names) or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise ValueError(f"weights={weights!r}: expected {len(names)} numbers whose sum is 1")
    deltas = method.build(model)
    mean = {key: torch.zeros_like(tensor).float() for key, tensor in tensors_of(deltas).items()}
    for n, share in zip(names, shares, strict=True):
        own = {path: place.deltas[n] for path, place in sites(model) if n in place.deltas}
        for key, tensor in tensors_of(own).items():
            mean[key] += share * tensor.float()
    fill(deltas, mean)
    return install(model, method, name, deltas)
