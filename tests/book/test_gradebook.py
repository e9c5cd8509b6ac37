"""The gradebook: whose a submission is, points that a person gave, and the files that systems take."""

import csv
import json
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "assignments"))

import grade  # noqa: E402
import gradebook  # noqa: E402
from gradebook import Refused, Student  # noqa: E402

ANN = Student("100234", "Lee, Ann", "ann.lee@uni.example", canvas_id="77", login="alee")
BEN = Student("100235", "Ben Åkerman", "ben@uni.example")
CAT = Student("100236", "Cat Diaz", "cat@uni.example", submission="Untitled3 (1)")
ROSTER = {student.id: student for student in (ANN, BEN, CAT)}
QUESTIONS = [
    {"name": "merge", "points": 3, "manual": False},
    {"name": "explain", "points": 4, "manual": True},
]
PACKAGES = {"lora": grade.Package("lora", "Assignment 1: LoRA", QUESTIONS, [], {})}
HEAD = "id,name,email\n"


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_text(text, encoding=encoding)
    return path


# --- rosters ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "id,name,email,canvas_id\n007,Ann Lee,ann@uni.example,12\n",
        "ID;Name;Email;canvas_id\n007;Ann Lee;ann@uni.example;12\n",
        "\ufeffemail,canvas_id,name,id,group\n\nann@uni.example,12,Ann Lee,007,B\n",
    ],
)
def test_a_roster_is_read_as_spreadsheets_write_it(text, tmp_path):
    roster = gradebook.read_roster(write(tmp_path / "r.csv", text))
    assert roster == {"007": Student("007", "Ann Lee", "ann@uni.example", canvas_id="12")}


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "no column id, name, email"),
        ("id,name\n1,Ann\n", "no column email; expected id, name, email in the first line"),
        ("id,name,email,id\n", "the column id is there twice"),
        (HEAD, "no student"),
        (HEAD + "1,Ann,a@x\n2,,b@x\n", "line 3: no name"),
        (HEAD + "1,Ann,a@x\n1,Ben,b@x\n", "line 3: id '1' is line 2's already"),
        (HEAD + "1,Ann,a@x\n2,Ben,A@X\n", "line 3: email 'a@x' is line 2's already"),
        (HEAD + "1,Lee, Ann,a@x\n", "line 2: more cells than columns; quote commas"),
    ],
)
def test_a_bad_roster_is_refused_in_a_sentence(text, said, tmp_path):
    with pytest.raises(Refused) as refused:
        gradebook.read_roster(write(tmp_path / "r.csv", text))
    assert said in str(refused.value) and "r.csv" in str(refused.value)


def test_a_roster_in_another_encoding_is_refused(tmp_path):
    with pytest.raises(Refused, match="not UTF-8"):
        gradebook.read_roster(write(tmp_path / "r.csv", HEAD + "1,Åke,a@x\n", "cp1252"))


# --- whose a submission is ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "submission, student",
    [
        ("100234", ANN),
        ("lora_100235_final", BEN),
        ("Ben Åkerman_4711_assignsubmission_file/lora", BEN),  # as Moodle packs them
        ("leeann_77_901_lora", ANN),  # as Canvas does
        ("ann.lee", ANN),
        ("ann.lee@uni.example/lora", ANN),
        ("hand-in/alee", ANN),
        ("Untitled3 (1)", CAT),
    ],
)
def test_a_name_tells_whose_it_is(submission, student):
    assert gradebook.owners([submission], ROSTER) == {submission: student}


def test_a_submission_of_nobody_is_refused():
    with pytest.raises(Refused, match="handed in 'lora', 'x1', 'x2' .and 1 more."):
        gradebook.owners(["100234", "lora", "x1", "x2", "x3"], ROSTER)


def test_a_submission_that_may_be_two_students_is_refused():
    with pytest.raises(Refused, match="may be that of 100234, 100235"):
        gradebook.owners(["100234_100235"], ROSTER)


def test_a_number_that_moodle_wrote_is_not_anothers_id():
    with pytest.raises(Refused, match="may be that of 100234, 100235"):
        gradebook.owners(["Ben Åkerman_100234_assignsubmission_file/lora"], ROSTER)
    assert gradebook.owners(["Ben Åkerman_100235_lora"], ROSTER)


