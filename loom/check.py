"""`loom check`: the package is what the chapters say, and every result is proved and checked."""

import re
from collections.abc import Iterator

from loom.book import Book, Chapter
from loom.errors import Problem
from loom.labels import PROVED, Label, labels
from loom.marks import Mark, marks
from loom.tangle import Definition, Tangled
from loom.write import drift

__all__ = ["check"]

# Kinds that code must implement; an equation only if code claims to.
IMPLEMENTED = frozenset({"def", "alg"})

NUMBERS_DIFFER = re.compile(r"\\begin\{(align|gather|multline|flalign|alignat|eqnarray)\}")
BREAKS_IN_PRINT = re.compile(r"\[[^\]]*\]\(#(eq|thm|lem|prop|cor|def|alg|fig)-")


def check(book: Book, tangled: Tangled) -> tuple[list[Problem], str]:
    """Return what is not right, and the differences between chapters and files as a diff."""
    problems, diff = drift(book, tangled)
    known, marked = labels(book), marks(book.root)
    for mark in marked:
        if mark.label not in known:
            sentence = f"no chapter has the label '{mark.label}'"
            problems.append(Problem(mark.path, mark.line, "L14", sentence))
    problems += _unmet(known, tangled.definitions, marked)
    for chapter in book.chapters:
        problems += _lint(chapter)
    return sorted(problems), diff


def _unmet(
    known: dict[str, Label], definitions: tuple[Definition, ...], marked: list[Mark]
) -> Iterator[Problem]:
    """Results that are stated but not proved, not implemented, not verified or never refuted."""
    implemented = {label for d in definitions for label in d.implements}
    verified = {label for d in definitions for label in d.verifies}
    verified |= {mark.label for mark in marked if mark.verb == "verifies"}
    refuted = {label for d in definitions for label in d.refutes}
    refuted |= {mark.label for mark in marked if mark.verb == "refutes"}
    for label in known.values():
        missing = []
        if label.kind in PROVED:
            missing += ["neither proved nor cited"] * (not label.proof)
            missing += ["verified by no test"] * (label.name not in verified)
            missing += ["without a negative control"] * (label.name not in refuted)
        if label.kind in IMPLEMENTED and label.name not in implemented:
            missing.append("implemented by no code")
        if missing:
            sentence = f"'{label.name}' is {', '.join(missing)}"
            yield Problem(label.chapter, label.line, "L29", sentence)


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
