"""The verbs: attach, detach, activate, disable, merge and unmerge adaptations.

All act on the model in place and return it, so whatever already holds the model (an optimiser, a
Trainer) goes on working. Each checks everything before it changes anything. The record of what a
model carries is one attribute of the model, shared by its sites.
"""

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from pedagogic_peft.counting import memory_of
from pedagogic_peft.method import Method
from pedagogic_peft.sites import Adaptations, Annex, Place, Site, layer_of, sites, swap


def attach(model: nn.Module, method: Method, name: str = "default") -> nn.Module:
    """Freeze the model, add an adaptation to it, and make that the only active one.

    Until it is trained the adapted model computes what the model computed (but for soft prompts
    and adapters that begin near the identity; their classes say so). Only the adaptation's
    parameters require a gradient. When several adaptations are attached, the inactive ones still
    have ``requires_grad`` but take no part in the forward pass: they get no gradient, and no
    optimiser of torch moves a parameter without one.

    Args:
        model: a transformers model or any module; changed in place.
        method: hyper-parameters, for example ``LoRA(r=8)``.
        name: what to call the adaptation, for `activate`, `detach` and `save`.

    Returns:
        The same model.

    Raises:
        ValueError: the name is taken or unusable, or the method's targets are not in the model.
        RuntimeError: an adaptation is merged.

    Warns:
        UserWarning: the model's head stays frozen. A new head has to be in `modules_to_save`.
    """
    check_can_attach(model, name)
    if not hasattr(method, "plan"):
        raise TypeError(
            f"method={method!r}: expected the hyper-parameters of a method, such as LoRA(r=8)"
        )
    deltas = method.plan(model)
    _warn_of_frozen_head(model, deltas)
    return install(model, method, name, deltas)


def detach(model: nn.Module, name: str | None = None) -> nn.Module:
    """Take an adaptation off, or all of them.

    After the last one the model is bit for bit as it was found: modules, weights and
    ``requires_grad`` are those from before the first `attach`. A merged adaptation is unmerged
    first.

    Raises:
        ValueError: the model has no such adaptation, or a fusion uses it.
    """
    record = adaptations_of(model)
    if name is not None:
        _check_known(record, name)
    gone = set(record.methods) if name is None else {name}
    for user, method in record.methods.items():
        if user not in gone and (used := gone & set(getattr(method, "adapters", ()))):
            raise ValueError(f"{sorted(used)}: the fusion {user!r} uses it; detach that first")
    if record.merged:
        unmerge(model)
    here = list(sites(model))
    for _, place in here:
        for key in gone & set(place.deltas):
            del place.deltas[key]
    empty = {path: place for path, place in here if not place.deltas}
    swap(model, {site: site.base for site in empty.values() if isinstance(site, Site)})
    for path, annex in empty.items():
        if isinstance(annex, Annex):
            annex.remove(model.get_submodule(path))
    record.active = tuple(n for n in record.active if n not in gone)
    record.rows = () if gone & set(record.rows) else record.rows
    record.whole_batch -= gone
    record.methods = {n: method for n, method in record.methods.items() if n not in gone}
    if not record.methods:
        _forget(model)
    return model


def activate(model: nn.Module, *names: str, rows: Sequence[str | None] | None = None) -> nn.Module:
    """Choose the adaptations that take part in the forward pass: one, several or none.

    Several run one after the other at each site: low-rank updates and prefixes add up, bottleneck
    adapters form a **stack**. This is one assignment, however many sites the model has.

    Args:
        model: a model with adaptations.
        *names: the adaptations, in order; none gives the frozen model.
        rows: instead of names, one adaptation for each row of the coming batches (None: the frozen
            model), as when requests of several users are served together. Gradients flow too. In
            `generate` with beams, name the rows of the batch, not the beams.

    Returns:
        The same model.

    Raises:
        ValueError: the model has no such adaptation; names and rows together; rows of prefix
            tuning or LLaMA-Adapter, which act on a whole batch.
        RuntimeError: an adaptation is merged.
    """
    record = adaptations_of(model)
    if names and rows is not None:
        raise ValueError(f"names={names}, rows={rows!r}: give one of the two")
    chosen = list(names if rows is None else rows)
    for name in chosen:
        if name is not None or rows is None:
            _check_known(record, name)
    _refuse_merged(record, "activate")
    if rows and (whole := record.whole_batch & set(rows)):
        raise ValueError(f"rows={rows!r}: {sorted(map(str, whole))} can only act on a whole batch")
    record.active = tuple(dict.fromkeys(names))
    record.rows = tuple(rows or ())
    return model


