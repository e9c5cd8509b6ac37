"""From grades to a gradebook: whose a submission is, what a person read, and files that systems take.

    make grade SUBMISSIONS=folder ROSTER=roster.csv [MANUAL=to_read.csv]

The formats, and where they are described:

* Canvas: "Student", "ID", "SIS User ID", "SIS Login ID", "Section", then a column for an assignment, with
  a row "Points Possible" (instructure/canvas-lms, lib/gradebook_importer.rb).
* Moodle: any columns; "Email address" or "ID number" is mapped to the user (https://docs.moodle.org,
  "Grade import"). Feedback files go back in the folders that "Download all submissions" made
  (moodle/moodle, mod/assign/feedback/file/importziplib.php).
* Gradescope takes no table of points for programming assignments. An autograder does: this one gives each
  student the result that is ready ("Autograder Specifications" and "Submission Metadata",
  https://gradescope-autograders.readthedocs.io).

Both Canvas and Moodle read an empty cell as "no grade", and would take a grade away. So each file has one
column of points, and only the students who have some.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import tempfile
import unicodedata
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feedback import feedback_page

if TYPE_CHECKING:
    from grade import Grade, Package

REQUIRED = ("id", "name", "email")
UNIQUE = ("id", "email", "canvas_id", "login")
TO_READ = ("id", "name", "assignment", "question", "possible", "points", "comment")
Key = tuple[str, str]  # id of a student, name of an assignment


class Refused(ValueError):
    """A roster, a table of points, or names of submissions that do not fit together; says where."""


@dataclass(frozen=True)
class Student:
    """A line of the roster. What is not required may be missing."""

    id: str  # the institution's number, Canvas's "SIS User ID", Moodle's "ID number"
    name: str
    email: str
    canvas_id: str = ""  # Canvas's own number, its export's column "ID"
    login: str = ""
    section: str = ""
    submission: str = ""  # the name of the file or folder, where it tells nothing else


@dataclass(frozen=True)
class Read:
    """What a person gave for a written answer."""

    points: float
    comment: str = ""


# --- what is read ---------------------------------------------------------------------------------


def read_table(path: Path, required: Iterable[str]) -> list[tuple[int, dict[str, str]]]:
    """Return the lines of a CSV with their numbers; also with semicolons, as some spreadsheets write.

    Raises:
        Refused: it is no text in UTF-8, or a column is missing.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise Refused(f"{path}: not UTF-8. Save it as 'CSV UTF-8'") from None
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}") from None
    head = text.partition("\n")[0]
    lines = csv.DictReader(io.StringIO(text), delimiter=";" if head.count(";") else ",", restval="")
    names = [name.strip().lower() for name in lines.fieldnames or ()]
    lines.fieldnames = names
    if missing := [name for name in required if name not in names]:
        what = f"no column {', '.join(missing)}; expected {', '.join(required)} in the first line"
        raise Refused(f"{path}: {what}, found {', '.join(names) or 'nothing'}")
    if twice := sorted({name for name in names if name and names.count(name) > 1}):
        raise Refused(f"{path}: the column {twice[0]} is there twice")
    found = []
    for line in lines:
        if None in line:
            raise Refused(f"{path}, line {lines.line_num}: more cells than columns; quote commas")
        cells = {name: (cell or "").strip() for name, cell in line.items()}
        if any(cells.values()):
            found.append((lines.line_num, cells))
    return found


def read_roster(path: Path) -> dict[str, Student]:
    """Return ``{id: student}``.

    Raises:
        Refused: a column is missing, a cell that is needed is empty, or two lines have one id, email, login.
    """
    known = {f.name for f in fields(Student)}
    roster: dict[str, Student] = {}
    lines: dict[tuple[str, str], int] = {}
    for number, cells in read_table(path, REQUIRED):
        if empty := [name for name in REQUIRED if not cells[name]]:
            raise Refused(f"{path}, line {number}: no {empty[0]}")
        student = Student(**{name: cell for name, cell in cells.items() if name in known})
        for name in UNIQUE:
            value = getattr(student, name).casefold()
            if value and (name, value) in lines:
                before = lines[name, value]
                raise Refused(f"{path}, line {number}: {name} {value!r} is line {before}'s already")
            lines[name, value] = number
        roster[student.id] = student
    if not roster:
        raise Refused(f"{path}: no student")
    return roster


