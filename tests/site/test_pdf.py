"""The PDF: a title page, contents with page numbers, a number on every sheet, bookmarks, links inside."""

import re

import pytest

PARTS = {
    "": {"book/index": ""},
    "2 LoRA": {"chapters/02_lora/lora_family": "2.5 The LoRA family"},
    "Reference": {"book/references": ""},
}


@pytest.fixture(scope="module")
def book(tmp_path_factory, browser):
    import pdf
    from pypdf import PdfReader

    usual = pdf.contents, pdf.sync_playwright
    pdf.contents = lambda: {part: dict(pages) for part, pages in PARTS.items()}
    pdf.sync_playwright = lambda: Running(browser)
    try:
        yield PdfReader(pdf.make(tmp_path_factory.mktemp("pdf") / "book.pdf"))
    finally:
        pdf.contents, pdf.sync_playwright = usual


class Running:
    """The browser that runs already, in the place of one that is started and closed."""

    def __init__(self, browser):
        self.chromium, self.browser = self, browser

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def launch(self, **_):
        return self

    def new_page(self, **settings):
        return self.browser.new_page(**settings)

    def close(self):
        pass


def test_every_sheet_but_the_title_has_its_number(book):
    texts = [sheet.extract_text() for sheet in book.pages]
    assert len(texts) > 8 and "Tuning" in texts[0]
    for number, text in enumerate(texts[1:], start=2):
        assert text.rstrip().endswith(str(number)), (number, text[-80:])


def test_the_contents_name_the_sheet_on_which_a_page_starts(book):
    marks = [mark for mark in flat(book.outline) if mark["/Title"] == "2.5 The LoRA family"]
    start = book.get_destination_page_number(marks[0])
    assert "2.5 The LoRA family" in book.pages[start].extract_text()[:200]
    assert re.search(rf"2\.5 The LoRA family\s+{start + 1}\b", book.pages[1].extract_text())
    assert "Open in Colab" not in book.pages[start].extract_text()


def test_links_lead_inside_the_book_or_to_the_web(book):
    notes = [note.get_object() for sheet in book.pages for note in sheet.get("/Annots") or []]
    inside = [note for note in notes if "/Dest" in note]
    outside = [str(note["/A"].get("/URI", "")) for note in notes if "/A" in note]
    assert len(inside) >= 3 and not [uri for uri in outside if uri.startswith("file:")]


def flat(outline):
    for mark in outline:
        yield from flat(mark) if isinstance(mark, list) else [mark]
