"""Which names a piece of code uses, and where each of them comes from."""

import ast
import builtins
import contextlib
import symtable
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from loom.errors import Problem
from loom.read.book import Book
from loom.read.chapter import Cell, Chapter, Line
from loom.tangle.memo import memo
from loom.tangle.pieces import Piece, problem, table
from loom.tangle.syntax import bound, walk

__all__ = ["Import", "Scope", "Uses", "scopes", "uses"]

BUILTINS = frozenset(dir(builtins)) | {"__name__", "__file__", "__doc__"}


@dataclass(frozen=True, order=True)
class Import:
    """`import module as alias` (no `name`), or `from module import name as alias`."""

    module: str
    name: str = ""
    alias: str = ""

    @property
    def bound(self) -> str:
        """The name that the statement defines."""
        return self.alias or self.name or self.module.partition(".")[0]

    def agrees(self, other: "Import") -> bool:
        """Tell whether both bind the same thing, as `import torch` and `import torch.nn` do."""
        plain = not (self.name or self.alias or other.name or other.alias)
        return self == other or (plain and self.bound == other.bound)


@dataclass(frozen=True)
class Uses:
    """The names that a piece reads from its module, each with the chapter line of the first use.

    `early` are those read when the module is imported: decorators, bases, defaults, annotations.
    `quoted` stand in strings that may be types or not: `cast("Any", x)`, `Float[Tensor, "B"]`.
    """

    names: dict[str, int]
    early: dict[str, int]
    quoted: dict[str, int]


@dataclass
class Scope:
    """What the kernel of a chapter knows by name.

    `defined` maps names of tangled definitions to their module, `imported` names to the imports
    that bind them, `local` names that only cells which are not tangled define to their line.
    `starred` are the lines of imports that do not say what they import.
    """

    chapter: Chapter
    defined: dict[str, str] = field(default_factory=dict)
    imported: dict[str, dict[Import, int]] = field(default_factory=dict)
    local: dict[str, int] = field(default_factory=dict)
    starred: list[int] = field(default_factory=list)

    def knows(self, name: str) -> bool:
        """Tell whether any cell of the chapter gives a name its meaning."""
        return name in self.defined or name in self.imported or name in self.local


@memo
def uses(piece: Piece) -> Uses:
    """Return the names that a piece uses and does not define within its own functions."""
    node, source = _node(piece)
    names = _table(piece)
    read = set(_globals(names))
    if isinstance(node, ast.ClassDef):
        read |= _read_before_bound(node, names)
    lines: dict[str, int] = {}
    quoted: dict[str, int] = {}

    def enter(name: str, node: ast.AST, lines: dict[str, int] = lines) -> None:
        line = source[getattr(node, "lineno", 1) - 1].number
        lines[name] = min(line, lines.get(name, line))

    for inner in walk(node):
        if isinstance(inner, ast.Name):
            if inner.id in read:
                enter(inner.id, inner)
        elif isinstance(inner, ast.arg | ast.AnnAssign | ast.FunctionDef | ast.AsyncFunctionDef):
            for annotation in (getattr(inner, "annotation", None), getattr(inner, "returns", None)):
                for name in _quoted(annotation):
                    enter(name, inner)
                for part in walk(annotation) if annotation else ():
                    for name in _quoted(part):
                        enter(name, inner, quoted)
        elif isinstance(inner, ast.Call) and inner.args and _called(inner) == "cast":
            for name in _quoted(inner.args[0]):
                enter(name, inner, quoted)
    early = {node.id for node in _early(node) if node.id in read}
    return Uses(lines, {name: lines[name] for name in sorted(early)}, quoted)


def _node(piece: Piece) -> tuple[ast.stmt, Sequence[Line]]:
    """The syntax of a piece, and the lines that its line numbers count.

    A class that grew over several cells has none from its cells: its lines are parsed together.
    """
    if piece.node is not None:
        return piece.node, piece.cell.lines
    return ast.parse(piece.text).body[0], piece.lines


def _table(piece: Piece) -> symtable.SymbolTable:
    """What the names of a piece mean. Where it is its whole cell, that is known already."""
    if piece.lines == piece.cell.lines:
        return table(piece.cell)
    return symtable.symtable(piece.text, piece.cell.chapter.path, "exec")


def _called(node: ast.Call) -> str:
    """The last name of what is called."""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def _globals(table: symtable.SymbolTable) -> Iterator[str]:
    """Names that a symbol table and those within it read from the module, or assign there."""
    if isinstance(table, symtable.Function):
        yield from table.get_globals()
        for child in table.get_children():
            yield from _globals(child)
        return
    top = table.get_type() == "module"
    for symbol in table.get_symbols():
        outside = not symbol.is_assigned() if top else symbol.is_global()
        if (symbol.is_referenced() and outside) or symbol.is_declared_global():
            yield symbol.get_name()
    for child in table.get_children():
        yield from _globals(child)


