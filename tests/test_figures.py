"""The figures that move: right data, the same output every time, bad input refused."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from pedagogic_peft.figures import (
    Slider,
    bars_explorable,
    explorable,
    frame_slider,
    rank_explorable,
)

ALT = "A curve whose height the reader sets."


@pytest.fixture
def matrix() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(12, 3)) @ rng.normal(size=(3, 20)) + 0.1 * rng.normal(size=(12, 20))


def data_of(figure) -> dict:
    line = re.search(r"const data = (.*);\n", figure.html).group(1)
    return json.loads(line.replace("<\\/", "</"))


def small(**changes):
    given = {"data": [1, 2], "sliders": [Slider("x", "x", [1, 2])], "script": "return at.x.value;"}
    return explorable(**(given | {"alt": ALT, "still": Figure()} | changes))


def test_rank_explorable_rebuilds_the_matrix(matrix):
    data = data_of(rank_explorable(matrix, 12))
    rebuilt = np.array(data["left"]).T @ np.array(data["right"])
    assert np.abs(rebuilt - matrix / np.abs(matrix).max()).max() < 0.01
    assert np.abs(np.array(data["matrix"]) / 255 - matrix / np.abs(matrix).max()).max() < 0.01


def test_rank_explorable_shows_the_true_error(matrix):
    data = data_of(rank_explorable(matrix, 5))
    for r in range(1, 6):
        u, s, v = np.linalg.svd(matrix)
        copy = (u[:, :r] * s[:r]) @ v[:r]
        error = 100 * np.linalg.norm(matrix - copy) / np.linalg.norm(matrix)
        assert data["errors"][r - 1] == pytest.approx(error, abs=0.051)


def test_the_same_data_give_the_same_output_and_other_data_another(matrix):
    first, again = rank_explorable(matrix, 4), rank_explorable(matrix.copy(), 4)
    assert first._repr_mimebundle_() == again._repr_mimebundle_()
    assert first.html != rank_explorable(2 * matrix + 1, 4).html


def test_the_signs_of_singular_vectors_do_not_matter(matrix):
    flipped = rank_explorable(matrix[::-1, ::-1], 3)
    data, back = data_of(rank_explorable(matrix, 3)), data_of(flipped)
    assert np.allclose(np.array(data["left"])[:, ::-1], back["left"], atol=2e-3)


def test_the_comparison_of_outputs_sees_the_summary(matrix):
    assert "rank 3: " in rank_explorable(matrix, 3)._repr_mimebundle_()["text/plain"]


def test_every_form_of_a_figure_is_given(matrix):
    bundle = rank_explorable(matrix, 3)._repr_mimebundle_()
    assert sorted(bundle) == ["image/png", "text/html", "text/plain"]
    assert bundle["image/png"].startswith("iVBOR")


def test_frame_slider_draws_one_picture_per_value():
    seen = []

    def draw(figure, value):
        seen.append(value)
        figure.subplots().plot([0, value])

    figure = frame_slider(draw, [1, 2, 4], label="height", alt=ALT)
    assert seen == [1, 2, 4]
    assert len(set(data_of(figure))) == 3
    assert "height = 4" in figure.html


def test_nothing_in_a_figure_is_loaded_from_elsewhere(matrix):
    assert "http" not in rank_explorable(matrix, 3).html


def test_text_cannot_break_out_of_the_page():
    page = small(
        data={"text": "</script><b>"}, alt='A "quoted" <b>bold</b> figure.', caption="a < b"
    ).html
    assert page.count("</script>") == 1
    assert "<b>" not in page.replace(json.dumps("<\\/script><b>"), "").split("<script>")[0]
    assert "a &lt; b" in page


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Slider("1x", "x", [1, 2]), "'1x'"),
        (lambda: Slider("x", "x", [1]), r"\[1\]"),
        (lambda: Slider("x", "x", [1, 2], start=2), "start=2"),
        (lambda: small(alt="short"), "'short'"),
        (lambda: small(data=float("nan")), "JSON"),
        (lambda: rank_explorable(np.zeros((4, 4)), 2), "all zero"),
        (lambda: rank_explorable(np.full((4, 4), np.nan), 2), "finite"),
        (lambda: rank_explorable(np.eye(4), 5), "max_rank=5"),
        (lambda: rank_explorable(np.eye(201), 3), r"\(201, 201\)"),
        (lambda: frame_slider(print, range(21), label="x", alt=ALT), "21 frames"),
    ],
)
def test_bad_input_is_refused_by_name(make, named):
    with pytest.raises(ValueError, match=named):
        make()


def test_importing_the_module_does_not_import_matplotlib():
    code = "import sys, pedagogic_peft.figures; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_bars_show_the_numbers_that_were_given():
    figure = bars_explorable(
        Slider("w", "weight", [0, 0.5, 1]), {"up": [0, 50, 100], "down": [9, 5, 1]}, "abc", alt=ALT
    )
    data = data_of(figure)
    assert data["bars"] == {"up": [0, 50, 100], "down": [9, 5, 1]}
    assert data["longest"] == 100
    assert "up: 0, 50, 100 %" in figure.text
    assert "weight: 0, 0.5, 1" in figure.text


def test_bars_of_another_number_than_the_slider_are_refused():
    with pytest.raises(ValueError, match="up: 1 entries for the 2 values"):
        bars_explorable(Slider("w", "w", [0, 1]), {"up": [1]}, "ab", alt=ALT)
    with pytest.raises(ValueError, match="sentences: 3 entries"):
        bars_explorable(Slider("w", "w", [0, 1]), {"up": [1, 2]}, "abc", alt=ALT)
