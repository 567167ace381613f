"""`loom sync`: an edit made by hand in a module goes back into its cell.

The text that loom last wrote is the base. If the chapters changed as well since then, both changes
are merged; where they touch each other, loom says where and leaves the choice to a person. What
the chapters would become is tangled in memory, and written only if it makes the edited modules.
"""

from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest

from loom.errors import Problem, Problems
from loom.read.book import Book, revised
from loom.read.chapter import Line
from loom.sync.edits import Edits, Wanted, carry, made
from loom.sync.merge3 import Overlap, merge
from loom.sync.segments import cut
from loom.tangle.files import owned, write
from loom.tangle.last_written import UNKNOWN, base, edited, settle
from loom.tangle.modules import Module
from loom.tangle.package import Tangled, tangle

__all__ = ["main", "sync"]


def main(book: Book) -> int:
    """The command `loom sync`: name the files that were written."""
    written = sync(book)
    print("\n".join(written) or "nothing to carry: no module was edited by hand")
    return 0


def sync(book: Book) -> list[str]:
    """Carry every edit made by hand into its chapter; return the paths of the files written.

    Raises:
        Problems: if an edit cannot be carried; then nothing was written.
    """
    settle(book.root)
    tangled = tangle(book)
    found = _edited(book, tangled)
    if not found:
        return []
    edits = Edits()
    wanted: dict[str, list[Wanted]] = {}
    problems: list[Problem] = []
    for edit in found:
        try:
            wanted[edit.path] = carry(book, edit.now, edit.wanted(), edits)
        except Problems as refused:
            problems += refused.problems
        except SyntaxError as error:
            sentence = f"this does not parse: {error.msg}"
            problems.append(Problem(edit.path, error.lineno or 1, "S01", sentence))
    if problems:
        raise Problems(problems)
    lines = {c.path: edits.apply(c) for c in book.chapters if c.path in edits.chapters()}
    texts = {path: "\n".join(line.text for line in chapter) for path, chapter in lines.items()}
    try:
        after = revised(book, texts)
        result = tangle(after)
    except Problems as refused:
        raise Problems(_where(book, p, lines) for p in refused.problems) from None
    problems += _lost(tangled, after, result, wanted)
    for edit in found:
        problems += edit.overruled(result.modules.get(edit.path))
    if problems:
        raise Problems(problems)
    chapters = {path: _bytes(book, path, text) for path, text in texts.items()}
    return write(after, result, {edit.path: edit.disk for edit in found}, chapters)


@dataclass(frozen=True)
class Edit:
    """A module that was edited: what loom wrote, what stands on disk, what the chapters say now."""

    path: str
    base: bytes
    disk: bytes
    now: Module

    @cached_property
    def lines(self) -> list[str]:
        """The edited text."""
        return _lines(self.path, self.disk)

    def wanted(self) -> list[Line]:
        """What the module shall be: as edited, and what changed in the chapters since.

        Only definitions are merged, since loom writes again what stands above them.

        Raises:
            Problems: if the edit and the chapters changed the same lines.
            SyntaxError: if the edited text is not Python.
        """
        before, ours = _lines(self.path, self.base), _found_at(self.now)
        theirs = [Line(text, self.path, at) for at, text in enumerate(self.lines, 1)]
        if self.base == self.now.text.encode():
            return theirs
        top = cut([line.text for line in ours])[0]
        try:
            below = merge(before[cut(before)[0] :], ours[top:], theirs[cut(self.lines)[0] :])
        except Overlap as overlap:
            here, there = overlap.theirs, overlap.ours
            sentence = f"{there.path}:{there.number} changed too: make the two agree"
            raise Problems([Problem(here.path, here.number, "S04", sentence)]) from None
        return [*ours[:top], *below]

    def overruled(self, result: Module | None) -> Iterator[Problem]:
        """Edits of what loom writes on top, unless it would write just that."""
        texts = [line.text for line in result.lines] if result else []
        old, new, written = (
            lines[: cut(lines)[0]] for lines in (_lines(self.path, self.base), self.lines, texts)
        )
        for at, text in enumerate(new, 1):
            if text not in old and text not in written:
                sentence = f"loom writes this part, and would not write '{text.strip()}'"
                yield Problem(self.path, at, "S02", sentence)
        for text in old:
            if text not in new and text in written:
                sentence = f"loom writes this part, and would write '{text.strip()}' again"
                yield Problem(self.path, 1, "S02", sentence)


