"""The verbs: attach, detach, activate, disable, merge and unmerge adaptations.

All act on the model in place and return it, so whatever already holds the model (an optimiser, a
Trainer) goes on working. Each checks everything before it changes anything. The record of what a
model carries is one attribute of the model, shared by its sites.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pedagogic_peft.core import attention, validation
from pedagogic_peft.core.architectures import beside_the_text, model_type, refuse_lost
from pedagogic_peft.core.counting import memory_of
from pedagogic_peft.core.delta import (
    BATCHED,
    Delta,
    Deltas,
    Tensors,
    TrainedCopy,
    load_tensors,
    overrides,
    tensors_of,
)
from pedagogic_peft.core.method import Method
from pedagogic_peft.core.sites import (
    Adaptations,
    Hooks,
    Model,
    Site,
    View,
    deltas_of,
    layer_of,
    replace_modules,
    sites,
)
from pedagogic_peft.core.targets import Names, check_weight, fused_experts, heads

# In (parts of) these the tokens come before the rows of the batch.
TOKENS_FIRST = "bridgetower fsmt led longformer mask2former oneformer xlnet".split()

# A model whose only child is called so is a wrapper: compiled, FSDP, DataParallel or DDP.
WRAPPED = {"_orig_mod", "_fsdp_wrapped_module", "module"}


def attach(model: Model, method: Method, name: str = "default") -> Model:
    """Freeze the model, add an adaptation to it, and make that the only active one.

    Before training, the adapted model computes exactly what the base model did. (Soft prompts and
    near-identity adapters are exceptions; see their classes.) Only the adaptation's parameters
    require a gradient. When several adaptations are attached, the inactive ones still
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
        UserWarning: the model's head stays frozen. A new head has to be in `modules_to_save`. Or
            "all-linear" leaves out the experts of a mixture, which are no linear maps.

    Example:
        >>> from pedagogic_peft import LoRA, attach, load_base
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> model = attach(model, LoRA(r=4), name="style")  # the same model, changed in place
        >>> sum(p.requires_grad for p in model.parameters())  # an A and a B at each of 4 maps
        8
    """
    view = check_can_attach(model, name)
    if not isinstance(method, Method):
        raise TypeError(f"method={method!r}: expected a method's hyper-parameters, such as LoRA()")
    deltas = method.plan(view)
    refuse_lost(model, deltas)
    _warn_of_frozen_head(view, deltas)
    if method.target_modules == "all-linear":
        _warn_of_frozen_experts(view, deltas)
    install(view, method, name, deltas)
    return model


def detach(model: Model, name: str | None = None) -> Model:
    """Take an adaptation off, or all of them.

    After the last one the model is bit for bit as it was found: modules, weights and
    ``requires_grad`` are those from before the first `attach`. A merged adaptation is unmerged
    first.

    Raises:
        ValueError: the model has no such adaptation, or a fusion uses it.

    Example:
        >>> from pedagogic_peft import LoRA, attach, detach, load_base
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> model = detach(attach(model, LoRA(r=4)))
        >>> type(model.model.layers[0].self_attn.q_proj).__name__  # as it was found
        'Linear'
    """
    names = () if name is None else (name,)
    record = adaptations_of(model, *names)
    gone = set(names or record.methods)
    for user, method in record.methods.items():
        if user not in gone and (used := gone & set(getattr(method, "adapters", ()))):
            raise ValueError(f"{sorted(used)}: the fusion {user!r} uses it; detach that first")
    if record.originals:
        unmerge(model)
    view = View(model)
    here = list(sites(view))
    for _, place in here:
        for key in gone & set(place.deltas):
            del place.deltas[key]
    empty = {path: place for path, place in here if not place.deltas}
    replace_modules(view, {site: site.base for site in empty.values() if isinstance(site, Site)})
    for path, hooks in empty.items():
        if isinstance(hooks, Hooks):
            hooks.remove(model.get_submodule(path))
    record.active = tuple(n for n in record.active if n not in gone)
    record.serve(() if gone & set(record.rows) else record.rows)
    record.not_per_row -= gone
    record.methods = {n: method for n, method in record.methods.items() if n not in gone}
    if not record.methods:
        _forget(model)
    return model


def activate(model: Model, *names: str, rows: Sequence[str | None] | None = None) -> Model:
    """Choose the adaptations that take part in the forward pass: one, several or none.

    Several run one after the other at each site: low-rank updates and prefixes add up, bottleneck
    adapters form a **stack**. This is one assignment, however many sites the model has. With gradient
    checkpointing, layers are recomputed during ``backward``: call it before switching again.

    Args:
        model: a model with adaptations.
        *names: the adaptations, in order; none gives the frozen model.
        rows: instead of names, one adaptation for each row of the coming batches (None: the frozen
            model), as when requests of several users are served together. Gradients flow too. In
            `generate` with beams, name the rows of the batch, not the beams. Call it again after
            writing into parameters through ``.data``, which torch does not notice.

    Returns:
        The same model.

    Raises:
        ValueError: the model has no such adaptation; names and rows together; rows of what sits
            where the rows of a batch are not in order: in mixed experts, in what sees images or
            sounds beside the text, and in models that put the tokens first.
            (The forward pass raises a TypeError at a module with more inputs than one, and a
            ValueError where the prompts or prefixes of all rows need the same length.)
        RuntimeError: an adaptation is merged.

    Example:
        >>> from pedagogic_peft import LoRA, activate, attach, load_base
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> model = attach(attach(model, LoRA(r=4), "tale"), LoRA(r=4), "shout")
        >>> model = activate(model, "tale", "shout")  # their sum
        >>> model = activate(model, rows=["tale", "shout", None])  # one for each row of a batch
        >>> batch = tokenizer(["emma had the blue book ."] * 3, return_tensors="pt")
        >>> model(**batch).logits.shape[0]
        3
    """
    named = names if rows is None else [name for name in rows if name is not None]
    record = adaptations_of(model, *named, unmerged="activate")
    if names and rows is not None:
        raise ValueError(f"names={names}, rows={rows!r}: give one of the two")
    if rows and (whole := record.not_per_row & set(rows)):
        raise ValueError(f"rows={rows!r}: {sorted(map(str, whole))} can only act on a whole batch")
    record.active = tuple(dict.fromkeys(names))
    record.serve(rows or ())
    return model


def adapter_drop(model: Model, layers: int) -> AbstractContextManager[Model]:
    """Inside ``with adapter_drop(model, layers):`` the lowest layers run without their deltas.

    AdapterDrop (Rücklé et al. 2021, arXiv:2010.11918, section 4) makes inference faster this way.
    To train an adaptation that tolerates dropping, train inside the block with a different number at
    every step; with gradient checkpointing ``backward`` has to be inside too.

    Args:
        model: a model with adaptations.
        layers: how many layers, counted from the input; 0 drops nothing.

    Raises:
        ValueError: a negative or fractional number.
        RuntimeError: an adaptation is merged.

    Example:
        >>> from pedagogic_peft import BottleneckAdapter, adapter_drop, attach, load_base
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> model = attach(model, BottleneckAdapter(bottleneck_size=8))
        >>> batch = tokenizer("emma had the blue book .", return_tensors="pt")
        >>> with adapter_drop(model, layers=1):  # the lowest layer computes what it did before
        ...     logits = model(**batch).logits
    """
    return _changed(model, "adapter_drop", "dropped_layers", validation.whole("layers", layers))


def disabled(model: Model) -> AbstractContextManager[Model]:
    """Inside ``with disabled(model):`` the model computes what it computed before any adaptation.

    May be nested; ends also when the block raises.

    Raises:
        RuntimeError: an adaptation is merged, so the base weights are not the original ones.

    Example:
        >>> from pedagogic_peft import LoRA, attach, disabled, load_base
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> batch = tokenizer("emma had the blue book .", return_tensors="pt")
        >>> before = model(**batch).logits
        >>> model = attach(model, LoRA(r=4))
        >>> with disabled(model):
        ...     bool((model(**batch).logits == before).all())
        True
    """
    return _changed(model, "disabled", "enabled", False)


@contextmanager
def _changed(model: Model, verb: str, attribute: str, value: Any) -> Iterator[Model]:
    """Inside the block, an attribute of the model's record has another value."""
    record = adaptations_of(model, unmerged=verb)
    before = getattr(record, attribute)
    setattr(record, attribute, value)
    try:
        yield model
    finally:
        setattr(record, attribute, before)


