"""The figures that move: right data, the same output every time, bad input refused."""

import json
import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from pedagogic_peft.course.explorables import bars
from pedagogic_peft.course.explorables.diagram import _diagram_still, _lay_out
from pedagogic_peft.course.explorables.drawings import DRAWINGS, WIDTH, _summed
from pedagogic_peft.course.explorables.memory_calculator import memory_calculator
from pedagogic_peft.course.figures import (
    Box,
    Check,
    Curves,
    Diagram,
    HeatMap,
    Select,
    Slider,
    bars_explorable,
    calculator_explorable,
    chooser_explorable,
    collisions,
    curves_explorable,
    diagram_explorable,
    drawing,
    explorable,
    frame_slider,
    heatmap_explorable,
    live,
    name_dots,
    rank_explorable,
    use_style,
)
from pedagogic_peft.course.memory import Decoder

ALT = "A curve whose height the reader sets."


@pytest.fixture
def matrix() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(12, 3)) @ rng.normal(size=(3, 20)) + 0.1 * rng.normal(size=(12, 20))


def data_of(figure) -> dict:
    line = re.search(r"const data = (.*);\n", figure.html).group(1)
    return json.loads(line.replace("<\\/", "</"))


def small(**changes):
    given = {"data": [1, 2], "controls": [Slider("x", "x", [1, 2])], "script": "return at.x.value;"}
    return explorable(**(given | {"alt": ALT, "still": Figure()} | changes))


def heat(controls=None, **changes):
    given = {"rows": ["a", "b"], "columns": ["x", "y", "z"], "say": "Look."}
    given["values"] = np.arange(6).reshape(2, 3) / 3
    controls = controls or [Slider("k", "k", [1, 2])]
    return heatmap_explorable(lambda k: HeatMap(**(given | changes)), controls, alt=ALT)


def curves(y=1, **options):
    def compute(k):
        return Curves({"a": [(1, y), (2, 2 * k)]}, f"It ends at {2 * k}.")

    return curves_explorable(compute, [Slider("k", "k", [1, 2])], x="x", y="y", alt=ALT, **options)


def diagram(*arrows):
    boxes = [Box("in", "x", "data", 0), Box("map", "W", "frozen", 1), Box("out", "h", "data", 2)]
    side = Box("side", "BA", "trained", 1, 1)

    def compute(k):
        return Diagram([*boxes, side][: 3 + k], arrows, f"{k} updates")

    return diagram_explorable(compute, [Slider("k", "k", [0, 1])], alt=ALT)


def calculator(compute):
    sizes = Slider("n", "parameters", [1, 2, 4])
    return calculator_explorable(compute, "return {weights: at.n};", [sizes], alt=ALT, unit="GB")


def chooser(advise):
    questions = [Select("size", "size", ["small", "large"]), Select("n", "n", [1, 2, 3])]
    return chooser_explorable(questions, advise, alt=ALT)


def ranked(size, n):
    if size == "large":
        return [("LoRA", True, ["it fits"]), ("full", False, ["too large", f"{n} tasks"])]
    return [("full", True, ["small"]), ("LoRA", True, [])]


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
    assert "http" not in rank_explorable(matrix, 3).html.replace("http://www.w3.org/2000/svg", "")


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
        (lambda: small(controls=[Slider("x", "x", [1, 2]), Check("x", "y")]), "of its own"),
        (lambda: Slider("x", "x", [1, 2], shown=["one"]), "expected 2"),
        (lambda: heat(rows=["a"]), r"\(2, 3\): expected \(1, 3\)"),
        (lambda: heat(values=np.full((2, 3), np.inf)), "finite"),
        (lambda: heat(controls=[Slider("k", "k", range(201))]), "201 settings"),
        (lambda: curves(log_y=True, y=0), "y=0.0: expected numbers that are above zero"),
        (lambda: curves(y=float("nan")), "finite"),
        (lambda: Box("a", "a", "frozn", 0), "'frozn': expected one of frozen"),
        (lambda: diagram(("in", "nowhere")), "no box 'nowhere'"),
        (lambda: calculator(lambda n: {"weights": -n}), "-1"),
        (lambda: chooser(lambda size, n: ranked("large", n)[::-1]), "stands before a possible one"),
    ],
)
def test_bad_input_is_refused_by_name(make, named):
    with pytest.raises(ValueError, match=named):
        make()


