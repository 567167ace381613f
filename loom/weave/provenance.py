"""What became of each code cell, and what stands behind each label of the book.

Notes are made of parts, not of text: the two outputs and their links are written from them.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from loom.book import Book, Cell
from loom.marks import marks
from loom.tangle import Definition, Tangled

__all__ = ["Code", "Label", "Map", "Module", "Name", "Note", "Part", "anchor", "chart"]


@dataclass(frozen=True)
class Name:
    """A definition, by the cell that holds it."""

    text: str
    docname: str
    anchor: str


@dataclass(frozen=True)
class Module:
    """A definition's place in its module."""

    path: str
    anchor: str


@dataclass(frozen=True)
class Label:
    """A statement or an equation of the book."""

    name: str


@dataclass(frozen=True)
class Code:
    """A name that leads nowhere."""

    text: str


Part = str | Code | Name | Module | Label
Note = tuple[Part, ...]


@dataclass
class Map:
    """The notes of a book: for cells by document and source, for labels by label."""

    cells: dict[str, dict[str, list[tuple[tuple[str, ...], Note]]]] = field(default_factory=dict)
    implements: dict[str, list[Definition]] = field(default_factory=lambda: defaultdict(list))
    verifies: dict[str, list[Definition]] = field(default_factory=lambda: defaultdict(list))
    refutes: dict[str, list[Definition]] = field(default_factory=lambda: defaultdict(list))
    elsewhere: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def note(self, label: str, passed: Mapping[str, set[str]]) -> Note:
        """What implements, verifies and refutes a label; `passed` are tests by document."""
        clauses: list[Note] = []
        if found := self.implements.get(label):
            clauses.append(("implemented by ", *listed([named(d)] for d in found)))
        tests = tested(self.verifies.get(label, ()), passed)
        if others := [[Code(name)] for name in self.elsewhere.get(label, ())]:
            tests.append((*listed(others), " (in the test suite)"))
        if tests:
            clauses.append(("verified by ", *listed(tests)))
        if tests := tested(self.refutes.get(label, ()), passed):
            clauses.append(("negative controls ", *listed(tests)))
        if not clauses:
            return ()
        first = clauses[0]
        head = str(first[0])
        clauses[0] = (head[0].upper() + head[1:], *first[1:])
        return listed(clauses, " · ")


def chart(book: Book, tangled: Tangled) -> Map:
    """Work out the notes of a book."""
    result = Map()
    by_cell: dict[tuple[str, int], list[Definition]] = defaultdict(list)
    for definition in tangled.definitions:
        by_cell[definition.chapter, definition.cell].append(definition)
        for labels, kept in (
            (definition.implements, result.implements),
            (definition.verifies, result.verifies),
            (definition.refutes, result.refutes),
        ):
            for label in labels:
                kept[label].append(definition)
    for chapter in book.chapters:
        cells = result.cells.setdefault(chapter.docname, defaultdict(list))
        for cell in chapter.cells:
            definitions = by_cell.get((chapter.path, cell.index))
            if definitions:
                anchors = tuple(dict.fromkeys(anchor(d.name) for d in definitions))
                cells[key(cell.source)].append((anchors, went(cell, definitions)))
    for mark in marks(book.root):
        if mark.verb == "verifies":
            result.elsewhere[mark.label].append(mark.test)
    return result


def key(source: str) -> str:
    """A cell's source as both its chapter and its page give it."""
    return source.strip()


def anchor(name: str) -> str:
    """The anchor of the cell that defines a name."""
    return "code-" + name.replace(".", "-").replace("_", "-").strip("-").lower()


def went(cell: Cell, definitions: list[Definition]) -> Note:
    """Where a cell went: its module, the names it defines, the labels it is about."""
    outer = [d for d in definitions if "." not in d.name] or definitions
    path = outer[0].path
    parts: list[Part] = [Module(path, outer[0].name)]
    # A cell of many constants is told by its module alone, and a check by its output.
    if cell.kind == "tangle" and len(outer) <= 3:
        parts += [" · ", *listed([Code(d.name)] for d in outer)]
    for verb, labels in (
        ("implements", cell.implements),
        ("verifies", cell.verifies),
        ("negative control of", cell.refutes),
    ):
        if labels:
            parts += [f" · {verb} ", *listed([Label(label)] for label in labels)]
    return tuple(parts)


def named(definition: Definition) -> Name:
    docname = definition.chapter.removesuffix(".md")
    return Name(definition.name, docname, anchor(definition.name))


def tested(tests: Iterable[Definition], passed: Mapping[str, set[str]]) -> list[Note]:
    """Tests by name; those that passed in this build stand together, and it is said once."""
    names = [named(test) for test in tests]
    done = [name for name in names if name.text in passed.get(name.docname, ())]
    verdict = " (passed)" if len(done) == 1 else " (all passed)"
    notes: list[Note] = [(*listed([name] for name in done), verdict)] if done else []
    return notes + [(name,) for name in names if name not in done]


def listed(items: Iterable[Iterable[Part]], between: str = ", ") -> Note:
    parts: list[Part] = []
    for item in items:
        parts += [*([between] if parts else []), *item]
    return tuple(parts)
