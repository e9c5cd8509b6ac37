"""Sphinx extension: predict, then reveal; and exercises that check an answer.

What a page's cells printed after a question is folded until the reader has made a guess. The form of each
answer (a number, a choice, or a few words) is declared in ``book/guesses/CHAPTER.yml``, by page and by the
id of the cell that asks::

    lora_from_scratch:
      7719a1c7:
        asks:
          - {ask: Parameters that are trained, number: 'trainable: ([\\d,]+)', within: 0.1}
          - {ask: Which get a gradient?, choice: [A, B], right: B, seen: 'B gets a gradient: True'}
          - {ask: And why?, free: true}
        hides: [22d200f8]   # only where it is not the cells up to the next text
        why: ...            # only where no folded answer follows
        hint: ...           # only of an exercise

A number is not declared but found in what the cells printed, so it can't go stale; ``seen`` is what they
must have printed for a choice to be right. An entry for an exercise becomes a field with a "Check" button
above its solution. ``guesses.js`` does the rest; without JavaScript, on paper and in the EPUB nothing is
folded, and the notebooks know nothing of it.
"""

import html
import json
import re
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path("book") / "guesses"
KEYS = {"asks", "hides", "why", "hint"}
KINDS = ("number", "choice", "free")
NEAR = 0.1  # as near as a number must come to be called right, relative to it
ANSWER = re.compile(r"<details>(?=\s*<summary><b>Answer</b></summary>)")
POINTS = 5  # the same for a share in per cent, in points
# A paragraph may lead up to its question.
PREDICT = re.compile(
    r"^(?P<before>(?:(?!\n\n|^#|<details).)*?)\*\*Predict[^*]*\*\*:?\s*(?P<after>.*?)(?=<details|^#|\Z)",
    re.DOTALL | re.MULTILINE,
)
GUESS = "<b>Your guess first.</b> What was printed is folded below until you have one."
COMPARE = "<b>Your guess first.</b> Then compare it with the answer."
CHECK = "<b>Your answer.</b> Try it, then check it here. The solution is folded below."
AGAIN = '<button type="button" class="guess-again" hidden>Start again</button>'
CHECK_BUTTONS = f'<p class="guess-buttons"><button type="submit">Check</button> {AGAIN}</p>'
GUESS_BUTTONS = (
    '<p class="guess-buttons"><button type="submit">I have a guess: show it</button> '
    f'<button type="button" class="guess-show">Show it without a guess</button> {AGAIN}</p>'
)


def declared(root: Path) -> dict[str, dict[str, dict]]:
    """{page: {id of the cell that asks: its entry}}, of all chapters."""
    found = {}
    for path in sorted((root / FOLDER).glob("*.yml")):
        for name, entries in yaml.safe_load(path.read_text("utf-8")).items():
            found[f"chapters/{path.stem}/{name}"] = {str(cell): e for cell, e in entries.items()}
    return found


def printed(cells: list[dict[str, Any]]) -> str:
    """What cells printed, as text; a table as its Markdown."""
    texts = []
    for output in (output for cell in cells for output in cell.get("outputs", [])):
        data = output.get("data", {})
        text = output.get("text") or data.get("text/markdown") or data.get("text/plain", "")
        texts.append("".join(text))
    return "\n".join(texts)


def cells_behind(cells: list[dict[str, Any]], entry: dict, at: int) -> list[dict[str, Any]]:
    """The cells whose output answers the question in cell ``at``: up to the next text, or as declared."""
    if "hides" in entry:
        wanted = [str(name) for name in entry["hides"]]
        found = [cell for cell in cells if cell["id"] in wanted]
        if len(found) != len(wanted):
            raise ValueError(f"hides: {wanted}: no such cells; give ids of the page's cells")
        return found
    found = []
    for cell in cells[at + 1 :]:
        if cell["cell_type"] != "code":
            break
        found.append(cell)
    return found


