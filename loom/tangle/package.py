"""Tangle: the cells of the chapters become the modules of the package and the book's own tests."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

from loom.errors import Problem, Problems
from loom.read.book import Book
from loom.read.labels import labels
from loom.tangle.chapter_order import ranks
from loom.tangle.definitions import Definition, definitions
from loom.tangle.drafts import Draft, collect
from loom.tangle.imports import cycles, layers, misplaced_imports, resolve
from loom.tangle.memo import memo
from loom.tangle.modules import Module, module, packages
from loom.tangle.names import scopes
from loom.tangle.pieces import Piece, problem

__all__ = ["Tangled", "tangle"]


@dataclass(frozen=True)
class Tangled:
    """All modules by path, and all definitions in the order of the book."""

    modules: dict[str, Module]
    drafts: tuple[Draft, ...]

    @cached_property
    def definitions(self) -> tuple[Definition, ...]:
        """Where each definition stands; found when it is asked for, since tangling needs it not."""
        found = [d for x in self.drafts for d in definitions(self.modules[x.path], x)]
        chapters = [p.cell.chapter for x in self.drafts for p in x.pieces]
        order = {chapter.path: chapter.order for chapter in chapters}
        return tuple(sorted(found, key=lambda d: (order[d.chapter], d.line)))


@memo
def tangle(book: Book) -> Tangled:
    """Return the package and the book's tests, as the chapters now define them.

    Nothing is written. Every problem that can be found is reported at once.

    Raises:
        Problems: if the chapters do not make a package; see the appendix for the catalogue.
    """
    problems: list[Problem] = []
    drafts = collect(book, problems)
    whole = not problems
    known = labels(book)
    for cell in book.cells():
        for label in (*cell.implements, *cell.verifies, *cell.refutes):
            if label not in known:
                sentence = f"no chapter has the label '{label}'"
                problems.append(problem(cell, cell.line, "L14", sentence))
    found, ambiguous = scopes(book, {path: draft.pieces for path, draft in drafts.items()})
    problems += ambiguous
    if whole:  # else what seems missing may stand in a cell that could not be read
        problems += misplaced_imports(book, drafts, found)
    problems += _hidden(drafts)
    if problems:
        raise Problems(problems)
    rank = ranks(book, drafts, found)
    for draft in drafts.values():
        draft.pieces.sort(key=lambda piece: rank[piece.cell.chapter.path])
    edges: dict[tuple[str, str], tuple[Piece, int]] = {}
    for draft in drafts.values():
        problems += resolve(draft, drafts, found, edges)
    problems += cycles(edges)
    problems += layers(edges)
    if problems:
        raise Problems(problems)
    modules = {path: module(draft) for path, draft in sorted(drafts.items())}
    modules.update(packages(book, drafts))
    return Tangled(modules, tuple(drafts.values()))


def _hidden(drafts: dict[str, Draft]) -> Iterator[Problem]:
    """Modules that no import would find, because a folder has their name."""
    folders = {parent.as_posix() for path in drafts for parent in PurePosixPath(path).parents}
    for path, draft in drafts.items():
        if path.removesuffix(".py") in folders:
            piece = draft.pieces[0]
            sentence = f"{path} and a folder of the same name cannot both be imported"
            yield problem(piece.cell, piece.cell.line, "L01", sentence)