def _found_at(module: Module) -> list[Line]:
    """The lines of a module at their places in the chapters, loom's own at that above."""
    path, number = module.path, 1
    lines: list[Line] = []
    for line in module.lines:
        if line.number:
            path, number = line.path, line.number
        lines.append(Line(line.text, path, number))
    return lines


def _edited(book: Book, tangled: Tangled) -> list[Edit]:
    """The modules that were edited by hand.

    Raises:
        Problems: for a file that no chapter makes, or whose origin is not known.
    """
    found: list[Edit] = []
    problems: list[Problem] = []
    for path, disk in owned(book.root).items():
        now = tangled.modules.get(path)
        if (now and disk == now.text.encode()) or not edited(book.root, path, disk):
            continue
        before = base(book.root, path, disk)
        if now is None:
            sentence = "no chapter makes this file, so none can take it"
            problems.append(Problem(path, 1, "S01", sentence))
        elif before is None:
            sentence = f"{UNKNOWN}, or move the edit to the chapter"
            problems.append(Problem(path, 1, "S01", sentence))
        else:
            found.append(Edit(path, before, disk, now))
    if problems:
        raise Problems(problems)
    return found


def _lines(path: str, data: bytes) -> list[str]:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = "\r"
    if "\r" in text:
        sentence = "this is no UTF-8 text with plain line ends"
        raise Problems([Problem(path, 1, "S01", sentence)])
    return text.removesuffix("\n").split("\n")


def _where(book: Book, problem: Problem, lines: Mapping[str, list[Line]]) -> Problem:
    """A problem of the chapters as they would be, told where a person finds the line now."""
    if problem.path not in lines:
        return problem
    site = lines[problem.path][problem.line - 1]
    sentence = problem.sentence
    if (
        problem.code == "L06"
        and site.path != problem.path
        and (place := _imports(book, problem.path))
    ):
        sentence = f"{sentence}; its imports stand at {place}"
    return replace(problem, path=site.path, line=site.number, sentence=sentence)


def _imports(book: Book, path: str) -> str | None:
    """Where a chapter's first import stands."""
    lines = (line for cell in book.cells() if cell.chapter.path == path for line in cell.lines)
    starts = ("import ", "from ")
    return next((f"{path}:{line.number}" for line in lines if line.text.startswith(starts)), None)


def _lost(
    before: Tangled, book: Book, result: Tangled, wanted: Mapping[str, list[Wanted]]
) -> Iterator[Problem]:
    """Where the new chapters do not make what they should: the edits, and all else as it was."""
    for path, module in before.modules.items():
        after = result.modules.get(path)
        if path not in wanted:
            if not after or _carried(after) != _carried(module):
                sentence = "an edit of another module would change this one: make it in the chapter"
                yield Problem(path, 1, "S05", sentence)
            continue
        definitions = made(after) if after else []
        for one, other in zip_longest(wanted[path], definitions):
            site = one.lost(other) if one and other else _found_at(module)[-1]
            if site:
                sentence = "the chapter would not make this so: loom wrote it, or it moved"
                yield Problem(site.path, site.number, "S02", sentence)
                break


def _carried(module: Module) -> list[str]:
    return [line.text for line in module.lines if line.number]


def _bytes(book: Book, path: str, text: str) -> bytes:
    """A chapter's new text with the line ends and the byte order mark of the old.

    Raises:
        Problems: if the chapter on disk is not the one that was read.
    """
    disk = (book.root / path).read_bytes()
    mark = BOM_UTF8 if disk.startswith(BOM_UTF8) else b""
    end = b"\r\n" if b"\r\n" in disk else b"\n"
    old = next(chapter.text for chapter in book.chapters if chapter.path == path)
    if mark + old.encode().replace(b"\n", end) != disk:
        sentence = "this chapter changed meanwhile, or mixes two kinds of line ends"
        raise Problems([Problem(path, 1, "S07", sentence)])
    return mark + text.encode().replace(b"\n", end)
