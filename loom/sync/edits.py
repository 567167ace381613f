"""Turn the change of a module into changes of the chapters that it came from.

A line of a module is a line of a chapter, so a changed line is changed where it came from. Lines
that loom wrote are left out; the caller tangles again and compares.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from itertools import zip_longest

from loom.errors import Problem, Problems
from loom.read.book import Book
from loom.read.chapter import Cell, Chapter, Line
from loom.sync.merge3 import matching
from loom.sync.segments import Segment, cut
from loom.tangle.modules import Module

__all__ = ["Edits", "Made", "Wanted", "carry", "made"]

Place = tuple[str, int]
Named = list[tuple[str, list[str]]]


@dataclass
class Edits:
    """Changes of chapters; each belongs to a line, by the chapter's path and the line's number."""

    removed: set[Place] = field(default_factory=set)
    changed: dict[Place, Line] = field(default_factory=dict)
    before: dict[Place, list[Line]] = field(default_factory=lambda: defaultdict(list))
    after: dict[Place, list[Line]] = field(default_factory=lambda: defaultdict(list))

    def chapters(self) -> set[str]:
        """The paths of the chapters that change."""
        return {path for path, _ in (*self.removed, *self.changed, *self.before, *self.after)}

    def apply(self, chapter: Chapter) -> list[Line]:
        """The lines of a chapter after the change."""
        gone = {place for cell in chapter.cells for place in self._emptied(chapter, cell)}
        out: list[Line] = []
        for number, text in enumerate(chapter.text.split("\n"), 1):
            place = (chapter.path, number)
            out += self.before.get(place, ())
            if place not in self.removed and place not in gone:
                out.append(self.changed.get(place, Line(text, *place)))
            out += self.after.get(place, ())
        return out

    def _emptied(self, chapter: Chapter, cell: Cell) -> list[Place]:
        """The lines of a cell that lost all its definitions, and a blank line beside it."""
        places = [(chapter.path, line.number) for line in cell.lines]
        rest = [line.text for line in cell.lines if (chapter.path, line.number) not in self.removed]
        emptied = len(rest) < len(places) and not any(
            place in self.before or place in self.after for place in places
        )
        if not emptied or any(text.strip() and not _header(text) for text in rest):
            return []
        lines = chapter.text.split("\n")
        above, below = lines[cell.line - 2 : cell.line - 1], lines[cell.end : cell.end + 1]
        last = cell.end + (above == below == [""])
        return [(chapter.path, number) for number in range(cell.line, last + 1)]


def _header(text: str) -> bool:
    """Tell whether a line is what remains of a continuation without its body."""
    return text.startswith(("@continues(", "class "))


@dataclass(frozen=True)
class Made:
    """A definition as loom makes it: its lines, and those of them that stand in the chapter."""

    name: str
    lines: list[str]
    carried: list[str]


@dataclass(frozen=True)
class Wanted:
    """A definition as a module shall have it; a new one may get lines of loom's as well."""

    name: str
    lines: tuple[Line, ...]
    new: bool

    def lost(self, made: Made) -> Line | None:
        """The first line that is not made as it is wanted, if there is one."""
        theirs = made.carried if self.new else made.lines
        pairs = enumerate(zip_longest([line.text for line in self.lines], theirs))
        bad = next((at for at, (a, b) in pairs if a != b), None)
        return None if bad is None else self.lines[min(bad, len(self.lines) - 1)]


def made(module: Module) -> list[Made]:
    """The definitions of a module."""
    found: list[Made] = []
    for segment in cut([line.text for line in module.lines])[1]:
        lines = module.lines[segment.first : segment.end]
        carried = [line.text + line.rest for line in lines if line.number]
        found.append(Made(segment.name, [line.text for line in lines], carried))
    return found


def carry(book: Book, module: Module, wanted: Sequence[Line], edits: Edits) -> list[Wanted]:
    """Add to `edits` what makes a module's definitions the wanted ones; return these.

    Raises:
        Problems: if a change cannot be placed in the chapters.
        SyntaxError: if what is wanted is not Python.
    """
    return _Carrier(book, module, wanted, edits).carry()


