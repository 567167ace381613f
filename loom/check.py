"""`loom check`: the package is what the chapters say, and every result is proved and checked."""

import re
import sys
from collections.abc import Iterator

from loom.book import Book, Chapter
from loom.errors import Problem
from loom.results import Results
from loom.tangle import Tangled
from loom.write import drift

__all__ = ["check", "main"]

NUMBERS_DIFFER = re.compile(r"\\begin\{(align|gather|multline|flalign|alignat|eqnarray)\}")
BREAKS_IN_PRINT = re.compile(r"\[[^\]]*\]\(#(eq|thm|lem|prop|cor|def|alg|fig)-")


def main(book: Book, tangled: Tangled) -> int:
    """The command `loom check`: print the differences, then what is not right."""
    problems, diff = check(book, tangled)
    print(diff, end="")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def check(book: Book, tangled: Tangled) -> tuple[list[Problem], str]:
    """Return what is not right, and the differences between chapters and files as a diff."""
    problems, diff = drift(book, tangled)
    problems += Results(book, tangled).problems()
    for chapter in book.chapters:
        problems += _lint(chapter)
    return sorted(problems), diff


def _lint(chapter: Chapter) -> Iterator[Problem]:
    """Markup that builds without a warning and is wrong all the same."""
    for number, text in enumerate(chapter.text.split("\n"), 1):
        if number in chapter.shown:
            continue
        if match := NUMBERS_DIFFER.search(text):
            sentence = f"'{match[1]}' is numbered otherwise in print: use '{match[1]}*'"
            yield Problem(chapter.path, number, "L30", sentence)
        if match := BREAKS_IN_PRINT.search(text):
            sentence = "this link breaks in print: use {eq}, {prf:ref} or {numref}"
            yield Problem(chapter.path, number, "L30", sentence)
