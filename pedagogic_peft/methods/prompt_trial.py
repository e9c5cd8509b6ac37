"""Whether a model can have a soft prompt: tried out once, when it is attached.

A prompt made of the embeddings of words has to do what these words do when they are typed. It does not
in a model that reads the ids in another place as well: to look up an embedding for each layer (Gemma 3n),
to choose experts (DeepSeek-V4), or to pool the text behind the backbone (ModernBERT). No list of such
models would be complete, so two short forward passes compare the two.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from pedagogic_peft.core.delta import Args, Kwargs
from pedagogic_peft.core.method import device_of, has_no_values
from pedagogic_peft.core.sites import by_name
from pedagogic_peft.core.verbs import disabled
from pedagogic_peft.methods.virtual_tokens import positions, widened

# Of the largest number. Both are one computation; where experts add up, perhaps in another order.
CLOSE = {torch.float32: 1e-4, torch.float64: 1e-4}
CLOSE_IN_16_BITS = 1e-2


@torch.no_grad()
def takes_prompts(model: Any, backbone: Any, prompt: Any, others: Mapping[nn.Module, Any]) -> bool:
    """Return whether a prompt of words does what the words do behind padding on the left, too.

    The passes are of 15 tokens, in evaluation. They change nothing and use up no random numbers. A
    model on "meta" is not tried, nor one that needs more than ids. What the model takes for padding
    where it gets no mask is noted in ``prompt.padding``.

    Args:
        model, backbone: the model, and the module that text enters.
        prompt: the `SoftPrompt` that is to stand beside the backbone.
        others: ``{module: delta}`` of what else must know of it.

    Raises:
        ValueError: it does not even without padding.
    """
    short = prompt.limit is not None and prompt.limit < 8
    if short or has_no_values(model):
        return True
    ids, mask = words(model)
    P = torch.tensor([[0, 1], [1, 2], [0, 1]], device=ids.device)  # which words are the prompt's
    text = torch.tensor([[2, 3, 4], [0, 3, 4], [2, 3, 4]], device=ids.device)
    with undisturbed(model, ids.device):
        try:
            counted = {"position_ids": positions(mask) + prompt.first} if prompt.counts else {}
            expected = first_output(model, ids, mask, **counted)
        except Exception:  # it needs more than ids
            return True
        what = f"{type(model).__name__} cannot have a soft prompt: with the embeddings of words in"
        try:
            with made_of_words(backbone, prompt, others, ids.gather(1, P)):
                found = first_output(model, ids.gather(1, text), mask.gather(1, text))
        except Exception as error:
            raise ValueError(f"{what} the place of ids it fails ({error})") from error
        prompt.padding = padding_by_id(model, backbone, prompt, others, ids)
    if found.shape != expected.shape:  # a row for each token, not one for the text or the answer's
        expected = expected.take_along_dim(text[..., None], 1)
    if not close(found[0], expected[0]):
        what += " the place of ids it computes something else than with the ids, which it reads elsewhere"
        raise ValueError(f"{what} too. LoRA, adapters and prefixes leave it the ids")
    return found.dim() < 3 or close(found[1, 1:], expected[1, 1:])  # its column 0 is padding


@contextmanager
def made_of_words(
    backbone: Any, prompt: Any, others: Mapping[nn.Module, Any], ids: Tensor
) -> Iterator[None]:
    """Inside the block these words, (rows, n), are the prompt; in the last row they are no words."""

    def enter(module: Any, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        embedded = backbone.get_input_embeddings()(ids)
        embedded[-1] *= 1.5  # as after training
        return (), prompt.put(module, by_name(module, args, kwargs), embedded, None)

    handles = [backbone.register_forward_pre_hook(enter, with_kwargs=True)]
    handles += [backbone.register_forward_hook(lambda module, _, y: prompt.leave(module, y))]
    for module, delta in others.items():
        handles += [module.register_forward_pre_hook(delta.enter, with_kwargs=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def padding_by_id(
    model: Any, backbone: Any, prompt: Any, others: Mapping[nn.Module, Any], ids: Tensor
) -> int | None:
    """Return the id that the model takes for padding where it gets no mask; None if it looks for none.

    XLM counts the ids that are no padding, RoBERTa their positions. With embeddings in the place of ids
    they do not find it, so then a text that ends in padding comes out in another way.
    """
    padding = padding_of(model)
    ids = ids[[0, 0]]
    ids[:, -1] = padding
    try:
        expected = first_output(model, ids, None)
        with made_of_words(backbone, prompt, others, ids[:, :2]):
            found = first_output(model, ids[:, 2:], None)
    except Exception:  # it needs a mask
        return None
    expected = expected[:, 2:] if found.shape != expected.shape and found.dim() == 3 else expected
    there: Any = (0, slice(0, 2)) if found.dim() == 3 and found.shape[1] == 3 else 0
    same = found.shape == expected.shape and close(found[there], expected[there])
    return None if same else padding


def check_generate(model: Any) -> None:
    """Raise a ValueError if `generate` gives the model numbers for its tokens that a prompt has none of.

    XLNet's, for one, says which token sees which.
    """
    config = model.config
    if not getattr(model, "can_generate", bool)() or config.is_encoder_decoder:
        return
    try:
        ids, mask = words(model)
        given = model.prepare_inputs_for_generation(ids, attention_mask=mask, use_cache=False)
        tokens = given["input_ids"].shape
    except Exception:  # a stranger's wants anything else
        return
    try:
        widened(given, 1, None, tuple(tokens))
    except ValueError as error:
        what = f"{type(model).__name__} cannot have a soft prompt: its generate gives it {error}"
        raise ValueError(f"{what}. LoRA and adapters need none") from error


def words(model: Any) -> tuple[Tensor, Tensor]:
    """Return ids and mask of three rows, (3, 5), of which the second begins with padding."""
    table, config = model.get_input_embeddings(), model.config.to_dict()
    parts = [config, *[part for part in config.values() if isinstance(part, dict)]]
    special = {
        v for part in parts for k, v in part.items() if "token" in str(k) and isinstance(v, int)
    }
    plain = [i for i in range(len(table.weight)) if i not in special][:5]
    ids = torch.tensor([plain] * 3, device=device_of(table))
    mask = torch.ones_like(ids)
    ids[1, 0] = padding_of(model)
    mask[1, 0] = 0
    return ids, mask


def padding_of(model: Any) -> int:
    """Return the id of padding: what the model's table or its configuration calls so, else 0."""
    table, config = model.get_input_embeddings(), model.config.to_dict()
    parts = [config, *[part for part in config.values() if isinstance(part, dict)]]
    own = getattr(getattr(table, "base", table), "padding_idx", None)
    return own or next((p["pad_token_id"] for p in parts if p.get("pad_token_id")), 0)


