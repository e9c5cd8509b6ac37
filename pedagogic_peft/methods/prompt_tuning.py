"""Prompt tuning and P-tuning: learned vectors in front of the embedded text.

Prompt tuning (Lester et al. 2021, arXiv:2104.08691) trains a matrix P (n x d) of n virtual tokens and
nothing else: the frozen model reads [P; X], where X is the embedded text. P-tuning (Liu et al. 2021,
arXiv:2103.10385) trains a small network that makes P.

The delta stands beside the backbone (in encoder-decoders beside the encoder). Entering, it puts P in
front and widens the mask; leaving, it takes P's rows off again, so that logits and labels have the
shape of the text. While a KV cache is filled, P is put in front once, at the first step. The rows of
a batch may have prompts of their own: ``activate(model, rows=["polite", "tale", None])``.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pedagogic_peft.core import validation
from pedagogic_peft.core.delta import Args, Delta, Deltas, Kwargs
from pedagogic_peft.core.method import Method, Peft, field
from pedagogic_peft.core.sites import Modules, View, by_name

# What PEFT's configurations of prompts say of the model and of the prompt's start.
SIZES = "num_attention_heads num_layers num_transformer_submodules token_dim "
TEXT = "prompt_tuning_init prompt_tuning_init_text tokenizer_kwargs tokenizer_name_or_path"

NETWORKS = ("MLP", "LSTM", None)  # of P-tuning


class PromptMethod(Method, abstract=True):
    """What prompt tuning and P-tuning share: where text enters, and what must know of the prompt."""

    # (self, embedding of tokens): the prompt in front of the text, as it starts
    prompt: ClassVar[Callable[..., "SoftPrompt"]]

    def targets(self, view: View, without: Iterable[str]) -> Modules:
        """Return ``{path: module}`` of the module that text enters, and of one that attends to it.

        Raises:
            ValueError: the model embeds no tokens.
        """
        model: Any = view.model
        embedding_of(model)  # or the error
        entered = [model.base_model]
        if hasattr(model.base_model, "decoder"):  # OPT's heads call it past the backbone
            encoder = [model.base_model.encoder] if model.config.is_encoder_decoder else []
            entered = [*encoder, model.base_model.decoder]
        return {path: m for path, m in view.modules.items() if m in entered}

    def deltas(self, view: View, places: Modules) -> Deltas:
        """Return ``{path: delta}``: the prompt, and what must know of it."""
        model: Any = view.model
        (path, backbone), *decoders = places.items()
        delta = self.prompt(embedding_of(model))
        is_decoder = any(getattr(module, "is_causal", False) for module in backbone.modules())
        positions = "position_ids" in inspect.signature(backbone.forward).parameters
        delta.limit, delta.counts = position_limit(view), is_decoder and positions
        # A decoder attends to the encoder's prompt; an encoder's classifier reads the first position.
        pools = type(model).__name__.endswith(("ForSequenceClassification", "ForMultipleChoice"))
        delta.cuts = not decoders and (is_decoder or not pools)
        return {path: delta} | {path: WiderCrossMask() for path, _ in decoders}


def check_init(what: str, value: Any) -> Any:
    """Return the value if it is "vocab", "random" or a list of token ids (as a tuple)."""
    good = value in ("vocab", "random") or (value and not isinstance(value, str))
    validation.expect(good, what, value, '"vocab", "random" or a list of token ids')
    return value if isinstance(value, str) else tuple(value)


class PromptTuning(PromptMethod):
    """The hyper-parameters of prompt tuning.

    Unlike LoRA it changes the model's output from the start, and the prompt takes positions: virtual
    tokens and text together must fit into the model. Attention masks may be padded on either side.
    In an encoder the prompt stands in front of [CLS], so a classifier that reads the first position
    reads the first virtual token, as in Hugging Face PEFT. ``hidden_states`` and ``attentions``, if
    asked for, still show the prompt's rows.

    Args:
        num_virtual_tokens: n, at least 1.
        init: how P begins. "vocab": embeddings of random tokens of the vocabulary; "random": Gaussian,
            as spread as the embeddings; a list of token ids, their embeddings, repeated or cut to n:
            ``init=tokenizer("Is this review positive?").input_ids``. The paper compares starting from
            class labels, from the vocabulary and from random values (section 3.2): labels were best
            and random values worst, and it mattered least in the largest model.
            A checkpoint does not say how P began.
        modules_to_save: names of modules to train in full, such as a new classification head.

    Raises:
        ValueError: a value is of the wrong type or out of range; the message names it.
    """

    peft = Peft("PROMPT_TUNING", unsaved="init", ignored=SIZES + TEXT)

    num_virtual_tokens: int = field(20, validation.count)
    init: str | Sequence[int] = field("vocab", check_init)

    def prompt(self, embedding: nn.Embedding) -> "SoftPrompt":
        """Return the prompt as it starts.

        Raises:
            ValueError: a token id of ``init`` is not in the vocabulary.
        """
        return SoftPrompt(initial_prompt(embedding, self.num_virtual_tokens, self.init))


class PTuning(PromptMethod):
    """The hyper-parameters of P-tuning: a network, trained with its input, makes the prompt.

    Args:
        num_virtual_tokens: n, at least 1.
        encoder_reparameterization_type: the network: "MLP" (three linear maps with ReLU), "LSTM" (a
            bidirectional LSTM and two linear maps), or None: no network, the prompt itself is trained.
            So is a prompt that PEFT saved, because it saves the network's output only.
        encoder_hidden_size: width of the network; None means that of the model's embeddings.
        encoder_num_layers, encoder_dropout: of the LSTM, as in `nn.LSTM`.
        modules_to_save: names of modules to train in full, such as a new classification head.

    Raises:
        ValueError: a value is of the wrong type or out of range; the message names it.
    """

    peft = Peft("P_TUNING", ignored=SIZES)

    num_virtual_tokens: int = field(20, validation.count)
    encoder_reparameterization_type: str | None = field("MLP", validation.one_of(*NETWORKS))
    encoder_hidden_size: int | None = field(None, validation.count)
    encoder_num_layers: int = field(2, validation.count)
    encoder_dropout: float = field(0.0, validation.probability)

    def prompt(self, embedding: nn.Embedding) -> "SoftPrompt":
        """Return the prompt, or the network that makes it, as it starts."""
        n, kind = self.num_virtual_tokens, self.encoder_reparameterization_type
        if kind is None:
            return SoftPrompt(initial_prompt(embedding, n, "vocab"))
        dim, layers = embedding.embedding_dim, self.encoder_num_layers if kind == "LSTM" else 0
        hidden = self.encoder_hidden_size or dim
        return EncodedPrompt(n, dim, hidden, layers, self.encoder_dropout)


class SoftPrompt(Delta):
    """P in front of the embedded text.

    Args:
        start: the first value of P, (n, d).

    Attributes:
        limit: how many positions the model has, if it is limited.
        counts: whether positions follow the mask: a decoder's, so that padding moves no token.
        cuts: whether P's rows are taken off what comes out.
        inserted: how many rows the step that is running put in front.
    """

    beside = True

    def __init__(self, start: Tensor):
        super().__init__()
        self.prompt_embeddings = nn.Parameter(start)
        self.limit: int | None = None
        self.counts, self.cuts, self.inserted = False, True, 0

    def prompt(self) -> Tensor:
        """Return P: (n, d)."""
        return self.prompt_embeddings

    def enter(self, module: Any, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Put P in front of the text."""
        return (), self.put(module, by_name(module, args, kwargs), self.prompt()[None], None)

    def put(self, module: Any, kwargs: Kwargs, P: Tensor, real: Tensor | None) -> Kwargs:
        """Put P in front of the text; in later steps with a cache, only count its positions.

        Args:
            module, kwargs: the backbone, and all its arguments by name.
            P: (batch, n, d), or (1, n, d) for all rows.
            real: (batch, n), 0 where P is filler; None where nothing is.
        """
        check_can_enter(kwargs)
        x, mask = kwargs.get("inputs_embeds"), kwargs.get("attention_mask")
        batch, tokens = (kwargs["input_ids"] if x is None else x).shape[:2]
        n, cache = P.shape[1], kwargs.get("past_key_values")
        past = cache.get_seq_length() if cache is not None else 0
        self.inserted = 0 if past else n
        length = past + self.inserted + tokens  # the cache holds P too
        check_fits(n, length - n, self.limit)
        if self.inserted:
            x = module.get_input_embeddings()(kwargs["input_ids"]) if x is None else x
            kwargs |= {"input_ids": None, "inputs_embeds": in_front(P, x)}
            if kwargs.get("token_type_ids") is not None:
                kwargs["token_type_ids"] = F.pad(kwargs["token_type_ids"], (n, 0))
        if real is None:
            real = torch.ones(batch, n, dtype=torch.long, device=P.device)
        elif mask is None:
            mask = real.new_ones(batch, length - n)
        if mask is not None:  # (batch, all tokens) -> (batch, n + all tokens)
            kwargs["attention_mask"] = mask = torch.cat([real.to(mask), mask], dim=1)
        if (given := kwargs.get("position_ids")) is not None:
            first = given.amin(-1, keepdim=True) + positions(real)[:, : self.inserted]
            kwargs["position_ids"] = torch.cat([first, given + real.sum(-1, keepdim=True)], dim=-1)
        elif mask is not None and self.counts:
            kwargs["position_ids"] = positions(mask)[:, past:]
        return kwargs

    def leave(self, module: nn.Module, output: Any) -> Any:
        """Take the rows of P off the last hidden state, (batch, n + tokens, d)."""
        n, self.inserted = self.inserted, 0
        if not (n and self.cuts):
            return output
        if isinstance(output, tuple):
            return output[0][:, n:], *output[1:]
        output.last_hidden_state = output.last_hidden_state[:, n:]
        return output