def test_importing_the_module_does_not_import_matplotlib():
    code = "import sys, pedagogic_peft.course.figures; sys.exit('matplotlib' in sys.modules)"
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


def test_a_logarithmic_still_has_no_place_for_zero():
    slider = Slider("model", "model", ["small", "large"])
    figure = bars_explorable(slider, {"a": [10, 0.1], "b": [1, 0.01]}, "ab", alt=ALT, log=True)
    assert "a: 10, 0.1 %" in figure.text
    with pytest.raises(ValueError, match="log: a length is 0"):
        bars_explorable(slider, {"a": [10, 0]}, "ab", alt=ALT, log=True)


@pytest.mark.parametrize("values", [[1, 8], ["small", "large"]])
def test_the_still_of_bars_says_what_each_place_stands_for(values):
    axes = Figure().subplots()
    bars._draw(axes, Slider("r", "rank", values, shown=("few", "many")), {"a": [1, 2]}, log=False)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["few", "many"]


def test_bars_of_another_number_than_the_slider_are_refused():
    with pytest.raises(ValueError, match="up: 1 entries for the 2 values"):
        bars_explorable(Slider("w", "w", [0, 1]), {"up": [1]}, "ab", alt=ALT)
    with pytest.raises(ValueError, match="sentences: 3 entries"):
        bars_explorable(Slider("w", "w", [0, 1]), {"up": [1, 2]}, "abc", alt=ALT)


def test_a_heat_map_holds_what_was_computed_at_every_setting():
    controls = [Slider("k", "k", [1, 2]), Check("half", "half")]

    def compute(k, half):
        values = [[0, k / (1 + half)]]
        return HeatMap(["row"], ["left", "right"], values, f"k is {k}, half is {half}")

    figure = heatmap_explorable(compute, controls, alt=ALT)
    data = data_of(figure)
    assert {key: one["values"] for key, one in data["frames"].items()} == {
        "0,0": [[0, 1]], "0,1": [[0, 0.5]], "1,0": [[0, 2]], "1,1": [[0, 1]],
    }  # fmt: skip
    assert (data["low"], data["high"]) == (0, 2)
    assert "k is 2, half is True" in figure.text


