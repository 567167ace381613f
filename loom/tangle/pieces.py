"""Cut the tangled cells into pieces: one top-level definition each, whole lines, nothing lost."""

import ast
import symtable
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from loom.errors import Problem, Problems
from loom.lesson import FIRST_CELL
from loom.read.chapter import Cell, Line
from loom.tangle.memo import memo
from loom.tangle.syntax import DEFINITION, constants, continued, defined, first_line, is_guard

__all__ = ["Piece", "Statement", "pieces", "problem", "statements", "table"]

OLDEST = (3, 11)


@dataclass(frozen=True)
class Piece:
    """A top-level definition of a module, with the comment and the decorators above it.

    `members` maps each method (or, under "", the definition itself) to the cell it came from.
    `node` is its syntax tree, by lines of its cell; that of a class that goes on is not kept.
    """

    name: str
    kind: str  # "constant", "class", "function" or "guard"
    cell: Cell
    lines: tuple[Line, ...]
    members: tuple[tuple[str, Cell], ...] = ()
    node: ast.stmt | None = field(default=None, repr=False, compare=False)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What the piece defines; a constant may define several names at once."""
        return tuple(filter(None, self.name.split(",")))

    @cached_property
    def text(self) -> str:
        """The piece as source text."""
        return "\n".join(line.text for line in self.lines)

    @property
    def first(self) -> int:
        """The chapter line on which the piece begins."""
        return self.lines[0].number


@dataclass(frozen=True)
class Statement:
    """A top-level statement of a cell with all the lines that belong to it."""

    node: ast.stmt
    lines: tuple[Line, ...]


def problem(cell: Cell, line: int, code: str, sentence: str) -> Problem:
    """A problem in a cell, at a line of its chapter."""
    return Problem(cell.chapter.path, line, code, sentence)


@memo
def table(cell: Cell) -> symtable.SymbolTable:
    """What the names of a cell mean in it."""
    return symtable.symtable(cell.source, cell.chapter.path, "exec")


def statements(cell: Cell) -> list[Statement]:
    """The statements of a cell; comments belong to what follows them, or end the last one.

    Raises:
        Problems: if the cell does not parse, or two statements share a line.
    """
    try:
        # The oldest Python that readers may have; the tables find what the grammar lets through.
        tree = ast.parse(cell.source, feature_version=OLDEST)
        table(cell)
    except SyntaxError as error:
        line = (
            cell.lines[min(error.lineno or 1, len(cell.lines)) - 1].number
            if cell.lines
            else cell.line
        )
        raise Problems(
            [problem(cell, line, "L02", f"this cell does not parse: {error.msg}")]
        ) from None
    found: list[Statement] = []
    end = 0
    for node in tree.body:
        top = first_line(node)
        if top <= end:
            line = cell.lines[node.lineno - 1].number
            raise Problems([problem(cell, line, "L02", "a line holds one statement")])
        above = cell.lines[end : top - 1]
        while above and not above[0].text.strip():
            above = above[1:]
        assert node.end_lineno is not None
        found.append(Statement(node, (*above, *cell.lines[top - 1 : node.end_lineno])))
        end = node.end_lineno
    rest = cell.lines[end:]
    if not found:
        raise Problems([problem(cell, cell.line, "L03", "this cell defines nothing")])
    if rest:
        found[-1] = replace(found[-1], lines=(*found[-1].lines, *rest))
    return found


@memo
def pieces(cell: Cell) -> tuple[list[Piece], list[Piece]]:
    """Return the new definitions of a cell, and the continuations (`@continues`) of earlier ones.

    Raises:
        Problems: for a cell that does not parse, or that holds what a module cannot take.
    """
    new: list[Piece] = []
    more: list[Piece] = []
    problems: list[Problem] = []
    for statement in statements(cell):
        node = statement.node
        if any("import" in line.text for line in statement.lines):
            problems += _refused_inside(cell, node)
        problems += _refused_check(cell, node)
        if isinstance(node, ast.Import | ast.ImportFrom):
            # Imports are computed for each module, so an import line itself is not moved.
            problems += _refused_import(statement, cell, node)
        elif isinstance(node, ast.ClassDef) and continued(node) is not None:
            problems += _refused_continuation(statement, cell, node)
            header = cell.lines[node.lineno - 1].number
            inside = tuple(line for line in statement.lines if line.number > header)
            members = tuple((name, cell) for name in _members(node))
            more.append(Piece(node.name, "class", cell, _trimmed(inside), members))
        elif isinstance(node, ast.ClassDef):
            members = (("", cell), *((name, cell) for name in _members(node)))
            new.append(Piece(node.name, "class", cell, statement.lines, members, node))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            new.append(Piece(node.name, "function", cell, statement.lines, (("", cell),), node))
        elif (names := constants(node)) and "__all__" not in names:
            problems += _refused_walrus(cell, node)
            name = ",".join(names)
            new.append(Piece(name, "constant", cell, statement.lines, (("", cell),), node))
        elif is_guard(node):
            new.append(Piece("", "guard", cell, statement.lines, node=node))
        else:
            line = cell.lines[node.lineno - 1].number
            sentence = "a tangled cell holds definitions, constants and imports, nothing else"
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                sentence = "import without 'if TYPE_CHECKING': a module imports what its code uses"
            problems.append(problem(cell, line, "L03", sentence))
    if cell.implements and len(new) + sum(len(p.members) for p in more) != 1:
        sentence = "a cell that implements a label holds exactly one definition"
        problems.append(problem(cell, cell.line, "L11", sentence))
    if problems:
        raise Problems(problems)
    return new, more


def _trimmed(lines: tuple[Line, ...]) -> tuple[Line, ...]:
    while lines and not lines[0].text.strip():
        lines = lines[1:]
    return lines


def _refused_walrus(cell: Cell, node: ast.stmt) -> Iterator[Problem]:
    """A constant within another, which no other cell would find."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.NamedExpr) and inner.target.id in table(cell).get_identifiers():
            name, line = inner.target.id, cell.lines[inner.lineno - 1].number
            sentence = f"a module defines no names by ':=': write '{name} = ...' on its own line"
            yield problem(cell, line, "L03", sentence)