@contextmanager
def adapter_drop(model: nn.Module, layers: int) -> Iterator[nn.Module]:
    """Inside the block, the lowest layers run without their deltas.

    AdapterDrop (Rücklé et al. 2021, arXiv:2010.11918, section 4) makes inference faster this way.
    For an adaptation that bears it, train inside the block, with another number each step.

    Args:
        model: a model with adaptations.
        layers: how many layers, counted from the input; 0 drops nothing.

    Raises:
        ValueError: a negative or fractional number.
        RuntimeError: an adaptation is merged.
    """
    record = adaptations_of(model)
    _refuse_merged(record, "adapter_drop")
    if not isinstance(layers, int) or isinstance(layers, bool) or layers < 0:
        raise ValueError(f"layers={layers!r}: expected a whole number, at least 0")
    before, record.dropped_layers = record.dropped_layers, layers
    try:
        yield model
    finally:
        record.dropped_layers = before


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Inside ``with disabled(model):`` the model computes what it computed before any adaptation.

    May be nested; ends also when the block raises.

    Raises:
        RuntimeError: an adaptation is merged, so the base weights are not the original ones.
    """
    record = adaptations_of(model)
    _refuse_merged(record, "disabled")
    before, record.enabled = record.enabled, False
    try:
        yield model
    finally:
        record.enabled = before


def merge(model: nn.Module, name: str | None = None, unload: bool = False) -> nn.Module:
    """Write W_0 + ΔW into the base weights, so that inference costs no more than without.

    The sum is computed in float32 and rounded once to the weight's dtype; that rounding is the only
    difference between merged and unmerged outputs (in evaluation: a merged model has no dropout on
    A). The original weights are kept, for `unmerge`, so the targets' memory doubles.

    Args:
        model: a model with adaptations; changed in place.
        name: the adaptation to merge, which becomes the active one; None means those that are
            active.
        unload: remove the adaptation and the kept originals: what stays is an ordinary model with
            new weights, whose ``requires_grad`` is as before `attach`. This cannot be undone.

    Returns:
        The same model.

    Raises:
        ValueError: the model has no such adaptation; the method cannot be merged, because it is no
            change of a weight; a weight is tied to another module, which would change too; a weight
            is quantised; ``unload`` with other adaptations attached.
        RuntimeError: an adaptation is already merged, or none is active.
    """
    record = adaptations_of(model)
    if name is not None:
        _check_known(record, name)
    names = record.active if name is None else (name,)
    _refuse_merged(record, "merge")
    if not names:
        raise RuntimeError(f"merge: no adaptation is active; name one of {list(record.methods)}")
    if unload and (others := set(record.methods) - set(names)):
        raise ValueError(
            f"merge(unload=True) would lose {sorted(others)}: save and detach them first"
        )
    here = _mergeable_sites(model, names)
    _check_mergeable(model, here)
    before, record.active = record.active, names
    record.rows = ()
    try:
        for path, site in here.items():
            record.originals[path] = {k: t.clone() for k, t in site.base.state_dict().items()}
            deltas: list[Any] = [site.deltas[n] for n in names if n in site.deltas]
            merged = copy.deepcopy(site.base)  # a delta may read the weight from before, its base's
            # What changes the input does so for all of them, so it is multiplied in last.
            for delta in sorted(deltas, key=lambda delta: hasattr(delta, "before")):
                delta.merge_into(merged)
            site.base.load_state_dict(merged.state_dict())
    except BaseException:  # out of memory, or interrupted: leave nothing half-merged
        _restore(model, record)
        record.active = before
        raise
    if unload:
        swap(model, {site: site.base for site in here.values()})
        _forget(model)
    return model


def unmerge(model: nn.Module) -> nn.Module:
    """Put the original weights back, bit for bit, for they were kept: nothing is subtracted.

    Raises:
        RuntimeError: nothing is merged.
    """
    record = adaptations_of(model)
    if not record.merged:
        raise RuntimeError("unmerge: no adaptation is merged")
    _restore(model, record)
    return model


def adaptations_of(model: nn.Module) -> Adaptations:
    """Return the record of what this model carries.

    Raises:
        ValueError: it carries nothing.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a model (torch.nn.Module), got {type(model).__name__}")
    record: Adaptations | None = vars(model).get("_adaptations")
    if record is None:
        raise ValueError(f"This {type(model).__name__} has no adaptation: attach or load one first")
    return record


def one_adaptation(model: nn.Module, name: str | None) -> str:
    """Return ``name`` if the model has it; for None, the name of the only active adaptation."""
    record = adaptations_of(model)
    if name is None:
        if len(record.active) != 1:
            raise ValueError(
                f"Name one adaptation of {list(record.methods)}; active: {record.active}"
            )
        name = record.active[0]
    _check_known(record, name)
    return name


