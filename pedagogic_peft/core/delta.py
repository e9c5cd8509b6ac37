"""What a method puts at one module of the model: the contract of a delta, and its tensors."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Args = tuple[Any, ...]  # of a module's forward
Kwargs = dict[str, Any]
Tensors = Mapping[str, Tensor]
Attend = Callable[..., tuple[Tensor, Tensor | None]]  # an attention function of transformers
Deltas = dict[str, nn.Module]  # path of a module -> its delta


EMPTY = vars(nn.Module())  # the attributes that every module begins with
HOLDERS = [name for name, value in EMPTY.items() if hasattr(value, "copy")]


def begin(module: nn.Module) -> None:
    """Do what ``nn.Module.__init__(module)`` does, in less time.

    A big model gets thousands of modules, and torch sets their attributes one by one, with checks.
    """
    own = vars(module)
    own.update(EMPTY)
    for name in HOLDERS:
        own[name] = EMPTY[name].copy()


def blank(kind: Any) -> Any:
    """Return a module of this class with the attributes of `nn.Module` and no others."""
    made = kind.__new__(kind)
    begin(made)
    return made


class Delta(nn.Module):
    """What a method puts at one module. Override what the method needs; the rest does nothing.

    A delta takes part in the forward pass in one of two places:

    * in a `Site`, which takes the module's seat: ``x = before(x)``, then ``y = module(x)`` (or what
      ``stand_in(module)`` returns), then ``y = forward(x, y)``, whose last line says how the delta is
      joined;
    * ``beside`` a module that keeps its seat: ``enter(module, args, kwargs)``, then the module, then
      ``leave(module, output)``; beside an attention also ``attend(run, ...)``, inside of it.

    The rest of the contract is ``init_from_base`` (when attached), ``merge_into`` (a delta without it
    cannot be merged), ``to_checkpoint`` and ``from_checkpoint``. Deltas that serve a batch in which each
    row has its own say how in `BATCHED`. A plain `nn.Module` will do as a delta too: it has nothing
    but ``forward(x, y)``.

    Attributes:
        beside: whether it stands beside the module, in its `Hooks`, instead of in a `Site`.
    """

    beside: bool = False

    def __init__(self) -> None:
        begin(self)

    def init_from_base(self, base: Any) -> None:
        """Set the values that depend on the module ``base``, when the delta is attached."""

    def stand_in(self, module: Any) -> Any:
        """Return the module that runs in the place of the site's: itself, or one with other weights."""
        return module

    def before(self, x: Any) -> Any:
        """Return the site's input x: (...), changed or not, in its shape."""
        return x

    def forward(self, x: Any, y: Any) -> Any:
        """Return the site's new output, for its input x and its output so far y, in y's shape."""
        return y

    def enter(self, module: Any, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Return the arguments of the module's forward, changed or not."""
        return args, kwargs

    def leave(self, module: Any, output: Any) -> Any:
        """Return the module's output, changed or not."""
        return output

    def attend(
        self, run: Attend, module: Any, Q: Tensor, K: Tensor, V: Tensor, mask: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Return what the attention function ``run`` returns for the rest; shapes: `attention`."""
        return run(module, Q, K, V, mask, **kwargs)

    def merge_into(self, base: Any) -> None:
        """Write the change into the weights of ``base``, a copy of the site's module."""

    def to_checkpoint(self) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint, by their names in the delta."""
        return self.state_dict()

    def from_checkpoint(self, tensors: Tensors) -> None:
        """Take the values of what `to_checkpoint` returned."""
        for key, own in self.to_checkpoint().items():
            own.copy_(tensors[key])


def overrides(delta: nn.Module, method: Callable[..., Any]) -> bool:
    """Tell whether a delta has its own version of this method of `Delta`."""
    return isinstance(delta, Delta) and getattr(type(delta), method.__name__) is not method


@dataclass(frozen=True)
class Batched:
    """How deltas of one class serve a batch in which each row has a delta of its own.

    Attributes:
        key: deltas with equal ``key(delta)`` are served in one go.
        serve: called with each row's delta, returns what does the work of all: in a site a function
            of x and y, beside a module an object with ``enter`` and ``leave``, beside an attention
            also ``attend`` (then the delta is None for a row without).
    """

    key: Callable[[Any], Any]
    serve: Callable[[Sequence[Any]], Any]


# By the delta's class itself, never a parent: what a subclass computes is something else.
BATCHED: dict[type[nn.Module], Batched] = {}


# A site's forward in fewer steps, to the same result, where no gradient is asked for: a model that writes
# token by token spends its time on steps. By the delta's class, too; ``FUSED[type(delta)](delta, base, x)``.
FUSED: dict[type[nn.Module], Callable[[Any, nn.Module, Tensor], Tensor]] = {}


def key_of(delta: nn.Module) -> Any:
    """Return what deltas that are served in one go have in common; else the delta itself."""
    kind = type(delta)
    return (kind, BATCHED[kind].key(delta)) if kind in BATCHED else delta


def linear(d_in: int, d_out: int) -> nn.Linear:
    """Return ``nn.Linear(d_in, d_out, bias=False)``, made in less time: the same numbers are drawn."""
    made: nn.Linear = blank(nn.Linear)
    bound = 1 / math.sqrt(d_in)
    vars(made).update(in_features=d_in, out_features=d_out)
    weight = torch.empty(d_out, d_in).uniform_(-bound, bound)
    made._parameters.update(weight=nn.Parameter(weight), bias=None)
    return made


class TrainedCopy(Delta):
    """A delta that replaces: a copy of the module is trained in full and used in its place.

    This is what a new classification head needs (``modules_to_save``): each adaptation trains a
    head of its own and the original stays as it was. The copy keeps the dtype of the original.

    Args:
        module: the module to copy.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = copy.deepcopy(module).requires_grad_(True)

    def forward(self, x: Any, y: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the copy's output for x; y, the original's, is not read."""
        return self.module(x, *args, **kwargs)

    def merge_into(self, base: nn.Module) -> None:
        """Write the copy's values into the original."""
        base.load_state_dict(self.module.state_dict())

    def to_checkpoint(self) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint: those of the module."""
        return self.module.state_dict()


class Reference(nn.Module):
    """A child that refers to a module which has its place elsewhere in the model.

    What a delta keeps in a tuple or a list is not replaced in a copy that `nn.DataParallel` makes for
    another device; a child is. Its owner alone names, moves, trains and saves it.

    Args:
        module: the module that is meant, for example the frozen map beside which a delta stands.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def named_modules(
        self, memo: Any = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[Any]:
        """Yield the reference itself only."""
        yield prefix, self

    def named_children(self) -> Iterator[Any]:
        """Yield nothing."""
        yield from ()

    def state_dict(self, *args: Any, destination: Any = None, **kwargs: Any) -> Any:
        """Return what was there."""
        return {} if destination is None else destination

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # Torch goes on to the module: so that nothing is missing, it finds what it has already.
        own = self.module.state_dict()
        state_dict.update({f"{prefix}module.{key}": tensor for key, tensor in own.items()})

    def __repr__(self) -> str:
        return f"Reference({type(self.module).__name__})"


def own_deltas(deltas: Deltas) -> Deltas:
    """Return the deltas without the modules that are trained in full."""
    return {path: delta for path, delta in deltas.items() if not isinstance(delta, TrainedCopy)}


def tensors_of(deltas: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return the tensors as a checkpoint has them: ``{path.key: tensor}``."""
    return {f"{path}.{k}": t for path, delta in deltas.items() for k, t in _tensors(delta).items()}


@torch.no_grad()
def load_tensors(deltas: Mapping[str, nn.Module], tensors: Tensors) -> None:
    """Copy the tensors ``{path.key: tensor}`` into the deltas. Keys and shapes must match exactly.

    Raises:
        ValueError: tensors are missing, unexpected, of another shape, or not finite.
    """
    own = {key: tuple(tensor.shape) for key, tensor in tensors_of(deltas).items()}
    found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    wrong = [key for key in own if found.get(key, own[key]) != own[key]]
    problems: dict[str, Iterable[str]] = {
        "missing": own.keys() - found.keys(),
        "unexpected": found.keys() - own.keys(),
        "of wrong shape": [f"{key} {found[key]} instead of {own[key]}" for key in wrong],
        "not finite": [key for key, tensor in tensors.items() if not tensor.isfinite().all()],
    }
    for what, keys in problems.items():
        if keys:
            raise ValueError(f"The checkpoint does not fit this model: {what}: {some(keys)}")
    for path, delta in deltas.items():
        new = {key: tensors[f"{path}.{key}"] for key in _tensors(delta)}
        take: Any = delta.from_checkpoint if isinstance(delta, Delta) else delta.load_state_dict
        take(new)
        if odd := [k for k, t in _tensors(delta).items() if not torch.equal(t, new[k].to(t))]:
            raise ValueError(f"{path}.{odd[0]} is not made up as the configuration says")


def some(names: Iterable[str]) -> str:
    """Return how many names there are, and the first three."""
    names = sorted(names)
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def _tensors(delta: nn.Module) -> dict[str, Tensor]:
    own = delta.to_checkpoint() if isinstance(delta, Delta) else delta.state_dict()
    return {key: tensor.detach() for key, tensor in own.items()}
