"""What examples in the prompt do: the frozen SmolLM2 says a record after it has read a few that are said.

    python -m pedagogic_peft.course.experiments.real_shots    # what is missing

No parameter is trained. The task, the words of the system message, the rows and the scores are those of
"records" in `real_decoder`; the examples are drawn from the rows that a run of the bench trains on, and
stand before the question as turns that were answered already (Brown et al., "Language Models are Few-Shot
Learners", 2020). A seed decides which. It is the baseline of whatever is trained for the same task.
"""

from pathlib import Path
from typing import Any

import torch

from pedagogic_peft.course.experiments import real_data, real_decoder
from pedagogic_peft.course.experiments.real_bench import hardware
from pedagogic_peft.course.experiments.store import Cell, run_missing
from pedagogic_peft.course.pocket.tasks import Example

RESULTS = Path(__file__).with_name("real_shots.jsonl")
TASK, SHOTS, SEEDS = "records", (1, 4), (0, 1, 2)


def examples(shots: int, seed: int) -> list[Example]:
    """Return the examples of a prompt: the first rows of the bench's run with this seed."""
    rows = real_data.sample(
        real_decoder.parts(TASK)[0], real_decoder.N, real_decoder.TRAINING + seed
    )
    return [real_decoder.TASKS[TASK].example(row) for row in rows[:shots]]


@torch.no_grad()
def run(shots: int, seed: int, base: str = real_decoder.BASE) -> Cell:
    """Ask the frozen base after ``shots`` examples; return its scores and the tokens of the examples."""
    model, tokenizer = real_decoder.load(base)
    model.eval()
    given = examples(shots, seed)
    ranking = real_decoder.parts(TASK)[2]
    encoded = real_decoder.encode(tokenizer, TASK, ranking, given)
    scores: dict[str, Any] = {
        "loss": real_decoder.loss_of(model, encoded, tokenizer.pad_token_id)
    } | real_decoder.text_scores(model, tokenizer, TASK, ranking, given)
    asked = [len(real_decoder.asked(tokenizer, TASK, "", shot)) for shot in (given, ())]
    found: Cell = {key: round(value, 4) for key, value in scores.items()}
    return found | {"tokens": asked[0] - asked[1], "hardware": hardware()}


def cells() -> list[Cell]:
    """Return every run."""
    return [{"shots": shots, "seed": seed} for shots in SHOTS for seed in SEEDS]


if __name__ == "__main__":
    run_missing(cells(), run, RESULTS)