def read_points(
    path: Path, roster: Mapping[str, Student], packages: Mapping[str, Package]
) -> dict[tuple[str, str, str], Read]:
    """Return ``{(id, assignment, question): what was given}``; lines without points are still to be read.

    Raises:
        Refused: a student or a question is unknown, or points are none that the question has.
    """
    possible = {
        (p.name, q["name"]): q["points"]
        for p in packages.values()
        for q in p.questions
        if q["manual"]
    }
    given: dict[tuple[str, str, str], Read] = {}
    for number, cells in read_table(path, ("id", "assignment", "question", "points")):
        where, question = f"{path}, line {number}", (cells["assignment"], cells["question"])
        if cells["id"] not in roster:
            raise Refused(f"{where}: no student {cells['id']!r} in the roster")
        if question not in possible:
            known = ", ".join("/".join(each) for each in possible)
            raise Refused(f"{where}: no written question {'/'.join(question)!r}; there are {known}")
        key = (cells["id"], *question)
        if key in given:
            raise Refused(f"{where}: {'/'.join(question)} of {cells['id']} is there twice")
        if cells["points"]:
            given[key] = Read(
                number_of(cells["points"], possible[question], where), cells.get("comment", "")
            )
    return given


def number_of(text: str, possible: float, where: str) -> float:
    """Return the points that a cell gives, 0 to ``possible``; a comma may stand for the point."""
    try:
        points = float(text.replace(",", "."))
    except ValueError:
        points = math.nan
    if not 0 <= points <= possible:
        raise Refused(f"{where}: points {text!r}; expected a number from 0 to {possible:g}")
    return points


# --- whose a submission is ------------------------------------------------------------------------


def owners(names: Iterable[str], roster: Mapping[str, Student]) -> dict[str, Student]:
    """Return ``{submission: student}``.

    Raises:
        Refused: a submission is nobody's, or may be that of several students.
    """
    found, nobody = {}, []
    for name in names:
        students = candidates(name, roster.values())
        if len(students) > 1:
            several = ", ".join(sorted(student.id for student in students))
            what = f"the submission {name!r} may be that of {several}"
            raise Refused(f"{what}: write its name into the column `submission` of one of them")
        if students:
            found[name] = students[0]
        else:
            nobody.append(name)
    if nobody:
        more = f" (and {len(nobody) - 3} more)" if len(nobody) > 3 else ""
        what = f"nobody in the roster handed in {', '.join(map(repr, nobody[:3]))}{more}"
        hint = "a name holds a student's id, email, login or name, or stands in `submission`"
        raise Refused(f"{what}: {hint}")
    return found


def candidates(submission: str, students: Iterable[Student]) -> list[Student]:
    """Return the students whose this file may be: by what was said, by a number, else by a name.

    A number may be another's: Moodle and Canvas write numbers of their own beside a name. So where a number
    and a name point to different students, all of them are returned.
    """
    students, parts = list(students), submission.split("/")
    said = [s for s in students if s.submission.removesuffix(".ipynb") in (submission, *parts)]
    if said:
        return said
    beginnings = {letters(part.split("_")[0]) for part in parts}  # Moodle's and Canvas's begin so
    named = [s for s in students if beginnings & names_of(s)]
    for keys in (("id", "email", "canvas_id", "login"), ("mailbox",)):
        numbers = [s for s in students if any(stands_in(key_of(s, k), parts) for k in keys)]
        if numbers:
            agree = not named or any(s in named for s in numbers)
            return numbers if agree else [*numbers, *named]
    return named


def key_of(student: Student, key: str) -> str:
    return student.email.split("@")[0] if key == "mailbox" else str(getattr(student, key))


def stands_in(key: str, parts: list[str]) -> bool:
    """Tell whether a part is the key, or holds it as a word: a short one only at its beginning."""
    word = rf"(?<![a-z0-9]){re.escape(key.casefold())}(?![a-z0-9])"
    look = re.search if len(key) >= 4 else re.match
    return bool(key) and any(look(word, part.casefold()) for part in parts)


