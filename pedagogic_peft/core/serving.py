"""A site that serves a batch in which each row has an adaptation of its own."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pedagogic_peft.core.delta import BATCHED, Delta, key_of, overrides

# What serves some rows, and the entries of the batch that it works on.
Groups = list[tuple[Any, Tensor]]


def forward_rows(site: Any, rows: Sequence[str | None], x: Tensor) -> Tensor:
    """Run the site's ``base`` once for all rows of x: (batch, ...), and each row's own delta.

    Several rows of x may belong to one entry of ``rows`` (beams, flattened tokens): then they follow
    each other.

    Raises:
        ValueError: the batch has another number of rows.
    """
    if len(x) == 1 and not x.is_floating_point():  # positions that all rows share
        x = x.expand(len(rows), *x.shape[1:])
    if len(x) % len(rows):
        raise ValueError(f"A batch of {len(x)} rows, but activate named {len(rows)}")
    groups = groups_of(site, rows, x)
    for delta, here in groups:
        if overrides(delta, Delta.before):
            x = x.index_copy(0, here, delta.before(x[here]))
    y: Tensor = site.base(x)
    for delta, here in groups:
        if len(here) == len(y):  # all of them, in order
            return delta(x, y)  # type: ignore[no-any-return]
        y = y.index_copy(0, here, delta(x[here], y[here]).to(y.dtype))
    return y


def groups_of(site: Any, rows: Sequence[str | None], x: Tensor) -> Groups:
    """Return what serves the rows. Deltas that are alike, by their entry in `BATCHED`, are one.

    Where no gradients are asked for the groups are kept until rows are named again, a parameter is
    replaced or torch counts a change of one, so that what they stack is stacked once.
    """
    made, key = site.adaptations.made, (site, len(x), x.dtype, x.device)
    if torch.is_grad_enabled():
        return make_groups(site.deltas, rows, x)
    if key in made:
        own, versions, groups = made[key]
        if all(at[k] is p and p._version == n for (at, k, p), n in zip(own, versions, strict=True)):
            return groups  # type: ignore[no-any-return]
    groups = make_groups(site.deltas, rows, x)
    modules = (m for name, d in site.deltas.items() if name in rows for m in d.modules())
    held = (module._parameters for module in modules)
    own = [(at, k, p) for at in held for k, p in at.items() if p is not None]
    # Of inference tensors torch counts no changes; a copy for another device lives for one pass.
    if own and not any(p.is_inference() for *_, p in own):
        made[key] = own, [p._version for *_, p in own], groups
    return groups


def make_groups(deltas: Any, rows: Sequence[str | None], x: Tensor) -> Groups:
    """Return the groups of a site with these deltas, ``{adaptation: delta}``."""
    each = len(x) // len(rows)
    found: dict[Any, list[int]] = {}
    keys = {name: key_of(delta) for name, delta in deltas.items() if name in rows}
    for i, name in enumerate(rows):
        if name in keys:
            found.setdefault(keys[name], []).append(i)
    groups = []
    for here in found.values():
        own = [deltas[rows[i]] for i in here]
        delta = BATCHED[type(own[0])].serve(own) if len(set(own)) > 1 else own[0]
        entries = [i * each + k for i in here for k in range(each)]
        groups.append((delta, torch.tensor(entries, device=x.device)))
    return groups
