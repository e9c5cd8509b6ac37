"""Change the library's code at random places and see which changes the tests notice.

    make mutants [SAMPLE=200]

mutmut makes the mutants and runs each with the tests that reach it; pyproject.toml says what it may change.
A sample is drawn with a fixed seed. What was judged is kept in ``mutants/``, so a run that was stopped goes
on; remove that folder when code or tests have changed. Exits 1 below 85 %.
"""

import random
import subprocess
import sys
from pathlib import Path

from scipy.stats import binomtest

MUTMUT = str(Path(sys.executable).with_name("mutmut"))
LEAST = 0.85


def results() -> dict[str, str]:
    """Return ``{mutant: "killed", "survived", ..., or "not checked"}``."""
    command = [MUTMUT, "results", "--all", "true"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return dict(line.strip().split(": ", 1) for line in lines if ": " in line)


def main(size: int) -> int:
    """Judge a sample and print how many were killed, and which survived."""
    if not Path("mutants").exists() or not results():
        subprocess.run([MUTMUT, "run", "pedagogic_peft.vera.x__shared__mutmut_1"], check=True)
    before = results()
    sample = random.Random(0).sample(sorted(before), min(size, len(before)))
    if missing := [name for name in sample if before[name] == "not checked"]:
        subprocess.run([MUTMUT, "run", *missing], check=True)
    judged = {name: verdict for name, verdict in results().items() if name in sample}
    killed = sum(verdict in ("killed", "timeout") for verdict in judged.values())
    for name in sample:
        if judged[name] not in ("killed", "timeout"):
            print(f"{judged[name]}: {name}")
    test = binomtest(killed, len(sample))
    low, high = test.proportion_ci(method="wilson")
    print(
        f"{killed} of {len(sample)} mutants killed, drawn from {len(before)}: {killed / len(sample):.1%}"
    )
    print(f"95 % confidence interval of the share of all: {low:.1%} to {high:.1%}")
    return 0 if killed >= LEAST * len(sample) else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 200))
