"""Prefix tuning (Li & Liang 2021, arXiv:2101.00190): learned keys and values in every attention.

In each layer the queries of the text also look at n learned keys P_K and their values P_V,

    softmax(Q [P_K; K]ᵀ / √d) [P_V; V],

which are the only parameters. No layer below the prefix computes it, unlike a prompt's activations. On
encoders and for classification the same method is P-tuning v2 (Liu et al. 2022, arXiv:2110.07602).

The delta stands beside the attention module and acts in its attention function (see `attention.py`).
"""

import inspect
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from pedagogic_peft.core import attention, validation
from pedagogic_peft.core.architectures import backbone_of
from pedagogic_peft.core.attention import AttentionDelta
from pedagogic_peft.core.delta import Args, Attend, Delta, Deltas, Kwargs
from pedagogic_peft.core.method import Method, Peft, field
from pedagogic_peft.core.sites import Modules, View, by_name
from pedagogic_peft.core.targets import Targets
from pedagogic_peft.methods.prompt_tuning import (
    SIZES,
    check_fits,
    embedding_of,
    first_position,
    position_limit,
    token_ids,
)
from pedagogic_peft.methods.watching import keys_and_values

# The modules that turn positions into vectors or angles.
POSITIONS = re.compile(r"(.*\.)?(wpe|position_embeddings|embed_positions|rotary_emb)")


def check_ids(what: str, value: Any) -> Any:
    """Return token ids as a tuple."""
    good = value and not isinstance(value, str) and all(isinstance(i, int) for i in value)
    return tuple(validation.expect(good, what, value, "a list of token ids"))


def check_start(what: str, value: Any) -> Any:
    """Return "normal", which is None in PEFT's checkpoints, or "zero"."""
    return validation.one_of("normal", "zero")(what, "normal" if value is None else value)


class PrefixTuning(Method):
    """The hyper-parameters of prefix tuning.

    Unlike LoRA it changes the model's output from the start: whatever its values, a prefix takes a
    share of the attention. While one is attached, the model's attention is SDPA (also in a model that
    was loaded with "eager"), and attention weights cannot be asked for.

    Args:
        num_virtual_tokens: n, at least 1.
        prefix_projection: train an embedding and a two-layer network that makes the keys and values
            (section 4.3: training these directly was unstable); it is saved with the prefix.
        encoder_hidden_size: width of that network; None means the model's width.
        init_weights: "normal", small Gaussian values, or "zero". A prefix without projection that
            begins at zero stays one token repeated n times, because all get the same gradient.
        init: token ids, repeated or cut to n, whose keys and values in the frozen model the prefix
            begins with, instead: ``init=tokenizer("summarise the table below").input_ids``. With little
            data, words of the task were much better than random values (section 7.4). A checkpoint
            does not say how a prefix began.
        shift_positions: whether the text's positions begin at n, as if the prefix stood at positions
            0 to n - 1 (in T5: whether it has the position bias of n tokens before the text). So it is
            in PEFT and in the authors' GPT-2; n positions fewer are left for the text.
        target_modules: the attention modules, as in `LoRA`; None means every self-attention (in
            encoder-decoders the decoder's, as in PEFT).
        modules_to_save: names of modules to train in full, such as a new classification head.

    Raises:
        ValueError: a value is of the wrong type or out of range; the message names it.

    Example:
        >>> from pedagogic_peft import PrefixTuning, attach, count_parameters, load_base
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> print(count_parameters(attach(model, PrefixTuning(num_virtual_tokens=5))))
        trainable: 960 of 77,136 (1.24 %)
    """

    peft = Peft("PREFIX_TUNING", unsaved="init", ignored=SIZES)
    can_adapt = staticmethod(attention.is_attention)

    num_virtual_tokens: int = field(20, validation.count)
    prefix_projection: bool = field(False, validation.flag)
    encoder_hidden_size: int | None = field(None, validation.count)
    init_weights: str = field("normal", check_start)
    shift_positions: bool = field(True, validation.flag)
    target_modules: Targets = field(None, validation.targets)
    init: Sequence[int] | None = field(None, check_ids)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init and self.prefix_projection:
            raise ValueError("init: with prefix_projection a network makes the keys and values")

    def plan(self, view: View) -> Deltas:
        """Return ``{path: delta}`` as they start: with the keys and values of the tokens in ``init``.

        Raises:
            ValueError: as in `Method`; an id is not in the vocabulary; the model has two stacks.
        """
        deltas, model = super().plan(view), cast(Any, view.model)
        if self.init:
            if model.config.is_encoder_decoder:
                what = "a decoder's keys and values depend on what its encoder has read"
                raise ValueError(f"init={self.init}: {what}")
            ids = token_ids(embedding_of(model), self.init, self.num_virtual_tokens)
            prefixes = {path: d for path, d in deltas.items() if isinstance(d, Prefix)}
            places = {path: view.modules[path] for path in prefixes}
            for path, found in keys_and_values(model, ids, places).items():
                prefixes[path].prefix.data.copy_(found)
        return deltas

    def targets(self, view: View, without: Iterable[str]) -> Modules:
        """Return ``{path: module}`` of the attentions.

        Raises:
            ValueError: a name matches no attention; the model does not use the attention interface,
                or uses it with another function than "sdpa" or "eager".
        """
        attention.check_can_take_over(view.model)
        if self.target_modules is None:
            return attention.find_attentions(view)
        return super().targets(view, without)

    def deltas(self, view: View, places: Modules) -> Deltas:
        """Return ``{path: delta}``: the prefixes, and the shifts of positions.

        A layer that reads another layer's keys and values (Gemma 4's last ones) has that one's prefix.

        Raises:
            ValueError: a prefix has no shape at an attention, or positions cannot be shifted.
        """
        model: Any = view.model
        n, width = self.num_virtual_tokens, self.encoder_hidden_size or model.config.hidden_size
        dim = math.prod(attention.heads_and_size(view, next(iter(places))))
        network = PrefixNetwork(n, dim, width) if self.prefix_projection else None
        deltas: Deltas = {}
        latest: dict[Any, Prefix] = {}  # of the layers of one type
        table = None  # T5: the first layer's table of position biases serves all layers of a stack
        stack = "decoder." if model.config.is_encoder_decoder else ""
        for path, module in view.modules.items():
            kind = getattr(module, "layer_type", None)
            if self.shift_positions and hasattr(module, "relative_attention_bias"):
                table = module
            if path in places and getattr(module, "is_kv_shared_layer", False) and kind in latest:
                deltas[path] = latest[kind]
            elif path in places:
                own_table = None if attention.CROSS.search(path) else table
                shape = (n, 2, *attention.heads_and_size(view, path))
                deltas[path] = latest[kind] = Prefix(shape, self.init_weights, network, own_table)
            if self.shift_positions and stack in path and POSITIONS.fullmatch(path):
                deltas[path] = PositionShift(module, n, position_limit(view))
        next(d for d in deltas.values() if isinstance(d, Prefix)).saves_network = True
        if self.shift_positions and (backbone := counts_columns(view)) is not None:
            deltas[backbone] = CountedText()
        return deltas


