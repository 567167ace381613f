"""Where each definition of the package stands: in its module, and in its chapter."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from loom.read.chapter import Cell
from loom.tangle.drafts import Draft
from loom.tangle.modules import Module
from loom.tangle.pieces import Piece
from loom.tangle.syntax import defined, first_line

__all__ = ["Definition", "definitions"]


@dataclass(frozen=True)
class Definition:
    """A function, class, method or constant with its two places: in its module, in its chapter."""

    name: str
    dotted: str
    path: str
    first: int
    last: int
    chapter: str
    cell: int
    line: int
    implements: tuple[str, ...] = ()
    verifies: tuple[str, ...] = ()
    refutes: tuple[str, ...] = ()


def definitions(module: Module, draft: Draft) -> Iterator[Definition]:
    """Where each definition of a module stands, there and in its chapter."""
    tree = ast.parse(module.text)
    nodes: dict[str, ast.stmt] = {}
    for node in tree.body:
        for name in defined(node):
            nodes.setdefault(name, node)
        if isinstance(node, ast.ClassDef):
            for child in node.body:
                for name in defined(child):
                    nodes.setdefault(f"{node.name}.{name}", child)
    for piece in draft.pieces:
        for member, cell in piece.members:
            for top in piece.names:
                name = f"{top}.{member}" if member else top
                yield _definition(module, draft, nodes[name], name, cell, piece)


def _definition(
    module: Module, draft: Draft, node: ast.stmt, name: str, cell: Cell, piece: Piece
) -> Definition:
    first, last = first_line(node), node.end_lineno or node.lineno
    line = module.lines[node.lineno - 1].number
    # The label of a cell belongs to the one definition that the cell makes.
    whole = "." not in name or cell is not piece.cell
    tests = whole and name.startswith("test_")
    return Definition(
        name,
        f"{draft.dotted}.{name}",
        draft.path,
        first,
        last,
        cell.chapter.path,
        cell.index,
        line,
        cell.implements if whole else (),
        cell.verifies if tests else (),
        cell.refutes if tests else (),
    )