def _place(line: Line) -> Place:
    return line.path, line.number


class _Carrier:
    """One module: its lines now, with their places, and its wanted lines."""

    def __init__(self, book: Book, module: Module, wanted: Sequence[Line], edits: Edits) -> None:
        self.module, self.wanted, self.edits = module, wanted, edits
        self.chapters = {chapter.path: chapter.text.split("\n") for chapter in book.chapters}
        self.cells = {
            (cell.chapter.path, line.number): cell
            for cell in book.cells()
            if cell.module == module.path
            for line in cell.lines
        }
        self.old = cut([line.text for line in module.lines])[1]
        self.new = cut([line.text for line in wanted])[1]

    def carry(self) -> list[Wanted]:
        """Go through the definitions in their order; each finds its place by those above."""
        old, new = self._named(self.old, self.module.lines), self._named(self.new, self.wanted)
        pairs = dict(_pairs(old, new))
        for i in set(range(len(self.old))) - set(pairs.values()):
            self._delete(self._now(self.old[i]))
        definitions: list[Wanted] = []
        above: Segment | None = None
        for j, segment in enumerate(self.new):
            lines = list(self.wanted[segment.first : segment.end])
            if j in pairs:
                above = self.old[pairs[j]]
                self._change(self._now(above), lines)
            else:
                below = next((self.old[pairs[k]] for k in sorted(pairs) if k > j), None)
                self._add(j, lines, above, below)
            definitions.append(Wanted(segment.name, tuple(lines), j not in pairs))
        return definitions

    def _named(self, segments: list[Segment], lines: Sequence[Line]) -> Named:
        return [(s.name, [line.text for line in lines[s.first : s.end]]) for s in segments]

    def _now(self, segment: Segment) -> list[Line]:
        return list(self.module.lines[segment.first : segment.end])

    def _delete(self, lines: list[Line]) -> None:
        """Remove a definition, and the blank lines that stood between it and the next."""
        by_cell: dict[tuple[str, int], list[int]] = defaultdict(list)
        for line in lines:
            if line.number:
                cell = self.cells[_place(line)]
                by_cell[line.path, cell.index].append(line.number)
        for (path, _), numbers in by_cell.items():
            first, last = min(numbers), max(numbers)
            if not self._code(path, first - 1):
                while self._blank(path, last + 1):
                    last += 1
            if not self._code(path, last + 1):
                while self._blank(path, first - 1):
                    first -= 1
            self.edits.removed |= {(path, number) for number in range(first, last + 1)}

    def _blank(self, path: str, number: int) -> bool:
        """Tell whether a line is a blank one inside a cell's code."""
        return (path, number) in self.cells and not self.chapters[path][number - 1].strip()

    def _code(self, path: str, number: int) -> bool:
        return (path, number) in self.cells and bool(self.chapters[path][number - 1].strip())

    def _change(self, old: list[Line], new: list[Line]) -> None:
        """Change the lines of a definition."""
        opcodes = matching([line.text for line in old], [line.text for line in new])
        kept = {
            j: old[j - j1 + i1]
            for tag, i1, _, j1, j2 in opcodes
            if tag == "equal"
            for j in range(j1, j2)
        }
        shown = {
            j: replace(line, text=line.text + self._tail(old, kept.get(j + 1)))
            for j, line in enumerate(new)
            if j not in kept or kept[j].number
        }
        for tag, i1, i2, j1, j2 in opcodes:
            inserted = [shown[j] for j in range(j1, j2) if j in shown]
            if tag == "equal":
                for j in range(j1, j2):
                    if j in shown and shown[j].text != kept[j].text + kept[j].rest:
                        self.edits.changed[_place(kept[j])] = shown[j]
            else:
                self._replace(old, i1, i2, inserted)

    def _tail(self, old: list[Line], below: Line | None) -> str:
        """What loom took from the end of the chapter line above `below`: closing quotes."""
        if below is None or below.number:
            return ""
        at = next(i for i, line in enumerate(old) if line is below)
        return old[at - 1].rest if at else ""

    def _replace(self, old: list[Line], first: int, end: int, new: list[Line]) -> None:
        """Put lines at the place of others, or between them."""
        gone = [line for line in old[first:end] if line.number]
        self.edits.removed |= set(map(_place, gone))
        if not new:
            return
        if gone:
            cells = {id(self.cells[_place(line)]) for line in gone}
            if len(cells) > 1:
                places = " and ".join(f"{p.path}:{p.number}" for p in (gone[0], gone[-1]))
                raise _refused(new[0], "S03", f"this edit spans two cells, {places}: edit each")
            self.edits.before[_place(gone[0])] += new
        elif first and old[first - 1].number:
            self.edits.after[_place(old[first - 1])] += new
        elif end < len(old) and old[end].number:
            self.edits.before[_place(old[end])] += new
        else:
            raise _refused(new[0], "S02", "this stands among lines that loom writes")

    def _add(
        self, index: int, lines: list[Line], above: Segment | None, below: Segment | None
    ) -> None:
        """Put a new definition into a cell of its own, or into that of its neighbour."""
        up = self._numbered(above)
        down = self._numbered(below)
        if not (up or down):
            sentence = "no definition beside this one shows to which chapter it belongs"
            raise _refused(lines[0], "S06", sentence)
        cell = self.cells[_place((up or down)[0])]
        gap = self._gap(index)
        alone = cell.kind == "tangle" or self.new[index].name.startswith("test_")
        together = bool(up and down) and cell is self.cells[_place(down[0])]
        if up:
            inside = [p for p in up if self.cells[_place(p)] is cell]
            if together or not gap or not alone:
                self.edits.after[_place(inside[-1])] += [*_blanks(lines, gap), *lines]
            else:
                self.edits.after[cell.chapter.path, cell.end] += [
                    *_blanks(lines, 1),
                    *self._cell(cell, lines),
                ]
        elif self._gap(index + 1) and alone:
            self.edits.before[cell.chapter.path, cell.line] += [
                *self._cell(cell, lines),
                *_blanks(lines, 1),
            ]
        else:
            self.edits.before[_place(down[0])] += [*lines, *_blanks(lines, self._gap(index + 1))]

    def _numbered(self, segment: Segment | None) -> list[Line]:
        return [p for p in self._now(segment) if p.number] if segment else []

    def _gap(self, index: int) -> int:
        """How many blank lines stand above a wanted definition."""
        if not 0 < index < len(self.new):
            return 2
        return self.new[index].first - self.new[index - 1].end

    def _cell(self, neighbour: Cell, lines: list[Line]) -> list[Line]:
        """A cell with these lines, with the options that make it go where its neighbour goes."""
        role = next(role for role in ("tangle", "verifies", "refutes") if role in neighbour.options)
        value = str(neighbour.options[role] or "")
        fence = self.chapters[neighbour.chapter.path][neighbour.line - 1].rstrip()
        close = fence[: len(fence) - len(fence.lstrip("`~"))]
        option = f":{role}: {value}".rstrip()
        first = lines[0]
        return [
            *(replace(first, text=text) for text in (fence, option, "")),
            *lines,
            replace(first, text=close),
        ]


def _blanks(lines: list[Line], count: int) -> list[Line]:
    return [replace(lines[0], text="")] * count


def _refused(line: Line, code: str, sentence: str) -> Problems:
    return Problems([Problem(line.path, line.number, code, sentence)])


def _pairs(old: Named, new: Named) -> Iterator[tuple[int, int]]:
    """Which definition became which: those of the same name, or alike at the same place."""
    for tag, i1, i2, j1, j2 in matching([name for name, _ in old], [name for name, _ in new]):
        if tag == "equal" or (tag == "replace" and i2 - i1 == j2 - j1):
            yield from zip(range(j1, j2), range(i1, i2), strict=True)
        elif tag == "replace":
            at = i1
            for j in range(j1, j2):
                found = next((i for i in range(at, i2) if _alike(old[i][1], new[j][1])), None)
                if found is not None:
                    yield j, found
                    at = found + 1


def _alike(old: list[str], new: list[str]) -> bool:
    return SequenceMatcher(None, old, new, autojunk=False).ratio() > 0.5
