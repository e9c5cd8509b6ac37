"""LLaMA-Adapter (Zhang et al. 2023, arXiv:2303.16199): prompts behind gates that begin closed.

In each of the topmost layers the queries of the text also look at a learned prompt P (n x d), through
the layer's own projections of keys and values, and what they find is added behind a gate g of each
head:

    softmax(Q Kᵀ / √d) V  +  tanh(g) softmax(Q (W_k P)ᵀ / √d) W_v P,     g = 0 at the start.

The prompt has a softmax of its own, unlike a prefix, so closed gates leave the model as it was. The
delta stands beside the attention module and acts in its attention function (see `attention.py`).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pedagogic_peft.core import attention, validation
from pedagogic_peft.core.architectures import modules_in_role, roles_of
from pedagogic_peft.core.attention import AttentionDelta
from pedagogic_peft.core.delta import Attend, Deltas
from pedagogic_peft.core.method import Method, Peft, field
from pedagogic_peft.core.sites import Modules, View
from pedagogic_peft.core.targets import Names, sizes
from pedagogic_peft.methods.prefix_tuning import CountedText, counts_columns


class LlamaAdapter(Method):
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
        ValueError: a value is of the wrong type or out of range; the message names it.

    Example:
        >>> from pedagogic_peft import LlamaAdapter, attach, count_parameters, load_base
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> print(count_parameters(attach(model, LlamaAdapter(adapter_len=5, adapter_layers=1))))
        trainable: 248 of 76,424 (0.32 %)
    """

    peft = Peft("LLAMA_ADAPTER")

    adapter_len: int = field(10, validation.count)
    adapter_layers: int | None = field(None, validation.count)

    def targets(self, view: View, without: object) -> Modules:
        """Return ``{path: module}`` of the topmost attentions.

        Raises:
            ValueError: the model does not use the attention interface, or its architecture has no row
                in `ROLES`; there are fewer layers than ``adapter_layers``.
        """
        attention.check_can_take_over(view.model)
        found = list(attention.find_attentions(view).items())
        if (layers := self.adapter_layers or len(found)) > len(found):
            raise ValueError(f"adapter_layers={layers}: the model has {len(found)} layers")
        return dict(found[-layers:])

    def deltas(self, view: View, places: Modules) -> Deltas:
        """Return ``{path: delta}`` for the attentions."""
        model: Any = view.model
        names = roles_of(model).key, roles_of(model).value
        maps = modules_in_role(view, *names)
        heads, deltas = model.config.num_attention_heads, Deltas()
        for path in places:
            width, keys = sizes(maps[f"{path}.{names[0]}"])[0], attention.heads_and_size(view, path)
            deltas[path] = GatedPrompt(self.adapter_len, width, heads, keys, names)
        # Only RoPE leaves the model as it was, when its positions move: others' texts stay where they are.
        rope = any(path.endswith("rotary_emb") for path in view.modules)
        if rope and (backbone := counts_columns(view)) is not None:
            deltas[backbone] = CountedText()
        return deltas


class GatedPrompt(AttentionDelta):
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

    def __init__(self, n: int, width: int, heads: int, keys: tuple[int, int], maps: Names):
        super().__init__()
        self.prompt = nn.Parameter(torch.randn(n, width))
        self.gate = nn.Parameter(torch.zeros(heads))
        self.keys, self.maps = keys, maps

    def keys_and_values(self, module: nn.Module, P: Tensor) -> list[Tensor]:
        """Return those of prompts P (b, n, width), by the maps as they are adapted.

        They are two tensors (b, heads of the keys, n, size).
        """
        heads, size = self.keys
        K, V = (module.get_submodule(name)(P) for name in self.maps)
        if self.maps[0] == self.maps[1]:
            K, V = K[..., -2 * heads * size : -heads * size], V[..., -heads * size :]
        return [x.unflatten(-1, (heads, size)).transpose(1, 2) for x in (K, V)]

    def attend(
        self, run: Attend, module: Any, Q: Tensor, K: Tensor, V: Tensor, mask: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Add what the queries find in the prompt, behind the gates."""
        y, weights = run(module, Q, K, V, mask, **kwargs)  # y: (batch, q, heads, size)
        gate, scale = self.gate[:, None, None], kwargs.get("scaling")
        return y + self.found(module, self.prompt[None], gate, Q, scale=scale), weights

    def found(
        self, module: nn.Module, P: Tensor, gate: Tensor, Q: Tensor, **options: Any
    ) -> Tensor:
        """Return what the queries find in prompts, behind gates: (batch, q, heads, size).

        Args:
            module: the attention.
            P: prompts (b, n, width), each for as many rows of the batch as b goes into it.
            gate: (heads, 1, 1) or (batch, heads, 1, 1).
            Q: the queries (batch, heads, q, size).
            **options: of torch's `scaled_dot_product_attention`.
        """
        K, V = self.keys_and_values(module, P.to(Q.dtype))
        repeats = Q.shape[1] // K.shape[1]  # GQA: several queries' heads share keys
        K, V = (x.repeat_interleave(repeats, 1)[:, None] for x in (K, V))
        K, V = (x.expand(-1, len(Q) // len(P), -1, -1, -1).flatten(0, 1) for x in (K, V))
        found = F.scaled_dot_product_attention(Q, K, V, **options)
        return (torch.tanh(gate).to(Q.dtype) * found).transpose(1, 2)