def check_can_attach(model: nn.Module, name: str) -> None:
    """Raise what `attach` raises about the model and the name."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a model (torch.nn.Module), got {type(model).__name__}")
    # A ModuleDict holds the deltas: no dots, and none of the words that are its own attributes.
    if not isinstance(name, str) or not name or "." in name or hasattr(nn.ModuleDict(), name):
        raise ValueError(f"name={name!r}: expected a word without dots, such as 'sentiment'")
    record = vars(model).get("_adaptations")
    if record is not None:
        _refuse_merged(record, "attach")
        if name in record.methods:
            raise ValueError(
                f"An adaptation {name!r} is there already: choose another name or detach it"
            )
    for path, place in sites(model):
        if place.adaptations is not record:
            raise ValueError(
                f"{path!r} was adapted through another model object: use that one, or detach"
            )


def install(
    model: nn.Module, method: Method, name: str, deltas: Mapping[str, nn.Module]
) -> nn.Module:
    """Put the deltas ``{path: delta}`` into the model, as adaptation ``name``."""
    if "_adaptations" not in vars(model):
        trainable = [p for p in model.parameters() if p.requires_grad]
        # torch's types know no attributes of a module but tensors and modules
        model._adaptations = Adaptations(found_trainable=trainable)  # type: ignore[assignment]
        model.requires_grad_(False)
    record = adaptations_of(model)
    seats: dict[nn.Module, Site] = {}
    for path, delta in deltas.items():
        module = model.get_submodule(path)
        place = _place_for(module, delta, record, path, seats)
        place.deltas[name] = delta.train(place.training)
    swap(model, seats)
    if any(hasattr(delta, "attend") for delta in deltas.values()):
        from pedagogic_peft.attention import take_over

        take_over(model, record)
    record.methods[name] = method
    record.active, record.rows = (name,), ()
    beside = [delta for delta in deltas.values() if getattr(delta, "beside", False)]
    if not all(hasattr(delta, "for_rows") for delta in beside):
        record.whole_batch.add(name)
    return model


def _place_for(
    module: nn.Module,
    delta: nn.Module,
    record: Adaptations,
    path: str,
    seats: dict[nn.Module, Site],
) -> Place:
    """Return the place of the delta; a new site is noted in ``seats`` as ``{module: site}``."""
    if getattr(delta, "beside", False):
        annex = module._modules.get("annex")
        return annex if isinstance(annex, Annex) else Annex(module, record, layer_of(path))
    if isinstance(module, Site):
        return module
    return seats.setdefault(module, Site(module, record, layer_of(path)))


def _warn_of_frozen_head(model: nn.Module, paths: Iterable[str]) -> None:
    """A head that is no output embedding is new as a rule; frozen, it would stay random."""
    backbone = getattr(model, "base_model", model)
    embeddings = getattr(model, "get_output_embeddings", lambda: None)()
    heads = [
        name
        for name, part in model.named_children()
        if backbone is not model and part is not backbone and part is not embeddings
        if any(True for _ in part.parameters()) and not any(p.split(".")[0] == name for p in paths)
    ]
    if heads:
        warnings.warn(
            f"The head ({', '.join(heads)}) stays frozen. If it is new, train and save it: "
            f"modules_to_save={heads}",
            stacklevel=3,
        )


def _restore(model: nn.Module, record: Adaptations) -> None:
    for path, site in sites(model):
        if isinstance(site, Site) and path in record.originals:
            site.base.load_state_dict(record.originals[path])
    record.originals = {}


def _forget(model: Any) -> None:
    record = adaptations_of(model)
    for parameter in record.found_trainable:
        parameter.requires_grad_(True)
    if record.found_attention is not None:
        model.set_attn_implementation(record.found_attention)
    del model._adaptations


def _check_known(record: Adaptations, name: str | None) -> None:
    if name not in record.methods:
        raise ValueError(
            f"No adaptation is called {name!r}; there are: {', '.join(record.methods)}"
        )


def _refuse_merged(record: Adaptations, verb: str) -> None:
    if record.merged:
        raise RuntimeError(
            f"{verb}: {', '.join(record.active)} is merged into the weights; unmerge first"
        )


def _mergeable_sites(model: nn.Module, names: Sequence[str]) -> dict[str, Site]:
    here: dict[str, Site] = {}
    for path, place in sites(model):
        for delta in (place.deltas[n] for n in names if n in place.deltas):
            if not isinstance(place, Site) or not hasattr(delta, "merge_into"):
                raise ValueError(
                    f"{path}: {type(delta).__name__} is no change of a weight and cannot be merged"
                )
            here[path] = place
    return here


def _check_mergeable(model: nn.Module, here: Mapping[str, Site]) -> None:
    users: dict[int, list[tuple[nn.Module, str]]] = {}  # of each parameter's memory
    for path, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            users.setdefault(memory_of(parameter), []).append((module, f"{path}.{key}"))
    for path, site in here.items():
        own = set(site.base.modules())
        for key, parameter in site.base.named_parameters():
            if not parameter.is_floating_point():
                raise ValueError(
                    f"{path}.{key} is quantised ({parameter.dtype}) and cannot be merged into"
                )
            others = [user for module, user in users[memory_of(parameter)] if module not in own]
            if others:
                raise ValueError(
                    f"{path}.{key} is tied to {', '.join(others)}: merging would change both. Keep "
                    "the adaptation unmerged, or untie the weights before attaching"
                )
