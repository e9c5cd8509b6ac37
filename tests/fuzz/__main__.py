"""Load hostile checkpoints, by default 100,000, and tell of each way in which one breaks a promise.

    make fuzz [INPUTS=100000]

Each seed gets an equal share, numbered from ``--first`` on: the number alone decides what is changed,
so that an input can be made again, and a run cut in pieces. Exits 1 if a promise was broken.
"""

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))
from fuzz.mutations import mutated
from fuzz.promises import Target
from fuzz.seeds import seeds

FOUND = Path(__file__).parents[2] / "_build" / "fuzz"  # the inputs that broke a promise


def fuzz(name: str, numbers: range, bar: tqdm) -> tuple[Target, dict[str, int]]:
    """Load the inputs of these numbers; return also ``{broken promise: the first input's number}``."""
    target, broken = Target(seeds()[name]), {}
    with tempfile.TemporaryDirectory(prefix="fuzz") as made:
        folder = Path(made)
        for number in numbers:
            bar.update()
            try:
                target.hold(folder, mutated(target.seed, random.Random(f"{name} {number}")))
            except AssertionError as error:
                what = str(error).replace(made, "FOLDER")[:300]
                if what in broken:
                    continue
                broken[what] = number
                kept = FOUND / f"{name}-{number}".replace(" ", "-").replace(",", "")
                shutil.rmtree(kept, ignore_errors=True)
                shutil.copytree(folder, kept, symlinks=True)
    return target, broken


def main() -> int:
    """Fuzz, and print what was found."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--inputs", type=int, default=100_000)
    options.add_argument(
        "--first", type=int, default=0, help="number of the first input of each seed"
    )
    options.add_argument("--only", default="", help="part of the names of the seeds")
    chosen = options.parse_args()
    names = [name for name in seeds() if chosen.only in name]
    each = -(-chosen.inputs // len(names))
    found, loaded, refused = 0, 0, 0
    with tqdm(total=each * len(names), unit=" inputs", mininterval=1) as bar:
        for name in names:
            bar.set_description(name)
            target, broken = fuzz(name, range(chosen.first, chosen.first + each), bar)
            loaded, refused = loaded + target.loaded, refused + target.refused
            found += len(broken)
            for what, number in broken.items():
                bar.write(f"=== {name}, input {number}, kept in {FOUND}: {what}")
    print(f"{bar.n} inputs: {refused} refused, {loaded} loaded, {found} broken promises")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