def answers(entry: dict, text: str) -> list[str]:
    """The right answer to each ask as it is shown: a number as it was printed, a choice, or nothing."""
    return [answer(ask, text) for ask in entry["asks"]]


def answer(ask: dict, text: str) -> str:
    """The right answer to one ask, from what the cells printed. ValueError if they did not print it."""
    if sum(kind in ask for kind in KINDS) != 1:
        raise ValueError(f"{ask}: expected one of {', '.join(KINDS)}")
    pattern = ask.get("number") or ask.get("seen")
    found = re.search(pattern, text) if pattern else None
    if pattern and not found:
        raise ValueError(f"{pattern!r} is not in what the cells printed:\n{text[:600]}")
    if "number" in ask:
        value_of(found.group(1))
        return found.group(1)
    if "choice" in ask and ask.get("right") not in ask["choice"]:
        raise ValueError(f"right: {ask.get('right')!r}: expected one of {ask['choice']}")
    return ask.get("right", "")


def value_of(text: str) -> float:
    """A number as it is printed: with commas between thousands, and any minus sign."""
    return float(text.replace(",", "").replace("−", "-"))


def form_at(page: str, cells: list[dict], at: int, entry: dict, head: str = "") -> str:
    """The form of the question or the exercise in cell ``at``. ValueError where its entry does not fit."""
    key = f"{page}#{cells[at]['id']}"
    exercise = not PREDICT.search("".join(cells[at]["source"]))
    try:
        if unknown := set(entry) - KEYS:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}; expected {sorted(KEYS)}")
        right = answers(entry, printed(cells_behind(cells, entry, at)))
    except ValueError as error:
        raise ValueError(f"{key}, in {FOLDER}: {error}") from None
    head = head or (CHECK if exercise else COMPARE if entry.get("hides") == [] else GUESS)
    return form_of(key, entry, right, exercise, head)


def name_of(page: str, cell: str) -> str:
    """The id of a form, the same on every page that shows it."""
    return f"guess-{page.rpartition('/')[2]}-{cell}"


def form_of(key: str, entry: dict, right: list[str], exercise: bool, head: str) -> str:
    """A form as HTML, without empty lines, so that Markdown takes it as it is."""
    name = name_of(*key.split("#"))
    fields = [
        field(f"{name}-{number}", ask, answer)
        for number, (ask, answer) in enumerate(zip(entry["asks"], right, strict=True))
    ]
    kind = "guess guess-check" if exercise else "guess"
    more = []
    if "why" in entry:
        more.append(f'<p class="guess-why" hidden>{inline(entry["why"])}</p>')
    if "hint" in entry:
        more.append(f"<details><summary>Hint</summary>\n<p>{inline(entry['hint'])}</p>\n</details>")
    return "\n".join(
        [
            f'<form class="{kind}" id="{name}" data-key="{key}" autocomplete="off">',
            f'<p class="guess-head">{head}</p>',
            *fields,
            CHECK_BUTTONS if exercise else GUESS_BUTTONS,
            '<div class="guess-said" role="status" tabindex="-1"></div>',
            *more,
            "</form>",
        ]
    )


def field(name: str, ask: dict, right: str) -> str:
    """One thing that is asked: a line for a number or a few words, or buttons to choose from."""
    words, answer = inline(ask["ask"]), html.escape(right)
    if "choice" in ask:
        options = "\n".join(
            f'<label><input type="radio" name="{name}" value="{html.escape(option)}"> '
            f"<span>{inline(option)}</span></label>"
            for option in ask["choice"]
        )
        return (
            f'<fieldset class="guess-ask" data-kind="choice" data-answer="{answer}">\n'
            f"<legend>{words}</legend>\n{options}\n</fieldset>"
        )
    label, kind = f'<label for="{name}">{words}</label>', "number" if "number" in ask else "free"
    if kind == "free":
        return (
            f'<div class="guess-ask" data-kind="free">\n{label}\n'
            f'<input type="text" id="{name}" name="{name}">\n</div>'
        )
    unit = html.escape(ask.get("unit", ""))
    about = f'data-value="{value_of(right)}" data-near="{near(ask, right):g}" data-unit="{unit}"'
    return (
        f'<div class="guess-ask" data-kind="number" data-answer="{answer}" {about}>\n{label}\n'
        f'<span><input type="text" inputmode="decimal" id="{name}" name="{name}"> {unit}</span>\n</div>'
    )