def test_a_heat_map_with_negative_numbers_has_white_at_zero():
    data = data_of(heat(values=[[-1, 0, 1], [2, 0, 0]]))
    assert (data["low"], data["high"]) == (-2, 2)
    assert data["colours"][len(data["colours"]) // 2] == [255, 255, 255]


def test_curves_share_axes_that_hold_every_setting():
    figure = curves(y=3)
    box = data_of(figure)["box"]
    assert box["x0"] <= 1 and box["x1"] >= 2 and box["y0"] <= 2 and box["y1"] >= 4
    assert figure.text.endswith("It ends at 2.\nIt ends at 4.")


def test_a_diagram_draws_every_box_and_every_arrow_in_its_frame():
    frames = data_of(diagram(("in", "map"), ("in", "out"), ("map", "out")))["frames"]
    assert [len(frame["boxes"]) for frame in frames.values()] == [3, 4]
    for frame in frames.values():
        assert len(frame["arrows"]) == 3
        corners = [corner for arrow in frame["arrows"] for corner in arrow]
        assert all(0 <= x <= frame["width"] and 0 <= y <= frame["height"] for x, y in corners)
        assert all(box["x"] + box["w"] <= frame["width"] for box in frame["boxes"])


def test_a_calculator_carries_pythons_results_for_the_browser_to_compare():
    data = data_of(calculator(lambda n: {"weights": 3 * n}))
    assert len(data["checks"]) == 25
    for (position,), parts in data["checks"]:
        assert parts == {"weights": 3 * [1, 2, 4][position]}


def test_the_memory_calculator_names_what_the_reader_may_choose():
    figure = memory_calculator(
        dict.fromkeys(("a", "b"), Decoder("llama", 2, 16, 32, 2, 100, 16)), "a"
    )
    for name in ("rank of LoRA", "gradient checkpointing", "chunked cross-entropy", "T4, 16 GB"):
        assert f">{name}<" in figure.html


def test_a_chooser_holds_what_the_function_says_of_every_combination():
    data = data_of(chooser(ranked))
    assert data["questions"] == [["size", 2], ["n", 3]]
    cases = [(size, n) for size in ("small", "large") for n in ("1", "2", "3")]
    for case, number in zip(cases, data["cases"], strict=True):
        lines = [data["lines"][i] for i in data["rankings"][number]]
        found = [(data["texts"][o], bool(f), [data["texts"][r] for r in rs]) for o, f, rs in lines]
        assert found == ranked(*case)
    assert len(data["rankings"]) == 4  # the three of "small" are one


def test_a_chooser_says_its_ranking_to_who_cannot_see_it():
    assert "1. full: small\n2. LoRA:" in chooser(ranked).text
    large = chooser(lambda size, n: ranked("large", n)).text
    assert "1. LoRA: it fits\nexcluded: full: too large; 1 tasks" in large


def test_live_controls_are_one_sentence_where_nobody_can_move_them(monkeypatch, capsys):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    live(print, r=[1, 2])
    assert "JupyterLab" in capsys.readouterr().out


def test_live_controls_run_the_function_with_what_the_reader_chose(monkeypatch):
    shown, seen = [], []
    monkeypatch.setenv("JPY_SESSION_NAME", "page.ipynb")
    monkeypatch.setattr("IPython.display.display", shown.append)
    live(lambda r, alpha: seen.append((r, alpha)), r=[1, 2, 4], alpha=[8, 16])
    rank, alpha, button, _ = shown[0].children
    rank.value, alpha.value = 4, 16
    button.click()
    assert seen == [(4, 16)]


def test_figures_carry_the_data_they_are_given():
    assert data_of(curves(log_y=True))["logY"] is True and data_of(curves())["logY"] is False
    matrix = np.arange(6.0).reshape(2, 3) + 1
    assert data_of(rank_explorable(matrix, 2, alt=ALT))["name"] == "ΔW"
    assert data_of(rank_explorable(matrix, 2, alt=ALT, name="W"))["name"] == "W"
    assert Slider("k", "k", [1, 2]).html().endswith('aria-hidden="true"></span></label>')


def drawn(*boxes, arrow):
    return _lay_out(
        Diagram([Box(n, n, "frozen", row, column) for n, row, column in boxes], [arrow], "")
    )


def test_an_arrow_bends_in_the_gap_between_rows_and_ends_at_the_box():
    column = [("a", 0, 0), ("b", 1, 0), ("c", 2, 0)]
    boxes, round_it = (drawn(*column, arrow=("a", "c"))[key] for key in ("boxes", "arrows"))
    away = drawn(*column, ("d", 2, 1), arrow=("a", "d"))["arrows"]
    for (line,) in (round_it, away):
        assert boxes[1]["y"] + boxes[1]["h"] < line[1][1] < boxes[0]["y"]
    beside = drawn(("a", 0, 0), ("b", 0, 1), arrow=("a", "b"))
    (left, right), ((start, end),) = beside["boxes"], beside["arrows"]
    assert start[0] == left["x"] + left["w"] and end[0] == right["x"]


def test_the_still_of_a_diagram_is_as_wide_as_the_diagram():
    frame = drawn(("a", 0, 0), ("b", 0, 1), arrow=("a", "b"))
    width, height = _diagram_still(frame).get_size_inches()
    assert width / height == pytest.approx(frame["width"] / frame["height"], rel=0.01)


def test_the_books_figures_are_wide_and_low():
    import matplotlib.pyplot as plt

    with plt.rc_context():
        use_style()
        assert plt.rcParams["figure.figsize"] == [6.0, 3.2]


@pytest.mark.parametrize("place", ["lora", "serving", "tasks", "prompt"])
def test_a_figure_in_which_the_reader_trains_is_a_still_elsewhere(place):
    from pedagogic_peft.course.figures import alive

    figure = alive(place)
    assert f'data-alive="{place}"' in figure.html and "<script" not in figure.html
    assert '<button type="button" hidden>' in figure.html  # the site's script shows it
    assert "<svg" in figure.html or "<table" in figure.html
    assert figure.png.startswith(b"\x89PNG") and len(figure.text.splitlines()) > 2
    assert len(figure.html) < 6_000  # what a page weighs before the button is pressed


def test_a_place_that_is_not_there_is_named():
    from pedagogic_peft.course.figures import alive

    with pytest.raises(ValueError, match="place='loar': expected one of lora, serving"):
        alive("loar")


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_is_legible_on_a_phone_and_in_both_themes(name):
    """Letters of ten pixels on a page 342 wide; lines and letters have the colour of the text around them."""
    made = drawing(name)
    tree = ElementTree.fromstring(made.svg)
    sizes = [float(text.get("font-size")) for text in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert len(sizes) > 8 and min(sizes) * 342 / WIDTH > 10
    strokes = {part.get("stroke") for part in tree.iter()} - {None}
    assert strokes <= {"currentColor", "none"} and 'fill="currentColor"' in made.html
    assert len(tree.get("aria-label")) > 100 and tree.get("aria-label") in made.text
    assert made._repr_mimebundle_() == drawing(name)._repr_mimebundle_()


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_stays_in_its_frame(name):
    draw, *_ = DRAWINGS[name]
    sketch = draw()
    for part in sketch.parts:
        box = dict(re.findall(r'([\w-]+)="([-\d.]+)"', part))
        points = [point.split(",") for point in re.findall(r"[-\d.]+,[-\d.]+", part)]
        xs = [float(x) for x, _ in points] + [float(box[k]) for k in ("x", "cx") if k in box]
        ys = [float(y) for _, y in points] + [float(box[k]) for k in ("y", "cy") if k in box]
        right, bottom = max(xs) + float(box.get("width", 0)), max(ys) + float(box.get("height", 0))
        assert min(xs) >= 0 and right <= WIDTH and min(ys) >= 0 and bottom <= sketch.height, part


def test_a_drawing_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="name='loar': expected one of lora, prefix"):
        drawing("loar")


def test_the_ring_of_the_drawing_adds_up_what_an_all_reduce_does():
    for processes in (2, 4, 5):
        half = _summed(processes, processes - 1)
        assert [row.count(processes) for row in half] == [1] * processes
        assert _summed(processes, 2 * (processes - 1)) == [[processes] * processes] * processes


def crowded():
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(4, 3))
    dots = {f"method {i}": (0.5 + 0.01 * (i % 3), 0.5 + 0.01 * i) for i in range(8)}
    for place in dots.values():
        ax.plot(*place, "o")
    ax.plot([0, 1], [0.5, 0.6], "-")
    ax.set(xlim=(0, 1), ylim=(0, 1))
    return figure, ax, dots