def test_a_short_number_inside_a_name_is_nobody_s():
    short = {"3": Student("3", "Ann Lee", "ann@x")}
    with pytest.raises(Refused, match="nobody"):
        gradebook.owners(["Untitled (3)"], short)
    assert gradebook.owners(["3_lora"], short)


def graded(submission: str, points: float) -> grade.Grade:
    return grade.Grade(
        submission, "lora", points={"merge": points}, possible=3, to_read=4,
        hints={"merge": [] if points == 3 else ["W0 is missing"]}, written={"explain": "It\nis."},
    )  # fmt: skip


def test_two_submissions_of_one_assignment_are_refused():
    owner = gradebook.owners(["100234", "alee"], ROSTER)
    with pytest.raises(Refused, match="100234 handed in lora twice: '100234' and 'alee'"):
        gradebook.one_each([graded("100234", 3), graded("alee", 1)], owner)


def notebook(*cells: str, title: str = "# Assignment 1: LoRA") -> str:
    text = {"cell_type": "markdown", "source": title}
    code = [{"cell_type": "code", "source": cell} for cell in cells]
    return json.dumps({"cells": [text, *code], "metadata": {}, "nbformat": 4})


def test_all_that_is_there_twice_is_told_before_anything_is_graded(tmp_path):
    names = ("100234", "alee", "Ben Åkerman_1_file/lora", "100235_late", "100236 holiday")
    for name in names:
        path = tmp_path / f"{name}.ipynb"
        path.parent.mkdir(exist_ok=True)
        write(path, "a picture" if "holiday" in name else notebook())
    found = grade.find_submissions(tmp_path)
    known = list(grade.ungraded(found, PACKAGES, ""))
    assert {g.submission for g in known} == set(names[:4])
    with pytest.raises(Refused) as refused:
        gradebook.one_each(known, gradebook.owners(found, ROSTER))
    assert "100234 handed in lora twice: '100234' and 'alee'" in str(refused.value)
    assert "100235 handed in lora twice: '100235_late' and 'Ben Åkerman" in str(refused.value)


def test_a_notebook_without_its_title_can_be_named_by_its_file(tmp_path):
    path = write(tmp_path / "hw1.ipynb", notebook(title="My homework"))
    with pytest.raises(ValueError, match="write one of lora into the file's name"):
        grade.opened(path, PACKAGES, "")
    assert grade.opened(path.rename(tmp_path / "hw1 lora.ipynb"), PACKAGES, "")[2].name == "lora"


@pytest.mark.parametrize("id, notes", [("100234", 0), ("", 0), ("100235", 1), ("Ann", 1)])
def test_the_data_of_another_student_are_noted(id, notes):
    own = graded("100234", 3)
    own.data_of = id
    found = gradebook.of_another(own, ANN)
    assert len(found) == notes
    assert all(note.startswith("read this one") and repr(id) in note for note in found)


def test_whose_the_data_are_is_asked_where_each_student_has_own_ones():
    package = grade.Package("project", "A project", [], [], {"try_blind": "look(lambda: STUDENT)"})
    names = {"STUDENT": "100234"}

    def look(what):
        return types.FunctionType(what.__code__, names)()

    assert grade.data_of(package, look) == "100234"
    assert grade.data_of(PACKAGES["lora"], look) == ""

    def gone(what):
        raise grade.StudentError("NameError: name 'STUDENT' is not defined")

    assert grade.data_of(package, gone) == ""


# --- points that a person gave ------------------------------------------------------------------

POINTS = "id,assignment,question,points,comment\n"


@pytest.mark.parametrize("line", ["100234,lora,explain,3.5,good", '100234,lora,explain,"3,5",good'])
def test_points_are_read(line, tmp_path):
    path = write(tmp_path / "p.csv", f"{POINTS}{line}\n100235,lora,explain,,\n")
    read = gradebook.read_points(path, ROSTER, PACKAGES)
    assert read == {("100234", "lora", "explain"): gradebook.Read(3.5, "good")}


@pytest.mark.parametrize(
    "line, said",
    [
        ("999,lora,explain,3", "no student '999' in the roster"),
        ("100234,lora,merge,3", "no written question 'lora/merge'; there are lora/explain"),
        ("100234,lora,explain,5", "points '5'; expected a number from 0 to 4"),
        ("100234,lora,explain,-1", "points '-1'; expected a number from 0 to 4"),
        ("100234,lora,explain,nan", "points 'nan'"),
        ("100234,lora,explain,good", "points 'good'"),
        ("100234,lora,explain,1\n100234,lora,explain,1", "line 3: lora/explain of 100234 is there"),
    ],
)
def test_bad_points_are_refused_in_a_sentence(line, said, tmp_path):
    with pytest.raises(Refused) as refused:
        gradebook.read_points(write(tmp_path / "p.csv", f"{POINTS}{line}\n"), ROSTER, PACKAGES)
    assert said in str(refused.value) and "p.csv, line" in str(refused.value)


