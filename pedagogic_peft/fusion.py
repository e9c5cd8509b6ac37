"""AdapterFusion: attention over bottleneck adapters (Pfeiffer et al. 2021, arXiv:2005.00247).

Adapters of several tasks are there already and stay as they are. In each layer, and for each token,
fusion learns how much of each to use (section 3.2): with h the hidden state that the adapters read
and z_1, ..., z_N what they would add to it, it adds instead

    Σ_n a_n V z_n,    a = softmax over n of (Q h)ᵀ (K z_n)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pedagogic_peft.adaptation import adaptations_of
from pedagogic_peft.checks import names
from pedagogic_peft.peft_format import (
    check_options,
    fill,
    tensors_of,
    with_prefix,
    without_prefix,
)
from pedagogic_peft.sites import TrainedCopy, base_modules, sites
from pedagogic_peft.targets import find_modules


@dataclass(frozen=True)
class AdapterFusion:
    """The hyper-parameters of a fusion. Attach it to a model that carries the adapters.

    Then it alone is active, and runs the adapters itself. It does not train them: gradients pass
    through them, but none reaches their parameters. A checkpoint holds the fusion's tensors only;
    to load it, attach or load the adapters first, under the same names.

    Args:
        adapters: names of attached adaptations, `BottleneckAdapter`s or `Compacter`s of one
            placement, "houlsby" or "pfeiffer". Layers left out by some are fused of the others.
        modules_to_save: names of modules to train in full, such as a new classification head.

    Raises:
        TypeError, ValueError: no list of names, or an empty one, or a name twice.
    """

    peft_type: ClassVar[str] = "ADAPTER_FUSION"

    adapters: Sequence[str] = ()
    modules_to_save: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "adapters", names("adapters", self.adapters))
        object.__setattr__(self, "modules_to_save", names("modules_to_save", self.modules_to_save))
        if not self.adapters or len(set(self.adapters)) < len(self.adapters):
            raise ValueError(f"adapters={self.adapters!r}: expected different names, at least one")

    def plan(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return ``{path: delta}`` for this model, which is not changed.

        Raises:
            ValueError: an adapter is not attached, is no bottleneck adapter, or has another
                placement than the first; `modules_to_save` names a module where adapters sit.
        """
        self._check_adapters(model)
        saved = find_modules(model, self.modules_to_save)
        modules: dict[str, Any] = {**base_modules(model)}
        deltas: dict[str, nn.Module] = {}
        for path, place in sites(model):
            here = [place.deltas[name] for name in self.adapters if name in place.deltas]
            if here := [delta for delta in here if hasattr(delta, "change")]:  # no trained copies
                at_norm = hasattr(here[0], "before")
                delta = FusionBeforeNorm(here, modules[path]) if at_norm else Fusion(here)
                deltas[path] = delta.to(modules[path].weight.device)
        if twice := deltas.keys() & saved.keys():
            raise ValueError(f"modules_to_save: adapters sit at {sorted(twice)}: name others")
        return deltas | {path: TrainedCopy(module) for path, module in saved.items()}

    def to_peft(
        self, model: nn.Module, deltas: Mapping[str, nn.Module]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the configuration, with the adapters' names, and the fusion's own tensors."""
        config = {"adapters": self.adapters, "modules_to_save": self.modules_to_save}
        return config, with_prefix(tensors_of(deltas))

    @classmethod
    def from_peft(
        cls, model: nn.Module, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> tuple[Self, dict[str, nn.Module]]:
        """Return the hyper-parameters and the filled deltas.

        Raises:
            ValueError: as `plan`; the tensors do not fit.
        """
        check_options(config, {"adapters"})
        method = cls(config["adapters"], config.get("modules_to_save") or ())
        deltas = method.plan(model)
        fill(deltas, without_prefix(model, tensors))
        return method, deltas

    def _check_adapters(self, model: nn.Module) -> None:
        methods = adaptations_of(model).methods
        if absent := [name for name in self.adapters if name not in methods]:
            raise ValueError(
                f"adapters: {absent} are not attached to this model (it has {list(methods)}): "
                "attach or load them first"
            )
        placements = {name: getattr(methods[name], "placement", None) for name in self.adapters}
        if set(placements.values()) not in ({"houlsby"}, {"pfeiffer"}):
            raise ValueError(
                f"adapters: their placements are {placements}, but what can be fused is bottleneck "
                "adapters of one placement, all 'houlsby' or all 'pfeiffer'"
            )


class Fusion(nn.Module):
    """h + V Σ_n a_n z_n, where h is the output of the site.

    V begins as the identity (the paper adds small noise), so the sum begins as a weighted mean of
    what the adapters would add. Q and K begin with standard deviation 0.02, as BERT's weights do.

    Args:
        adapters: the N deltas of the site; referred to, not registered as parts of the fusion.
    """

    def __init__(self, adapters: Sequence[Any]):
        super().__init__()
        d = len(adapters[0].adapter_up.bias)
        self.query, self.key, self.value = (nn.Linear(d, d, bias=False) for _ in range(3))
        nn.init.normal_(self.query.weight, std=0.02)
        nn.init.normal_(self.key.weight, std=0.02)
        nn.init.eye_(self.value.weight)
        self._adapters = tuple(adapters)

    def change(self, h: Tensor) -> Tensor:
        """Return V Σ_n a_n z_n: (..., d), for h: (..., d)."""
        Q, K, V = (m.weight.to(h.dtype) for m in (self.query, self.key, self.value))
        z = torch.stack([a.change(h, frozen=True) for a in self._adapters], dim=-2)  # (..., N, d)
        scores = F.linear(z, K) @ F.linear(h, Q).unsqueeze(-1)  # (..., N, d) (..., d, 1)
        a = scores.softmax(dim=-2)  # (..., N, 1)
        return F.linear((a * z).sum(dim=-2), V)

    def forward(self, x: Tensor, y: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return y + self.change(y)


class FusionBeforeNorm(Fusion):
    """The same where the adapters sit at the LayerNorm that closes a layer: see BottleneckBeforeNorm.

    Args:
        adapters: as in `Fusion`.
        norm: the LayerNorm; referred to, not registered.
    """

    def __init__(self, adapters: Sequence[Any], norm: nn.Module):
        super().__init__(adapters)
        self._norm = (norm,)

    def before(self, x: Tensor) -> Tensor:
        return x + self.change(self._norm[0](x))

    def forward(self, x: Tensor, y: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return y
