"""`loom check`: the package is what the chapters say, and every result is proved and checked."""

import re
import sys
from collections.abc import Iterator, Mapping

from loom.errors import Problem
from loom.prove.theorems import Results
from loom.read.book import Book
from loom.read.chapter import Chapter
from loom.read.labels import KINDS, PROVED, Label, directives, labels
from loom.tangle.files import drift
from loom.tangle.package import Tangled

__all__ = ["check", "main"]

ANSWERS = ("solution", "solution-start", "hint")
NUMBERS_DIFFER = re.compile(r"\\begin\{(align|gather|multline|flalign|alignat|eqnarray)\}")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
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
    known = labels(book)
    for chapter in book.chapters:
        problems += _lint(chapter)
        problems += _unnamed(chapter, known)
    return sorted(problems), diff


def _unnamed(chapter: Chapter, known: Mapping[str, Label]) -> Iterator[Problem]:
    """Results without a label, of which nothing would be asked, and answers to no exercise."""
    for block in directives(chapter):
        if KINDS.get(block.directive) in PROVED and not block.label:
            sentence = f"this {block.directive.removeprefix('prf:')} has no ':label:'"
            yield Problem(chapter.path, block.line, "L29", sentence)
        if block.directive in ANSWERS and block.title and block.title not in known:
            sentence = f"no chapter has the label '{block.title}'"
            yield Problem(chapter.path, block.line, "L14", sentence)


def _lint(chapter: Chapter) -> Iterator[Problem]:
    """Markup that builds without a warning and is wrong all the same."""
    for number, text in enumerate(chapter.text.split("\n"), 1):
        if match := CONTROL.search(text):
            sentence = f"a control character, {match[0]!r}, in column {match.start() + 1}"
            yield Problem(chapter.path, number, "L35", sentence)
        if number in chapter.shown:
            continue
        if match := NUMBERS_DIFFER.search(text):
            sentence = f"'{match[1]}' is numbered otherwise in print: use '{match[1]}*'"
            yield Problem(chapter.path, number, "L30", sentence)
        if match := BREAKS_IN_PRINT.search(text):
            sentence = "this link breaks in print: use {eq}, {prf:ref} or {numref}"
            yield Problem(chapter.path, number, "L30", sentence)
