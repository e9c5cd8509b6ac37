"""AdapterFusion: attention over bottleneck adapters (Pfeiffer et al. 2021, arXiv:2005.00247).

Adapters of several tasks are there already and stay as they are. In each layer, and for each token,
fusion learns how much of each to use (section 3.2): with h the hidden state that the adapters read
and z_1, ..., z_N what they would add to it, it adds instead

    Σ_n a_n V z_n,    a = softmax over n of (Q h)ᵀ (K z_n)
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pedagogic_peft.core import validation
from pedagogic_peft.core.delta import Delta, Reference
from pedagogic_peft.core.method import Method, Peft, field
from pedagogic_peft.core.sites import Modules, View, sites
from pedagogic_peft.core.targets import Names
from pedagogic_peft.core.verbs import adaptations_of
from pedagogic_peft.methods.bottleneck import BeforeNorm


def check_adapters(what: str, value: Any) -> Any:
    """Return the names of adaptations as a tuple: at least one, each once."""
    good = validation.names(what, value) and len(set(value)) == len(value)
    return validation.expect(good, what, tuple(value), "different names, at least one")


class AdapterFusion(Method):
    """The hyper-parameters of a fusion. Attach it to a model that carries the adapters.

    Then it alone is active, and runs the adapters itself. It does not train them: gradients pass
    through them, but none reaches their parameters. A checkpoint holds the fusion's tensors only;
    to load it, attach or load the adapters first, under the same names.

    Args:
        adapters: names of attached adaptations by `BottleneckAdapter` or `Compacter`, of one
            placement, "houlsby" or "pfeiffer". Layers left out by some are fused of the others.
        modules_to_save: names of modules to train in full, such as a new classification head.

    Raises:
        ValueError: no list of names, or an empty one, or a name twice.

    Example:
        >>> from pedagogic_peft import AdapterFusion, BottleneckAdapter, attach, load_base
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> for name in ("tale", "shout"):  # two adapters, which were trained before
        ...     model = attach(model, BottleneckAdapter(bottleneck_size=8), name)
        >>> model = attach(model, AdapterFusion(["tale", "shout"]), "both")
        >>> [name for name, p in model.named_parameters() if p.requires_grad and "both" in name][:1]
        ['model.layers.0.mlp.down_proj.deltas.both.query.weight']
    """

    peft = Peft("ADAPTER_FUSION")

    adapters: Names = field((), check_adapters)

    def targets(self, view: View, without: Iterable[str]) -> Modules:
        """Return ``{path: site}`` of the sites with adapters.

        Raises:
            ValueError: an adapter is not attached, is no bottleneck adapter, or has another
                placement than the first.
        """
        methods = adaptations_of(view.model).methods
        if absent := [name for name in self.adapters if name not in methods]:
            raise ValueError(f"adapters: {absent} are not attached; there are {list(methods)}")
        placements = {name: getattr(methods[name], "placement", None) for name in self.adapters}
        if set(placements.values()) not in ({"houlsby"}, {"pfeiffer"}):
            what = f"adapters: their placements are {placements}"
            raise ValueError(f"{what}: expected bottleneck adapters, all houlsby or all pfeiffer")
        return {path: place for path, place in sites(view) if self._adapters_at(place)}

    def _adapters_at(self, site: Any) -> list[Any]:
        deltas = [site.deltas[name] for name in self.adapters if name in site.deltas]
        return [delta for delta in deltas if hasattr(delta, "change")]  # no trained copies

    def delta(self, path: str, module: Any) -> nn.Module:
        """Return the delta for one site."""
        here = self._adapters_at(module)
        at_norm = isinstance(here[0], BeforeNorm)
        return FusionBeforeNorm(module.base, here) if at_norm else Fusion(here)


class Fusion(Delta):
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
        self.adapters: Any = nn.ModuleList(map(Reference, adapters))

    def change(self, h: Tensor) -> Tensor:
        """Return V Σ_n a_n z_n: (..., d), for h: (..., d)."""
        Q, K, V = (m.weight.to(h.dtype) for m in (self.query, self.key, self.value))
        each = [adapter.module.change(h, frozen=True) for adapter in self.adapters]
        z = torch.stack(each, dim=-2)  # (..., N, d)
        scores = F.linear(z, K) @ F.linear(h, Q).unsqueeze(-1)  # (..., N, d) (..., d, 1)
        a = scores.softmax(dim=-2)  # (..., N, 1)
        return F.linear((a * z).sum(dim=-2), V)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return y + V Σ_n a_n z_n, for y: (..., d); x is not read."""
        return y + self.change(y)


class FusionBeforeNorm(BeforeNorm, Fusion):
    """The same where the adapters sit at the LayerNorm that closes a layer; see `BeforeNorm`."""