def first_output(model: Any, ids: Tensor, mask: Tensor | None, **more: Tensor) -> Tensor:
    """Return the logits, or the last hidden state of a model without a head."""
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": False, **more}
    inputs |= {"decoder_input_ids": ids[:, -2:]}  # in encoder-decoders
    known = inspect.signature(model.forward).parameters
    output: Tensor = model(**{k: v for k, v in inputs.items() if k in known})[0]
    return output


def close(found: Tensor, expected: Tensor) -> bool:
    """Tell whether two tensors are one, but for rounding."""
    most = float(expected.nan_to_num().abs().max())
    share = CLOSE.get(expected.dtype, CLOSE_IN_16_BITS)
    return torch.allclose(found, expected, rtol=0, atol=share * most, equal_nan=True)


@contextmanager
def undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside the block the frozen model is in evaluation; later it and random numbers are as before.

    So are the attributes and children that a pass changes: BigBird exchanges its attentions at a short text.
    What `load` allows a file to ask for does not bind the pass of a model.
    """
    modules = list(model.modules())
    before = [(dict(vars(m)), dict(m._modules), dict(m._buffers)) for m in modules]
    frozen = disabled(model) if "_adaptations" in vars(model) else nullcontext()
    try:
        random = torch.random.fork_rng([device] if device.type == "cuda" else [])
        with frozen, random, _disable_current_modes():
            model.eval()
            yield
    finally:
        for module, (own, children, buffers) in zip(modules, before, strict=True):
            vars(module).clear()
            vars(module).update(own)
            module._modules.clear()
            module._modules.update(children)
            module._buffers.clear()
            module._buffers.update(buffers)
