"""Which modules a method means: from names, a regular expression or a default to modules.

Every function looks at the model and changes nothing. A pattern that matches nothing is an error,
also when the others match: a typing mistake must not silently adapt less than was asked for.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from pedagogic_peft.core import validation
from pedagogic_peft.core.architectures import DEFAULT_TARGETS, TABLE, model_type
from pedagogic_peft.core.delta import some
from pedagogic_peft.core.reading import uses
from pedagogic_peft.core.sites import Modules, Site, View, Viewed

# Names of classes that have no head, or one that came with the rest; of some, projections are last.
NO_HEAD = "Model Backbone Encoder Decoder VAE Projection Retrieval ForConditionalGeneration".split()
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
Names = Sequence[str]
Targets = Names | str | None  # `target_modules`, as in `LoRA`
Test = Callable[[nn.Module], bool]

# In evaluation these run one fused kernel on their children's weights and never call the children.
FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
MAPS: dict[type[nn.Module], bool] = {}  # of classes derived from nn.Linear: what `_maps` found
SELDOM_CALLED: dict[str, list[str]] = TABLE["seldom_called"]


def is_conv1d(module: nn.Module) -> bool:
    """Tell whether this is GPT-2's linear map, whose weight is stored (d_in, d_out).

    By name, so that transformers need not be imported.
    """
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_linear(module: nn.Module) -> bool:
    """Tell whether this is a linear map: `nn.Linear` (quantised ones are) or `Conv1D`.

    A class that is derived from `nn.Linear` may compute something else, as some routers do.
    """
    if type(module).forward is nn.Linear.forward:
        return True
    return is_conv1d(module) or (isinstance(module, nn.Linear) and _maps(module))


def _maps(module: nn.Linear) -> bool:
    """Tell whether what is derived from `nn.Linear` returns a tensor of the same shape: tried once."""
    if is_packed(module):  # its forward unpacks the weight
        return True
    kind: Any = type(module)
    if kind not in MAPS:
        x = module.weight.detach().new_zeros(2, 3, module.in_features)
        try:
            with torch.no_grad():
                MAPS[kind] = module.forward(x).shape == (2, 3, module.out_features)
        except Exception:  # a stranger's forward may want, or return, anything else
            MAPS[kind] = False
    return MAPS[kind]


def is_packed(module: nn.Module) -> bool:
    """Tell whether a module is quantised: its parameters are codes, and no numbers to compute with."""
    if any(not p.is_floating_point() or p.itemsize == 1 for p in module.parameters()):
        return True
    return isinstance(module, nn.Linear) and module.weight.numel() != math.prod(sizes(module))


def check_weight(what: str, module: Any) -> None:
    """Check that the numbers of a module's ``weight`` can be read.

    Args:
        what: who wants to read whose, for the message.

    Raises:
        ValueError: they are codes of a quantised weight.
    """
    W, full = module.weight, math.prod(sizes(module))
    if not W.is_floating_point() or W.itemsize == 1 or W.numel() != full:
        shape = f"{W.dtype}, {list(W.shape)}"
        raise ValueError(f"{what}: the weight is packed ({shape}), and its numbers are needed")


def sizes(module: Any) -> tuple[int, int]:
    """Return the sizes of the input and the output; of an embedding, its number and size."""
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    if is_conv1d(module):
        return module.nx, module.nf
    return module.in_features, module.out_features


def is_named(names: str | Iterable[str], path: str) -> bool:
    """Tell whether names (ends of paths), or a regular expression for the whole, mean this path."""
    if isinstance(names, str):
        return fullmatch(names, path)
    return any(path == name or path.endswith("." + name) for name in names)


def fullmatch(pattern: str, path: str) -> bool:
    """Tell whether a regular expression, which may come from a stranger's file, means this path.

    Raises:
        ValueError: it takes longer than a second, as `(.|.)*!` may.
    """
    import regex  # unlike re, it can be given a time

    try:
        return regex.fullmatch(pattern, path, timeout=1) is not None
    except (TimeoutError, regex.error) as error:
        raise ValueError(f"The regular expression {pattern!r} at {path!r}: {error}") from None


def inside(path: str, outer: Iterable[str]) -> bool:
    """Tell whether this is the path of one of the outer modules, or of a module inside one."""
    return any(path == o or path.startswith(o + ".") for o in outer)


def find_targets(
    model: Viewed, target_modules: Targets, can_adapt: Test, without: Iterable[str] = ()
) -> Modules:
    """Return ``{path: module}`` of the modules to adapt, in the model's order.

    Args:
        model: any module, or a view of it; a module that already is a `Site` counts as its base.
        target_modules: names, a regular expression, "all-linear" or None, as in `LoRA`.
        can_adapt: tells whether the method can adapt a module.
        without: paths whose modules, and all inside them, are left out.

    Raises:
        ValueError: a pattern matches nothing, or nothing that can be adapted.

    "all-linear" means no module that `ignored` names; others may be named, and are to be refused.
    """
    view = View.of(model)
    modules = {p: m for p, m in view.modules.items() if p and not inside(p, without)}
    candidates = {p: m for p, m in modules.items() if can_adapt(m)}
    if target_modules is None:
        target_modules = _default_targets(view.model, candidates)
    if target_modules == "all-linear":
        inner = backbone(view)
        linear = {p: m for p, m in candidates.items() if is_linear(m) and m in inner}
        without_effect = ignored(view, linear)
        found = {p: m for p, m in linear.items() if p not in without_effect}
        found = {p: m for p, m in found.items() if not only_selects(view, p)}
    else:
        found = match(view, modules, candidates, target_modules)
    if not found:
        raise ValueError(f"{target_modules!r} names no module. {_choice(candidates)}")
    return found


def find_modules(view: View, names: Names) -> Modules:
    """Return ``{path: module}`` of the modules with these names, of whatever type.

    Raises:
        ValueError: a name matches nothing, or a module that has adapted modules inside or is quantised.
    """
    modules = {p: m for p, m in view.modules.items() if p}
    found = match(view, modules, modules, names)
    for path, module in found.items():
        if any(isinstance(part, Site) for part in module.modules()):
            raise ValueError(f"{path!r} cannot be trained in full: an adaptation sits inside it")
        if not all(p.is_floating_point() for p in module.parameters()):
            raise ValueError(f"{path!r} cannot be trained in full: it is quantised")
    refuse_ignored(view, found)
    return found


def shortest_names(view: View, paths: Iterable[str]) -> list[str] | str:
    """Return `target_modules` that mean exactly these paths: their ends, if those suffice.

    A whole path does not, where another one ends with it: then a regular expression is returned.
    """
    paths = sorted(paths)
    for names in (sorted({path.rpartition(".")[2] for path in paths}), paths):
        if {p for p in view.modules if is_named(names, p)} == set(paths):
            return names
    return exactly(paths)


def exactly(paths: Iterable[str]) -> str:
    """Return a regular expression for these paths and no others."""
    return "|".join(map(re.escape, sorted(paths)))


def backbone(view: View) -> set[nn.Module]:
    """Return the modules of the backbone; what a transformers model has outside of it is its head."""
    inner = getattr(view.model, "base_model", view.model)
    head = getattr(view.model, "get_output_embeddings", lambda: None)() or nn.Identity()
    modules = view.modules if inner is view.model else View(inner).modules
    outside = {*View(head).modules.values(), *heads(view).values()}
    return set(modules.values()) - outside


def heads(view: View) -> Modules:
    """Return ``{name: part}`` of what a transformers model has beside its backbone.

    Where the backbone is not under the name that the class says (``base_model_prefix``), the head is
    what follows it: the last parts, as far as each is one layer.
    """
    model: Any = view.model
    parts = {p: m for p, m in view.modules.items() if p and "." not in p}
    parts = {p: m for p, m in parts.items() if next(m.parameters(), None) is not None}
    inner = getattr(model, "base_model", model)
    if inner is not model:
        return {name: part for name, part in parts.items() if part is not inner}
    found: Modules = {}
    if hasattr(model, "base_model_prefix") and not type(model).__name__.endswith((*NO_HEAD,)):
        for name, part in reversed(parts.items()):
            if next(part.children(), None) is not None or not isinstance(part, LAYERS):
                break
            found[name] = part
    return found


def warn_of_left_out(view: View, method: Any, found: Modules, saved: Iterable[str]) -> None:
    """Warn of modules that are named like the targets, but are of a kind that cannot be adapted."""
    names, but = method.target_modules or (), method.exclude_modules or ()
    ends = {end for path in found if not (end := path.rpartition(".")[2]).isdigit()}
    alike = (p for p in view.modules if p.rpartition(".")[2] in ends and p not in found)
    named = (p for p in alike if is_named(names, p) and not is_named(but, p))
    if left := [path for path in named if not inside(path, saved)]:
        kinds = ", ".join(sorted({type(view.modules[path]).__name__ for path in left}))
        what = f"target_modules={names!r} also names {some(left)} of type {kinds}"
        validation.warn(f"{what}: left out, because {type(method).__name__} cannot adapt these")


def outside(layers: Sequence[int], pattern: Targets, paths: Iterable[str]) -> set[str]:
    """Return the paths that are in none of these layers.

    Raises:
        ValueError: no path is in one of the layers.
    """
    names = pattern if isinstance(pattern, str) else "|".join(pattern or [r"[^.]*"])
    numbers = {path: layer_in(path, names) for path in paths}
    there = sorted({number for number in numbers.values() if number is not None})
    if strange := sorted(set(layers) - set(there)):
        what = f"layers_to_transform: no target is in layer {strange[0]}; there are {there}"
        raise ValueError(f"{what}, the numbers that follow {names!r} in the targets' paths")
    return {path for path, number in numbers.items() if number not in layers}


def layer_in(path: str, names: str = r"[^.]*") -> int | None:
    """Return the first number of a path that follows one of these names, a regular expression."""
    numbers = re.finditer(r"\.(\d+)(?=\.)", path)
    found = (n for n in numbers if is_named(rf"(?:.*?\.)?(?:{names})", path[: n.start()]))
    return next((int(n[1]) for n in found), None)


def only_selects(view: View, path: str) -> bool:
    """Tell whether the path leads into what chooses experts, or the tokens that attention looks at.

    The choice passes hardly a gradient, or none: a router is called so, or is a gate beside experts; an
    indexer is one of sparse attention (DeepSeek-V3.2).
    """
    block, gate, _ = f".{path}.".rpartition(".gate.")
    beside = bool(gate) and f"{block[1:]}.experts" in view.modules
    return beside or "router" in path or "indexer" in path


def fused_experts(view: View, without: Iterable[str]) -> dict[str, nn.Parameter]:
    """Return ``{path: parameter}`` of a mixture's experts that are parameters and no linear maps."""
    return {
        f"{path}.{name}": p
        for path, module in view.modules.items()
        if "experts" in path.split(".") or "Expert" in type(module).__name__
        for name, p in module.named_parameters(recurse=False)
        if p.dim() > 1 and not name.endswith("bias")
        if not is_linear(module) and not inside(path, without)
    }


