"""Where the parts of a transformer are in each architecture: what a method's defaults are made of.

A row says, for some ``config.model_type``, which modules play which role. An architecture without a
row can be adapted too, with `target_modules`.
"""

import re
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


# The columns are those of `Roles`, in its order.
ROLES = {
    kind: Roles(*row.split())
    for kinds, row in {
        "gpt2": r"h\.\d+\.attn c_attn c_attn c_attn attn\.c_proj mlp\.c_fc mlp\.c_proj",
        "llama mistral qwen2 qwen3 gemma gemma2 gemma3_text olmo olmo2 smollm3 granite": (
            "self_attn q_proj k_proj v_proj o_proj gate_proj down_proj"
        ),
        "opt": "self_attn q_proj k_proj v_proj out_proj fc1 fc2",
        "bert roberta xlm-roberta camembert electra": (
            r"attention\.self query key value attention\.output\.dense intermediate\.dense"
            r" layer\.\d+\.output\.dense layer\.\d+\.output\.LayerNorm"
        ),
        "distilbert": (
            r"layer\.\d+\.attention q_lin k_lin v_lin out_lin ffn\.lin1 ffn\.lin2 output_layer_norm"
        ),
        "t5 mt5": "SelfAttention|EncDecAttention q k v o wi|wi_0 wo",
        "vit": r"layers?\.\d+\.attention q_proj k_proj v_proj o_proj fc1 fc2",
    }.items()
    for kind in kinds.split()
}


def roles_of(model: nn.Module, instead: str = "target_modules") -> Roles:
    """Return the row of this model's architecture.

    Args:
        model: a transformers model.
        instead: the hyper-parameters that do without, for the message.

    Raises:
        ValueError: it has none; the message lists those that have.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in ROLES:
        raise ValueError(
            f"No defaults for the architecture {kind!r} ({type(model).__name__}); they are known "
            f"for {', '.join(sorted(ROLES))}. Give {instead} instead"
        )
    return ROLES[kind]


def modules_in_role(model: nn.Module, *patterns: str) -> dict[str, nn.Module]:
    """Return ``{path: module}`` of the modules that match one of a row's expressions.

    Raises:
        ValueError: an expression matches nothing.
    """
    modules = base_modules(model)
    ends = {pattern: re.compile(rf"(.*\.)?({pattern})") for pattern in patterns}
    for pattern, end in ends.items():
        if not any(map(end.fullmatch, modules)):
            raise ValueError(f"This {type(model).__name__} has no module {pattern!r}")
    return {p: m for p, m in modules.items() if any(end.fullmatch(p) for end in ends.values())}
