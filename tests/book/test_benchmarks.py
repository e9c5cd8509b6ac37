"""The stored benchmarks: of cases that are there, none missed without a reason, shown as they are."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import report  # noqa: E402
from benchmarks.measure import interleaved, peak_bytes, ratio, ratio_of_medians  # noqa: E402

FOLDER = ROOT / "benchmarks"
RECORDS = [json.loads(line) for line in (FOLDER / "results-cpu.jsonl").read_text().splitlines()]


def test_what_is_stored_is_a_case_with_its_targets():
    from benchmarks.cases import BOTTLENECKS, CASES

    stored = {(r["case"], r["setting"]): r["measures"] for r in RECORDS}
    expected = {(n, s) for n, case in CASES.items() for s in case.settings}
    expected |= {("bottleneck adapters", s) for s in BOTTLENECKS}
    assert set(stored) <= expected and len(stored) == len(RECORDS)
    for (name, _), measures in stored.items():
        targets = {k: m["at_most"] for k, m in measures.items() if "at_most" in m}
        assert targets == CASES[name].targets


def test_every_miss_has_a_reason():
    for row in report.rows(RECORDS, FOLDER):
        assert "unexplained" not in row[-1], row


def test_a_miss_is_called_one(tmp_path):
    (tmp_path / "reasons.toml").write_text('[step]\n"a / b" = "too slow"\n')
    over = {"value": 1.2, "low": 1.1, "high": 1.3, "at_most": 1.0}
    records = [{"case": "step", "setting": "s", "measures": {"a / b": over}}]
    assert report.rows(records, tmp_path)[0][3:] == ["1.2 (1.1 to 1.3)", "≤ 1", "MISSED: too slow"]
    over["value"] = 0.9
    assert report.rows(records, tmp_path)[0][-1] == "met"


def test_ratios_are_taken_within_a_round():
    clock = iter(range(10, 1000))
    times = interleaved({"a": lambda: 2.0 * next(clock), "b": lambda: 1.0 * next(clock)}, 20)
    assert len(times["a"]) == len(times["b"]) == 20
    assert 1.8 < ratio(times, "a", "b")["value"] < 2.2  # though the clock drifts


def test_a_ratio_of_medians_outlives_differences_near_zero():
    found = ratio_of_medians([0.9, 1.0, 1.1, 1.0, 1.0], [2.0, 2.1, 0.1, 1.9, 2.0])
    assert found["value"] == 0.5 and found["low"] <= 0.5 <= found["high"] < 1


def test_peak_memory_counts_allocations():
    import torch

    weight = torch.nn.Parameter(torch.zeros(1000))
    model = torch.nn.Module()
    model.register_parameter("weight", weight)

    def step() -> None:
        held = torch.zeros(5000)
        del held
        torch.zeros(3000)

    assert peak_bytes(model, step) == 4 * (1000 + 5000)