PTuningV2 = PrefixTuning  # what P-tuning v2 trains in encoders


class PrefixNetwork(nn.Module):
    """What all layers share of the network that makes the prefixes: tanh(W E + b).

    Args:
        n, dim: the shape of E, the network's trained input.
        width: size of what it returns.
    """

    def __init__(self, n: int, dim: int, width: int):
        super().__init__()
        self.E = nn.Parameter(torch.randn(n, dim))
        self.down = nn.Linear(dim, width)

    def forward(self) -> Tensor:
        """Return the hidden layer: (n, width)."""
        return torch.tanh(self.down(self.E))


class Prefix(AttentionDelta):
    """The learned keys and values of one attention.

    Each layer runs the shared network again: it is small, and this way nothing is kept from one layer's
    computation to another's, which gradient checkpointing would not survive.

    Args:
        shape: (n, 2, heads, size); at index 0 the keys, at 1 the values.
        init: "normal" or "zero".
        network: makes the keys and values, with this layer's own last linear map; None trains them.
        table: T5's attention module that has the position biases; None for a bias of zero.

    Attributes:
        saves_network: whether the network, which all layers share, is in this one's checkpoint.
    """

    def __init__(
        self, shape: tuple[int, int, int, int], init: str, network: PrefixNetwork | None, table: Any
    ):
        super().__init__()
        self.shape, self.table, self.saves_network = shape, (table,), False  # a tuple: no child
        if network is None:
            self.prefix = nn.Parameter(0.02 * torch.randn(shape))
        else:
            self.up = nn.Linear(network.down.out_features, 2 * shape[2] * shape[3])
        if init == "zero":
            for parameter in self.parameters():
                nn.init.zeros_(parameter)
        self.network = network

    def to_checkpoint(self) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint; the network's are in one layer's."""
        own = self.state_dict().items()
        return {k: t for k, t in own if self.saves_network or not k.startswith("network.")}

    def prompt(self) -> Tensor:
        """Return keys and values as in a checkpoint: (n, 2 * heads * size)."""
        return self.keys_and_values().flatten(1)

    def keys_and_values(self) -> Tensor:
        """Return (n, 2, heads, size)."""
        network = self.network
        return self.prefix if network is None else self.up(network()).view(self.shape)

    def attend(
        self, run: Attend, module: Any, Q: Tensor, K: Tensor, V: Tensor, mask: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Put the prefix in front of keys and values, where every query sees it."""
        P, table = self.keys_and_values()[None], self.table[0]
        return attend_to(P, None, table, run, module, Q, K, V, mask, **kwargs)