# --- what is written ----------------------------------------------------------------------------


@pytest.fixture
def out(tmp_path) -> Path:
    """Two of three handed in; one written answer was read."""
    grades = [graded("Ben Åkerman_4711_assignsubmission_file/lora", 1), graded("100234", 3)]
    owner = gradebook.owners([g.submission for g in grades], ROSTER)
    read = {("100234", "lora", "explain"): gradebook.Read(3.5, "=good, " + "but long " * 60)}
    book = gradebook.Gradebook(ROSTER, PACKAGES, gradebook.one_each(grades, owner), read)
    said = gradebook.write_all(book, tmp_path)
    assert said[1:] == [
        f"1 written answers have no points yet: fill in {tmp_path / 'to_read.csv'}",
        "lora: nothing from 1 of 3 students",
    ]
    return tmp_path


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.reader(file))


def test_canvas_gets_a_column_with_its_points_possible(out):
    assert rows(out / "gradebook" / "canvas_lora_tests.csv") == [
        ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", "Assignment 1: LoRA (tests)"],
        ["Points Possible", "", "", "", "", "3"],
        ["Lee, Ann", "77", "100234", "alee", "", "3"],
        ["Ben Åkerman", "", "100235", "", "", "1"],
    ]


def test_who_has_no_points_is_in_no_table(out):
    """An empty cell would take away a grade that is there."""
    assert rows(out / "gradebook" / "moodle_lora_written.csv") == [
        ["ID number", "Full name", "Email address", "Assignment 1: LoRA (written)"],
        ["100234", "Lee, Ann", "ann.lee@uni.example", "3.5"],
    ]
    assert "100236" not in (out / "gradebook" / "canvas_lora_tests.csv").read_text()


def test_gradescope_s_autograder_gives_each_student_their_result(out, tmp_path):
    base = tmp_path / "autograder"
    with zipfile.ZipFile(out / "gradebook" / "gradescope_lora.zip") as archive:
        assert archive.getinfo("run_autograder").external_attr >> 16 & 0o111
        archive.extractall(base / "source")
    script = (base / "source" / "run_autograder").read_text().replace("/autograder", str(base))

    def result(email: str) -> dict:
        users = [{"email": email, "id": 1, "name": "n"}]
        write(base / "submission_metadata.json", json.dumps({"users": users}))
        subprocess.run([sys.executable, "-c", script], check=True)
        return json.loads((base / "results" / "results.json").read_text())

    ann = result("Ann.Lee@uni.example")
    assert ann["score"] == 6.5 and [t["name"] for t in ann["tests"]] == ["merge", "explain"]
    ben = result("ben@uni.example")
    assert ben["tests"] == [
        {"name": "merge", "score": 1, "max_score": 3, "output": "W0 is missing"}
    ]
    assert "Not graded yet" in result("cat@uni.example")["output"]


def test_feedback_goes_back_by_name_and_as_it_was_handed_in(out):
    with zipfile.ZipFile(out / "gradebook" / "feedback_by_name.zip") as archive:
        assert archive.namelist() == ["Lee, Ann (100234)/lora.md", "Ben Åkerman (100235)/lora.md"]
        page = archive.read("Lee, Ann (100234)/lora.md").decode()
        assert "## explain: 3.5 points\n\n=good, but long" in page and "> It\n> is." in page
        assert "explain: to be read" in archive.read("Ben Åkerman (100235)/lora.md").decode()
    with zipfile.ZipFile(out / "gradebook" / "feedback_as_handed_in.zip") as archive:
        assert "Ben Åkerman_4711_assignsubmission_file/lora.md" in archive.namelist()


