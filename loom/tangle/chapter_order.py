"""The order in which chapters are tangled: each after those that define what its cells import.

`_toc.yml` is the order of reading. It decides between chapters that do not need each other.
"""

import graphlib

from loom.errors import Problem, Problems
from loom.read.book import Book
from loom.tangle.drafts import Draft
from loom.tangle.names import Scope

__all__ = ["ranks"]


def ranks(book: Book, drafts: dict[str, Draft], found: dict[str, Scope]) -> dict[str, int]:
    """The place of each chapter in tangling order, by its path.

    Raises:
        Problems: if chapters import from each other, at an import that closes the circle.
    """
    needs = _needs(drafts, found)
    reading = {chapter.path: chapter.order for chapter in book.chapters}
    graph = graphlib.TopologicalSorter({path: needs.get(path, {}) for path in reading})
    try:
        graph.prepare()
    except graphlib.CycleError as error:
        # The circle is given from the used to the user; read it the other way round.
        circle: list[str] = list(reversed(error.args[1]))
        at = max(range(len(circle) - 1), key=lambda i: -reading[circle[i]])
        user, used = circle[at], circle[at + 1]
        sentence = f"chapters import from each other: {' -> '.join(circle)}"
        raise Problems([Problem(user, needs[user][used], "L34", sentence)]) from None
    ordered: list[str] = []
    ready = set(graph.get_ready())
    while ready:
        path = min(ready, key=reading.__getitem__)
        ordered.append(path)
        graph.done(path)
        ready = (ready - {path}) | set(graph.get_ready())
    return {path: rank for rank, path in enumerate(ordered)}


def _needs(drafts: dict[str, Draft], found: dict[str, Scope]) -> dict[str, dict[str, int]]:
    """For each chapter, those that define what it imports, with the line of the import."""
    definers: dict[str, set[str]] = {}
    for draft in drafts.values():
        for piece in draft.pieces:
            for name in ("", *piece.names):
                whole = f"{draft.dotted}.{name}".rstrip(".")
                definers.setdefault(whole, set()).add(piece.cell.chapter.path)
    needs: dict[str, dict[str, int]] = {}
    for path, scope in found.items():
        for entries in scope.imported.values():
            for entry, line in entries.items():
                whole = f"{entry.module}.{entry.name}" if entry.name else entry.module
                for other in definers.get(whole, set()) - {path}:
                    needs.setdefault(path, {}).setdefault(other, line)
    return needs
