"""Prompt tuning and P-tuning: learned vectors in front of the embedded text.

Prompt tuning (Lester et al. 2021, arXiv:2104.08691) trains a matrix P (n x d) of n virtual tokens and
nothing else: the frozen model reads [P; X], where X is the embedded text. P-tuning (Liu et al. 2021,
arXiv:2103.10385) trains a small network that makes P.

The delta stands beside the backbone (in encoder-decoders beside the encoder). Entering, it puts P in
front and widens the mask (see `virtual_tokens.py`); leaving, it takes P's rows off again, so that logits
and labels have the shape of the text. While a cache is filled, P is put in front once, at the first step.
The rows of a batch may have prompts of their own: ``activate(model, rows=["polite", "tale", None])``.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pedagogic_peft.core import validation
from pedagogic_peft.core.architectures import backbone_of
from pedagogic_peft.core.delta import Args, Delta, Deltas, Kwargs
from pedagogic_peft.core.method import Method, Peft, check_there, device_of, field
from pedagogic_peft.core.sites import Modules, View, by_name
from pedagogic_peft.methods.prompt_trial import check_generate, takes_prompts
from pedagogic_peft.methods.virtual_tokens import (
    CACHES,
    cache_of,
    check_can_widen,
    check_padding,
    columns,
    hide_prompt,
    in_front,
    own_positions,
    parted,
    placed,
    positions,
    rows_read,
    thread,
    widened,
)

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
            ValueError: the model embeds no tokens, takes no embeddings in their place, or has a cache
                that is unknown here.
        """
        model: Any = view.model
        embedding_of(model)  # or the error
        backbone = backbone_of(model)
        entered = [backbone]
        if hasattr(backbone, "decoder"):  # OPT's heads call it past the backbone
            encoder = [backbone.encoder] if model.config.is_encoder_decoder else []
            entered = [*encoder, backbone.decoder]
        known = inspect.signature(entered[0].forward).parameters
        if "inputs_embeds" not in known:
            what = f"{type(model).__name__} takes no inputs_embeds, and so no virtual tokens"
            raise ValueError(f"{what}; PrefixTuning needs none")
        if own := [name for name in known if name.startswith("past_") and name not in CACHES]:
            what = f"{type(model).__name__} keeps a cache of its own ({own[0]})"
            raise ValueError(f"{what}, in which a soft prompt cannot be counted")
        return {path: m for path, m in view.modules.items() if m in entered}

    def deltas(self, view: View, places: Modules) -> Deltas:
        """Return ``{path: delta}``: the prompt, and what must know of it.

        Raises:
            ValueError: embeddings of words do not do in this model what the words do.
        """
        model: Any = view.model
        (path, backbone), *decoders = places.items()
        check_generate(model)
        delta = self.prompt(embedding_of(model))
        is_decoder = any(getattr(module, "is_causal", False) for module in backbone.modules())
        counted = "position_ids" in inspect.signature(backbone.forward).parameters
        delta.limit, delta.counts = position_limit(view), is_decoder and counted
        if delta.counts or counted and first_position(view):
            delta.first = first_position(view)
        # A decoder attends to the encoder's prompt; an encoder's classifier reads the first position.
        pools = type(model).__name__.endswith(("ForSequenceClassification", "ForMultipleChoice"))
        delta.cuts = not decoders and (is_decoder or not pools)
        others: Modules = {path: WiderCrossMask() for path, _ in decoders}
        beside = {module: others[path] for path, module in decoders}
        try:
            delta.pads_left = takes_prompts(model, backbone, delta, beside)
        except ValueError:
            if decoders or delta.cuts:
                raise
            # BLOOM's classifier reads the last position, and finds it by the ids.
            delta.cuts = True
            delta.pads_left = takes_prompts(model, backbone, delta, beside)
        return {path: delta} | others


def check_init(what: str, value: Any) -> Any:
    """Return the value if it is "vocab", "random" or a list of token ids (as a tuple)."""
    good = value in ("vocab", "random") or (value and not isinstance(value, str))
    validation.expect(good, what, value, '"vocab", "random" or a list of token ids')
    return value if isinstance(value, str) else tuple(value)


class PromptTuning(PromptMethod):
    """The hyper-parameters of prompt tuning.

    Unlike LoRA it changes the model's output from the start, and the prompt takes positions: virtual
    tokens and text together must fit into the model. It stands next to the text (padding, prompt, text)
    and does there what as many typed words would do, also in recurrent and windowed layers. When it is
    attached, two short forward passes try that out, and a model is refused that needs the words' ids.
    So masks may be padded on either side; a model whose positions cannot be told refuses a batch that
    is padded on the left. `generate` may use a cache of any kind but a static one, and go on from it in
    a second turn: a cache has the length of its text. A row holds one text: packed ones are refused.

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

    Example:
        >>> from pedagogic_peft import PromptTuning, attach, count_parameters, load_base
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> print(count_parameters(attach(model, PromptTuning(num_virtual_tokens=5))))
        trainable: 240 of 76,416 (0.31 %)
    """

    peft = Peft("PROMPT_TUNING", unsaved="init", ignored=SIZES + TEXT)

    num_virtual_tokens: int = field(20, validation.count)
    init: str | Sequence[int] = field("vocab", check_init)

    def prompt(self, embedding: nn.Embedding) -> "SoftPrompt":
        """Return the prompt as it starts.

        Raises:
            ValueError: a token id of ``init`` is not in the vocabulary.
        """
        if self.init == "random":  # as large as the embeddings, so these must be at hand
            check_there("the embedding of tokens", device_of(embedding), embedding.parameters())
        return SoftPrompt(initial_prompt(embedding, self.num_virtual_tokens, self.init))