def test_names_beside_dots_lie_over_nothing():
    figure, ax, dots = crowded()
    name_dots(ax, dots)
    assert not collisions(figure)
    boxes = {text.get_text(): text.get_window_extent() for text in ax.texts if text.get_text()}
    assert boxes.keys() == dots.keys()
    for place in dots.values():
        x, y = ax.transData.transform(place)
        assert not any(box.contains(x, y) for box in boxes.values())


def test_a_name_may_stand_within_a_curve_that_bends_round_it():
    figure = Figure(figsize=(4, 4))
    ax = figure.subplots()
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.plot([0.3, 0.5, 0.7], [0, 0.9, 0], "-")
    name_dots(ax, {"x": (0.5, 0.3)})
    [name] = [text for text in ax.texts if text.get_text()]
    assert name.get_position() == (5, 0)  # the nearest place, though the curve goes round it


def test_words_over_words_and_a_legend_over_dots_are_found():
    figure, ax, dots = crowded()
    for name, place in dots.items():
        ax.annotate(name, place)
    assert len(collisions(figure)) > 3 and "'method 0' over 'method" in collisions(figure)[0]
    figure, ax, _ = crowded()
    ax.lines[0].set_label("a long name of a line")
    ax.legend(loc="center")
    assert collisions(figure) == ["the legend over a dot"]


def test_the_gate_refuses_a_figure_whose_words_collide(monkeypatch):
    import matplotlib.pyplot as plt

    plt.close("all")
    monkeypatch.setenv("PEDAGOGIC_PEFT_GATE", "1")
    monkeypatch.setattr(plt, "show", lambda: None)
    with plt.rc_context():
        use_style()
        _, ax, dots = crowded()
        plt.show()
        for name, place in dots.items():
            ax.annotate(name, place)
        with pytest.raises(AssertionError, match="in a figure: 'method 0' over"):
            plt.show()
    plt.close("all")
