"""Where the memory of a training step goes: by formula for any decoder, and measured.

A step holds four things: the weights, a gradient for each trained weight, what the optimiser
remembers of it (AdamW: two moments), and the activations that the backward pass will need. The first
three are products of a count and a size. The fourth is counted here tensor by tensor, for the decoders
of transformers with its default attention (SDPA), which keeps no (sequence x sequence) matrix, and
without dropout. The activation function is one kernel: GPT-2's "gelu_new" is written out and keeps
three more tensors of the feed-forward width in each layer; "gelu_pytorch_tanh" is the same in one.
Of the buffers that live for a moment the largest is counted too: at the loss there are three float32
tensors of (tokens, vocabulary) at once, the logarithms of the softmax and two gradients, of which
autograd keeps the first. What comes on top is not in the formula: other short-lived buffers, the
allocator's fragments, the libraries themselves.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# What is trained, by method: every parameter, or A and B beside some of the linear maps.
METHODS = ("full", "LoRA", "LoRA, q and v", "QLoRA")
# Bytes of a frozen weight, and of a trained weight, its gradient and one moment. "mixed" holds the
# weights and gradients in 16 bits, and a float32 copy of the trained weights that the optimiser moves.
PRECISIONS = {"float32": (4, 4, 4, 4), "mixed": (2, 6, 2, 4), "bfloat16": (2, 2, 2, 2)}
# How many moments, and the bytes of one where they are not the precision's. 8 bits with a float32 scale
# for each block of 2,048 (Dettmers et al. 2022, arXiv:2110.02861, section 2.1).
MOMENTS: Mapping[str, tuple[int, float | None]] = {
    "AdamW": (2, None),
    "8-bit AdamW": (2, 1 + 4 / 2048),
    "SGD with momentum": (1, None),
    "SGD": (0, None),
}
# NF4: 4 bits, and a scale for 64 weights in 8 bits, with a float32 for 256 scales (Dettmers et al. 2023).
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
# Bytes. The "GB" in a card's name is a binary one, that of a file or of a formula 10**9.
CARD_GB = 2**30

# What one layer keeps for each token: (widths, feed-forward widths, ranks), keys and values apart.
KEPT: Mapping[tuple[str, str], tuple[int, int, int]] = {
    ("llama", "full"): (8, 4, 0),
    ("llama", "LoRA"): (6, 4, 7),
    ("llama", "LoRA, q and v"): (5, 3, 2),
    ("gpt2", "full"): (6, 2, 0),
    ("gpt2", "LoRA"): (6, 2, 4),
    ("gpt2", "LoRA, q and v"): (5, 1, 1),  # q, k and v are one map: one A
}


@dataclass(frozen=True)
class Decoder:
    """The sizes of a decoder.

    Attributes:
        kind: ``"llama"`` (RMSNorm, rotary positions, gated feed-forward, no biases; pocket-gpt is one)
            or ``"gpt2"`` (LayerNorm, learned positions, biases).
        layers, width, ffn, heads, vocabulary: as the names say.
        kv_width: width of the keys, and of the values; smaller than ``width`` with grouped queries.
        positions: learned positions (GPT-2).
        tied: the head shares its matrix with the input embedding.
        head_norms: queries and keys are normalised head by head (Qwen3).
    """

    kind: str
    layers: int
    width: int
    ffn: int
    heads: int
    vocabulary: int
    kv_width: int
    positions: int = 0
    tied: bool = True
    head_norms: bool = False

    @classmethod
    def of(cls, config: Any) -> "Decoder":
        """Read the sizes from a transformers configuration.

        Raises:
            ValueError: the architecture is not GPT-2's, Llama's or Qwen3's, or a variant: heads that do not
                share the width, or maps of Llama's kind with biases.
        """
        kind = config.model_type
        if kind == "gpt2":
            d, f = config.n_embd, config.n_inner or 4 * config.n_embd
            blocks = (config.n_layer, d, f, config.n_head, config.vocab_size)
            tied = config.tie_word_embeddings
            return cls(kind, *blocks, kv_width=d, positions=config.n_positions, tied=tied)
        if kind not in ("llama", "qwen3"):
            raise ValueError(f"model_type={kind!r}: the formula knows gpt2, llama and qwen3")
        d, heads = config.hidden_size, config.num_attention_heads
        sizes = (config.num_hidden_layers, d, config.intermediate_size, heads, config.vocab_size)
        mlp_bias = getattr(config, "mlp_bias", False)  # Qwen3 has no such option
        if config.head_dim * heads != d or config.attention_bias or mlp_bias:
            raise ValueError(
                f"head_dim={config.head_dim}, attention_bias={config.attention_bias}, "
                f"mlp_bias={mlp_bias}: the formula is for {heads} heads of {d // heads}, no biases"
            )
        kv = config.num_key_value_heads * d // heads
        tied = config.tie_word_embeddings
        return cls("llama", *sizes, kv, tied=tied, head_norms=kind == "qwen3")

    def maps(self, method: str = "LoRA") -> list[tuple[int, int]]:
        """Return (d_in, d_out) of the linear maps of one layer that a LoRA method sits on."""
        d, f, kv = self.width, self.ffn, self.kv_width
        if self.kind == "gpt2":
            attention, rest = [(d, 3 * d)], [(d, d), (d, f), (f, d)]
        else:
            attention, rest = [(d, d), (d, kv)], [(d, kv), (d, d), (d, f), (d, f), (f, d)]
        return attention if method == "LoRA, q and v" else attention + rest

    def parameters(self) -> int:
        """Return the number of parameters."""
        d = self.width
        linear = sum(d_in * d_out for d_in, d_out in self.maps())
        # per layer: two norms; GPT-2's have a bias each, and so has every linear map
        extra = 4 * d + sum(d_out for _, d_out in self.maps()) if self.kind == "gpt2" else 2 * d
        extra += 2 * (d // self.heads) if self.head_norms else 0
        last_norm = 2 * d if self.kind == "gpt2" else d
        tables = self.vocabulary * (1 if self.tied else 2) + self.positions
        return self.layers * (linear + extra) + last_norm + tables * d

    def trained(self, method: str, r: int = 8) -> int:
        """Return the number of parameters that a method trains.

        Raises:
            ValueError: there is no such method.
        """
        if method not in METHODS:
            raise ValueError(f"method={method!r}: expected one of {', '.join(METHODS)}")
        if method == "full":
            return self.parameters()
        return self.layers * r * sum(d_in + d_out for d_in, d_out in self.maps(method))


@dataclass(frozen=True)
class Budget:
    """Bytes of a training step, as long as they stay; what the loss needs for a moment is `loss_memory`."""

    weights: float
    gradients: float
    moments: float
    activations: float

    @property
    def total(self) -> float:
        """Sum of the four."""
        return self.weights + self.gradients + self.moments + self.activations


def budget(
    decoder: Decoder,
    batch: int,
    sequence: int,
    method: str = "full",
    *,
    r: int = 8,
    precision: str = "float32",
    optimizer: str = "AdamW",
    checkpointing: bool = False,
    chunk: int | None = None,
) -> Budget:
    """Return the memory of one training step by formula.

    Args:
        decoder: the model.
        batch, sequence: the number of rows, and of tokens in each.
        method: one of ``METHODS``. "LoRA" and "QLoRA" sit on every linear map; QLoRA's base is in NF4.
        r: rank of the LoRA.
        precision: one of ``PRECISIONS``.
        optimizer: one of ``MOMENTS``.
        checkpointing: keep only each layer's input, and one layer's activations at a time.
        chunk: the loss is computed for so many tokens at a time; see `loss_memory`. Then autograd keeps
            nothing of it.

    Raises:
        ValueError: there is no such method, precision or optimiser, or ``chunk`` is below 1.
    """
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk={chunk}: expected None, or tokens from 1 on")
    for name, value, known in (
        ("precision", precision, PRECISIONS),
        ("optimizer", optimizer, MOMENTS),
    ):
        if value not in known:
            raise ValueError(f"{name}={value!r}: expected one of {', '.join(known)}")
    N, n = decoder.parameters(), decoder.trained(method, r)
    frozen, weight, gradient, moment = PRECISIONS[precision]
    weights: float = n * weight
    if method == "QLoRA":
        quantised = decoder.layers * sum(d_in * d_out for d_in, d_out in decoder.maps())
        weights += quantised * NF4_BYTES + (N - quantised) * frozen
    elif method != "full":
        weights += N * frozen
    kept = activations(decoder, batch, sequence, method, r, frozen, checkpointing)
    if chunk is not None:
        kept -= 4 * decoder.vocabulary * batch * sequence
    count, size = MOMENTS[optimizer]
    return Budget(weights, n * gradient, n * count * (size or moment), kept)


def loss_memory(decoder: Decoder, batch: int, sequence: int, chunk: int | None = None) -> float:
    """Return the bytes that the loss needs for a moment, beside what `budget` counts.

    Three float32 tensors of (tokens, vocabulary) are there at once when the backward pass begins: the
    logarithms of the softmax and two gradients. `activations` counts the first. A chunked loss ("fused
    linear" or "cut" cross-entropy) never has the logits of all tokens together: it computes those of
    ``chunk`` tokens, and again in the backward pass.

    Args:
        decoder, batch, sequence: as in `budget`.
        chunk: how many tokens at a time; None for all.
    """
    logits, tokens = 4 * decoder.vocabulary, batch * sequence  # bytes for one token
    return 2 * tokens * logits if chunk is None else 3 * min(chunk, tokens) * logits


def activations(
    decoder: Decoder,
    batch: int,
    sequence: int,
    method: str = "full",
    r: int = 8,
    size: int = 4,
    checkpointing: bool = False,
) -> float:
    """Return the bytes of what autograd keeps for the backward pass.

    Args:
        size: bytes of one activation, 4 or 2. Llama's norms compute in float32 whatever it is, and so
            do the loss and the attention's normalisers.
        decoder, batch, sequence, method, r, checkpointing: as in `budget`.
    """
    d, method = decoder.width, "LoRA" if method == "QLoRA" else method
    widths, ffn, ranks = KEPT[decoder.kind, method]
    llama = decoder.kind == "llama"
    norm = 4 if llama else size
    elements = (widths - 2) * d + 2 * decoder.kv_width + ffn * decoder.ffn
    # the two norms' inputs and statistics, the rest, and one normaliser for each head
    layer: float = 2 * norm * d + size * (elements + ranks * r) + 4 * decoder.heads
    layer += 4 * (2 if llama else 4)
    if (
        decoder.head_norms
    ):  # inputs and statistics; the normalised vectors where the norm is trained
        both = d + decoder.kv_width
        layer += (norm + (size if method == "full" else 0)) * both + 4 * both * decoder.heads / d
    last: float = (
        norm * d + 4 * decoder.vocabulary
    )  # the last norm's input, and the softmax of the loss
    if method == "full":
        last += size * d * (2 if llama else 1)
    else:
        last -= norm * d  # below the first LoRA no gradient is needed: its norm keeps no input
        if decoder.head_norms and method == "LoRA, q and v":  # nor that of its keys
            last -= norm * decoder.kv_width + 4 * decoder.kv_width * decoder.heads / d
    tokens = batch * sequence
    if checkpointing:
        return tokens * (decoder.layers * d * size + layer + last)
    return tokens * (decoder.layers * layer + last)


def kept_by_autograd(model: nn.Module, batch: Mapping[str, Tensor]) -> int:
    """Return the bytes of all tensors that the backward pass of a batch will need, parameters apart.

    Args:
        model: a model whose ``model(**batch)`` has a ``.loss``; it is left in training mode.
    """
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in own:
            kept[memory.data_ptr()] = memory.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.train()(**batch, use_cache=False).loss  # holds the graph, so nothing is reused
    del loss
    return sum(kept.values())
