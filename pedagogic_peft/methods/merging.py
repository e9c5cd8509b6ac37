"""Several LoRAs made into one: concatenated, weighted, cut to a rank, or with their conflicts resolved.

Each LoRA has ΔW_n = s_n B_n A_n, with s = α / r, and a weight w_n. What is wanted is often Σ_n w_n ΔW_n
(task arithmetic, Ilharco et al. 2023, arXiv:2212.04089):

* "cat": exactly that. The A_n one below the other and the B_n side by side are one LoRA, whose rank is
  the sum of the ranks.
* "svd": the nearest to it of the rank that is asked for, by singular value decomposition.
* "linear": no such sum. A and B are added apart, √(w_n s_n) times each, and the product of the sums has
  terms B_n A_m as well. It costs least, and is meant for LoRAs of one task that began from one start.

Two more change what is added up. TIES (Yadav et al. 2023, arXiv:2306.01708, section 3) keeps of each
tensor the entries of largest size, elects a sign for each entry, and takes the mean of those that have
it. DARE (Yu et al. 2024, arXiv:2311.03099, section 3) drops entries at random and divides the others by
the share that is kept. Either acts on A and B apart, as in Hugging Face PEFT, or on the ΔW ("_svd").
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pedagogic_peft.core import validation
from pedagogic_peft.core.delta import own_deltas
from pedagogic_peft.core.sites import Model, View, deltas_of
from pedagogic_peft.core.targets import Names, shortest_names
from pedagogic_peft.core.verbs import adaptations_of, check_can_attach, install
from pedagogic_peft.methods.lora import LoRA
from pedagogic_peft.methods.pissa import PiSSA

RULES = "linear ties dare_linear dare_ties".split()
HOW = ["cat", "svd", *RULES, "ties_svd", "dare_linear_svd", "dare_ties_svd"]


def combine(
    model: Model,
    names: Names,
    weights: Sequence[float] | None = None,
    name: str = "combined",
    how: str = "cat",
    *,
    rank: int | None = None,
    density: float | None = None,
    seed: int = 0,
) -> Model:
    """Attach a new LoRA made of others, by the ways of PEFT's ``add_weighted_adapter``.

    It is the only active one and can be trained; the others stay. For the mean of any method's
    parameters see `average`.

    Args:
        model: a model that carries the adaptations; changed in place.
        names: adaptations by LoRA or PiSSA; they may sit at different modules. One alone is only
            scaled, whatever ``how``.
        weights: w_n, one number for each, of any sign and sum; None means 1 / number of names.
        name: what to call the new adaptation.
        how: "cat", "svd" or "linear"; "ties", "dare_linear" or "dare_ties" (DARE's dropping, then TIES'
            signs), and these three with "_svd".
        rank: of the new LoRA, with "svd" and "_svd"; None means the largest of those of ``names``.
        density: share of the entries to keep, 0 < density <= 1, with TIES and DARE.
        seed: of what DARE drops.

    Returns:
        The same model.

    Raises:
        ValueError: no names, an unknown one or one twice; another method's; weights of another number;
            an option that ``how`` needs is missing, or is given and not used; "linear", "ties" and
            "dare" of different ranks; more than one has trained the same module in full; the new name
            is taken.
        RuntimeError: an adaptation is merged.

    Example:
        >>> from pedagogic_peft import LoRA, attach, combine, load_base
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> for name in ("tale", "shout"):  # two LoRAs, which were trained before
        ...     model = attach(model, LoRA(r=4), name)
        >>> model = combine(model, ["tale", "shout"], weights=[0.7, 0.3], name="both", how="svd")
    """
    view, w = check_can_attach(model, name), weights or [1 / max(len(names), 1)] * len(names)
    methods: dict[str, Any] = adaptations_of(model, *validation.names("names", names)).methods
    validation.expect(names and len(set(names)) == len(names), "names", names, "different names")
    validation.expect(len(w) == len(names), "weights", weights, f"{len(names)} numbers")
    for one in names:
        expected = "an adaptation by LoRA or PiSSA; average takes the mean of any"
        validation.expect(type(methods[one]) in (LoRA, PiSSA), one, methods[one], expected)
    validation.one_of(*HOW)("how", how)
    sparse, is_cut = how.startswith(("ties", "dare")), how.endswith("svd")
    good = 0 < (density or 0) <= 1 if sparse else density is None
    validation.expect(good, "density", density, f"0 < density <= 1 for TIES and DARE; how={how!r}")
    validation.expect(is_cut or rank is None, "rank", rank, f"None with how={how!r}")

    deltas = {n: own_deltas(deltas_of(view, n)) for n in names}
    places: dict[str, list[_Change]] = {}
    for n, weight in zip(names, w, strict=True):
        for path, delta in deltas[n].items():
            places.setdefault(path, []).append(_Change(delta, weight))
    most = max(len(one.A) for here in places.values() for one in here)
    most = most if rank is None else validation.count("rank", rank)
    how, generator = how if len(names) > 1 else "linear", torch.Generator().manual_seed(seed)
    add = partial(added, how=how, density=density or 1.0, generator=generator)
    factors = {}
    for path, here in places.items():
        if len({len(one.A) for one in here}) > 1 and not (is_cut or how == "cat"):
            raise ValueError(f"how={how!r}: the ranks at {path!r} differ; cat and svd allow that")
        factors[path] = _factors(here, how, most, add)
    _installed(view, names, name, factors)
    return model


class _Change:
    """w s B A at one module: the factors A and B, and the numbers w and s."""

    def __init__(self, delta: Any, weight: float):
        self.A, self.B = (t.detach().float() for t in delta.to_checkpoint().values())
        self.weight, self.scaling = weight, delta.scaling


def _factors(here: list[_Change], how: str, rank: int, add: Any) -> tuple[Tensor, Tensor]:
    """Return A: (r, d_in) and B: (d_out, r) of the new LoRA at one module."""
    As, Bs = [one.A for one in here], [one.B for one in here]
    each, s = [one.weight for one in here], [one.weight * one.scaling for one in here]
    if how in ("cat", "svd"):
        A = torch.cat([x * A for x, A in zip(s, As, strict=True)])  # (Σ r, d_in)
        B = torch.cat(Bs, dim=1)  # (d_out, Σ r)
        return (A, B) if how == "cat" else nearest(B, A, rank)
    if how.endswith("_svd"):
        change = add([one.scaling * (one.B @ one.A) for one in here], each)
        return nearest(change, torch.eye(change.shape[1]).to(change), rank)
    roots = [math.sqrt(abs(x)) for x in s]
    return add(As, [math.copysign(root, x) for root, x in zip(roots, s, strict=True)]), add(
        Bs, roots
    )


def added(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    how: str,
    density: float,
    generator: torch.Generator,
) -> Tensor:
    """Return the weighted sum of tensors of one shape, or what TIES and DARE make of it."""
    T = torch.stack(list(tensors))  # (N, ...)
    if how.startswith("dare"):
        T = T * (torch.rand(T.shape, generator=generator) < density).to(T) / density
    elif how.startswith("ties"):
        T = torch.stack([largest(t, density) for t in T])
    weighted = T * torch.tensor(weights).to(T).view(-1, *[1] * (T.dim() - 1))
    if "ties" not in how:
        return weighted.sum(0)
    agree = T.sign() == torch.where(T.sum(0) >= 0, 1, -1)  # with the sign of the sum
    return (weighted * agree).sum(0) / agree.sum(0).clamp_min(1)


def largest(t: Tensor, density: float) -> Tensor:
    """Return t with the entries of largest size, this share of them, and zero for the others."""
    kept = t.abs().flatten().topk(int(density * t.numel())).indices
    return torch.zeros_like(t).flatten().index_copy(0, kept, t.flatten()[kept]).view_as(t)


def nearest(B: Tensor, A: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return A: (rank, d_in) and B: (d_out, rank) whose product is the nearest to B A of that rank.

    B A is not formed: its singular values are those of the product of the two triangles.
    """
    (QB, RB), (QA, RA) = torch.linalg.qr(B), torch.linalg.qr(A.T)
    U, S, Vh = torch.linalg.svd(RB @ RA.T, full_matrices=False)
    return Vh[:rank] @ QA.T, QB @ (U * S)[:, :rank]


def _installed(
    view: View, names: Names, name: str, factors: dict[str, tuple[Tensor, Tensor]]
) -> nn.Module:
    """Put the factors into a LoRA whose α / r is 1, with rows and columns of zeros where r is more."""
    r = max(len(A) for A, _ in factors.values())
    copies = [(p, d) for n in names for p, d in deltas_of(view, n).items() if p not in factors]
    twice = len(copies) > len(saved := dict(copies))
    validation.expect(
        not twice, "modules_to_save", [*saved], "no module trained in full by several"
    )
    targets = shortest_names(view, factors)
    method = LoRA(r=r, alpha=r, target_modules=targets, modules_to_save=[*saved])
    deltas: dict[str, Any] = method.build(view)
    with torch.no_grad():
        for path, delta in saved.items():
            deltas[path].load_state_dict(delta.state_dict())
        for path, (A, B) in factors.items():
            new_A, new_B = deltas[path].parameters()
            new_A.zero_()[: len(A)] = A
            new_B.zero_()[:, : len(A)] = B
    return install(view, method, name, deltas)