class PTuning(PromptMethod):
    """The hyper-parameters of P-tuning: a network, trained with its input, makes the prompt.

    All virtual tokens stand in front of the text, as in `PromptTuning` and in Hugging Face PEFT. Liu et al.
    also place some in the middle and behind, around *anchors*: words of a pattern that stay typed, such as
    a question mark. There is no such pattern here; anchors that follow the prompt can be typed in the text.

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

    Example:
        >>> from pedagogic_peft import PTuning, attach, count_parameters, load_base
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> print(count_parameters(attach(model, PTuning(num_virtual_tokens=5))))
        trainable: 7,296 of 83,472 (8.74 %)
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
        counts: whether it is a decoder whose positions follow the mask, so that padding moves no token.
        first: a text's first position, where positions follow the mask; else None.
        cuts: whether P's rows are taken off what comes out.
        pads_left: whether padding may stand on the left.
        padding: the id that is padding to the model where it gets no mask; None if it looks for none.
        steps: of each thread inside the model: how many rows were put in, in which columns, its cache.
    """

    beside = True

    def __init__(self, start: Tensor):
        super().__init__()
        self.prompt_embeddings = nn.Parameter(start)
        self.limit: int | None = None
        self.first: int | None = None
        self.padding: int | None = None
        self.counts, self.cuts, self.pads_left = False, True, True
        self.steps: dict[int, tuple[int, Tensor | None, Any]] = {}

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
        n, cache = P.shape[1], cache_of(kwargs)
        past = rows_read(cache, n, several=cache is not None and len(module.hooks.running()) > 1)
        check_can_widen(kwargs)
        x: Any = kwargs.get("inputs_embeds")
        mask: Any = kwargs.get("attention_mask")
        given = kwargs.get("position_ids")
        if mask is None and x is None and not past and self.padding is not None:
            mask = (kwargs["input_ids"] != self.padding).long()
        batch, tokens = (kwargs["input_ids"] if x is None else x).shape[:2]
        check_fits(n, past + tokens - (n if past else 0), self.limit)  # the cache holds P too
        if not past:
            x = module.get_input_embeddings()(kwargs["input_ids"]) if x is None else x
            given = own_positions(module, kwargs, x) if given is None else given
        if real is None:
            real = torch.ones(batch, n, dtype=torch.long, device=P.device)
        elif mask is None:
            mask = real.new_ones(batch, past + tokens - (n if past else 0))
        where = None if mask is None else columns(mask, n)
        if mask is not None:  # (batch, all tokens) -> (batch, n + all tokens)
            check_padding(mask, self.pads_left)
            kwargs["attention_mask"] = mask = placed(torch.cat([real.to(mask), mask], 1), where)
        if not past:
            kwargs |= widened(kwargs, n, where, (batch, tokens))
            kwargs |= {"input_ids": None, "inputs_embeds": placed(in_front(P, x), where)}
        self.steps[thread()] = 0 if past else n, where, cache
        if given is not None:
            own, given = given.amin(-1, keepdim=True), given + real.sum(-1, keepdim=True)
            if not past:
                given = torch.cat([own + positions(real), given], -1)
                given = placed(given, where, given.dim() - 1)
            kwargs["position_ids"] = given
        elif mask is not None and self.first is not None:
            kwargs["position_ids"] = positions(mask)[:, past:] + self.first
        return kwargs

    def leave(self, module: nn.Module, output: Any) -> Any:
        """Take the rows of P off the last hidden state, (batch, n + tokens, d), or put them in front."""
        n, where, cache = self.steps.pop(thread(), (0, None, None))
        hide_prompt(cache_of(output) if cache is None else cache, n)
        if not n or not self.cuts and where is None:
            return output
        start = n if self.cuts else 0
        if isinstance(output, tuple):
            return parted(output[0], where)[:, start:], *output[1:]
        output.last_hidden_state = parted(output.last_hidden_state, where)[:, start:]
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
        rows: Tensor = embedding(ids.to(device_of(embedding)))  # with its scale, if it has one
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


def first_position(view: View) -> int:
    """Return the position of a text's first token: RoBERTa's positions begin behind their padding."""
    for path, table in view.modules.items():
        padding: Any = getattr(table, "padding_idx", None)
        if padding is not None and path.endswith("position_embeddings"):
            return int(padding) + 1
    return 0


def position_limit(view: View) -> int | None:
    """Return how many tokens the model has positions for; None if it sets no limit."""
    model: Any = view.model
    limit = getattr(model.config, "max_position_embeddings", None) or 0
    return limit - first_position(view) if limit > 0 else None  # XLNet's is -1


def check_fits(n: int, tokens: int, limit: int | None) -> None:
    """Raise a ValueError if the model has too few positions for n virtual tokens and the text."""
    if limit is not None and n + tokens > limit:
        what = f"The {n} virtual tokens and {tokens} tokens of text need {n + tokens} positions"
        raise ValueError(f"{what}, but the model has {limit}")