def merge(model: Model, name: str | None = None, unload: bool = False) -> Model:
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
            change of a weight; a weight is tied to another module, which would change too (unless
            its delta is the same); a weight is quantised or not in memory (offloaded); ``unload``
            with other adaptations attached.
        RuntimeError: an adaptation is already merged, or none is active.

    Example:
        >>> from pedagogic_peft import LoRA, attach, load_base, merge
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> model = merge(attach(model, LoRA(r=4)), unload=True)
        >>> type(model.model.layers[0].self_attn.q_proj).__name__  # an ordinary map, with W_0 + ΔW
        'Linear'
    """
    names: tuple[str, ...] = () if name is None else (name,)
    record = adaptations_of(model, *names, unmerged="merge")
    names = names or record.active
    if not names:
        raise RuntimeError(f"merge: no adaptation is active; name one of {list(record.methods)}")
    if unload and (others := set(record.methods) - set(names)):
        raise ValueError(f"merge(unload) would lose {sorted(others)}: save and detach them first")
    view = View(model)
    here = _mergeable_sites(view, names)
    before, record.active = record.active, names
    record.serve(())
    try:
        for path, site in here.items():
            record.originals[path] = {k: t.clone() for k, t in site.base.state_dict().items()}
        written: set[int] = set()  # memory: a tied weight is written once
        for site in here.values():
            memory = {memory_of(parameter) for parameter in site.base.parameters()}
            if memory & written:
                continue
            written |= memory
            deltas: list[Any] = [site.deltas[n] for n in names if n in site.deltas]
            merged = copy.deepcopy(site.base)  # a delta may read the weight from before, its base's
            # What changes the input does so for all others, so it is multiplied in after them; and of
            # several the last, whose result the module sees, is the first: W R_2ᵀ R_1ᵀ x.
            inputs = [delta for delta in deltas if overrides(delta, Delta.before)]
            for delta in [delta for delta in deltas if delta not in inputs] + inputs[::-1]:
                delta.merge_into(merged)
            site.base.load_state_dict(merged.state_dict())
    except BaseException:  # out of memory, or interrupted: leave nothing half-merged
        _restore(model, record)
        record.active = before
        raise
    if unload:
        replace_modules(view, {site: site.base for site in here.values()})
        _forget(model)
    return model


def unmerge(model: Model) -> Model:
    """Put the original weights back, bit for bit: they were kept, so nothing is subtracted.

    Raises:
        RuntimeError: nothing is merged.

    Example:
        >>> from pedagogic_peft import LoRA, attach, load_base, merge, unmerge
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> model = merge(attach(model, LoRA(r=4)))  # for serving
        >>> model = unmerge(model)  # to go on training
    """
    record = adaptations_of(model)
    if not record.originals:
        raise RuntimeError("unmerge: no adaptation is merged")
    _restore(model, record)
    return model


def average(
    model: Model, names: Names, weights: Sequence[float] | None = None, name: str = "average"
) -> Model:
    """Attach a new adaptation whose parameters are the weighted mean of those of others.

    AdapterSoup (Chronopoulou et al. 2023): the mean of adapters trained on different domains, or from
    different seeds, costs at inference what one of them costs. It is a mean of parameters, not of
    outputs: for LoRA of A and of B, and the product of the means is not the mean of the products B A.
    So average adaptations that were trained from one start.

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

    Example:
        >>> from pedagogic_peft import LoRA, attach, average, load_base
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> model = attach(attach(model, LoRA(r=4), "one"), LoRA(r=4), "two")
        >>> model = average(model, ["one", "two"], weights=[0.5, 0.5], name="soup")
    """
    methods = adaptations_of(model).methods
    view = check_can_attach(model, name)
    if isinstance(names, str) or not names or any(n not in methods for n in names):
        raise ValueError(f"names={names!r}: expected a list of adaptations of {list(methods)}")
    method, used = methods[names[0]], {n: methods[n] for n in names}
    if any(other != method for other in used.values()):
        raise ValueError(f"{list(names)} have different hyper-parameters: {used}")
    shares = [1 / len(names)] * len(names) if weights is None else list(weights)
    good = len(shares) == len(names) and math.isclose(sum(shares), 1, abs_tol=1e-6)
    validation.expect(good, "weights", weights, f"{len(names)} numbers whose sum is 1")
    deltas = method.build(view)
    # In float64, rounded once: a mean of ones is one ((IA)^3 has ones that are not trained).
    mean = {k: torch.zeros(t.shape, dtype=torch.float64) for k, t in tensors_of(deltas).items()}
    for n, share in zip(names, shares, strict=True):
        for key, tensor in tensors_of(deltas_of(view, n)).items():
            mean[key] += share * tensor.cpu().double()
    load_tensors(deltas, {key: tensor.float() for key, tensor in mean.items()})
    install(view, method, name, deltas)
    return model


def adaptations_of(model: nn.Module, *names: str, unmerged: str = "") -> Adaptations:
    """Return the record of what this model carries.

    Args:
        names: adaptations that have to be there.
        unmerged: the verb that needs them not to be merged, if it does.

    Raises:
        TypeError: it is no model.
        ValueError: it carries nothing, or has no adaptation of such a name.
        RuntimeError: an adaptation is merged.
    """
    _check_is_module(model)
    record: Adaptations | None = vars(model).get("_adaptations")
    if record is None:
        raise ValueError(f"This {type(model).__name__} has no adaptation: attach or load one first")
    there, merged = ", ".join(record.methods), ", ".join(record.active)
    if strangers := [name for name in names if name not in record.methods]:
        raise ValueError(f"No adaptation is called {strangers[0]!r}; there are: {there}")
    if unmerged and record.originals:
        raise RuntimeError(f"{unmerged}: {merged} is merged into the weights; unmerge first")
    return record


def one_adaptation(model: nn.Module, name: str | None) -> str:
    """Return ``name`` if the model has it; for None, the name of the only active adaptation."""
    record = adaptations_of(model, *[] if name is None else [name])
    if name is None and len(record.active) != 1:
        raise ValueError(f"Name one adaptation of {list(record.methods)}; active: {record.active}")
    return name or record.active[0]


def check_can_attach(model: nn.Module, name: str) -> View:
    """Raise what `attach` raises about the model and the name; return the view of the model."""
    _check_is_module(model)
    # A ModuleDict holds the deltas: no dots, and none of the words that are its own attributes.
    good = isinstance(name, str) and name and "." not in name and not hasattr(nn.ModuleDict(), name)
    validation.expect(good, "name", name, "a word without dots, such as 'sentiment'")
    record: Adaptations | None = vars(model).get("_adaptations")
    if record is not None:
        adaptations_of(model, unmerged="attach")
        if name in record.methods:
            raise ValueError(f"{name!r} is there already: choose another name, or detach it")
    view = View(model)
    check_names(view)
    for path, place in sites(view):
        if place.adaptations is not record:
            raise ValueError(f"{path!r} was adapted through another model object: use that one")
    return view


def install(view: View, method: Method, name: str, deltas: Deltas) -> nn.Module:
    """Put the deltas ``{path: delta}`` into the model, as adaptation ``name``; return the model."""
    model: Any = view.model
    if "_adaptations" not in vars(model):
        trainable = [p for p in model.parameters() if p.requires_grad]
        model._adaptations = Adaptations(found_trainable=trainable)
        for parameter in trainable:
            parameter.requires_grad_(False)
        if hasattr(model, "save_pretrained"):
            model.save_pretrained = MethodType(save_pretrained, model)
        adaptations_of(model).watch(model)
    record = adaptations_of(model)
    seats: dict[nn.Module, Site] = {}
    for path, delta in deltas.items():
        module: Any = view.seats[path]
        place: Any
        if isinstance(delta, Delta) and delta.beside:
            place = module._modules.get("hooks") or Hooks(module, record, layer_of(path))
            if type(delta) not in BATCHED:
                record.not_per_row.add(name)
        elif isinstance(module, Site):
            place = module
        else:
            place = seats.setdefault(module, Site(module, record, layer_of(path)))
        place._modules["deltas"]._modules[name] = delta  # past torch's checks, which were made
        if delta.training != place.training:
            delta.train(place.training)
    # Experts that are modules see the tokens that are sent to them, of any row.
    whole = any(overrides(delta, Delta.stand_in) for delta in deltas.values())
    experts = any("experts" in path.split(".") for path in deltas)
    images = not beside_the_text(model).isdisjoint(view.modules[path] for path in deltas)
    if model_type(model) in TOKENS_FIRST or whole or experts or images:
        record.not_per_row.add(name)
    replace_modules(view, seats)
    if any(overrides(delta, Delta.attend) for delta in deltas.values()):
        attention.take_over(model, record)
    record.methods[name] = method
    record.active, record.rows = (name,), ()
    return view.model


def _warn_of_frozen_head(view: View, paths: Iterable[str]) -> None:
    """A head that is no output embedding is new as a rule; frozen, it would stay random."""
    embeddings = getattr(view.model, "get_output_embeddings", lambda: None)()
    trained = {path.partition(".")[0] for path in paths}
    if new := [n for n in heads(view) if n not in trained and view.seats[n] is not embeddings]:
        what = f"The head ({', '.join(new)}) stays frozen. If it is new, train and save it"
        validation.warn(f"{what}: modules_to_save={new}")


def _warn_of_frozen_experts(view: View, paths: Iterable[str]) -> None:
    """What "all-linear" leaves out may be most of a mixture."""
    if left := fused_experts(view, paths):
        n, ends = sum(w.numel() for w in left.values()), {tuple(p.split(".")[-2:]) for p in left}
        what = f"all-linear leaves out {n:,} parameters of experts, which are no linear maps"
        names = ", ".join(sorted(map(".".join, ends)))
        validation.warn(f"{what}: they stay frozen unless LoRA's target_parameters has {names}")


def _restore(model: nn.Module, record: Adaptations) -> None:
    for path, site in sites(model):
        if isinstance(site, Site) and path in record.originals:
            site.base.load_state_dict(record.originals[path])
    record.originals = {}


def _forget(model: Any) -> None:
    record = adaptations_of(model)
    for parameter in record.found_trainable:
        parameter.requires_grad_(True)
    for handle in record.handles:
        handle.remove()
    if record.found_attention is not None:
        model.set_attn_implementation(record.found_attention)
    vars(model).pop("save_pretrained", None)
    del model._adaptations


def _check_is_module(model: Any) -> None:
    kind = type(model).__name__
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a model (torch.nn.Module), got {kind}")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(f"This {kind} is compiled by torch.jit: pass the model it was made of")
    if len(model._modules) == 1 and (inner := WRAPPED.intersection(model._modules)):
        what = f"This {kind} wraps another model: pass its .{min(inner)} instead"
        raise ValueError(f"{what}, and wrap that again once an adaptation is attached or loaded")


def check_names(view: View) -> None:
    """Raise a ValueError if parts of the model are wrapped, so that they have other names."""
    if odd := [path for path in view.seats if (WRAPPED - {"module"}).intersection(path.split("."))]:
        what = f"{odd[0]!r}: this part of the model is wrapped, which changes the names in it"
        raise ValueError(f"{what}. Unwrap it; part.compile() compiles it under its own name")


def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Do what an adapted model's class does, and warn of what `from_pretrained` will not find."""
    record = adaptations_of(self)
    if not record.originals:
        what = f"from_pretrained will give back the base, without {', '.join(record.methods)}"
        validation.warn(
            f"{what}: save(model, path) writes that, merge(model, unload=True) both in one"
        )
    given = kwargs.get("state_dict")
    tensors = self.state_dict() if given is None else given
    if shared := _shared(tensors):
        kwargs["state_dict"] = {k: t.clone() if k in shared else t for k, t in tensors.items()}
    return type(self).save_pretrained(self, *args, **kwargs)


