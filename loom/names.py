"""Which names a piece of code uses, and where each of them comes from."""

import ast
import builtins
import symtable
from collections.abc import Iterator
from dataclasses import dataclass, field

from loom.book import Book, Cell, Chapter
from loom.errors import Problem
from loom.split import Piece, problem

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


@dataclass(frozen=True)
class Uses:
    """The names that a piece reads from its module, each with the chapter line of the first use.

    `early` are those read when the module is imported: decorators, bases, defaults, annotations.
    """

    names: dict[str, int]
    early: dict[str, int]


@dataclass
class Scope:
    """What the kernel of a chapter knows by name.

    `defined` maps names of tangled definitions to their module, `imported` names to the imports
    that bind them, `local` names that only cells which are not tangled define to their line.
    """

    chapter: Chapter
    defined: dict[str, str] = field(default_factory=dict)
    imported: dict[str, dict[Import, int]] = field(default_factory=dict)
    local: dict[str, int] = field(default_factory=dict)


def uses(piece: Piece) -> Uses:
    """Return the names that a piece uses and does not define within its own functions."""
    tree = ast.parse(piece.text)
    read = set(_globals(symtable.symtable(piece.text, piece.cell.chapter.path, "exec")))
    lines: dict[str, int] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in read:
            lines.setdefault(node.id, piece.lines[node.lineno - 1].number)
        for name in _quoted(node):
            lines.setdefault(name, piece.lines[getattr(node, "lineno", 1) - 1].number)
    early = {node.id for node in _early(tree) if node.id in read}
    return Uses(lines, {name: lines[name] for name in sorted(early)})


def _globals(table: symtable.SymbolTable) -> Iterator[str]:
    """Names that a symbol table and those within it read from the module."""
    top = table.get_type() == "module"
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (top or symbol.is_global()):
            yield symbol.get_name()
    for child in table.get_children():
        yield from _globals(child)


def _quoted(node: ast.AST) -> Iterator[str]:
    """Names in an annotation that is wholly a string, such as `-> "Schedule"`."""
    annotations = [getattr(node, "annotation", None), getattr(node, "returns", None)]
    for annotation in annotations:
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            inner = ast.parse(annotation.value, mode="eval")
            yield from (n.id for n in ast.walk(inner) if isinstance(n, ast.Name))


def _early(node: ast.AST) -> Iterator[ast.Name]:
    """The names that are looked up while a module is being imported."""
    if isinstance(node, ast.Name):
        yield node
    skipped: list[ast.AST] = []
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        skipped = list(node.body)
    elif isinstance(node, ast.Lambda):
        skipped = [node.body]
    for child in ast.iter_child_nodes(node):
        if child not in skipped:
            yield from _early(child)


def scopes(book: Book, pieces: dict[str, list[Piece]]) -> tuple[dict[str, Scope], list[Problem]]:
    """Return the scope of each chapter, and what is ambiguous in them.

    `pieces` are the definitions of each module, by its path.
    """
    found = {chapter.path: Scope(chapter) for chapter in book.chapters}
    for path, module in pieces.items():
        for piece in module:
            for name in piece.names:
                found[piece.cell.chapter.path].defined.setdefault(name, path)
    problems: list[Problem] = []
    aliases: dict[str, tuple[Import, str]] = {}
    for cell in book.cells():
        scope = found[cell.chapter.path]
        for statement, line in _top_level(cell):
            if isinstance(statement, ast.Import | ast.ImportFrom):
                for entry in _imports(statement):
                    problems += _imported(cell, scope, aliases, entry, line)
            elif cell.kind == "run":
                for name in _bound(statement):
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
    # `import torch` and `import torch.nn` bind the same module to the same name.
    same = all(
        entry.bound == i.module.partition(".")[0] and not i.name and not i.alias
        for i in (entry, *known)
    )
    if known and entry not in known and not same:
        other = next(iter(known.values()))
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


def _top_level(cell: Cell) -> Iterator[tuple[ast.stmt, int]]:
    """The statements of a cell with their chapter lines; none if the cell is not plain Python."""
    lines = ["" if line.text.startswith(("%", "!")) else line.text for line in cell.lines]
    try:
        tree = ast.parse("\n".join(lines))
    except SyntaxError:
        return
    for node in tree.body:
        yield node, cell.lines[node.lineno - 1].number


def _imports(node: ast.Import | ast.ImportFrom) -> Iterator[Import]:
    for alias in node.names:
        renamed = alias.asname if alias.asname and alias.asname != alias.name else ""
        if isinstance(node, ast.Import):
            yield Import(alias.name, "", renamed)
        elif alias.name != "*":
            yield Import(node.module or "", alias.name, renamed)


def _bound(node: ast.stmt) -> Iterator[str]:
    """The names that a top-level statement defines, in whatever way."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        yield node.name
    elif isinstance(node, ast.ClassDef):
        if not any(
            isinstance(d, ast.Call) and ast.unparse(d.func) == "continues"
            for d in node.decorator_list
        ):
            yield node.name
    else:
        for child in ast.walk(node):
            if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
                yield child.id
