"""Which modules a method means: from names, a regular expression or a default to modules.

Every function looks at the model and changes nothing. A pattern that matches nothing is an error,
also when the others match: a typing mistake must not silently adapt less than was asked for.
"""

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn

from pedagogic_peft.core.architectures import DEFAULT_TARGETS, model_type
from pedagogic_peft.core.sites import Modules, Site, View, Viewed

Names = Sequence[str]
Targets = Names | str | None  # `target_modules`, as in `LoRA`
Test = Callable[[nn.Module], bool]

# In evaluation these run one fused kernel on their children's weights and never call the children.
FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


def is_conv1d(module: nn.Module) -> bool:
    """Tell whether this is GPT-2's linear map, whose weight is stored (d_in, d_out).

    By name, so that transformers need not be imported.
    """
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_linear(module: nn.Module) -> bool:
    """Tell whether this is a linear map: `nn.Linear` (quantised ones are) or `Conv1D`."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


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
    """
    view = View.of(model)
    modules = {p: m for p, m in view.modules.items() if p and not inside(p, without)}
    candidates = {p: m for p, m in modules.items() if can_adapt(m)}
    if target_modules is None:
        target_modules = _default_targets(view.model, candidates)
    if target_modules == "all-linear":
        inner = backbone(view)
        linear = {p: m for p, m in candidates.items() if is_linear(m) and m in inner}
        found = {p: m for p, m in linear.items() if not in_router(view, p)}
    else:
        found = match(view, modules, candidates, target_modules)
    if not found:
        raise ValueError(f"{target_modules!r} names no module. {_choice(candidates)}")
    _refuse_fused(view, found)
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
    _refuse_fused(view, found)
    return found


def shortest_names(view: View, paths: Iterable[str]) -> list[str]:
    """Return `target_modules` that mean exactly these paths: their ends, if those suffice."""
    ends = sorted({path.rpartition(".")[2] for path in paths})
    return ends if {p for p in view.modules if is_named(ends, p)} == set(paths) else sorted(paths)


def backbone(view: View) -> set[nn.Module]:
    """Return the modules of the backbone; what a transformers model has outside of it is its head."""
    inner = getattr(view.model, "base_model", view.model)
    head = getattr(view.model, "get_output_embeddings", lambda: None)() or nn.Identity()
    modules = view.modules if inner is view.model else View(inner).modules
    return set(modules.values()) - set(View(head).modules.values())


def in_router(view: View, path: str) -> bool:
    """Tell whether the path leads into a router: one is called so, or is a gate beside experts."""
    block, gate, _ = f".{path}.".rpartition(".gate.")
    return "router" in path or bool(gate) and f"{block[1:]}.experts" in view.modules


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


def _refuse_fused(view: View, found: Iterable[str]) -> None:
    fused = {p: m for p, m in view.seats.items() if isinstance(m, FUSED)}
    for path in found:
        for module in (m for outer, m in fused.items() if inside(path, [outer])):
            what = f"{path!r} lies inside torch's {type(module).__name__}, whose fused kernel"
            raise ValueError(f"{what} never calls the module: an adaptation would be ignored")
