"""A GPU, emulated: tensors know their side, and one operation on both sides fails as it does there.

Nothing is computed elsewhere. A tensor that code moves to "cuda" stays in the CPU's memory and is marked;
what is computed from marked tensors is marked. So a page or an assignment that forgets to move a batch fails
here, on a machine without a GPU. Not seen: what C++ computes by itself (a backward pass), other processes,
other digits, other memory.
"""

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
ASKS = {
    "_has_compatible_shallow_copy_type",
    "is_set_to",
    "_is_same_size",
    "is_same_size",
    "__len__",
}
CROSSES = {"copy_", "__setitem__", "set data", "set grad"}  # these may have both sides
JOINS = {"cat", "stack", "hstack", "vstack", "concat", "concatenate"}  # no exception for numbers
WHERE_PAGES_LIVE = ("__main__", "pedagogic_peft", "submission")


class FakeGPU(TorchFunctionMode):
    """While it is entered, a page, an assignment and this library find a GPU; so does accelerate."""

    def __init__(self) -> None:
        super().__init__()
        self._marked = WeakIdKeyDictionary()

    def holds(self, tensor: Tensor) -> bool:
        """Return whether a tensor is on the emulated GPU."""
        return tensor in self._marked

    def _mark(self, value: Any, there: bool) -> Any:
        for tensor in _tensors(value):
            if there:
                self._marked[tensor] = True
            else:
                self._marked.pop(tensor, None)
        return value

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = _name(func), dict(kwargs or {})
        if name == "get device":
            return GPU if self.holds(args[0]) else func(*args)
        if name == "get is_cuda":
            return self.holds(args[0])
        if name == "get_device":
            return 0 if self.holds(args[0]) else -1
        if name in ("to", "cuda", "cpu"):
            return self._move(func, name, *args, **kwargs)
        if name in ("numpy", "__array__") and self.holds(args[0]):
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the "
                "tensor to host memory first. [emulated]"
            )
        if name == "__deepcopy__":  # its memo holds everything that was copied before
            return self._mark(func(*args, **kwargs), self.holds(args[0]))
        device = kwargs.get("device")
        if device is not None and _is_gpu(device):
            if (generator := kwargs.get("generator")) is not None:
                raise RuntimeError(
                    f"Expected a 'cuda' device type for generator but found '{generator.device}' "
                    "[emulated]"
                )
            return self._mark(func(*args, **kwargs | {"device": CPU}), True)
        there = self._side(name, args, kwargs) and device is None
        found = func(*args, **kwargs)
        if name == "set data":
            self._mark(args[0], self.holds(args[1]))
        elif name not in CROSSES and (there or device is not None):
            self._mark(found, there)
        return found

    def _side(self, name: str, args: Any, kwargs: Any) -> bool:
        """Return whether an operation runs on the GPU; raise where its tensors are on both sides."""
        tensors = list(_tensors([args, kwargs]))
        sides = {self.holds(t) for t in tensors if self.holds(t) or t.dim() or name in JOINS}
        if len(sides) == 2 and name not in ASKS | CROSSES and kwargs.get("device") is None:
            if (
                name == "__getitem__"
            ):  # a tensor on the GPU takes indices of the CPU, not the reverse
                if self.holds(args[0]) or not any(self.holds(t) and t.dim() for t in tensors):
                    return self.holds(args[0])
            where = [(tuple(t.shape), "cuda" if self.holds(t) else "cpu") for t in tensors][:5]
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"cuda:0 and cpu! [emulated, in {name}: {where}]"
            )
        return True in sides

    def _move(self, func: Any, name: str, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`Tensor.to`, `.cuda` and `.cpu`: convert the dtype for real, and the device by a mark."""
        there = {"cuda": True, "cpu": False}.get(name)
        kwargs.pop("non_blocking", None)
        for given in (*args, kwargs.pop("device", None), kwargs.pop("other", None)):
            if isinstance(given, Tensor):
                there, kwargs["dtype"] = self.holds(given), given.dtype
            elif isinstance(given, torch.dtype):
                kwargs["dtype"] = given
            elif isinstance(given, str | torch.device) or type(given) is int:
                if torch.device(given).type == "meta":
                    return func(tensor, *args, **kwargs)
                there = _is_gpu(given)
        kwargs = {key: value for key, value in kwargs.items() if value is not None}
        found = Tensor.to(tensor, **kwargs) if kwargs else tensor
        there = self.holds(tensor) if there is None else there
        if found is tensor and there != self.holds(tensor):
            found = tensor.clone()
        return tensor if found is tensor else self._mark(found, there)

    def __enter__(self) -> "FakeGPU":
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)  # or it keeps an earlier device
        make, found = nn.Parameter.__new__, torch.cuda.is_available
        fork_rng = torch.random.fork_rng

        def parameter(cls: type, data: Any = None, requires_grad: bool = True) -> Any:
            new = make(cls, data, requires_grad)
            return self._mark(new, data is not None and self.holds(data))

        def is_available() -> bool:
            caller = sys._getframe(1).f_globals.get("__name__", "")
            return caller.split(".")[0] in WHERE_PAGES_LIVE or found()

        def device(accelerator: Any) -> torch.device:
            return CPU if accelerator.state._cpu else GPU

        def of_the_cpu(devices: Any = None, *args: Any, **kwargs: Any) -> Any:
            return fork_rng([], *args, **kwargs)  # the GPU has no generator of its own

        self._before = [
            (owner, key, vars(owner)[key])
            for owner, key in (
                (nn.Parameter, "__new__"),
                (torch.cuda, "is_available"),
                (torch.random, "fork_rng"),
                (Accelerator, "device"),
            )
        ]
        nn.Parameter.__new__ = staticmethod(parameter)
        torch.cuda.is_available = is_available
        torch.random.fork_rng = of_the_cpu
        Accelerator.device = property(device)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        from accelerate.state import AcceleratorState

        super().__exit__(*error)
        AcceleratorState._reset_state(reset_partial_state=True)
        for owner, key, value in self._before:
            setattr(owner, key, value)


def _name(func: Any) -> str:
    """Return an operation's name; that of a property is "get device", "set data"."""
    name = getattr(func, "__name__", str(func))
    if name in ("__get__", "__set__"):
        return f"{name.strip('_')} {getattr(func.__self__, '__name__', '')}"
    return name


def _is_gpu(device: Any) -> bool:
    return torch.device(device).type == "cuda"


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
