"""Try every method on every text architecture of the installed transformers, small and random.

    make sweep [TASK=writes] [MODELS="llama mamba"] [METHODS="LoRA BitFit"]

Each pair is right, or refused when it is attached, or a line at the end; then the exit code is 1. All of them
take about half an hour. What was found is kept in ``_build/sweep.jsonl``: a run that was stopped goes on
there, and one with AGAIN=1 judges what was wrong, or what is named, anew.
"""

import argparse
import json
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))
from sweep import small
from sweep.methods import CASES
from sweep.promises import Base, judge

FOUND = Path(__file__).parents[2] / "_build" / "sweep.jsonl"
SECONDS = 60  # of processor time, for one method on one model


class TooSlow(BaseException):
    """A pair took too long."""


def stop(*_: Any) -> None:
    """End the pair that is running."""
    raise TooSlow


def read() -> dict[tuple[str, str, str], dict[str, Any]]:
    """Return what was found, the newest of each pair."""
    lines = FOUND.read_text(encoding="utf-8").splitlines() if FOUND.exists() else []
    records = map(json.loads, lines)
    return {(r["task"], r["model"], r["method"]): r for r in records}


def sweep(task: str, kind: str, methods: list[str]) -> list[tuple[str, str, list[str]]]:
    """Return ``(method, verdict, what)`` for methods on one architecture."""
    try:
        base = Base(small.build(kind, task), task)
        _ = base.logits
    except Exception as error:
        what = [f"{type(error).__name__}: {str(error)[:150]}"]
        return [(name, "not built", what) for name in methods]
    found = []
    for name in methods:
        make, start = CASES[name]
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            method = make(base.model)
            verdict, what = judge(base, method, start) if method else ("no meaning", [])
        except TooSlow:
            verdict, what = "too slow", []
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        found.append((name, verdict, what))
    return found


def main() -> int:
    """Sweep, and print what is wrong."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--task", choices=small.TASKS, action="append")
    options.add_argument("--models", nargs="*", default=[])
    options.add_argument("--methods", nargs="*", default=[])
    options.add_argument("--again", action="store_true")
    chosen = options.parse_args()
    signal.signal(signal.SIGPROF, stop)
    torch.set_num_threads(1)
    small.hf.logging.set_verbosity_error()
    FOUND.parent.mkdir(parents=True, exist_ok=True)
    before = read()
    named = bool(chosen.models or chosen.methods)
    done = {
        p for p, r in before.items() if not chosen.again or not named and r["verdict"] != "wrong"
    }
    pairs = [(t, k) for t in chosen.task or small.TASKS for k in chosen.models or small.kinds(t)]
    with FOUND.open("a", encoding="utf-8") as file:
        for task, kind in tqdm(pairs, unit=" models", mininterval=10):
            methods = [m for m in chosen.methods or CASES if (task, kind, m) not in done]
            for method, verdict, what in sweep(task, kind, methods) if methods else []:
                record = dict(task=task, model=kind, method=method, verdict=verdict, what=what)
                print(json.dumps(record), file=file, flush=True)
    found = {p: r for p, r in read().items() if p[:2] in pairs}
    wrong = [r for r in found.values() if r["verdict"] in ("wrong", "too slow")]
    for r in wrong:
        print(f"{r['task']}, {r['model']}, {r['method']}: {'; '.join(r['what']) or r['verdict']}")
    print(dict(Counter(r["verdict"] for r in found.values())))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