def letters(text: str) -> str:
    """Return the letters only, small and without accents."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in plain if c.isalpha())


def names_of(student: Student) -> set[str]:
    """Return a name as it is, and with the last word, or what stands before a comma, at the other end."""
    last, comma, first = student.name.partition(",")
    if not comma:
        first, _, last = student.name.rpartition(" ")
    return {letters(first + last), letters(last + first)}


def one_each(grades: Iterable[Grade], owner: Mapping[str, Student]) -> dict[Key, Grade]:
    """Return ``{(student, assignment): grade}``.

    Raises:
        Refused: students handed in one assignment twice.
    """
    found: dict[Key, list[Grade]] = {}
    for grade in grades:
        if grade.assignment:
            key = owner[grade.submission].id, grade.assignment
            found.setdefault(key, []).append(grade)
    twice = [
        f"{student} handed in {assignment} twice: {' and '.join(repr(g.submission) for g in some)}"
        for (student, assignment), some in found.items()
        if len(some) > 1
    ]
    if twice:
        raise Refused("; ".join(twice) + ". Leave the one that counts")
    return {key: grade for key, [grade] in found.items()}


def of_another(grade: Grade, student: Student) -> list[str]:
    """Return a note if a submission works on the data that another id gives."""
    if not grade.data_of or grade.data_of.casefold() == student.id.casefold():
        return []
    return [f"read this one: its data are those of {grade.data_of!r}, not of {student.id!r}"]


def not_graded(
    grades: Iterable[Grade], owner: Mapping[str, Student], graded: Mapping[Key, Grade]
) -> list[tuple[str, Grade]]:
    """Return ``[(student, grade)]`` of what is no notebook, or nobody knows whose exercise.

    Not what a student handed in beside a notebook that was graded, a picture, say.
    """
    have = {student for student, _ in graded}
    nothing = [(owner[g.submission].id, g) for g in grades if not g.assignment]
    return [(student, grade) for student, grade in nothing if student not in have]


# --- what is written ------------------------------------------------------------------------------


@dataclass
class Gradebook:
    """All that goes into the files."""

    roster: Mapping[str, Student]
    packages: Mapping[str, Package]
    grades: Mapping[Key, Grade]
    given: Mapping[tuple[str, str, str], Read] = field(default_factory=dict)
    left: Iterable[tuple[str, Grade]] = ()  # of students who get no points, but are told why

    def written(self, assignment: str) -> list[dict[str, Any]]:
        return [q for q in self.packages[assignment].questions if q["manual"]]

    def reads(self, student: str, assignment: str) -> dict[str, Read]:
        """Return ``{question: what was given}``."""
        keys = {q["name"]: (student, assignment, q["name"]) for q in self.written(assignment)}
        return {name: self.given[key] for name, key in keys.items() if key in self.given}

    def columns(self) -> Iterable[tuple[str, str, float, dict[str, float]]]:
        """Yield each column: its file's stem, its title, its maximum, and ``{id: points}``."""
        for name in sorted({assignment for _, assignment in self.grades}):
            package = self.packages[name]
            tests = {s: sum(g.points.values()) for (s, a), g in self.grades.items() if a == name}
            automatic = sum(q["points"] for q in package.questions if not q["manual"])
            yield f"{name}_tests", f"{package.title} (tests)", automatic, tests
            manual = self.written(name)
            reads = {student: self.reads(student, name) for student in self.roster}
            done = {
                s: sum(r.points for r in some.values())
                for s, some in reads.items()
                if manual and len(some) == len(manual)
            }
            most = sum(q["points"] for q in manual)
            yield f"{name}_written", f"{package.title} (written)", most, done


def write_all(book: Gradebook, out: Path) -> list[str]:
    """Write the folder ``gradebook`` and ``to_read.csv``: all of it, or nothing. Return what to say."""
    with tempfile.TemporaryDirectory(dir=out, prefix=".gradebook-") as name:
        new = Path(name) / "gradebook"
        new.mkdir()
        for stem, title, most, points in book.columns():
            if points:
                write_canvas(book, new / f"canvas_{stem}.csv", title, most, points)
                write_moodle(book, new / f"moodle_{stem}.csv", title, points)
        for assignment in sorted({assignment for _, assignment in book.grades}):
            write_gradescope(book, new / f"gradescope_{assignment}.zip", assignment)
        write_feedback(book, new)
        to_read = Path(name) / "to_read.csv"
        left = write_to_read(book, to_read)
        old = out / "gradebook"
        if old.exists():
            old.rename(Path(name) / "old")
        new.rename(old)
        os.replace(to_read, out / "to_read.csv")
    said = [f"{old}: {len(list(old.iterdir()))} files"]
    if left:
        said.append(f"{left} written answers have no points yet: fill in {out / 'to_read.csv'}")
    if could_not := sorted({student for student, _ in book.left}):
        who = f"{', '.join(could_not[:5])}{' and more' if len(could_not) > 5 else ''}"
        said.append(f"could not be graded, see `status` in grades.csv: what {who} handed in")
    for assignment in sorted({assignment for _, assignment in book.grades}):
        absent = [s for s in book.roster if (s, assignment) not in book.grades]
        if absent:
            said.append(f"{assignment}: nothing from {len(absent)} of {len(book.roster)} students")
    return said


def write_lines(path: Path, lines: Iterable[Iterable[Any]], encoding: str = "utf-8") -> None:
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows(lines)


