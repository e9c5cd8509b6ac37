"""Very small models of real architectures, with random weights: what a method is tried on.

Two layers of width 32, so that a forward pass takes about a millisecond. What makes an architecture odd is
kept: GPT-2's transposed and fused projections, Llama's grouped queries, OPT's shifted positions, T5's
two halves.
"""

import copy
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn

hf: Any = transformers  # its types leave out keywords that configurations take

VOCAB = 60
_SCALE: dict[str, Any] = dict(initializer_range=0.2)  # so large that attention is far from uniform
_BERT: dict[str, Any] = dict(
    **_SCALE,
    vocab_size=VOCAB,
    hidden_size=32,
    num_attention_heads=2,
    intermediate_size=48,
    max_position_embeddings=40,
    num_labels=3,
)
_TOKENS: dict[str, Any] = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0, **_SCALE)


def _gpt2(layers: int) -> Any:
    config = hf.GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=layers, n_head=2, n_positions=40, **_TOKENS
    )
    return hf.GPT2LMHeadModel(config)


def _llama(layers: int, cls: Any = hf.LlamaForCausalLM, **extra: Any) -> Any:
    config = hf.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,  # grouped queries: v_proj is narrower than q_proj
        intermediate_size=48,
        max_position_embeddings=40,
        **_TOKENS,
        **extra,
    )
    return cls(config)


def _opt(layers: int) -> Any:
    config = hf.OPTConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        word_embed_proj_dim=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        ffn_dim=48,
        max_position_embeddings=40,
        **_TOKENS,
    )
    return hf.OPTForCausalLM(config)


def _distilbert(layers: int) -> Any:
    config = hf.DistilBertConfig(
        vocab_size=VOCAB,
        dim=32,
        n_layers=layers,
        n_heads=2,
        hidden_dim=48,
        max_position_embeddings=40,
        num_labels=3,
        **_SCALE,
    )
    return hf.DistilBertForSequenceClassification(config)


def _t5(layers: int) -> Any:
    config = hf.T5Config(
        vocab_size=VOCAB,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=layers,
        num_heads=4,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=2,
    )
    return hf.T5ForConditionalGeneration(config)


def _vit(layers: int) -> Any:
    config = hf.ViTConfig(
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_labels=3,
        **_SCALE,
    )
    return hf.ViTForImageClassification(config)


def _bert(
    layers: int, model: Any = hf.BertForSequenceClassification, config: Any = hf.BertConfig
) -> Any:
    return model(config(num_hidden_layers=layers, **_BERT))


BUILDERS: dict[str, Callable[[int], nn.Module]] = {
    "gpt2": _gpt2,
    "bert": _bert,
    "llama": _llama,
    "opt": _opt,
    "distilbert": _distilbert,
    "roberta": partial(_bert, model=hf.RobertaForSequenceClassification, config=hf.RobertaConfig),
    "t5": _t5,
    "vit": _vit,
    "llama-classifier": partial(_llama, cls=hf.LlamaForSequenceClassification, num_labels=3),
}
ARCHITECTURES = ("gpt2", "bert", "llama", "opt", "distilbert", "roberta", "t5", "vit")
WRITERS = ("gpt2", "llama", "opt", "t5")  # those that generate text


@cache
def _original(name: str, layers: int) -> nn.Module:
    torch.manual_seed(1)
    return BUILDERS[name](layers).eval()


def build(name: str, layers: int = 2) -> Any:
    """Return a fresh copy of the model, in evaluation mode; the same weights each time.

    Args:
        name: a key of `BUILDERS`.
        layers: how many layers it has.
    """
    return copy.deepcopy(_original(name, layers))


def batch(name: str) -> dict[str, Tensor]:
    """Return two rows of inputs with labels for `build(name)`; rows of text have 9 and 6 tokens."""
    generator = torch.Generator().manual_seed(2)
    if name == "vit":
        pixels = torch.randn(2, 1, 8, 8, generator=generator)
        return {"pixel_values": pixels, "labels": torch.tensor([0, 2])}
    ids = torch.randint(3, VOCAB, (2, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    classifies = name in ("bert", "distilbert", "roberta", "llama-classifier")
    labels = torch.tensor([0, 2]) if classifies else ids.masked_fill(mask == 0, -100)
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask, "labels": labels}


def logits(model: nn.Module, name: str) -> Tensor:
    """Return the model's logits for `batch(name)`, without gradients."""
    with torch.no_grad():
        found: Tensor = model(**batch(name)).logits
    return found


def gradients(model: nn.Module, name: str) -> dict[str, Tensor]:
    """Return the gradient of the loss on `batch(name)` by every parameter that gets one."""
    model.zero_grad()
    model(**batch(name)).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def randomise(model: nn.Module, among: str = "") -> None:
    """Give trainable tensors random values, as if the model had been trained.

    Args:
        model: the model, changed in place.
        among: only those whose name contains this.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and among in f".{name}":
                parameter.add_(0.3 * torch.randn_like(parameter))
