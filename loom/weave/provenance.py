"""What became of each code cell, and what stands behind each label of the book.

Notes are made of parts, not of text: the two outputs and their links are written from them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from loom.prove.marked_tests import Mark
from loom.read.book import Book
from loom.read.chapter import Cell
from loom.tangle.definitions import Definition
from loom.tangle.package import Tangled

__all__ = [
    "Code",
    "Label",
    "Module",
    "Name",
    "Note",
    "Notes",
    "Part",
    "Standing",
    "Test",
    "Use",
    "anchor",
    "book_notes",
    "counted",
]


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


@dataclass(frozen=True)
class Use:
    """What became of a cell: its anchors and where it went; of a check, its tests and labels too.

    `kind` is the cell's: `tangle`, `verify` or `refute`; `open` keeps a check unfolded.
    """

    kind: str
    anchors: tuple[str, ...]
    went: Note
    tests: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    open: bool = False

    @property
    def about(self) -> Note:
        """The labels that a check is about."""
        return listed([Label(label)] for label in self.labels)


@dataclass(frozen=True)
class Test:
    """A check or a control of a label: in a cell, which ran or not, or by hand in a file."""

    name: Name | Code
    file: str = ""
    passed: bool = False


@dataclass(frozen=True)
class Standing:
    """What stands behind a label."""

    implements: tuple[Name, ...] = ()
    checks: tuple[Test, ...] = ()
    controls: tuple[Test, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.implements or self.checks or self.controls)

    @property
    def head(self) -> Note:
        """What implements the label, in words."""
        if not self.implements:
            return ()
        return ("Implemented by ", *listed([name] for name in self.implements))

    @property
    def tally(self) -> str:
        """How many checks and controls there are, in words."""
        kinds = (("check", self.checks), ("control", self.controls))
        return " · ".join(counted(len(tests), word) for word, tests in kinds if tests)

    def within(self, other: Standing) -> bool:
        """Tell whether another standing says all that this one says."""
        return (
            set(self.implements) <= set(other.implements)
            and set(self.checks) <= set(other.checks)
            and set(self.controls) <= set(other.controls)
        )


@dataclass
class Notes:
    """Of a book: the uses of its cells by document and source, and what stands behind labels."""

    cells: dict[str, dict[str, list[Use]]] = field(default_factory=dict)
    implements: dict[str, list[Definition]] = field(default_factory=lambda: defaultdict(list))
    tests: dict[tuple[str, str], list[Definition]] = field(
        default_factory=lambda: defaultdict(list)
    )
    marks: dict[tuple[str, str], list[Mark]] = field(default_factory=lambda: defaultdict(list))

    def standing(self, label: str, passed: Mapping[str, set[str]]) -> Standing:
        """What implements, verifies and refutes a label; `passed` are tests by document."""
        implements = dict.fromkeys(map(named, self.implements.get(label, ())))
        return Standing(
            tuple(implements),
            tuple(self._tests("verifies", label, passed)),
            tuple(self._tests("refutes", label, passed)),
        )

    def _tests(self, verb: str, label: str, passed: Mapping[str, set[str]]) -> dict[Test, None]:
        """The tests of a label, each once: those of cells, then those by hand."""
        found: dict[Test, None] = {}
        for definition in self.tests.get((verb, label), ()):
            name = named(definition)
            found[Test(name, passed=name.text in passed.get(name.docname, ()))] = None
        for mark in self.marks.get((verb, label), ()):
            found[Test(Code(mark.test), mark.path)] = None
        return found


def book_notes(book: Book, tangled: Tangled, found: Iterable[Mark]) -> Notes:
    """Work out the notes of a book, with the marks on its hand-written tests."""
    result = Notes()
    by_cell: dict[tuple[str, int], list[Definition]] = defaultdict(list)
    for definition in tangled.definitions:
        by_cell[definition.chapter, definition.cell].append(definition)
        for label in definition.implements:
            result.implements[label].append(definition)
        for label in definition.verifies:
            result.tests["verifies", label].append(definition)
        for label in definition.refutes:
            result.tests["refutes", label].append(definition)
    for chapter in book.chapters:
        cells = result.cells.setdefault(chapter.docname, defaultdict(list))
        for cell in chapter.cells:
            if definitions := by_cell.get((chapter.path, cell.index)):
                cells[key(cell.source)].append(use(cell, definitions))
    for mark in found:
        result.marks[mark.verb, mark.label].append(mark)
    return result


def use(cell: Cell, definitions: list[Definition]) -> Use:
    """What became of a cell with these definitions."""
    return Use(
        cell.kind,
        tuple(dict.fromkeys(anchor(d.name) for d in definitions)),
        went(cell, definitions),
        tuple(d.name for d in definitions if d.name.startswith("test_")),
        (*cell.verifies, *cell.refutes),
        "open" in cell.options,
    )


def key(source: str) -> str:
    """A cell's source as both its chapter and its page give it."""
    return source.strip()


def anchor(name: str) -> str:
    """The anchor of the cell that defines a name; `SHAPES`, `Shapes` and `shapes` have three."""
    kind = "class-" if name[:1].isupper() else ""
    kind = "constant-" if name.isupper() and len(name) > 1 else kind
    return f"code-{kind}" + name.replace(".", "-").replace("_", "-").strip("-").lower()


def went(cell: Cell, definitions: list[Definition]) -> Note:
    """Where a cell went: its module, the names it defines, the labels it implements."""
    outer = [d for d in definitions if "." not in d.name] or definitions
    path = outer[0].path
    parts: list[Part] = [Module(path, outer[0].name)]
    # A cell of many constants is told by its module alone.
    if cell.kind == "tangle" and len(outer) <= 3:
        parts += [" · ", *listed([Code(d.name)] for d in outer)]
    if cell.implements:
        parts += [" · implements ", *listed([Label(label)] for label in cell.implements)]
    return tuple(parts)


def named(definition: Definition) -> Name:
    docname = definition.chapter.removesuffix(".md")
    return Name(definition.name, docname, anchor(definition.name))


def counted(number: int, word: str) -> str:
    """A number of things: "1 check", "2 checks"."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def listed(items: Iterable[Iterable[Part]], between: str = ", ") -> Note:
    parts: list[Part] = []
    for item in items:
        parts += [*([between] if parts else []), *item]
    return tuple(parts)
