"""What became of each code cell, and what stands behind each label of the book.

Notes are made of parts, not of text: the two outputs and their links are written from them.
"""

import ast
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loom.book import Book, Cell
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
        tests = [tested(d, passed) for d in self.verifies.get(label, ())]
        tests += [(Code(name), " (in the test suite)") for name in self.elsewhere.get(label, ())]
        if tests:
            clauses.append(("verified by ", *listed(tests)))
        if found := self.refutes.get(label):
            clauses.append(("refuted variants ", *listed(tested(d, passed) for d in found)))
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
                anchors = tuple(anchor(d.name) for d in definitions)
                cells[key(cell.source)].append((anchors, went(cell, definitions)))
    for label, name in marked(book.root):
        result.elsewhere[label].append(name)
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
    # A cell of many constants is told by its module alone.
    if len(outer) <= 3:
        parts += [" · ", *listed([Code(d.name)] for d in outer)]
    for verb, labels in (
        ("implements", cell.implements),
        ("verifies", cell.verifies),
        ("refutes variants of", cell.refutes),
    ):
        if labels:
            parts += [f" · {verb} ", *listed([Label(label)] for label in labels)]
    return tuple(parts)


def named(definition: Definition) -> Name:
    docname = definition.chapter.removesuffix(".md")
    return Name(definition.name, docname, anchor(definition.name))


def tested(definition: Definition, passed: Mapping[str, set[str]]) -> Note:
    name = named(definition)
    return (name, " (passed)") if name.text in passed.get(name.docname, ()) else (name,)


def listed(items: Iterable[Iterable[Part]], between: str = ", ") -> Note:
    parts: list[Part] = []
    for item in items:
        parts += [*([between] if parts else []), *item]
    return tuple(parts)


def marked(root: Path) -> list[tuple[str, str]]:
    """Labels and names of hand-written tests that carry `@pytest.mark.verifies("label")`."""
    found = []
    for file in sorted((root / "tests").rglob("test_*.py")):
        text = file.read_text(encoding="utf-8")
        if "mark.verifies" not in text or (root / "tests/book") in file.parents:
            continue
        for node in ast.walk(ast.parse(text)):
            for mark in getattr(node, "decorator_list", ()):
                if isinstance(mark, ast.Call) and ast.unparse(mark.func).endswith("mark.verifies"):
                    name = getattr(node, "name", "")
                    found += [(a.value, name) for a in mark.args if isinstance(a, ast.Constant)]
    return [(str(label), name) for label, name in found]