def write_canvas(
    book: Gradebook, path: Path, title: str, most: float, points: Mapping[str, float]
) -> None:
    """Write one column for Canvas's *Import grades*."""
    head = ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", title]
    lines = [head, ["Points Possible", "", "", "", "", f"{most:g}"]]
    for student in (book.roster[name] for name in book.roster if name in points):
        who = [student.name, student.canvas_id, student.id, student.login, student.section]
        lines.append([*who, f"{points[student.id]:g}"])
    write_lines(path, lines)


def write_moodle(book: Gradebook, path: Path, title: str, points: Mapping[str, float]) -> None:
    """Write one column for Moodle's *Import grades* from a CSV."""
    lines = [["ID number", "Full name", "Email address", title]]
    for student in (book.roster[name] for name in book.roster if name in points):
        lines.append([student.id, student.name, student.email, f"{points[student.id]:g}"])
    write_lines(path, lines)


RUN_AUTOGRADER = """#!/usr/bin/env python3
# Gives each student the result that `make grade` found: what was handed in is not run here.
import json
import pathlib

base = pathlib.Path("/autograder")
users = json.loads((base / "submission_metadata.json").read_text())["users"]
results = json.loads((base / "source" / "results.json").read_text())
found = [results[email] for user in users if (email := user["email"].casefold()) in results]
none = {"score": 0, "output": "Not graded yet: the staff grades what is handed in, all at once."}
(base / "results").mkdir(exist_ok=True)
(base / "results" / "results.json").write_text(json.dumps(found[0] if found else none))
"""
SETUP = "#!/usr/bin/env bash\napt-get update && apt-get install -y python3\n"


def write_gradescope(book: Gradebook, path: Path, assignment: str) -> None:
    """Write an autograder for Gradescope that knows the results of those who handed in."""
    results = {
        book.roster[student].email.casefold(): result_of(book, student, grade)
        for (student, name), grade in book.grades.items()
        if name == assignment
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in (("setup.sh", SETUP), ("run_autograder", RUN_AUTOGRADER)):
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o755 << 16
            archive.writestr(info, text)
        archive.writestr("results.json", json.dumps(results, indent=1))


def result_of(book: Gradebook, student: str, grade: Grade) -> dict[str, Any]:
    """Return what Gradescope shows of one student's grade."""
    reads, tests = book.reads(student, grade.assignment), []
    for question in book.packages[grade.assignment].questions:
        name = question["name"]
        if question["manual"] and name in reads:
            score, output = reads[name].points, reads[name].comment
        elif not question["manual"]:
            score, output = grade.points.get(name, 0), "\n".join(grade.hints.get(name, []))
        else:
            continue
        most = question["points"]
        tests.append({"name": name, "score": score, "max_score": most, "output": output})
    output = "\n".join([f"Status: {grade.status}", *grade.notes])
    return {"score": sum(test["score"] for test in tests), "output": output, "tests": tests}


def write_feedback(book: Gradebook, folder: Path) -> None:
    """Pack each student's pages: by their names, and under the names of what they handed in."""
    pages = [
        (
            student,
            assignment,
            grade.submission,
            feedback_page(grade, book.reads(student, assignment)),
        )
        for (student, assignment), grade in sorted(book.grades.items(), key=lambda item: item[0])
    ]
    pages += [
        (s, f"not graded {k}", g.submission, feedback_page(g))
        for k, (s, g) in enumerate(book.left, 1)
    ]
    by_name = zipfile.ZipFile(folder / "feedback_by_name.zip", "w", zipfile.ZIP_DEFLATED)
    as_sent = zipfile.ZipFile(folder / "feedback_as_handed_in.zip", "w", zipfile.ZIP_DEFLATED)
    with by_name, as_sent:
        for student, what, submission, page in pages:
            who = re.sub(r"[^\w .,()-]+", "_", f"{book.roster[student].name} ({student})")
            by_name.writestr(f"{who}/{what}.md", page)
            as_sent.writestr(f"{submission}.md".encode(errors="replace").decode(), page)


def write_to_read(book: Gradebook, path: Path) -> int:
    """Write a line for each written answer, with the points it has; return how many have none."""
    lines, left = [TO_READ], 0
    for (student, assignment), _ in sorted(book.grades.items()):
        reads = book.reads(student, assignment)
        for question in book.written(assignment):
            name, read = question["name"], reads.get(question["name"])
            cells = (f"{read.points:g}", read.comment) if read else ("", "")
            who = book.roster[student].name
            lines.append((student, who, assignment, name, f"{question['points']:g}", *cells))
            left += read is None
    write_lines(path, lines, "utf-8-sig")  # people open it: spreadsheets know UTF-8 by its mark
    return left
