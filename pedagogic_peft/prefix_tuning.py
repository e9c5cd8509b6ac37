"""Prefix tuning (Li & Liang 2021, arXiv:2101.00190): learned keys and values in every attention.

In each layer the queries of the text also look at n learned keys P_K and their values P_V,

    softmax(Q [P_K; K]ᵀ / √d) [P_V; V],

which are the only parameters. No layer below the prefix computes it, unlike a prompt's activations. On
encoders and for classification the same method is P-tuning v2 (Liu et al. 2022, arXiv:2110.07602).

The delta stands beside the attention module and acts in its attention function (see `attention.py`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pedagogic_peft.attention import (
    Attend,
    check_can_take_over,
    find_attentions,
    heads_and_size,
    register,
)
from pedagogic_peft.checks import check_choice, check_flag, check_whole, names, targets
from pedagogic_peft.peft_format import check_options, fill, heads_of, tensors_of
from pedagogic_peft.prompt_tuning import (
    COMMON_PROMPT_KEYS,
    Args,
    Kwargs,
    by_name,
    check_fits,
    from_file,
    is_encoder_decoder,
    position_limit,
    take,
    to_file,
)
from pedagogic_peft.sites import TrainedCopy, base_modules
from pedagogic_peft.targets import find_modules

PREFIX_KEYS = COMMON_PROMPT_KEYS | set(
    "encoder_hidden_size init_weights prefix_projection shift_positions".split()
)
# The modules that turn positions into vectors or angles.
POSITIONS = re.compile(r"(.*\.)?(wpe|position_embeddings|embed_positions|rotary_emb)")


@dataclass(frozen=True)
class PrefixTuning:
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
            begins at zero stays one token repeated n times, for all get the same gradient.
        shift_positions: whether the text's positions begin at n, as if the prefix stood at positions
            0 to n - 1 (in T5: whether it has the position bias of n tokens before the text). So it is
            in PEFT and in the authors' GPT-2; n positions fewer are left for the text.
        target_modules: the attention modules, as in `LoRA`; None means every self-attention (in
            encoder-decoders the decoder's, as in PEFT).
        modules_to_save: names of modules to train in full, such as a new classification head.

    Raises:
        TypeError, ValueError: a value is of the wrong type or out of range; the message names it.
    """

    peft_type: ClassVar[str] = "PREFIX_TUNING"

    num_virtual_tokens: int = 20
    prefix_projection: bool = False
    encoder_hidden_size: int | None = None
    init_weights: str = "normal"
    shift_positions: bool = True
    target_modules: Sequence[str] | str | None = None
    modules_to_save: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_whole("num_virtual_tokens", self.num_virtual_tokens)
        check_flag("prefix_projection", self.prefix_projection)
        if self.encoder_hidden_size is not None:
            check_whole("encoder_hidden_size", self.encoder_hidden_size)
        check_choice("init_weights", self.init_weights, ("normal", "zero"))
        check_flag("shift_positions", self.shift_positions)
        object.__setattr__(self, "target_modules", targets("target_modules", self.target_modules))
        object.__setattr__(self, "modules_to_save", names("modules_to_save", self.modules_to_save))

    def plan(self, model: Any) -> dict[str, nn.Module]:
        """Return ``{path: delta}`` for this model, which is not changed.

        Raises:
            ValueError: a name matches no attention; the model does not use the attention interface,
                or uses it with another function than "sdpa" or "eager".
        """
        check_can_take_over(model)
        attentions = find_attentions(model, self.target_modules)
        (heads, size), n = heads_and_size(model), self.num_virtual_tokens
        width = self.encoder_hidden_size or model.config.hidden_size
        network = PrefixNetwork(n, heads * size, width) if self.prefix_projection else None
        deltas: dict[str, nn.Module] = {}
        table = None  # T5: the first layer's table of position biases serves all layers of a stack
        for path, module in base_modules(model).items():
            if self.shift_positions and hasattr(module, "relative_attention_bias"):
                table = module
            if path in attentions:
                own_table = None if "EncDec" in path else table
                delta = Prefix((n, 2, heads, size), self.init_weights, network, own_table)
                if network is not None and path == next(iter(attentions)):
                    delta.network = network  # registered once
                deltas[path] = delta.to(next(module.parameters()).device)
            if self.shift_positions and POSITIONS.fullmatch(path):
                deltas[path] = PositionShift(module, n, position_limit(model))
        return deltas | {
            p: TrainedCopy(m) for p, m in find_modules(model, self.modules_to_save).items()
        }

    def to_peft(
        self, model: Any, deltas: Mapping[str, nn.Module]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return PEFT's configuration and tensors: keys and values, and for us the network as well.

        What PEFT cannot compute (other targets, positions not shifted, encoder-decoders: see
        `from_peft`) has a tensor of another name than PEFT reads, so that PEFT refuses the file.
        """
        prefixes = {path: delta for path, delta in deltas.items() if isinstance(delta, Prefix)}
        stacked = torch.stack([delta.keys_and_values() for delta in prefixes.values()], dim=1)
        flat = stacked.flatten(1)  # (n, layers * 2 * heads * size)
        config, tensors = to_file(model, deltas, flat, self.modules_to_save)
        n, layers, _, heads, size = stacked.shape
        config |= {
            "num_layers": layers,
            "num_attention_heads": heads,
            "token_dim": heads * size,
            "prefix_projection": self.prefix_projection,
            "encoder_hidden_size": self.encoder_hidden_size or model.config.hidden_size,
            "init_weights": "zero" if self.init_weights == "zero" else None,
        }
        if self.target_modules or not self.shift_positions or is_encoder_decoder(model):
            targets = list(prefixes) if self.target_modules else None
            config |= {"target_modules": targets, "shift_positions": self.shift_positions}
            tensors["prefix"] = tensors.pop("prompt_embeddings")
        if self.prefix_projection:
            tensors |= {f"prompt_encoder.{key}": t for key, t in tensors_of(prefixes).items()}
        return config, tensors

    @classmethod
    def from_peft(
        cls, model: nn.Module, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> tuple[Self, dict[str, nn.Module]]:
        """Return the hyper-parameters of a checkpoint and the filled deltas.

        In an encoder-decoder of L layers PEFT gives layer l the keys and values of layer 2 l modulo
        L, so its files are read like that; as L is mostly even, it could not read ours.

        Raises:
            ValueError: an option is not supported, or the tensors do not fit the model.
        """
        check_options(config, PREFIX_KEYS)
        network, tensors = take("prompt_encoder.", tensors)
        own = {"prompt_embeddings" if key == "prefix" else key: t for key, t in tensors.items()}
        prompt, saved = from_file(config, own)
        method = cls(
            len(prompt),
            bool(network),
            config.get("encoder_hidden_size") if network else None,
            config.get("init_weights") or "normal",
            config.get("shift_positions", True),
            config.get("target_modules"),
            heads_of(config, model),
        )
        deltas = method.plan(model)
        paths = [path for path, delta in deltas.items() if isinstance(delta, Prefix)]
        heads, size = heads_and_size(model)
        if prompt.shape[1] != len(paths) * 2 * heads * size:
            raise ValueError(
                f"The prefix has {prompt.shape[1]} numbers for each virtual token; this model has "
                f"{len(paths)} layers * 2 * {heads} heads * {size}"
            )
        layers = list(prompt.reshape(len(prompt), len(paths), 2, heads, size).unbind(1))
        if is_encoder_decoder(model) and "prompt_embeddings" in tensors:
            layers = [layers[2 * l % len(layers)] for l in range(len(layers))]
        flat = {f"{path}.prefix": x for path, x in zip(paths, layers, strict=True)}
        fill(deltas, (network or flat) | saved)
        return method, deltas


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


class Prefix(nn.Module):
    """The learned keys and values of one attention.

    Each layer asks the shared network anew: it is small, and so nothing is kept from one layer's
    computation to another's, which gradient checkpointing would not survive.

    Args:
        shape: (n, 2, heads, size); at index 0 the keys, at 1 the values.
        init: "normal" or "zero".
        network: makes the keys and values, with this layer's own last linear map; None trains them.
        table: T5's attention module that has the position biases; None for a bias of zero.
    """

    beside = True

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        init: str = "normal",
        network: PrefixNetwork | None = None,
        table: Any = None,
    ):
        super().__init__()
        self.shape, self.shared, self.table = shape, (network,), (table,)  # tuples: no children
        if network is None:
            self.prefix = nn.Parameter(0.02 * torch.randn(shape))
        else:
            self.up = nn.Linear(network.down.out_features, 2 * shape[2] * shape[3])
        if init == "zero":
            for parameter in self.parameters():
                nn.init.zeros_(parameter)

    def keys_and_values(self) -> Tensor:
        """Return (n, 2, heads, size)."""
        network = self.shared[0]
        return self.prefix if network is None else self.up(network()).view(self.shape)

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
        """Put the prefix in front of keys and values, where every query sees it."""
        P = self.keys_and_values().to(key).permute(1, 2, 0, 3)  # (2, heads, n, size)
        P = P[:, None].expand(-1, len(key), -1, -1, -1)  # (2, batch, heads, n, size)
        n, q, k = self.shape[0], query.shape[2], key.shape[2]
        causal = kwargs.get("is_causal")
        if causal is None:
            causal = getattr(module, "is_causal", True)
        if mask is None and causal and q > 1:  # SDPA would make this mask itself, without a prefix
            mask = torch.ones(1, 1, q, k, dtype=torch.bool, device=key.device).tril()
        if mask is not None:
            mask = F.pad(mask, (n, 0), value=1.0 if mask.dtype == torch.bool else 0.0)
        bias, table = kwargs.get("position_bias"), self.table[0]
        if bias is not None:  # T5: (1, heads, q, k)
            own = bias.new_zeros(1, bias.shape[1], q, n)
            if table is not None:
                own = table.compute_bias(q, n, key.device, past_seen_tokens=n + k - q).to(bias)
            kwargs["position_bias"] = torch.cat([own, bias], dim=-1)
        key, value = torch.cat([P[0], key], dim=2), torch.cat([P[1], value], dim=2)
        return run(module, query, key, value, mask, **kwargs)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        register()  # unpickled, perhaps in another process


class PositionShift(nn.Module):
    """Adds n to the positions a module reads: a table of positions, or the angles of RoPE.

    Args:
        module: that module. Beside a plain table it is a delta of a `Site`, for LoRA may sit there too.
        n: how many positions the prefix takes.
        limit: how many positions the model has, if it is limited.
    """

    def __init__(self, module: nn.Module, n: int, limit: int | None):
        super().__init__()
        self.beside = type(module).forward is not nn.Embedding.forward
        self.n, self.limit = n, limit

    def before(self, positions: Tensor) -> Tensor:
        """Return the positions, (..., tokens), moved by n."""
        check_fits(self.n, positions.shape[-1], self.limit)
        return positions + self.n

    def forward(self, positions: Tensor, y: Tensor) -> Tensor:
        return y

    def enter(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """The same where the positions are not the first argument."""
        kwargs = by_name(module, args, kwargs)
        return (), kwargs | {"position_ids": self.before(kwargs["position_ids"])}