def match(view: View, modules: Modules, candidates: Modules, names: Targets) -> Modules:
    """Return the candidates that are named, if each name or the regular expression means some."""
    found: set[str] = set()
    for name in [names] if isinstance(names, str) else names or ():
        pattern = names if isinstance(names, str) else [name]
        matched = [path for path in modules if is_named(pattern, path)]
        if fitting := candidates.keys() & matched:
            found |= fitting
            continue
        kinds = ", ".join(sorted({type(modules[path]).__name__ for path in matched}))
        near = difflib.get_close_matches(name.rpartition(".")[2], _ends(candidates), n=1)
        problem = f"matches no module of this {type(view.model).__name__}"
        if matched:
            problem = f"matches only modules of type {kinds}, not to be adapted."
        elif pattern is names:
            hint = f"a string is a regular expression for the whole path, a name is [{name!r}]"
            problem += f" ({hint})."
        else:
            problem += f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"{name!r} {problem} {_choice(candidates)}")
    return {path: module for path, module in candidates.items() if path in found}


def _choice(candidates: Iterable[str]) -> str:
    return f"You can name: {', '.join(_ends(candidates)) or 'nothing'}"


def _ends(paths: Iterable[str]) -> list[str]:
    """Last parts of the paths; the whole path where that is only a number, as in nn.Sequential."""
    return sorted({p if (end := p.rpartition(".")[2]).isdigit() else end for p in paths})