def _shared(tensors: Tensors) -> set[str]:
    """Return the names of deltas' tensors that are there under another name too.

    Transformers refuses to write them, for it knows of no reason. Loaded, each goes where it was.
    """
    own = {key: memory_of(tensor) for key, tensor in tensors.items() if ".deltas." in key}
    return {key for key, memory in own.items() if list(own.values()).count(memory) > 1}


def _check_plain(path: str, base: Any) -> None:
    """Raise a ValueError if what is added to the module's weight is not added to what it computes."""
    for key in ("weight", "bias"):
        if key not in base._parameters and isinstance(getattr(base, key, None), Tensor):
            what = f"{path}.{key} is computed from other numbers, as by weight normalisation"
            raise ValueError(f"{what}, and cannot be merged into")
    if isinstance(base, nn.Linear) and type(base).forward is not nn.Linear.forward:
        check_weight(f"merge at {path!r}", base)
        x = torch.linspace(-1, 1, base.in_features).to(base.weight)[None, None]  # (1, 1, d_in)
        y = F.linear(x, base.weight, base.bias)
        if not torch.allclose(base(x), y, rtol=0.01, atol=0.01 * float(y.abs().max())):
            what = f"{path}: {type(base).__name__} is more than its weight and bias"
            raise ValueError(f"{what}, and cannot be merged into")


