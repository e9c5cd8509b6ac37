"""Which modules a method means: from names, a regular expression or a default to modules.

Every function looks at the model and changes nothing. A pattern that matches nothing is an error,
also when the others match: a typing mistake must not silently adapt less than was asked for.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from pedagogic_peft.sites import Site, base_modules, outline

# The query and value projections (or the map that holds them fused) of each `config.model_type`:
# what the LoRA paper adapts. An architecture that is not here needs `target_modules`.
QUERY_AND_VALUE = {
    names: model_types.split()
    for names, model_types in {
        (
            "q_proj",
            "v_proj",
        ): """llama mistral mixtral qwen2 qwen3 gemma gemma2 gemma3_text phi olmo olmo2
            smollm3 granite cohere starcoder2 stablelm gpt_neo gptj opt bart mbart pegasus whisper
            wav2vec2 vit deit dinov2 swin clip""",
        ("query", "value"): "bert roberta xlm-roberta camembert electra albert",
        ("query_key_value",): "gpt_neox falcon bloom",
        ("qkv_proj",): "phi3 codegen",
        ("c_attn",): "gpt2 gpt_bigcode",
        ("Wqkv",): "modernbert mpt",
        ("q", "v"): "t5 mt5 mpnet",
        ("q_lin", "v_lin"): "distilbert",
        ("query_proj", "value_proj"): "deberta-v2",
        ("in_proj",): "deberta",
    }.items()
}
DEFAULT_TARGETS = {kind: names for names, kinds in QUERY_AND_VALUE.items() for kind in kinds}

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
    return (
        (module.nx, module.nf) if is_conv1d(module) else (module.in_features, module.out_features)
    )


def find_targets(
    model: nn.Module,
    target_modules: Sequence[str] | str | None,
    can_adapt: Callable[[nn.Module], bool],
    without: Iterable[str] = (),
) -> dict[str, nn.Module]:
    """Return ``{path: module}`` of the modules to adapt, in the model's order.

    Args:
        model: any module; a module that already is a `Site` counts as its base.
        target_modules: names, a regular expression, "all-linear" or None, as in `LoRA`.
        can_adapt: tells whether the method can adapt a module.
        without: paths whose modules, and all inside them, are left out.

    Raises:
        ValueError: a pattern matches nothing, or nothing that can be adapted.
    """
    modules = {p: m for p, m in base_modules(model).items() if p and not inside(p, without)}
    candidates = {p: m for p, m in modules.items() if can_adapt(m)}
    if target_modules is None:
        target_modules = _default_targets(model, candidates)
    if target_modules == "all-linear":
        found = _all_linear(model, candidates)
    elif isinstance(target_modules, str):
        found = _match(model, modules, candidates, [target_modules], _is_pattern_of)
    else:
        found = _match(model, modules, candidates, target_modules, _is_name_of)
    if not found:
        raise ValueError(
            f"target_modules={target_modules!r} names no module. {_choice(candidates)}"
        )
    _refuse_fused(model, found)
    return found


def find_modules(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """Return ``{path: module}`` of the modules with these names, of whatever type.

    Raises:
        ValueError: a name matches nothing, or a module that has adapted modules inside or is quantised.
    """
    modules = {p: m for p, m in base_modules(model).items() if p}
    found = _match(model, modules, modules, names, _is_name_of)
    for path, module in found.items():
        if any(isinstance(part, Site) for part in module.modules()):
            raise ValueError(f"{path!r} cannot be trained in full: an adaptation sits inside it")
        if not all(p.is_floating_point() for p in module.parameters()):
            raise ValueError(f"{path!r} cannot be trained in full: it is quantised")
    _refuse_fused(model, found)
    return found


def shortest_names(model: nn.Module, paths: Sequence[str]) -> list[str]:
    """Return `target_modules` that mean exactly these paths: their ends, if those suffice."""
    ends = sorted({path.rpartition(".")[2] for path in paths})
    meant = {p for p in outline(model) if any(_is_name_of(end, p) for end in ends)}
    return ends if meant == set(paths) else sorted(paths)


def _is_name_of(name: str, path: str) -> bool:
    return path == name or path.endswith("." + name)


def _is_pattern_of(pattern: str, path: str) -> bool:
    return re.fullmatch(pattern, path) is not None


def inside(path: str, outer: Iterable[str]) -> bool:
    """Tell whether this is the path of one of the outer modules, or of a module inside one."""
    return any(path == o or path.startswith(o + ".") for o in outer)


def _match(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    candidates: Mapping[str, nn.Module],
    patterns: Sequence[str],
    is_match: Callable[[str, str], bool],
) -> dict[str, nn.Module]:
    found = set()
    for pattern in patterns:
        matched = [path for path in modules if is_match(pattern, path)]
        fitting = [path for path in matched if path in candidates]
        if not fitting:
            kinds = sorted({type(modules[path]).__name__ for path in matched})
            raise ValueError(_no_match(model, pattern, kinds, candidates, is_match))
        found.update(fitting)
    return {path: module for path, module in candidates.items() if path in found}


def _no_match(
    model: nn.Module,
    pattern: str,
    kinds: Sequence[str],
    candidates: Mapping[str, nn.Module],
    is_match: Callable[[str, str], bool],
) -> str:
    if kinds:
        problem = f"{pattern!r} matches only modules of type {', '.join(kinds)}, not to be adapted"
        return f"{problem}. {_choice(candidates)}"
    problem = f"{pattern!r} matches no module of this {type(model).__name__}"
    near = difflib.get_close_matches(pattern.rpartition(".")[2], _ends(candidates), n=1)
    if is_match is _is_pattern_of:
        hint = f" (a string is a regular expression for the whole path, a name is [{pattern!r}])."
    elif near:
        hint = f"; did you mean {near[0]!r}?"
    else:
        hint = "."
    return f"{problem}{hint} {_choice(candidates)}"


def _choice(candidates: Iterable[str]) -> str:
    return f"You can name: {', '.join(_ends(candidates)) or 'nothing'}"


def _ends(paths: Iterable[str]) -> list[str]:
    """Last parts of the paths; the whole path where that is only a number, as in nn.Sequential."""
    return sorted({p if (end := p.rpartition(".")[2]).isdigit() else end for p in paths})


def _default_targets(model: nn.Module, candidates: Iterable[str]) -> tuple[str, ...]:
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in DEFAULT_TARGETS:
        what = (
            f"the architecture {kind!r}" if kind else f"{type(model).__name__}, which has no config"
        )
        raise ValueError(
            f"No default targets for {what}: give target_modules. {_choice(candidates)}"
        )
    return DEFAULT_TARGETS[kind]


def backbone(model: nn.Module) -> set[nn.Module]:
    """Return the modules of the backbone; what a transformers model has outside of it is its head."""
    inside = set(base_modules(getattr(model, "base_model", model)).values())
    head = getattr(model, "get_output_embeddings", lambda: None)() or nn.Identity()
    return inside - set(base_modules(head).values())


def _all_linear(model: nn.Module, candidates: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Every linear map of the backbone."""
    inside = backbone(model)
    linear = {p: m for p, m in candidates.items() if isinstance(m, nn.Linear) or is_conv1d(m)}
    return {path: module for path, module in linear.items() if module in inside}


def _refuse_fused(model: nn.Module, found: Iterable[str]) -> None:
    fused = {p: m for p, m in outline(model).items() if isinstance(m, FUSED)}
    for path in found:
        for outer, module in fused.items():
            if inside(path, [outer]):
                raise ValueError(
                    f"{path!r} lies inside torch's {type(module).__name__}, whose fused kernel "
                    "reads the weight and never calls the module: an adaptation would be ignored"
                )