class EncodedPrompt(SoftPrompt):
    """P = network(E), with E: (n, d).

    Args:
        n, dim: the shape of P.
        hidden: width of the network.
        lstm_layers: layers of the LSTM; 0 means the MLP.
        dropout: between the layers of the LSTM.
    """

    def __init__(self, n: int, dim: int, hidden: int, lstm_layers: int = 0, dropout: float = 0.0):
        super().__init__(torch.randn(n, dim))  # here it is E, the network's input
        inner = [nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
        if lstm_layers:
            self.lstm = nn.LSTM(dim, hidden, lstm_layers, dropout=dropout, bidirectional=True)
            hidden *= 2  # both directions
            inner = [nn.Linear(hidden, hidden), nn.ReLU()]
        self.mlp = nn.Sequential(*inner, nn.Linear(hidden, dim))

    def prompt(self) -> Tensor:
        """Return P: (n, d)."""
        h = self.prompt_embeddings  # E: (n, d)
        # Outside of autocast: on processors without AVX-512 there is no LSTM of 16 bits.
        with torch.autocast(h.device.type, enabled=False):
            h = self.lstm(h)[0] if hasattr(self, "lstm") else h  # (n, d) -> (n, 2 hidden)
        return self.mlp(h)  # type: ignore[no-any-return]


class WiderCrossMask(Delta):
    """Beside the decoder of an encoder-decoder: lets it see the prompt that the encoder has read."""

    beside = True

    def enter(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Widen the mask of the encoder's states to their number."""
        kwargs = by_name(module, args, kwargs)
        states, mask = kwargs.get("encoder_hidden_states"), kwargs.get("encoder_attention_mask")
        if states is not None and mask is not None:
            n = states.shape[1] - mask.shape[1]
            kwargs["encoder_attention_mask"] = F.pad(mask, (n, 0), value=1)
        return (), kwargs


def in_front(P: Tensor, x: Tensor) -> Tensor:
    """Return [P; X]: P (1 or batch, n, d) before the embedded text x (batch, tokens, d)."""
    P = P.to(x).expand(len(x), -1, -1)  # the same P for every row, or each row's own
    return torch.cat([P, x], dim=1)  # (batch, n + tokens, d)


def positions(mask: Tensor) -> Tensor:
    """Return each token's position (batch, tokens): how many real tokens its row has before it."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def check_can_enter(kwargs: Kwargs) -> None:
    """Raise a ValueError if a mask or a cache is of a kind that cannot be widened."""
    cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
    if getattr(cache, "is_compileable", False) or (mask is not None and mask.dim() != 2):
        problem = "this is a static cache (leave cache_implementation out) or another mask"
        raise ValueError(f"A soft prompt needs attention_mask=(batch, tokens), but {problem}")


def embedding_of(model: Any) -> nn.Embedding:
    """Return the model's token embedding.

    Raises:
        ValueError: it has none, and so no place for virtual tokens.
    """
    try:
        embedding = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # what transformers raises for a model of images
        embedding = None
    embedding = getattr(embedding, "base", embedding)
    if not isinstance(embedding, nn.Embedding) or model.main_input_name != "input_ids":
        what = f"{type(model).__name__} has no embedding of tokens ({type(embedding).__name__})"
        raise ValueError(f"{what} for virtual tokens to stand beside; PrefixTuning needs none")
    return embedding


def initial_prompt(embedding: nn.Embedding, n: int, init: str | Sequence[int]) -> Tensor:
    """Return the first value of P, (n, d), in float32; ``init`` as in `PromptTuning`."""
    if init == "random":
        return torch.randn(n, embedding.embedding_dim) * embedding.weight.float().std().cpu()
    if isinstance(init, str):
        ids = torch.randint(embedding.num_embeddings, (n,))
    else:
        ids = token_ids(embedding, init, n)
    with torch.no_grad():
        rows: Tensor = embedding(ids.to(embedding.weight.device))  # with its scale, if it has one
    return rows.float()


def token_ids(embedding: nn.Embedding, init: Sequence[int], n: int) -> Tensor:
    """Return the token ids, repeated or cut to n: (n,).

    Raises:
        ValueError: one is not in the vocabulary.
    """
    size = embedding.num_embeddings
    if not all(isinstance(i, int) and 0 <= i < size for i in init):
        raise ValueError(f"init={init}: expected token ids, from 0 to {size - 1}")
    return torch.tensor(init).repeat(n // len(init) + 1)[:n]


def position_limit(view: View) -> int | None:
    """Return how many tokens the model has positions for; None if it sets no limit."""
    model: Any = view.model
    limit: int | None = getattr(model.config, "max_position_embeddings", None)
    for path, table in view.modules.items():
        padding: Any = getattr(table, "padding_idx", None)
        if limit and padding is not None and path.endswith("position_embeddings"):
            return limit - int(padding) - 1  # RoBERTa's positions begin behind it
    return limit


def check_fits(n: int, tokens: int, limit: int | None) -> None:
    """Raise a ValueError if the model has too few positions for n virtual tokens and the text."""
    if limit is not None and n + tokens > limit:
        what = f"The {n} virtual tokens and {tokens} tokens of text need {n + tokens} positions"
        raise ValueError(f"{what}, but the model has {limit}")
