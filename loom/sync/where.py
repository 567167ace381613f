"""`loom where`: the chapter line of a module line, and the module lines of a chapter line."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from loom.errors import Problem, Problems
from loom.read.book import Book
from loom.tangle.package import Tangled

__all__ = ["main", "where"]

PLACE = re.compile(r"(?P<path>.+?):(?P<line>[0-9]+)(:[0-9]+)?:?")


def main(book: Book, tangled: Tangled, place: str) -> int:
    """The command `loom where`: print the lines that a line became, or came from."""
    match = PLACE.fullmatch(place)
    if not match:
        sentence = "this is no place: write a file and a line, as tangled/part/name.py:22"
        raise Problems([Problem(place, 1, "W01", sentence)])
    for path, line in where(book, tangled, _known(book, match["path"]), int(match["line"])):
        print(f"{path}:{line}")
    return 0


def where(book: Book, tangled: Tangled, path: str, line: int) -> list[tuple[str, int]]:
    """The places on the other side of a line, of a module or of a chapter.

    Raises:
        Problems: with one sentence, if there is none.
    """
    if path in tangled.modules:
        lines = [(x.path, x.number) for x in tangled.modules[path].lines]
        found, why = lines[line - 1 : line] if line else [], "loom wrote this line"
        found = [place for place in found if place[1]]
    elif path in {chapter.path for chapter in book.chapters}:
        lines = [(path, n + 1) for n in range(_length(book, path))]
        found, why = list(_made(tangled, path, line)), _unmade(book, path, line)
    else:
        raise Problems([Problem(path, line, "W01", "this is neither a module nor a chapter")])
    if not 0 < line <= len(lines):
        why = f"there is no such line: the file ends at {len(lines)}"
    if not found:
        raise Problems([Problem(path, line, "W01", why)])
    return found


def _known(book: Book, path: str) -> str:
    """A path as the book writes it, from its root; it may be given from the working folder."""
    here = Path(path).absolute()
    return os.path.relpath(here, book.root) if here.exists() else path


def _made(tangled: Tangled, chapter: str, number: int) -> Iterator[tuple[str, int]]:
    for path, module in tangled.modules.items():
        for at, line in enumerate(module.lines, 1):
            if (line.path, line.number) == (chapter, number):
                yield path, at


def _length(book: Book, path: str) -> int:
    return next(c.text.count("\n") for c in book.chapters if c.path == path)


def _unmade(book: Book, path: str, number: int) -> str:
    """Why no module has a line of a chapter."""
    for cell in book.cells():
        if cell.chapter.path == path and cell.line <= number <= cell.end:
            if cell.module is None:
                return "this cell is only run, so no module has its lines"
            return "no module has this line of its cell: imports, options and fences stay here"
    return "this is text, which goes into no module"
