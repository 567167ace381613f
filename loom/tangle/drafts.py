"""Put the pieces of all chapters into their modules, and grow the classes that go on."""

import ast
import symtable
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from loom.errors import Problem, Problems
from loom.read.book import Book
from loom.read.chapter import Line
from loom.tangle.names import Import
from loom.tangle.pieces import Piece, pieces, problem

__all__ = ["Draft", "collect"]


@dataclass
class Draft:
    """A module while it is being put together."""

    path: str
    pieces: list[Piece] = field(default_factory=list)
    imports: set[Import] = field(default_factory=set)

    @property
    def dotted(self) -> str:
        """The module's name, as imports write it."""
        return self.path.removesuffix(".py").replace("/", ".")


def collect(book: Book, problems: list[Problem]) -> dict[str, Draft]:
    """Cut all cells into pieces and put each into its module; grow the classes that go on."""
    drafts: dict[str, Draft] = {}
    for cell in book.cells():
        if cell.module is None:
            continue
        try:
            new, more = pieces(cell)
        except Problems as refused:
            problems.extend(refused.problems)
            continue
        if cell.kind != "tangle" and not any(p.name.startswith("test_") for p in new):
            sentence = "a cell that verifies or refutes defines functions 'test_...'"
            problems.append(problem(cell, cell.line, "L28", sentence))
        draft = drafts.setdefault(cell.module, Draft(cell.module))
        for piece in new:
            problems += _added(draft, piece)
        for piece in more:
            problems += _continued(draft, piece)
    return {path: draft for path, draft in drafts.items() if draft.pieces}


def _added(draft: Draft, piece: Piece) -> Iterator[Problem]:
    for other in draft.pieces:
        for name in set(piece.names) & set(other.names):
            where = f"{other.cell.chapter.path}:{other.first}"
            sentence = f"'{name}' is already defined at {where}"
            if any("overload" in ast.unparse(d) for d in getattr(other.node, "decorator_list", ())):
                sentence += ": a name has one definition, so write a union, not overloads"
            yield problem(piece.cell, piece.first, "L05", sentence)
        if piece.kind == other.kind == "guard":
            sentence = f"'{draft.path}' has its '__main__' guard already"
            yield problem(piece.cell, piece.first, "L05", sentence)
    draft.pieces.append(piece)


def _continued(draft: Draft, piece: Piece) -> Iterator[Problem]:
    at = next((i for i, p in enumerate(draft.pieces) if p.name == piece.name), None)
    begun = draft.pieces[at] if at is not None else None
    if at is None or begun is None or begun.kind != "class":
        sentence = f"'{piece.name}' is continued before {draft.path} defines it"
        yield problem(piece.cell, piece.cell.line, "L04", sentence)
        return
    if begun.cell.chapter is not piece.cell.chapter:
        sentence = f"'{piece.name}' belongs to {begun.cell.chapter.path}: compose it"
        yield problem(piece.cell, piece.cell.line, "L04", sentence)
        return
    yield from _misfit(begun, piece)
    earlier = dict(begun.members)
    for name, _ in piece.members:
        if name in earlier:
            where = f"{earlier[name].chapter.path}:{earlier[name].line}"
            sentence = f"'{piece.name}.{name}' is already defined in the cell at {where}"
            yield problem(piece.cell, piece.first, "L05", sentence)
    draft.pieces[at] = replace(
        begun,
        lines=(*begun.lines, Line(""), *piece.lines),
        members=(*begun.members, *piece.members),
        node=None,
    )


def _misfit(begun: Piece, piece: Piece) -> Iterator[Problem]:
    """What the body of a continuation would mean otherwise inside the class."""
    node = ast.parse(begun.text).body[0]
    assert isinstance(node, ast.ClassDef)
    inside = begun.lines[node.body[0].lineno - 1].text[: node.body[0].col_offset]
    code = next(line for line in piece.lines if line.text.strip() and line.text.lstrip()[0] != "#")
    if code.text[: len(code.text) - len(code.text.lstrip())] != inside:
        sentence = f"the body of '{piece.name}' is indented otherwise in its first cell"
        yield problem(piece.cell, code.number, "L04", sentence)
        return
    table = symtable.symtable(f"class {piece.name}:\n{piece.text}", "", "exec").get_children()[0]
    for name, _ in begun.members:
        if name and name in table.get_identifiers() and table.lookup(name).is_referenced():
            sentence = f"'{name}' in this class body would be '{piece.name}.{name}'"
            yield problem(piece.cell, code.number, "L04", sentence)
