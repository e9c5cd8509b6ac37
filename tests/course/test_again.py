"""A stored run that comes out otherwise: words for a reader, an error in the gate."""

import pytest

from pedagogic_peft.course.experiments.again import GATE, as_stored

WHAT = "after 100 steps the loss is 0.99, stored 1.02"


def test_what_agrees_prints_nothing(capsys, monkeypatch):
    for gate in ("", "1"):
        monkeypatch.setenv(GATE, gate)
        as_stored(True, WHAT)
    assert capsys.readouterr().out == ""


def test_a_reader_is_told_what_differs_and_goes_on(capsys, monkeypatch):
    monkeypatch.delenv(GATE, raising=False)
    as_stored(0.99 == 1.02, WHAT)
    said = capsys.readouterr().out
    assert WHAT in said and "torch 2." in said


def test_the_gate_stops(capsys, monkeypatch):
    monkeypatch.setenv(GATE, "1")
    with pytest.raises(AssertionError, match="stored 1.02"):
        as_stored(False, WHAT)
