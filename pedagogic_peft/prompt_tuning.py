"""Prompt tuning and P-tuning: learned vectors in front of the embedded text.

Prompt tuning (Lester et al. 2021, arXiv:2104.08691) trains a matrix P (n x d) of n virtual tokens and
nothing else: the frozen model reads [P; X], where X is the embedded text. P-tuning (Liu et al. 2021,
arXiv:2103.10385) trains a small network that makes P.

The delta stands beside the backbone (in encoder-decoders beside the encoder). Entering, it puts P in
front and widens the mask; leaving, it takes P's rows off again, so that logits and labels have the
shape of the text. While a KV cache is filled, P is put in front once, at the first step.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pedagogic_peft.checks import check_choice, check_probability, check_whole, names
from pedagogic_peft.peft_format import check_options, fill, heads_of, tensors_of
from pedagogic_peft.sites import TrainedCopy, base_modules
from pedagogic_peft.targets import find_modules

Args = tuple[Any, ...]  # of a module's forward
Kwargs = dict[str, Any]

COMMON_PROMPT_KEYS = set(
    "num_attention_heads num_layers num_transformer_submodules num_virtual_tokens token_dim".split()
)
PROMPT_KEYS = COMMON_PROMPT_KEYS | set(
    "prompt_tuning_init prompt_tuning_init_text tokenizer_kwargs tokenizer_name_or_path".split()
)
ENCODER_KEYS = COMMON_PROMPT_KEYS | set(
    """encoder_dropout encoder_hidden_size encoder_num_layers
    encoder_reparameterization_type""".split()
)
# How PEFT's classes for the tasks are chosen, by the end of the model's class name.
TASK_TYPES = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
}
NEED_HEADS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")  # PEFT looks for a trained head in the file


@dataclass(frozen=True)
class PromptTuning:
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
        modules_to_save: names of modules to train in full, such as a new classification head.

    Raises:
        TypeError, ValueError: a value is of the wrong type or out of range; the message names it.
    """

    peft_type: ClassVar[str] = "PROMPT_TUNING"

    num_virtual_tokens: int = 20
    init: str | Sequence[int] = "vocab"
    modules_to_save: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_whole("num_virtual_tokens", self.num_virtual_tokens)
        if isinstance(self.init, str):
            check_choice("init", self.init, ("vocab", "random", "a list of token ids"))
        elif not self.init:
            raise ValueError(f"init={self.init!r}: expected at least one token id")
        else:
            object.__setattr__(self, "init", tuple(self.init))
        object.__setattr__(self, "modules_to_save", names("modules_to_save", self.modules_to_save))

    def plan(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return ``{path: delta}`` for this model, which is not changed.

        Raises:
            ValueError: the model embeds no tokens; a token id is not in its vocabulary.
        """
        start = initial_prompt(embedding_of(model), self.num_virtual_tokens, self.init)
        return place_prompt(model, SoftPrompt(start), self.modules_to_save)

    def to_peft(
        self, model: nn.Module, deltas: Mapping[str, nn.Module]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return PEFT's configuration and tensors."""
        kind = "SAMPLE_VOCAB" if self.init == "vocab" else "RANDOM"  # means nothing after training
        config, tensors = to_file(model, deltas, prompt_of(deltas).prompt(), self.modules_to_save)
        return config | {"prompt_tuning_init": kind}, tensors

    @classmethod
    def from_peft(
        cls, model: nn.Module, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> tuple[Self, dict[str, nn.Module]]:
        """Return the hyper-parameters of a checkpoint and the filled deltas.

        Raises:
            ValueError: an option is not supported, or the tensors do not fit the model.
        """
        check_options(config, PROMPT_KEYS)
        prompt, rest = from_file(config, tensors)
        init = "vocab" if config.get("prompt_tuning_init") == "SAMPLE_VOCAB" else "random"
        method = cls(len(prompt), init, heads_of(config, model))
        deltas = method.plan(model)
        fill_prompt(deltas, {"prompt_embeddings": prompt}, rest)
        return method, deltas


@dataclass(frozen=True)
class PTuning:
    """The hyper-parameters of P-tuning: a network, trained with its input, makes the prompt.

    Args:
        num_virtual_tokens: n, at least 1.
        encoder_reparameterization_type: the network: "MLP" (three linear maps with ReLU), "LSTM" (a
            bidirectional LSTM and two linear maps), or None: no network, the prompt itself is trained.
            So is a prompt that PEFT saved, for it saves the network's output only.
        encoder_hidden_size: width of the network; None means that of the model's embeddings.
        encoder_num_layers, encoder_dropout: of the LSTM, as in `nn.LSTM`.
        modules_to_save: names of modules to train in full, such as a new classification head.

    Raises:
        TypeError, ValueError: a value is of the wrong type or out of range; the message names it.
    """

    peft_type: ClassVar[str] = "P_TUNING"

    num_virtual_tokens: int = 20
    encoder_reparameterization_type: str | None = "MLP"
    encoder_hidden_size: int | None = None
    encoder_num_layers: int = 2
    encoder_dropout: float = 0.0
    modules_to_save: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_whole("num_virtual_tokens", self.num_virtual_tokens)
        kind = self.encoder_reparameterization_type
        check_choice("encoder_reparameterization_type", str(kind), ("MLP", "LSTM", "None"))
        if self.encoder_hidden_size is not None:
            check_whole("encoder_hidden_size", self.encoder_hidden_size)
        check_whole("encoder_num_layers", self.encoder_num_layers)
        check_probability("encoder_dropout", self.encoder_dropout)
        object.__setattr__(self, "modules_to_save", names("modules_to_save", self.modules_to_save))

    def plan(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return ``{path: delta}`` for this model, which is not changed.

        Raises:
            ValueError: the model embeds no tokens.
        """
        embedding, n = embedding_of(model), self.num_virtual_tokens
        delta = SoftPrompt(initial_prompt(embedding, n, "vocab"))
        if self.encoder_reparameterization_type is not None:
            delta = EncodedPrompt(
                n,
                embedding.embedding_dim,
                self.encoder_hidden_size or embedding.embedding_dim,
                self.encoder_num_layers if self.encoder_reparameterization_type == "LSTM" else 0,
                self.encoder_dropout,
            )
        return place_prompt(model, delta, self.modules_to_save)

    def to_peft(
        self, model: nn.Module, deltas: Mapping[str, nn.Module]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return PEFT's configuration and tensors: the prompt, and for us the network as well."""
        delta = prompt_of(deltas)
        config, tensors = to_file(model, deltas, delta.prompt(), self.modules_to_save)
        if isinstance(delta, EncodedPrompt):
            tensors |= {f"prompt_encoder.{key}": t for key, t in delta.state_dict().items()}
        return config | {
            "encoder_reparameterization_type": self.encoder_reparameterization_type or "MLP",
            "encoder_hidden_size": self.encoder_hidden_size or config["token_dim"],
            "encoder_num_layers": self.encoder_num_layers,
            "encoder_dropout": self.encoder_dropout,
        }, tensors

    @classmethod
    def from_peft(
        cls, model: nn.Module, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> tuple[Self, dict[str, nn.Module]]:
        """Return the hyper-parameters of a checkpoint and the filled deltas.

        Raises:
            ValueError: an option is not supported, or the tensors do not fit the model.
        """
        check_options(config, ENCODER_KEYS)
        network, tensors = take("prompt_encoder.", tensors)
        prompt, rest = from_file(config, tensors)
        method = cls(
            len(prompt),
            config.get("encoder_reparameterization_type", "MLP") if network else None,
            config.get("encoder_hidden_size"),
            config.get("encoder_num_layers", 2),
            config.get("encoder_dropout", 0.0),
            heads_of(config, model),
        )
        deltas = method.plan(model)
        fill_prompt(deltas, network or {"prompt_embeddings": prompt}, rest)
        return method, deltas


class SoftPrompt(nn.Module):
    """P in front of the embedded text.

    Args:
        start: the first value of P, (n, d).

    Attributes:
        limit: how many positions the model has, if it is limited.
        counts: whether positions follow the mask: a decoder's, so that padding moves no token.
        cuts: whether P's rows are taken off what comes out.
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
        """Put P in front of the text; in later steps with a cache, only count its positions."""
        kwargs = by_name(module, args, kwargs)
        cache, mask, x = (
            kwargs.get(k) for k in ("past_key_values", "attention_mask", "inputs_embeds")
        )
        if getattr(cache, "is_compileable", False) or (mask is not None and mask.dim() != 2):
            raise ValueError(
                "A soft prompt needs attention_mask=(batch, tokens) and a cache that grows, but this "
                "is a static cache or a mask of another shape; leave cache_implementation out"
            )
        P = self.prompt()  # (n, d)
        n, past = len(P), cache.get_seq_length() if cache is not None else 0
        self.inserted = 0 if past else n
        tokens = (kwargs["input_ids"] if x is None else x).shape[1]
        check_fits(n, past + self.inserted - n + tokens, self.limit)  # the cache holds P too
        if self.inserted:
            x = module.get_input_embeddings()(kwargs["input_ids"]) if x is None else x
            x = torch.cat([P.to(x).expand(len(x), n, -1), x], dim=1)  # (batch, n + tokens, d)
            kwargs |= {"input_ids": None, "inputs_embeds": x}
            if kwargs.get("token_type_ids") is not None:
                kwargs["token_type_ids"] = F.pad(kwargs["token_type_ids"], (n, 0))
        if mask is not None:  # (batch, all tokens) -> (batch, n + all tokens)
            kwargs["attention_mask"] = mask = F.pad(mask, (n, 0), value=1)
        if (given := kwargs.get("position_ids")) is not None:
            first = given.amin(-1, keepdim=True) + torch.arange(self.inserted, device=given.device)
            kwargs["position_ids"] = torch.cat([first, given + n], dim=-1)
        elif mask is not None and self.counts:
            kwargs["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, past:]
        return (), kwargs

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
        E = self.prompt_embeddings
        P: Tensor = self.mlp(self.lstm(E)[0] if hasattr(self, "lstm") else E)
        return P


class WiderCrossMask(nn.Module):
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


def by_name(module: nn.Module, args: Args, kwargs: Kwargs) -> Kwargs:
    """Return all arguments of the module's forward by name."""
    return dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs


def embedding_of(model: Any) -> nn.Embedding:
    """Return the model's token embedding.

    Raises:
        ValueError: it has none, and so no place for virtual tokens.
    """
    try:
        embedding = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        embedding = None
    embedding = getattr(embedding, "base", embedding)
    if not isinstance(embedding, nn.Embedding):
        raise ValueError(
            f"{type(model).__name__} has no embedding of tokens for virtual tokens to stand beside "
            f"(its input layer is {type(embedding).__name__}); PrefixTuning needs none"
        )
    return embedding


def initial_prompt(embedding: nn.Embedding, n: int, init: str | Sequence[int]) -> Tensor:
    """Return the first value of P, (n, d), in float32; ``init`` as in `PromptTuning`."""
    if init == "random":
        return torch.randn(n, embedding.embedding_dim) * embedding.weight.float().std().cpu()
    size = embedding.num_embeddings
    if isinstance(init, str):
        ids = torch.randint(size, (n,))
    elif not all(isinstance(i, int) and 0 <= i < size for i in init):
        raise ValueError(f"init={init}: expected token ids, from 0 to {size - 1}")
    else:
        ids = torch.tensor(init).repeat(n // len(init) + 1)[:n]
    with torch.no_grad():
        rows: Tensor = embedding(ids.to(embedding.weight.device))  # with its scale, if it has one
    return rows.float()


def place_prompt(
    model: Any, delta: SoftPrompt, modules_to_save: Sequence[str]
) -> dict[str, nn.Module]:
    """Return ``{path: delta}``: the prompt where text enters, and what must know of it."""
    paths = {module: path for path, module in base_modules(model).items()}
    backbone = model.base_model
    deltas: dict[str, nn.Module] = {}
    if hasattr(backbone, "decoder") and is_encoder_decoder(model):
        deltas[paths[backbone.decoder]] = WiderCrossMask()
        backbone = backbone.encoder
        delta.cuts = False  # the decoder attends to the prompt
    elif hasattr(backbone, "decoder"):
        backbone = backbone.decoder  # OPT's heads call it past the backbone
    is_decoder = any(getattr(module, "is_causal", False) for module in backbone.modules())
    delta.counts = is_decoder and "position_ids" in inspect.signature(backbone.forward).parameters
    if type(model).__name__.endswith(("ForSequenceClassification", "ForMultipleChoice")):
        delta.cuts = delta.cuts and is_decoder  # an encoder's classifier reads the first position
    delta.limit = position_limit(model)
    deltas[paths[backbone]] = delta.to(embedding_of(model).weight.device)
    return deltas | {p: TrainedCopy(m) for p, m in find_modules(model, modules_to_save).items()}


def is_encoder_decoder(model: Any) -> bool:
    """Tell whether the model is an encoder-decoder."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def position_limit(model: Any) -> int | None:
    """Return how many tokens the model has positions for; None if it sets no limit."""
    limit: int | None = getattr(model.config, "max_position_embeddings", None)
    tables = [m for p, m in base_modules(model).items() if p.endswith("position_embeddings")]
    padding: Any = getattr(tables[0], "padding_idx", None) if tables else None
    if limit is None or padding is None:
        return limit
    return limit - int(padding) - 1  # RoBERTa's positions begin behind it


def check_fits(n: int, tokens: int, limit: int | None) -> None:
    """Raise a ValueError if the model has too few positions for n virtual tokens and the text."""
    if limit is not None and n + tokens > limit:
        raise ValueError(
            f"The {n} virtual tokens and {tokens} tokens of text need {n + tokens} positions, but "
            f"the model has {limit}"
        )


def prompt_of(deltas: Mapping[str, nn.Module]) -> SoftPrompt:
    """Return the delta that has the prompt."""
    return next(delta for delta in deltas.values() if isinstance(delta, SoftPrompt))


def to_file(
    model: nn.Module,
    deltas: Mapping[str, nn.Module],
    prompt: Tensor,
    modules_to_save: Sequence[str],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what PEFT's checkpoints of all soft prompts have in common; prompt: (n, d)."""
    copies = {path: delta for path, delta in deltas.items() if isinstance(delta, TrainedCopy)}
    kinds = [kind for end, kind in TASK_TYPES.items() if type(model).__name__.endswith(end)]
    task = kinds[0] if kinds and (copies or kinds[0] not in NEED_HEADS) else "FEATURE_EXTRACTION"
    config = {
        "num_virtual_tokens": len(prompt),
        "token_dim": prompt.shape[1],
        "num_transformer_submodules": 1,
        "modules_to_save": list(modules_to_save) or None,
        "task_type": task,  # PEFT needs one
    }
    saved = {f"base_model.{key}": tensor for key, tensor in tensors_of(copies).items()}
    return config, {"prompt_embeddings": prompt.detach()} | saved


def from_file(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the prompt (n, d) and the tensors of modules trained in full, as ``{path.key: tensor}``.

    Raises:
        ValueError: there is no prompt, or it has fewer rows than the configuration says.
    """
    saved, rest = take("base_model.", tensors)
    prompt, n = rest.pop("prompt_embeddings", None), config.get("num_virtual_tokens")
    if prompt is None or rest:
        raise ValueError(f"Expected a tensor prompt_embeddings; the checkpoint has {list(tensors)}")
    if len(prompt) not in (n, 2 * (n or 0)):  # for encoder-decoders PEFT saves 2 n, and uses n
        raise ValueError(f"num_virtual_tokens={n}, but prompt_embeddings has {len(prompt)} rows")
    return prompt[:n], saved


def take(prefix: str, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors whose names begin so, without the prefix, and the others."""
    taken = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
    return taken, {k: t for k, t in tensors.items() if not k.startswith(prefix)}


def fill_prompt(
    deltas: Mapping[str, nn.Module], own: Mapping[str, Tensor], rest: dict[str, Tensor]
) -> None:
    """Fill the deltas with the prompt's own tensors and those of other modules."""
    path = next(path for path, delta in deltas.items() if isinstance(delta, SoftPrompt))
    fill(deltas, {f"{path}.{key}": tensor for key, tensor in own.items()} | rest)
