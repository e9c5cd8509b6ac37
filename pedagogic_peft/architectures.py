"""Where the parts of a transformer are in each architecture: what a method's defaults are made of.

A row says, for some ``config.model_type``, which modules play which role. An architecture without a
row can be adapted too, with `target_modules`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from pedagogic_peft.sites import base_modules


@dataclass(frozen=True)
class Roles:
    """Regular expressions for the ends of the paths of modules; "" where there is no such module.

    Attributes:
        attention: the module that holds one attention.
        query, key, value: its input projections; one fused projection stands in all three.
        attention_output: its output projection.
        ffn_input: the first linear map of a feed-forward block (the first of two, if it is gated).
        ffn_output: the last one, which maps back to the model's width.
        ffn_norm: in a post-norm architecture, the normalisation of "residual + feed-forward".
    """

    attention: str
    query: str
    key: str
    value: str
    attention_output: str
    ffn_input: str
    ffn_output: str
    ffn_norm: str = ""


_PROJ = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
_GPT2 = Roles(
    r"h\.\d+\.attn", "c_attn", "c_attn", "c_attn", r"attn\.c_proj", r"mlp\.c_fc", r"mlp\.c_proj"
)
_LLAMA = Roles(
    "self_attn",
    **_PROJ,
    attention_output="o_proj",
    ffn_input="gate_proj",
    ffn_output="down_proj",
)
_OPT = Roles("self_attn", **_PROJ, attention_output="out_proj", ffn_input="fc1", ffn_output="fc2")
_BERT = Roles(
    r"attention\.self",
    "query",
    "key",
    "value",
    r"attention\.output\.dense",
    r"intermediate\.dense",
    r"layer\.\d+\.output\.dense",
    r"layer\.\d+\.output\.LayerNorm",
)
_DISTILBERT = Roles(
    r"layer\.\d+\.attention",
    "q_lin",
    "k_lin",
    "v_lin",
    "out_lin",
    r"ffn\.lin1",
    r"ffn\.lin2",
    "output_layer_norm",
)
_T5 = Roles("SelfAttention|EncDecAttention", "q", "k", "v", "o", "wi|wi_0", "wo")
_VIT = Roles(
    r"layers?\.\d+\.attention",
    **_PROJ,
    attention_output="o_proj",
    ffn_input="fc1",
    ffn_output="fc2",
)

ROLES = {
    kind: roles
    for kinds, roles in {
        "gpt2": _GPT2,
        "llama mistral qwen2 qwen3 gemma gemma2 gemma3_text olmo olmo2 smollm3 granite": _LLAMA,
        "opt": _OPT,
        "bert roberta xlm-roberta camembert electra": _BERT,
        "distilbert": _DISTILBERT,
        "t5 mt5": _T5,
        "vit": _VIT,
    }.items()
    for kind in kinds.split()
}


def roles_of(model: nn.Module) -> Roles:
    """Return the row of this model's architecture.

    Raises:
        ValueError: it has none; the message lists those that have.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in ROLES:
        raise ValueError(
            f"No defaults for the architecture {kind!r} ({type(model).__name__}); they are known "
            f"for {', '.join(sorted(ROLES))}. Give target_modules instead"
        )
    return ROLES[kind]


def modules_in_role(model: nn.Module, *patterns: str) -> dict[str, nn.Module]:
    """Return ``{path: module}`` of the modules that match one of a row's expressions.

    Raises:
        ValueError: an expression matches nothing.
    """
    modules = base_modules(model)
    found: Mapping[str, nn.Module] = {
        path: module for path, module in modules.items() if _plays(path, patterns)
    }
    for pattern in patterns:
        if not any(_plays(path, [pattern]) for path in found):
            raise ValueError(f"This {type(model).__name__} has no module {pattern!r}")
    return dict(found)


def _plays(path: str, patterns: Iterable[str]) -> bool:
    return any(re.fullmatch(rf"(.*\.)?({pattern})", path) for pattern in patterns if pattern)
