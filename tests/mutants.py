"""Change the library's code at random places and see which changes the tests notice.

    make mutants [SAMPLE=500]

mutmut makes the mutants; pyproject.toml says of which files. Each is judged by the quickest tests that reach
it, `SECONDS` of them, so a share of killed ones is the least that all the tests kill. The sample is drawn
with a fixed seed, from every file its share. A survivor is killed by a test of its own, beside the others of
its subject, or explained in survivors.toml; one that is neither is printed. mutmut changes no
decorated function (but for static and class methods), and nothing outside of functions.

What was judged is kept in ``mutants/``: a run that was stopped goes on, and a later one tries again those
that were not killed. Remove that folder when the library or old tests have changed. Exits 1 below 85 % in any
group of files, or with a survivor that nobody explained.
"""

import json
import os
import random
import subprocess
import sys
import tomllib
from pathlib import Path

from mutmut.mutation.diff_apply import find_mutant, get_diff_for_mutant
from scipy.stats import binomtest

MUTMUT = str(Path(sys.executable).with_name("mutmut"))
STATS = Path("mutants/mutmut-stats.json")
EXPLAINED = Path(__file__).with_name("survivors.toml")
DEAD = ("killed", "timeout")
LEAST = 0.85
SECONDS = 30
FIRST = "pedagogic_peft.files.codecs.x__shared__mutmut_1"  # any will do

LESS = "course"  # drawn more thinly: stories, tasks and pictures of the pages


def results() -> dict[str, str]:
    """Return ``{mutant: "killed", "survived", ..., or "not checked"}``."""
    command = [MUTMUT, "results", "--all", "true"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return dict(line.strip().split(": ", 1) for line in lines if ": " in line)


def file_of(mutant: str) -> str:
    """Return the module of a mutant, such as ``course.pocket.tasks``."""
    return mutant.rpartition(".")[0].removeprefix("pedagogic_peft.")


def group_of(mutant: str) -> str:
    """Return the folder of the package that it belongs to."""
    return file_of(mutant).split(".")[0]


def drawn(mutants: list[str], size: int) -> list[str]:
    """Return a sample with the same share of each file's mutants (at least one); of `LESS` a third."""
    files: dict[str, list[str]] = {}
    for mutant in sorted(mutants):
        files.setdefault(file_of(mutant), []).append(mutant)
    sample = []
    for file, found in files.items():
        share = size / len(mutants) / (3 if group_of(found[0]) == LESS else 1)
        count = min(len(found), max(1, round(share * len(found))))
        sample += random.Random(file).sample(found, count)
    return sample


def keep_the_quickest() -> None:
    """Let mutmut know of no more tests for a function than run in `SECONDS`, the quickest ones."""
    stats = json.loads(STATS.read_text())
    seconds = stats["duration_by_test"]
    for function, tests in stats["tests_by_mangled_function_name"].items():
        total, kept = 0.0, []
        for test in sorted(tests, key=lambda test: (seconds[test], test)):
            total += seconds[test]
            if total <= SECONDS or not kept:
                kept.append(test)
        stats["tests_by_mangled_function_name"][function] = kept
    STATS.write_text(json.dumps(stats))


def change(mutant: str) -> tuple[str, str, str]:
    """Return (file, the lines that were, the lines that are) of a mutant."""
    path = find_mutant(mutant).path
    lines = get_diff_for_mutant(mutant, path=path).splitlines()[3:]
    was, now = ("\n".join(x[1:].strip() for x in lines if x[0] == sign) for sign in "-+")
    return str(path), was, now


def explained() -> dict[tuple[str, str, str], str]:
    """Return ``{change: why no test can or should notice it}``."""
    entries = tomllib.loads(EXPLAINED.read_text(encoding="utf-8"))["survivor"]
    return {(e["file"], e["was"].strip(), e["now"].strip()): e["why"] for e in entries}


def summary(name: str, verdicts: list[str]) -> bool:
    """Print how many of a group were killed; return whether these are enough."""
    killed, total = sum(verdict in DEAD for verdict in verdicts), len(verdicts)
    low, high = binomtest(killed, total).proportion_ci(method="wilson")
    print(
        f"{name}: {killed} of {total} killed, {killed / total:.1%} (95 % confidence: {low:.1%} to {high:.1%})"
    )
    return killed >= LEAST * total


def main(size: int) -> int:
    """Judge a sample; print how many were killed, and the survivors without an explanation."""
    if not STATS.exists():
        subprocess.run([MUTMUT, "run", FIRST], check=True)
    keep_the_quickest()
    before = results()
    sample = drawn(list(before), size)
    if left := [mutant for mutant in sample if before[mutant] not in DEAD]:
        jobs = os.environ.get("JOBS", "auto")
        workers = [] if jobs == "auto" else ["--max-children", jobs]
        subprocess.run([MUTMUT, "run", *workers, *left], check=True)
    every = results()
    reasons, unexplained = explained(), []
    for mutant in sample:
        if every[mutant] not in DEAD and (found := change(mutant)) not in reasons:
            unexplained.append(mutant)
            print(f"\n{every[mutant]}: {mutant}\n  was: {found[1]}\n  now: {found[2]}")
    print(f"\nOf {len(every)} mutants {len(sample)} were drawn.")
    groups = sorted({group_of(mutant) for mutant in sample})
    enough = [summary(g, [every[m] for m in sample if group_of(m) == g]) for g in groups]
    survivors = sum(every[m] not in DEAD for m in sample)
    print(f"{survivors} survived, of them explained: {survivors - len(unexplained)}")
    return 0 if all(enough) and not unexplained else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 500))
