"""LLaMA-Adapter (Zhang et al. 2023, arXiv:2303.16199): prompts behind gates that begin closed.

In each of the topmost layers the queries of the text also look at a learned prompt P (n x d), through
the layer's own projections of keys and values, and what they find is added behind a gate g of each
head:

    softmax(Q Kᵀ / √d) V  +  tanh(g) softmax(Q (W_k P)ᵀ / √d) W_v P,     g = 0 at the start.

The prompt has a softmax of its own, unlike a prefix, so closed gates leave the model as it was. The
delta stands beside the attention module and acts in its attention function (see `attention.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pedagogic_peft.architectures import modules_in_role, roles_of
from pedagogic_peft.attention import (
    Attend,
    check_can_take_over,
    find_attentions,
    heads_and_size,
    register,
)
from pedagogic_peft.checks import check_whole, names
from pedagogic_peft.peft_format import (
    check_options,
    fill,
    heads_of,
    tensors_of,
    with_prefix,
    without_prefix,
)
from pedagogic_peft.sites import TrainedCopy
from pedagogic_peft.targets import find_modules, is_conv1d


@dataclass(frozen=True)
class LlamaAdapter:
    """The hyper-parameters of LLaMA-Adapter.

    While it is attached, the model's attention is SDPA (also in a model that was loaded with "eager"),
    and attention weights cannot be asked for. Its checkpoints are this library's own: PEFT's
    "ADAPTION_PROMPT" has one gate for all heads of a layer.

    Args:
        adapter_len: n, the number of prompt vectors in each layer, at least 1.
        adapter_layers: how many layers, counted from the output; None means all. In
            encoder-decoders they are the decoder's.
        modules_to_save: names of modules to train in full, such as a new classification head.

    Raises:
        TypeError, ValueError: a value is of the wrong type or out of range; the message names it.
    """

    peft_type: ClassVar[str] = "LLAMA_ADAPTER"

    adapter_len: int = 10
    adapter_layers: int | None = None
    modules_to_save: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_whole("adapter_len", self.adapter_len)
        if self.adapter_layers is not None:
            check_whole("adapter_layers", self.adapter_layers)
        object.__setattr__(self, "modules_to_save", names("modules_to_save", self.modules_to_save))

    def plan(self, model: Any) -> dict[str, nn.Module]:
        """Return ``{path: delta}`` for this model, which is not changed.

        Raises:
            ValueError: the model does not use the attention interface, or its architecture has no row
                in `ROLES`; there are fewer layers than ``adapter_layers``.
        """
        check_can_take_over(model)
        attentions = find_attentions(model)
        layers = len(attentions) if self.adapter_layers is None else self.adapter_layers
        if layers > len(attentions):
            raise ValueError(f"adapter_layers={layers}: the model has {len(attentions)} layers")
        roles, heads = roles_of(model), model.config.num_attention_heads
        maps = modules_in_role(model, roles.key, roles.value)
        deltas: dict[str, nn.Module] = {}
        for path in list(attentions)[-layers:]:
            key, value = f"{path}.{roles.key}", f"{path}.{roles.value}"
            if key not in maps or value not in maps:
                raise ValueError(f"{path!r} has no {roles.key!r} and {roles.value!r} of its own")
            base: Any = maps[key]
            width = base.nx if is_conv1d(base) else base.in_features
            delta = GatedPrompt(
                self.adapter_len, width, heads, heads_and_size(model), (roles.key, roles.value)
            )
            deltas[path] = delta.to(base.weight.device)
        return deltas | {
            p: TrainedCopy(m) for p, m in find_modules(model, self.modules_to_save).items()
        }

    def to_peft(
        self, model: nn.Module, deltas: Mapping[str, nn.Module]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the configuration and the tensors of a checkpoint."""
        config = {
            "adapter_len": self.adapter_len,
            "adapter_layers": self.adapter_layers,
            "modules_to_save": list(self.modules_to_save) or None,
        }
        return config, with_prefix(tensors_of(deltas))

    @classmethod
    def from_peft(
        cls, model: nn.Module, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> tuple[Self, dict[str, nn.Module]]:
        """Return the hyper-parameters of a checkpoint and the filled deltas.

        Raises:
            ValueError: an option is not supported, or the tensors do not fit the model.
        """
        check_options(config, {"adapter_len", "adapter_layers"})
        method = cls(config["adapter_len"], config["adapter_layers"], heads_of(config, model))
        deltas = method.plan(model)
        fill(deltas, without_prefix(model, tensors))
        return method, deltas


class GatedPrompt(nn.Module):
    """The prompt of one attention and its gates.

    The prompt takes the place of hidden states, which come out of a normalisation, so it begins with
    their spread: Gaussian, of standard deviation 1.

    Args:
        n, width: the shape of the prompt.
        heads: number of heads of the queries; each has a gate.
        keys: number of heads of the keys, and their size.
        maps: names of the attention's maps of keys and of values; the same if they are one map, with
            the values in its last rows and the keys before them.
    """

    beside = True

    def __init__(
        self, n: int, width: int, heads: int, keys: tuple[int, int], maps: tuple[str, str]
    ) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.randn(n, width))
        self.gate = nn.Parameter(torch.zeros(heads))
        self.keys, self.maps = keys, maps

    def keys_and_values(self, module: nn.Module, dtype: torch.dtype) -> list[Tensor]:
        """Return two tensors (1, heads of the keys, n, size), by the maps as they are adapted."""
        prompt, (heads, size) = self.prompt.to(dtype)[None], self.keys  # (1, n, width)
        K, V = (module.get_submodule(name)(prompt) for name in self.maps)
        if self.maps[0] == self.maps[1]:
            K, V = K[..., : -heads * size], V[..., -heads * size :]
            K = K[..., -heads * size :]
        return [x.unflatten(-1, (heads, size)).transpose(1, 2) for x in (K, V)]

    def attend(
        self,
        run: Attend,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Add what the queries find in the prompt, behind the gates."""
        y, weights = run(module, query, key, value, mask, **kwargs)  # y: (batch, q, heads, size)
        K, V = self.keys_and_values(module, query.dtype)
        repeats = query.shape[1] // K.shape[1]  # GQA: several queries' heads share keys
        K, V = (x.repeat_interleave(repeats, 1).expand(len(query), -1, -1, -1) for x in (K, V))
        found = F.scaled_dot_product_attention(query, K, V, scale=kwargs.get("scaling"))
        gate = torch.tanh(self.gate)[:, None, None].to(y.dtype)
        return y + (gate * found).transpose(1, 2), weights

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        register()  # unpickled, perhaps in another process