def _default_targets(model: nn.Module, candidates: Iterable[str]) -> tuple[str, ...]:
    if (kind := model_type(model)) in DEFAULT_TARGETS:
        return DEFAULT_TARGETS[kind]
    what = f"the architecture {kind!r}" if kind else f"{type(model).__name__}, which has no config"
    raise ValueError(f"No default targets for {what}: give target_modules. {_choice(candidates)}")


def use_of(view: View, path: str) -> frozenset[str]:
    """Return what the module that holds this one does with it; see `uses`."""
    holder, _, name = path.rpartition(".")
    kind: Any = type(view.modules[holder])
    if name in SELDOM_CALLED.get(kind.__name__, ()):
        return frozenset({"weight", "bias"})
    return uses(kind, name)


def ignored(view: View, paths: Iterable[str]) -> dict[str, str]:
    """Return ``{path: why}`` for those of the modules where an adaptation would have no effect."""
    fused = {p: m for p, m in view.seats.items() if isinstance(m, FUSED)}
    found = {}
    for path in paths:
        if (use := use_of(view, path)) and "call" not in use:
            holder = type(view.modules[path.rpartition(".")[0]]).__name__
            found[path] = f"is never called, as {holder} computes with its weight itself"
        for outer, module in fused.items():
            if path and (not outer or inside(path, [outer])):
                what = f"lies inside torch's {type(module).__name__}, whose fused kernel"
                found[path] = f"{what} never calls the module"
    return found


def refuse_ignored(view: View, paths: Iterable[str]) -> None:
    """Raise a ValueError if an adaptation of one of the modules would have no effect."""
    for path, why in ignored(view, paths).items():
        what = f"{path!r} {why}: an adaptation would be ignored"
        raise ValueError(f"{what}. Leave it out, by its name in exclude_modules or other targets")