def near(ask: dict, right: str) -> float:
    """How far a number may be off and still be called right: ``within`` of it, or 5 points of a share."""
    if ask.get("unit", "").startswith("%") and "within" not in ask:
        return POINTS
    return ask.get("within", NEAR) * abs(value_of(right))


def inline(text: str) -> str:
    """A line of text as HTML: `code` as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def add_to(page: str, cells: list[dict[str, Any]], entries: dict) -> list[dict[str, Any]]:
    """Put each form behind its question or exercise, and mark what is folded until then."""
    places = {cell["id"]: at for at, cell in enumerate(cells)}
    if missing := entries.keys() - places.keys():
        raise ValueError(f"{page}, in {FOLDER}: no cell has the id {', '.join(sorted(missing))}")
    notes = {}
    for name, entry in sorted(entries.items(), key=lambda item: places[item[0]]):
        at, form = places[name], form_at(page, cells, places[name], entry)
        question = PREDICT.search("".join(cells[at]["source"]))
        insert(cells[at], form, question.start() if question else None)
        if question:
            mark_answer(cells[at:], name_of(page, name))
            if behind := cells_behind(cells, entry, at):
                mark_folded(behind, name_of(page, name))
                notes[behind[-1]["id"]] = note(name_of(page, name))
    return [one for cell in cells for one in (cell, notes.get(cell["id"])) if one]


def insert(cell: dict, form: str, start: int | None) -> None:
    """Put a form behind the paragraph that begins at ``start``, or at the cell's end."""
    source = "".join(cell["source"])
    end = -1 if start is None else source.find("\n\n", start)
    end = len(source) if end < 0 else end
    cell["source"] = f"{source[:end]}\n\n{form}\n\n{source[end:].lstrip()}".rstrip()


def mark_answer(cells: list[dict], name: str) -> None:
    """Mark the first folded answer behind a form, if one comes before the next question."""
    for cell in cells:
        if cell["cell_type"] != "markdown":
            continue
        head, end, tail = "".join(cell["source"]).rpartition("</form>")
        marked = ANSWER.sub(f'<details class="guess-answer" data-guess="{name}">', tail, count=1)
        cell["source"] = head + end + marked
        if marked != tail or PREDICT.search(tail):
            return


def mark_folded(cells: list[dict], name: str) -> None:
    for cell in cells:
        tags = cell["metadata"].get("tags", [])
        cell["metadata"] = cell["metadata"] | {"tags": [*tags, "guessed", name]}


def note(form: str) -> dict[str, Any]:
    """What stands where an output is folded."""
    text = (
        f'<p class="guess-waits" data-guess="{form}">'
        f'What was printed is folded: <a href="#{form}">guess first</a>.</p>'
    )
    return {"cell_type": "markdown", "id": f"{form}-waits", "metadata": {}, "source": text}


def add_forms(app, page: str, source: list[str]) -> None:
    entries = declared(Path(app.srcdir)).get(page)
    if entries:
        app.env.note_dependency(str(FOLDER / f"{page.split('/')[1]}.yml"))
        notebook = json.loads(source[0])
        notebook["cells"] = add_to(page, notebook["cells"], entries)
        source[0] = json.dumps(notebook)


def setup(app) -> dict:
    app.connect("source-read", add_forms, priority=400)  # before folds, which joins cells
    return {"parallel_read_safe": True, "parallel_write_safe": True}