def test_who_handed_in_no_notebook_is_told_so(tmp_path):
    names = ["100234", "100234/photo.png", "100235/essay\udcff.pdf"]
    owner = gradebook.owners(names, ROSTER)
    grades = [graded("100234", 3), *(grade.Grade(n, status="not a notebook") for n in names[1:])]
    of = gradebook.one_each(grades, owner)
    book = gradebook.Gradebook(ROSTER, PACKAGES, of, left=gradebook.not_graded(grades, owner, of))
    said = gradebook.write_all(book, tmp_path)
    assert "could not be graded, see `status` in grades.csv: what 100235 handed in" in said
    with zipfile.ZipFile(tmp_path / "gradebook" / "feedback_by_name.zip") as archive:
        names = ["Lee, Ann (100234)/lora.md", "Ben Åkerman (100235)/not graded 1.md"]
        assert archive.namelist() == names
        assert "Status: not a notebook" in archive.read(names[1]).decode()


def test_what_was_read_stays_in_the_table(out):
    comment = "=good, " + "but long " * 60
    assert rows(out / "to_read.csv") == [
        list(gradebook.TO_READ),
        ["100234", "Lee, Ann", "lora", "explain", "4", "3.5", comment],
        ["100235", "Ben Åkerman", "lora", "explain", "4", "", ""],
    ]
    again = gradebook.read_points(out / "to_read.csv", ROSTER, PACKAGES)
    assert again["100234", "lora", "explain"].comment == comment.strip()


def test_a_gradebook_that_fails_leaves_the_old_one(out, monkeypatch):
    before = {p: p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
    monkeypatch.setattr(gradebook, "write_to_read", lambda *_: 1 / 0)
    book = gradebook.Gradebook(ROSTER, PACKAGES, {("100234", "lora"): graded("100234", 0)})
    with pytest.raises(ZeroDivisionError):
        gradebook.write_all(book, out)
    assert {p: p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()} == before


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path, monkeypatch):
    """`grade.py` with a built assignment; what it grades is counted, and always right."""
    graded_now: list[str] = []

    class Here:  # in this process
        def __init__(self, jobs): ...
        def __enter__(self):
            return self

        def __exit__(self, *_): ...
        def map(self, work, paths, names):
            for name in names:
                graded_now.append(name)
                yield graded(name, 3)

    (tmp_path / "built" / "lora" / "autograder").mkdir(parents=True)
    about = {"title": "Assignment 1: LoRA", "questions": QUESTIONS, "reserved": []}
    write(tmp_path / "built" / "lora" / "assignment.json", json.dumps(about))
    zipfile.ZipFile(tmp_path / "built" / "lora" / "autograder" / "a.zip", "w").close()
    (tmp_path / "sent").mkdir()
    write(tmp_path / "sent" / "100234.ipynb", "{}")
    monkeypatch.setattr(grade, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(grade, "jail", lambda: True)

    def run(*more: str) -> list[str]:
        graded_now.clear()
        options = ["--built", str(tmp_path / "built"), "--out", str(tmp_path / "grades"), *more]
        monkeypatch.setattr(sys, "argv", ["grade.py", str(tmp_path / "sent"), *options])
        grade.main()
        return list(graded_now)

    return run


def test_a_second_run_grades_what_is_new_and_merges_what_was_read(command, tmp_path):
    write(tmp_path / "r.csv", HEAD + "100234,Ann Lee,a@x\n100235,Ben,b@x\n")
    roster = "--roster", str(tmp_path / "r.csv")
    assert command(*roster) == ["100234"]
    write(tmp_path / "sent" / "100235.ipynb", "{}")  # late
    path = tmp_path / "grades" / "to_read.csv"
    path.write_text(path.read_text("utf-8-sig").replace("explain,4,,", "explain,4,2,nice"))
    assert command(*roster) == ["100235"]
    assert command(*roster) == []
    assert rows(tmp_path / "grades" / "gradebook" / "canvas_lora_written.csv")[2][-1] == "2"
    assert [line[5:] for line in rows(path)[1:]] == [["2", "nice"], ["", ""]]
    write(tmp_path / "sent" / "100234.ipynb", "{ }")  # handed in again
    assert command(*roster) == ["100234"]
    assert command(*roster, "--again") == ["100234", "100235"]


def test_a_roster_that_does_not_fit_is_told_before_anything_is_graded(command, tmp_path):
    write(tmp_path / "r.csv", HEAD + "1,Ann Lee,a@x\n")
    with pytest.raises(SystemExit, match="nobody in the roster handed in '100234'"):
        command("--roster", str(tmp_path / "r.csv"))
    assert not (tmp_path / "grades").exists()
    with pytest.raises(SystemExit, match="needs ROSTER"):
        command("--manual", str(tmp_path / "p.csv"))
