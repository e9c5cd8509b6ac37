"""The state of a training run in one file, so that a run that was stopped goes on as if it had not been.

The file is replaced as a whole: a run killed at any moment finds the state of one step, never half.
"""

import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from pedagogic_peft.files.disk import remove_leftovers


class Snapshot:
    """A file with the trainable parameters, buffers, optimiser state, random states and history.

    Args:
        path: the file; it need not exist.
        run: what makes it this run and no other, such as its seed: ``{name: plain value}``.
        model: its frozen parameters are not stored.
        optimizer: its hyper-parameters are not stored, only its state.
        scaler: fp16's scaler of the loss, if there is one.

    Raises:
        ValueError: the file is of another run, or not whole.
    """

    def __init__(
        self,
        path: str | Path,
        run: Mapping[str, Any],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: Any = None,
    ) -> None:
        self.path, self.model, self.optimizer, self.scaler = Path(path), model, optimizer, scaler
        self.trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.tensors: dict[str, Tensor] = {**dict(model.named_buffers()), **self.trained}
        shapes = {name: list(tensor.shape) for name, tensor in self.tensors.items()}
        self.run = {**run, "tensors": shapes}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.path)
        self.found = self._read() if self.path.exists() else None
        self.step = self.found["step"] if self.found else 0

    def restore(self) -> list[dict[str, Any]]:
        """Bring model and optimiser to the stored step; return the history until then."""
        if self.found is None:
            return []
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(self.found["tensors"][name])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": self.found["optimizer"], "param_groups": groups})
        if self.scaler is not None:
            self.scaler.load_state_dict(self.found["scaler"])
        self.restore_random()
        history: list[dict[str, Any]] = json.loads(self.found["history"])
        return history

    def restore_random(self) -> None:
        """Bring the random numbers of Python, NumPy and torch to where they were."""
        if self.found is None:
            return
        states = self.found["random"]
        random.setstate(states["python"])
        kind, keys, *rest = states["numpy"]
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
        torch.set_rng_state(states["torch"])
        if states["cuda"]:
            torch.cuda.set_rng_state_all(states["cuda"])

    def kept(self) -> str:
        """Say what the file holds, for a message."""
        return f"{self.path} has the state of step {self.step}" if self.step else "None was stored"

    def save(self, history: list[dict[str, Any]]) -> None:
        """Store the state after the last step of the history.

        Raises:
            FloatingPointError: a tensor is not finite; the file is as before.
            OSError: the file could not be written; it is as before.
        """
        step = history[-1]["step"]
        if strange := [name for name, p in self.trained.items() if not p.isfinite().all()]:
            raise FloatingPointError(f"{strange[0]} is not finite after step {step}. {self.kept()}")
        kind, keys, *rest = cast(Any, np.random.get_state())
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        state = {
            "run": self.run,
            "step": step,
            "tensors": {name: tensor.detach() for name, tensor in self.tensors.items()},
            "optimizer": self.optimizer.state_dict()["state"],
            "scaler": self.scaler and self.scaler.state_dict(),
            "history": json.dumps(history, default=float),
            "random": {
                "python": random.getstate(),
                "numpy": (kind, keys.tolist(), *rest),
                "torch": torch.get_rng_state(),
                "cuda": cuda,
            },
        }
        new = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            with new.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, self.path)
        finally:
            new.unlink(missing_ok=True)
        self.step = step

    def _read(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
            there = found["run"]
        except Exception as error:  # zip, pickle and torch have exceptions of their own
            what = f"{self.path} is not the whole state of a training run"
            raise ValueError(f"{what}: name another file, or delete it. {error}") from error
        for key, here in self.run.items():
            if there.get(key) != here:
                both = "others" if key == "tensors" else f"{there.get(key)!r} there, {here!r} here"
                what = f"{self.path} is of another run ({key}: {both})"
                raise ValueError(f"{what}. Name another file, or delete this one to start again")
        return found