def _mergeable_sites(view: View, names: Sequence[str]) -> dict[str, Site]:
    """Return ``{path: site}`` of the sites with these adaptations; raise what `merge` raises."""
    users: dict[int, list[tuple[nn.Module, str]]] = {}  # of each parameter's memory
    for path, module in view.model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            users.setdefault(memory_of(parameter), []).append((module, f"{path}.{key}"))
    here: dict[str, Site] = {}
    alike: dict[Any, set[nn.Module]] = {}  # bases whose deltas have the same parameters
    for path, place in sites(view):
        if not (deltas := [place.deltas[n] for n in names if n in place.deltas]):
            continue
        if not any(next(delta.parameters(), None) is not None for delta in deltas):
            continue  # it only helps others, of which the error is to speak
        if not isinstance(place, Site) or not all(overrides(d, Delta.merge_into) for d in deltas):
            kinds = ", ".join(type(delta).__name__ for delta in deltas)
            raise ValueError(f"{path}: {kinds} is no change of a weight and cannot be merged")
        here[path], key = place, frozenset(p for delta in deltas for p in delta.parameters())
        alike.setdefault(key or path, set()).update(place.base.modules())
    for path, site in here.items():
        [own] = [modules for modules in alike.values() if site.base in modules]
        for key, parameter in site.base.named_parameters():
            if parameter.is_meta or not parameter.is_floating_point():
                why = "not in memory" if parameter.is_meta else f"quantised ({parameter.dtype})"
                raise ValueError(f"{path}.{key} is {why} and cannot be merged into")
            if others := [u for module, u in users[memory_of(parameter)] if module not in own]:
                what = f"{path}.{key} is tied to {', '.join(others)}: merging would change both"
                raise ValueError(f"{what}. Keep it unmerged, or untie the weights before attaching")
        if not all(isinstance(delta, TrainedCopy) for delta in deltas):
            _check_plain(path, place.base)
    return here
