"""What the practical pages say of other programs, held against these programs."""

import json
from pathlib import Path

import peft
import pytest

from pedagogic_peft.core.method import Method

CHAPTERS = Path(__file__).parents[2] / "chapters"


def cells(page: str) -> dict[str, dict]:
    """Return {id: cell} of a page, its source as one string."""
    found = json.loads((CHAPTERS / f"{page}.ipynb").read_text(encoding="utf-8"))["cells"]
    return {cell["id"]: cell | {"source": "".join(cell["source"])} for cell in found}


def printed(cell: dict) -> str:
    return "".join("".join(output.get("text", "")) for output in cell["outputs"])


def listed() -> dict[str, set[str]]:
    """Return the methods that one library has and the other has not, from both."""
    theirs = {kind.value for kind in peft.PeftType}
    ours = {
        kind
        for (kind, _), method in Method.KINDS.items()
        if method.__module__.startswith("pedagogic_peft.")
    }
    return {"here only": ours - theirs, "in PEFT only": theirs - ours}


@pytest.mark.parametrize("side", ["here only", "in PEFT only"])
def test_the_pages_list_what_one_library_has_and_the_other_has_not(side):
    for page, text in (
        ("06_practice/with_hugging_face", printed(cells("06_practice/with_hugging_face")["lists"])),
        ("05_comparison/choosing", cells("05_comparison/choosing")["what-peft-has"]["source"]),
    ):
        _, _, rest = text.partition(f"{side}:")
        names = rest.split(":")[0].replace("`", " ").replace(",", " ").replace(".", " ").split()
        assert listed()[side] <= set(names), (page, listed()[side] - set(names))
        others = set().union(*listed().values()) - listed()[side]
        assert not others & set(names), (page, side)


def test_the_function_of_the_page_computes_what_the_harness_computes(tmp_path):
    pytest.importorskip("lm_eval")
    import lm_eval
    import numpy as np
    import torch
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from pedagogic_peft import load_base
    from pedagogic_peft.course.pocket import tasks

    page = cells("06_practice/evaluating")
    here: dict = {"np": np, "torch": torch}
    exec(page["harness-build"]["source"], here)
    model, tokenizer = load_base("pocket-gpt")
    choices, labels = ["frowned", "smiled at the waiter"], ["frowned", "smiled"]
    docs = [
        {"text": e.prompt, "choices": choices, "label": labels.index(e.answer)}
        for e in tasks.sentiment(30, seed=2)
    ]
    data = tmp_path / "reviews.jsonl"
    data.write_text("\n".join(json.dumps(doc) for doc in docs))
    task = page["harness-text"]["source"].split("```yaml\n")[1].split("```")[0]
    assert "tasks/reviews.jsonl" in task and '["frowned", "smiled"]' in task
    task = task.replace("tasks/reviews.jsonl", str(data))
    (tmp_path / "own.yaml").write_text(task.replace('["frowned", "smiled"]', json.dumps(choices)))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", add_bos_token=True)
    found = lm_eval.simple_evaluate(
        lm, tasks=["own_reviews"], task_manager=manager, log_samples=True
    )
    for doc, sample in zip(docs, found["samples"]["own_reviews"], strict=True):
        sums = torch.tensor([float(answer[0]) for answer in sample["filtered_resps"]])
        expected = here["choice_scores"](model, tokenizer, doc["text"], choices)
        torch.testing.assert_close(sums, expected, rtol=1e-4, atol=1e-3)
    scores = found["results"]["own_reviews"]
    expected = here["multiple_choice"](model, tokenizer, docs)
    assert [scores["acc,none"], scores["acc_norm,none"]] == pytest.approx(list(expected))
