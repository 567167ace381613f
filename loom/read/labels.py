"""The labels of the book: what is stated where, and whether a proof stands with it.

A label is kind and slug, `thm-forward-marginal`. Theorem-like results, equations, exercises,
figures and tables carry one; prose, proofs and tests refer to it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

from loom.errors import Problem, Problems
from loom.read.blocks import CELL
from loom.read.book import Book
from loom.read.chapter import Chapter

__all__ = ["KINDS", "PROVED", "Directive", "Label", "directives", "labels", "references"]

KINDS = {
    "prf:definition": "def",
    "prf:lemma": "lem",
    "prf:proposition": "prop",
    "prf:theorem": "thm",
    "prf:corollary": "cor",
    "prf:algorithm": "alg",
    "prf:example": "ex",
    "prf:remark": "rem",
    "exercise": "ex",
    "math": "eq",
    "figure": "fig",
    "table": "tab",
    "list-table": "tab",
}
# Kinds of results that ask for a proof and for checks.
PROVED = frozenset({"lem", "prop", "thm", "cor"})

# Options by which a directive gets its label.
NAMING = ("label", "name")

OPTION = re.compile(r":(?P<key>[\w-]+):\s*(?P<value>.*)$")
EQUATION = re.compile(r"\$\$\s*\((?P<name>[\w:-]+)\)\s*$")
REFERENCE = re.compile(r"\{(?:eq|prf:ref)\}`(?:[^`<]*<)?(?P<target>[\w:-]+)>?`")
CITATION = re.compile(r"\{cite(:\w+)?\}")


@dataclass(frozen=True)
class Label:
    """A labelled thing. `proof` tells whether a proof, or a citation of one, stands with it."""

    name: str
    kind: str
    title: str
    chapter: str
    line: int
    proof: bool = False


def labels(book: Book) -> dict[str, Label]:
    """Return every label of the book by name.

    Raises:
        Problems: for a label that stands twice, or whose kind is not that of what it labels.
    """
    found: dict[str, Label] = {}
    problems: list[Problem] = []
    for chapter in book.chapters:
        for label, wanted in _labels(chapter):
            if (other := found.get(label.name)) is not None:
                where = f"{other.chapter}:{other.line}"
                sentence = f"label '{label.name}' stands already at {where}"
                problems.append(Problem(label.chapter, label.line, "L14", sentence))
            elif label.kind != wanted:
                sentence = f"label '{label.name}' should begin with '{wanted}-'"
                problems.append(Problem(label.chapter, label.line, "L14", sentence))
            else:
                found[label.name] = label
    if problems:
        raise Problems(problems)
    return found


def _labels(chapter: Chapter) -> Iterator[tuple[Label, str]]:
    """Yield the labels of a chapter with the kind that each should have."""

    def label(name: str, title: str, line: int, proof: bool = False) -> Label:
        return Label(name, name.partition("-")[0], title, chapter.path, line, proof)

    for cell in chapter.cells:
        options = cell.options.get("mystnb")
        figure = options.get("figure") if isinstance(options, dict) else None
        if isinstance(figure, dict) and "name" in figure:
            yield label(str(figure["name"]), "", cell.line), "fig"
    for number, text in enumerate(chapter.text.split("\n"), 1):
        if number not in chapter.shown and (match := EQUATION.search(text)):
            yield label(match["name"], "", number), "eq"
    found = list(directives(chapter))
    proved = {block.of for block in found if block.directive == "prf:proof"}
    for block in found:
        if (wanted := KINDS.get(block.directive)) and block.label:
            cited = bool(CITATION.search("\n".join([block.title, *block.body])))
            proof = cited or block.label in proved
            yield label(block.label, block.title, block.line, proof), wanted


@dataclass(frozen=True)
class Directive:
    """A directive: its name, title and label, where it stands, and the lines inside it.

    `of` is the result that a proof belongs to: the one that its title names, else the last above.
    """

    directive: str
    title: str
    label: str
    line: int
    body: tuple[str, ...]
    of: str = ""

    @property
    def last(self) -> int:
        """The last line inside the block."""
        return self.line + len(self.body)


def directives(chapter: Chapter) -> Iterator[Directive]:
    """Yield the directives of a chapter in order, outer ones before those inside them."""
    lines = chapter.text.split("\n")
    above = ""
    for fence in chapter.page.blocks:
        if not fence.name or fence.name == CELL:
            continue
        body = tuple(text.strip() for text in lines[fence.line : fence.end - 1])
        options = takewhile(bool, map(OPTION.match, body))
        name = next((o["value"].strip() for o in options if o and o["key"] in NAMING), "")
        named = REFERENCE.search(fence.title)
        of = (named["target"] if named else above) if fence.name == "prf:proof" else ""
        if KINDS.get(fence.name) in PROVED:
            above = name
        yield Directive(fence.name, fence.title, name, fence.line, body, of)


def references(text: str) -> list[str]:
    """The labels of results and equations that a text refers to, in order."""
    return [match["target"] for match in REFERENCE.finditer(text)]
