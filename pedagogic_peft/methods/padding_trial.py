"""Whether padding stays without effect where a delta adds something of its own: tried when attached.

Models with a convolution or a recurrence over the tokens (Mamba, Qwen3-Next) set the states of padding to
zero in front of it, and maps without a bias leave them zero. A delta that adds something to zero, an
adapter with biases, brings padding back: what stands behind it is then computed in another way than alone.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pedagogic_peft.core.delta import some
from pedagogic_peft.core.method import has_no_values
from pedagogic_peft.core.sites import Modules
from pedagogic_peft.methods.prompt_trial import first_output, undisturbed, words

TOKENS = ""  # stands for the embeddings of the tokens beside the paths of linear maps
REACHES = 1e-9  # of the largest gradient of the row: what is hidden has none at all


def reach_the_text(model: Any, places: Modules) -> list[str]:
    """Return the paths of the modules whose output at padding reaches the output at the text behind it.

    A short pass of the frozen model in evaluation, forward and back, tells: a gradient at padding that the
    token itself does not have. It changes nothing and uses up no random numbers. A model on "meta" is
    not tried, nor one that needs more than ids.

    Args:
        model: a transformers model, or any; changed in no way.
        places: ``{path: module}``, linear maps that it has.
    """
    added: dict[str, Tensor] = {}

    def add(path: str, module: nn.Module, args: Any, y: Tensor) -> Tensor:
        # At padding all may be zero, where a product of two has no gradient: so it is moved a little.
        size = 0.0 if path == TOKENS else 0.1
        added[path] = (size * torch.randn_like(y)).requires_grad_()
        return y + added[path]

    try:
        ids, mask = words(model)
        table = model.get_input_embeddings()
        if has_no_values(model):
            return []
        handles = [m.register_forward_hook(partial(add, p)) for p, m in places.items()]
        handles.append(table.register_forward_hook(partial(add, TOKENS)))
        try:
            with undisturbed(model, ids.device), torch.enable_grad():
                torch.manual_seed(0)  # what is loaded finds what was attached
                found = first_output(model, ids, mask)[1]  # its column 0 is padding
                text = found[1:] if len(found) == ids.shape[1] else found
                total = text.float().square().sum()
                own = torch.autograd.grad(total, list(added.values()), allow_unused=True)
        finally:
            for handle in handles:
                handle.remove()
    except Exception:  # a stranger's model may want anything else
        return []
    there = {p for p, g in zip(added, own, strict=True) if _at_padding(g, ids)}
    return [] if TOKENS in there else [path for path in places if path in there]


def _at_padding(gradient: Tensor | None, ids: Tensor) -> bool:
    """Tell whether there is a gradient at the second row's first token; other shapes cannot tell."""
    if gradient is None or gradient.shape[:-1].numel() != ids.numel():
        return False
    row = gradient.reshape(*ids.shape, -1)[1].abs().float()
    return bool(row[0].max() > REACHES * row.max())


def refuse_behind_padding(model: Any, places: Modules) -> None:
    """Raise a ValueError if what is added at one of the modules would reach a text behind padding."""
    if there := reach_the_text(model, places):
        what = f"{some(there)}: the model hides padding in front of it, as for a convolution"
        why = "and what this method adds there would reach a text that stands behind padding"
        raise ValueError(f"{what}, {why}. Name it in exclude_modules")