def _members(node: ast.ClassDef) -> list[str]:
    """The methods and class attributes that a class body defines, in order."""
    names = [name for child in node.body for name in _members_of(child)]
    return list(dict.fromkeys(names))


def _members_of(child: ast.stmt) -> list[str]:
    return defined(child) if isinstance(child, DEFINITION) else constants(child)


def _refused_inside(cell: Cell, node: ast.stmt) -> Iterator[Problem]:
    """Imports from the package below the top level, where loom would not see them."""
    for inner in ast.walk(node):
        if inner is node or not isinstance(inner, ast.Import | ast.ImportFrom):
            continue
        modules = [alias.name for alias in inner.names]
        if isinstance(inner, ast.ImportFrom):
            modules = [inner.module or ""] if not inner.level else ["tangled"]
        if any(module.partition(".")[0] in ("loom", "tangled") for module in modules):
            sentence = "an import from the package stands at the top level of a cell"
            yield problem(cell, cell.lines[inner.lineno - 1].number, "L03", sentence)


def _refused_check(cell: Cell, node: ast.stmt) -> Iterator[Problem]:
    """A check that its chapter would not call."""
    if cell.kind == "tangle" or not getattr(node, "name", "").startswith("test_"):
        return
    if not isinstance(node, ast.FunctionDef) or any(
        isinstance(inner, ast.arg) for inner in ast.walk(node.args)
    ):
        sentence = "a check is a plain function without parameters, so that its chapter calls it"
        yield problem(cell, cell.lines[node.lineno - 1].number, "L28", sentence)


def _commented(lines: Sequence[Line]) -> bool:
    """Tell whether there is a comment on these lines."""
    texts = iter([f"{line.text}\n" for line in lines])
    tokens = tokenize.generate_tokens(lambda: next(texts, ""))
    return any(token.type == tokenize.COMMENT for token in tokens)


def _refused_continuation(statement: Statement, cell: Cell, node: ast.ClassDef) -> list[Problem]:
    """What in a continuation could not stand in the one plain class."""
    found: list[Problem] = []

    def refuse(child: ast.stmt | ast.ClassDef, code: str, sentence: str) -> None:
        found.append(problem(cell, cell.lines[child.lineno - 1].number, code, sentence))

    if continued(node) != node.name:
        refuse(
            node, "L04", f"'@continues({continued(node)})' stands on a class named '{node.name}'"
        )
    if len(node.decorator_list) > 1 or node.bases or node.keywords:
        refuse(node, "L04", f"bases and decorators of '{node.name}' belong to its first cell")
    header = cell.lines[node.lineno - 1]
    if _commented([line for line in statement.lines if line.number <= header.number]):
        refuse(
            node, "L04", f"a comment beside '@continues({node.name})' would be lost: put it inside"
        )
    elif node.body[0].lineno == node.lineno or not header.text.rstrip().endswith(":"):
        refuse(node, "L04", "the body of a continuation begins on its own line")
    for child in node.body:
        if isinstance(child, ast.AnnAssign):
            refuse(child, "L12", f"fields of '{node.name}' belong to its first cell")
        elif fixed := FIRST_CELL.intersection(_members_of(child)):
            refuse(child, "L12", f"'{min(fixed)}' of '{node.name}' belongs to its first cell")
        elif isinstance(child, ast.Expr):
            refuse(child, "L12", f"the docstring of '{node.name}' belongs to its first cell")
    return found


def _refused_import(
    statement: Statement, cell: Cell, node: ast.Import | ast.ImportFrom
) -> list[Problem]:
    line = cell.lines[node.lineno - 1].number
    if _commented(statement.lines):
        return [problem(cell, line, "L03", "a comment beside an import is not moved: drop it")]
    if isinstance(node, ast.ImportFrom):
        if any(alias.name == "*" for alias in node.names):
            return [problem(cell, line, "L03", "a tangled cell imports names, not '*'")]
        if node.module == "__future__":
            return [
                problem(cell, line, "L03", "'from __future__' would change the rest of the module")
            ]
    return []