def attend_to(
    P: Tensor, real: Tensor | None, table: Any, run: Attend, module: Any, *QKV: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Return what ``run`` returns with P in front of keys and values, where every query sees it.

    Where attention has a sliding window, each sees as much of it as of n tokens before the text.

    Args:
        P: (batch, n, 2, heads, size), or (1, ...) for all rows.
        real: (batch, n), False where P is filler; None where nothing is.
        table: as in `Prefix`.
        run, module, *QKV, **kwargs: as in `attention`; QKV ends with the mask.
    """
    Q, K, V, mask = QKV
    # -> (2, batch, heads, n, size)
    P = P.to(K).permute(2, 0, 3, 1, 4).expand(-1, len(K), -1, -1, -1)
    n, q, k = P.shape[3], Q.shape[2], K.shape[2]
    given, bias = kwargs.get("is_causal"), kwargs.get("position_bias")
    causal = getattr(module, "is_causal", True) if given is None else given
    window = causal and kwargs.get("sliding_window") or n + k
    if mask is None and (causal and q > 1 or n + k > window or real is not None):
        mask = torch.ones(1, 1, q, k, dtype=torch.bool, device=K.device)  # SDPA's has no prefix
        mask = mask.tril() if causal and q > 1 else mask
    if mask is not None:
        seen = torch.ones(1, 1, mask.shape[-2], n, dtype=torch.bool, device=K.device)
        if n + k > window:
            distance = own_keys(mask)[:, None] + n - torch.arange(n, device=K.device)
            seen = seen & (distance < window)
        if real is not None:
            seen = seen & real[:, None, None]
        seen = seen if mask.dtype == torch.bool else seen.log().to(mask)
        rows = torch.broadcast_shapes(mask.shape[:-1], seen.shape[:-1])
        mask = torch.cat([seen.expand(*rows, n), mask.expand(*rows, k)], dim=-1)
    if bias is not None:  # T5: (1, heads, q, k)
        own = bias.new_zeros(1, bias.shape[1], q, n)
        if table is not None:
            device = table.relative_attention_bias.weight.device
            past = own_keys(mask[..., n:])[0].to(device) if causal and mask is not None else k - q
            own = table.compute_bias(q, n, device, past_seen_tokens=n + past).to(bias)
        kwargs["position_bias"] = torch.cat([own, bias], dim=-1)
    return run(module, Q, torch.cat([P[0], K], 2), torch.cat([P[1], V], 2), mask, **kwargs)


def own_keys(mask: Tensor) -> Tensor:
    """Return where in the keys each query's own is, (q,): the last it sees, by a causal mask.

    A static cache has empty places behind it.
    """
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    place = torch.arange(mask.shape[-1], device=mask.device)
    return (seen * place).amax(-1).flatten(0, -2).amax(0)  # over the rows, which may be padded


def counts_columns(view: View) -> str | None:
    """Return the path of the backbone, if that counts the columns of a batch as positions, or None.

    Others count the tokens themselves: by the ids (RoBERTa) or by images (Qwen-VL).
    """
    model: Any = view.model
    backbone = backbone_of(model)
    known = "position_ids" in inspect.signature(backbone.forward).parameters
    own = hasattr(backbone, "compute_3d_position_ids") or first_position(view) > 0
    if not known or own or model.config.is_encoder_decoder:
        return None
    return next(path for path, module in view.modules.items() if module is backbone)


class CountedText(Delta):
    """Counts a text's positions from its first token, if padding stands before it and none are given.

    Without a prefix only distances matter to RoPE; a prefix has a place, from which the text is to go on.
    """

    beside = True

    def enter(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Add ``position_ids``, (batch, tokens), where there is a mask."""
        kwargs = by_name(module, args, kwargs)
        x = kwargs.get("input_ids")
        x = kwargs.get("inputs_embeds") if x is None else x
        mask, given = kwargs.get("attention_mask"), kwargs.get("position_ids")
        if given is None and isinstance(mask, Tensor) and mask.dim() == 2 and x is not None:
            padding = (mask.long().cumsum(1) == 0).sum(1, keepdim=True)  # (batch, 1)
            positions = torch.arange(mask.shape[1], device=mask.device) - padding
            kwargs["position_ids"] = positions.clamp(min=0)[:, -x.shape[1] :]
        return (), kwargs


class PositionShift(Delta):
    """Adds n to the positions a module reads: a table of positions, or the angles of RoPE.

    Args:
        module: that module. Beside a plain table it is a delta of a `Site`, for LoRA may sit there too.
        n: how many positions the prefix takes.
        limit: how many positions the model has, if it is limited.

    Raises:
        ValueError: the module makes positions of its own.
    """

    def __init__(self, module: nn.Module, n: int, limit: int | None):
        super().__init__()
        self.beside = type(module).forward is not nn.Embedding.forward
        self.n, self.limit = n, limit
        if self.beside and "position_ids" not in inspect.signature(module.forward).parameters:
            what = f"{type(module).__name__} makes positions of its own, which cannot be shifted"
            raise ValueError(f"{what}: shift_positions=False leaves them as they are")

    def before(self, positions: Tensor) -> Tensor:
        """Return the positions, (..., tokens), moved by n."""
        check_fits(self.n, positions.shape[-1], self.limit)
        return positions + self.n

    def enter(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """The same where the positions are not the first argument."""
        kwargs = by_name(module, args, kwargs)
        return (), kwargs | {"position_ids": self.before(kwargs["position_ids"])}