def _read_before_bound(node: ast.ClassDef, table: symtable.SymbolTable) -> set[str]:
    """Names that a class body binds, and before that reads from the module: `date: date`."""
    body = next(t for t in table.get_children() if t.get_type() == "class")
    both = {s.get_name() for s in body.get_symbols() if s.is_referenced() and not s.is_global()}
    found: set[str] = set()
    for child in node.body if both else ():
        found |= {n.id for n in _early(child) if isinstance(n.ctx, ast.Load) and n.id in both}
        both -= set(bound(child))
    return found


def _quoted(node: ast.AST | None) -> Iterator[str]:
    """Names in an annotation that is wholly a string, such as `-> "Schedule"`."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        with contextlib.suppress(SyntaxError):
            inner = ast.parse(node.value, mode="eval")
            yield from (n.id for n in ast.walk(inner) if isinstance(n, ast.Name))


def _early(node: ast.AST) -> Iterator[ast.Name]:
    """The names that are looked up while a module is being imported."""
    stack = [node]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Name):
            yield node
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            stack += [*node.decorator_list, node.args, *filter(None, [node.returns])]
        elif isinstance(node, ast.Lambda):
            stack.append(node.args)
        else:
            stack += ast.iter_child_nodes(node)


def scopes(book: Book, pieces: dict[str, list[Piece]]) -> tuple[dict[str, Scope], list[Problem]]:
    """Return the scope of each chapter, and what is ambiguous in them.

    `pieces` are the definitions of each module, by its path.
    """
    found = {chapter.path: Scope(chapter) for chapter in book.chapters}
    problems: list[Problem] = []
    for path, module in pieces.items():
        for piece in module:
            for name in piece.names:
                other = found[piece.cell.chapter.path].defined.setdefault(name, path)
                if other != path:
                    sentence = f"this chapter defines '{name}' in {other} too: rename one"
                    problems.append(problem(piece.cell, piece.first, "L05", sentence))
    aliases: dict[str, tuple[Import, str]] = {}
    for cell in book.cells():
        scope = found[cell.chapter.path]
        statements, names = _top_level(cell)
        for statement, line in statements:
            if isinstance(statement, ast.ImportFrom) and statement.level:
                sentence = "a chapter imports by absolute names"
                problems.append(problem(cell, line, "L03", sentence))
            elif isinstance(statement, ast.Import | ast.ImportFrom):
                if any(alias.name == "*" for alias in statement.names):
                    scope.starred.append(line)
                for entry in _imports(statement):
                    problems += _imported(cell, scope, aliases, entry, line)
            elif cell.kind == "run":
                for name in names.intersection(bound(statement)):
                    if name in scope.defined:
                        sentence = f"'{name}' is tangled into {scope.defined[name]}: rename this"
                        problems.append(problem(cell, line, "L05", sentence))
                    scope.local.setdefault(name, line)
    return found, problems


def _imported(
    cell: Cell, scope: Scope, aliases: dict[str, tuple[Import, str]], entry: Import, line: int
) -> list[Problem]:
    """Enter an import into a scope; return what is ambiguous about it."""
    known = scope.imported.setdefault(entry.bound, {})
    here = f"{cell.chapter.path}:{line}"
    if other := next((line for i, line in known.items() if not entry.agrees(i)), None):
        sentence = f"'{entry.bound}' means something else since {cell.chapter.path}:{other}"
        return [problem(cell, line, "L15", sentence)]
    if entry.bound in scope.defined:
        sentence = f"'{entry.bound}' is imported here and defined in {scope.defined[entry.bound]}"
        return [problem(cell, line, "L15", sentence)]
    known.setdefault(entry, line)
    if entry.alias and not entry.name:
        other_entry, place = aliases.setdefault(entry.alias, (entry, here))
        if other_entry != entry:
            sentence = f"'{entry.alias}' is {entry.module} here, {other_entry.module} at {place}"
            return [problem(cell, line, "L15", sentence)]
    return []


@memo
def _top_level(cell: Cell) -> tuple[list[tuple[ast.stmt, int]], set[str]]:
    """The statements of a cell with their chapter lines, and the names that they bind.

    A cell that is not plain Python has none; of the others, tangled ones count for their imports.
    """
    if cell.kind != "run" and "import" not in cell.source:
        return [], set()
    text = "\n".join("" if line.text.startswith(("%", "!")) else line.text for line in cell.lines)
    try:
        tree = ast.parse(text)
        table = symtable.symtable(text, cell.chapter.path, "exec")
    except SyntaxError:
        return [], set()
    names = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}
    return [(node, cell.lines[node.lineno - 1].number) for node in tree.body], names


def _imports(node: ast.Import | ast.ImportFrom) -> Iterator[Import]:
    for alias in node.names:
        renamed = alias.asname if alias.asname and alias.asname != alias.name else ""
        if isinstance(node, ast.Import):
            yield Import(alias.name, "", renamed)
        elif alias.name != "*":
            yield Import(node.module or "", alias.name, renamed)
