"""What `load` and `load_adapterhub` promise for any files; each broken promise is an AssertionError."""

import contextlib
import os
import resource
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fuzz.seeds import Seed
from pedagogic_peft import detach

SECONDS, MEGABYTES = 5, 400  # that a load may take, beside the model's own
_allowed: Path | None = None  # the only folder that may be opened while a file is read
_seen: list[str] = []
HARM = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "socket.connect")
CHANGES = (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.symlink",
    "os.truncate",
    "os.chmod",
)


def _watch(event: str, arguments: Any) -> None:
    if _allowed is None:
        return
    if event.startswith((*HARM, *CHANGES)):
        _seen.append(f"{event}{arguments!r}")
    elif event == "open" and isinstance(arguments[0], str | bytes):
        file = os.path.abspath(os.fsdecode(arguments[0]))
        # Python may read its own modules and the processor's description; nothing else.
        if not file.startswith(
            (str(_allowed), *sys.path[1:], sys.prefix, sys.base_prefix, "/proc/cpu")
        ):
            _seen.append(f"open {file}")
        elif not file.startswith(str(_allowed)) and arguments[1] not in ("r", "rb", None):
            _seen.append(f"open {file} to write")


sys.addaudithook(_watch)


class Slow(BaseException):
    """The time is over."""


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Within it, time and memory are bounded, and no file outside the folder may be touched."""
    global _allowed

    def over(*_: Any) -> None:
        raise Slow

    _seen.clear()
    old = signal.signal(signal.SIGALRM, over)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEGABYTES * 2**20
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    _allowed = folder
    try:
        yield
    except Slow:
        raise AssertionError(f"it took more than {SECONDS} s") from None
    finally:
        _allowed = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    assert not _seen, f"it did {_seen}"


def write(folder: Path, files: dict[str, bytes | str]) -> None:
    """Write the files, or the symbolic links."""
    for name, content in files.items():
        (folder / name).unlink(missing_ok=True)
        if isinstance(content, str):
            (folder / name).symlink_to(content)
        else:
            (folder / name).write_bytes(content)


def state(model: nn.Module) -> tuple[Any, ...]:
    """Return what a refused load must not change."""
    modules = [(path, id(module), module.training) for path, module in model.named_modules()]
    parameters = [(n, id(p), p.requires_grad, p._version) for n, p in model.named_parameters()]
    return modules, parameters, [b._version for b in model.buffers()], sorted(vars(model))


class Target:
    """One model that checkpoints of one seed are loaded into, again and again."""

    def __init__(self, seed: Seed):
        self.seed, self.model = seed, seed.model()
        self.weights = {key: tensor.clone() for key, tensor in self.model.state_dict().items()}
        self.loaded = self.refused = 0

    def hold(self, folder: Path, files: dict[str, bytes | str]) -> None:
        """Load the files; raise an AssertionError if that breaks a promise."""
        write(folder, files)
        before, model = state(self.model), self.model
        random = torch.get_rng_state()
        problem: BaseException | None = None
        try:
            with watched(folder), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.seed.load(model, folder)
        except (ValueError, FileNotFoundError) as error:  # the documented ones, with a message
            problem = error
            assert type(error) in (ValueError, FileNotFoundError), f"{type(error)}: {error}"
            assert str(folder) in str(error), f"the message does not name the file: {error}"
            assert len(str(error)) < 20_000, f"a message of {len(str(error))} characters"
        except (AssertionError, KeyboardInterrupt):
            self.model = self.seed.model()
            raise
        except BaseException as error:
            self.model = self.seed.model()
            raise AssertionError(f"undocumented {type(error).__name__}: {error}") from error
        torch.set_rng_state(random)
        if problem is None:
            self.loaded += 1
            self.check_loaded()
        else:
            self.refused += 1
            if state(model) != before:
                self.model = self.seed.model()
                raise AssertionError("the model was changed although the files were refused")

    def check_loaded(self) -> None:
        """What was loaded is finite, whole, and can be taken off again."""
        model = self.model
        own = [(n, p) for n, p in model.named_parameters() if ".deltas." in n]
        assert all(p.isfinite().all() for _, p in own), "numbers that are not finite"
        detach(model)
        now = model.state_dict()
        same = now.keys() == self.weights.keys() and all(
            torch.equal(now[key], weight) for key, weight in self.weights.items()
        )
        if not same or hasattr(model, "_adaptations"):
            self.model = self.seed.model()
            raise AssertionError("detached, the model is not as before")
