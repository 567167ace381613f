"""The book as loom reads it, at hand for whatever weaves a page."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from loom.errors import Problems
from loom.prove.theorems import Results
from loom.read.book import Book, read
from loom.tangle.package import Tangled, tangle
from loom.weave.provenance import Notes, book_notes

__all__ = ["BookData", "book_data", "load", "setup"]


@dataclass(frozen=True)
class BookData:
    """The chapters, what they are tangled into, and the notes and results that follow."""

    book: Book
    tangled: Tangled
    notes: Notes
    results: Results


def load(app: Sphinx) -> None:
    """Read and tangle the book once a build; what is wrong with it is one line each."""
    try:
        book = read(Path(app.srcdir))
        tangled = tangle(book)
        results = Results(book, tangled)
    except Problems as problems:
        raise ExtensionError(str(problems)) from None
    notes = book_notes(book, tangled, results.marks)
    app.loom_book = BookData(book, tangled, notes, results)


def book_data(app: Sphinx) -> BookData:
    """The book of this build."""
    return cast(BookData, app.loom_book)


def setup(app: Sphinx) -> None:
    """Read the book before anything else."""
    app.connect("builder-inited", load)
