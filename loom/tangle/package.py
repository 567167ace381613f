"""Tangle: the cells of the chapters become the modules of the package and the book's own tests."""

import ast
import json
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from loom.errors import Problem, Problems
from loom.prove.call_graph import defined
from loom.read.book import Book, Cell
from loom.read.labels import labels
from loom.tangle.chapter_order import ranks
from loom.tangle.drafts import Draft, collect
from loom.tangle.imports import cycles, layers, misplaced_imports, resolve
from loom.tangle.memo import once
from loom.tangle.names import scopes
from loom.tangle.pieces import Piece, problem
from loom.tangle.render import WIDTH, Placed, render

__all__ = ["Definition", "Module", "Tangled", "tangle"]


VERSION = """


def __getattr__(name: str) -> str:
    \"\"\"Return `__version__`, looked up in the installation when it is asked for.\"\"\"
    if name != "__version__":
        raise AttributeError(f"module 'tangled' has no attribute '{name}'")
    from importlib.metadata import version

    return version(NAME)
"""


@dataclass(frozen=True)
class Module:
    """A tangled file: its lines, each with the chapter line that it is."""

    path: str
    lines: tuple[Placed, ...]

    @property
    def text(self) -> str:
        """The file's whole text."""
        return "".join(f"{line.text}\n" for line in self.lines)


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


@dataclass(frozen=True)
class Tangled:
    """All modules by path, and all definitions in the order of the book."""

    modules: dict[str, Module]
    drafts: tuple[Draft, ...]

    @cached_property
    def definitions(self) -> tuple[Definition, ...]:
        """Where each definition stands; found when it is asked for, since tangling needs it not."""
        found = [d for x in self.drafts for d in _definitions(self.modules[x.path], x)]
        chapters = [p.cell.chapter for x in self.drafts for p in x.pieces]
        order = {chapter.path: chapter.order for chapter in chapters}
        return tuple(sorted(found, key=lambda d: (order[d.chapter], d.line)))


@once
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
    modules = {path: _module(draft) for path, draft in sorted(drafts.items())}
    modules.update(_packages(book, drafts))
    return Tangled(modules, tuple(drafts.values()))


def _module(draft: Draft) -> Module:
    public = draft.path.startswith("tangled/")
    placed = render(_docstring(draft), draft.imports, draft.pieces, public)
    return Module(draft.path, tuple(placed))


def _hidden(drafts: dict[str, Draft]) -> Iterator[Problem]:
    """Modules that no import would find, because a folder has their name."""
    folders = {parent.as_posix() for path in drafts for parent in PurePosixPath(path).parents}
    for path, draft in drafts.items():
        if path.removesuffix(".py") in folders:
            piece = draft.pieces[0]
            sentence = f"{path} and a folder of the same name cannot both be imported"
            yield problem(piece.cell, piece.cell.line, "L01", sentence)


def _docstring(draft: Draft) -> str:
    """A sentence of the chapter's front matter (or its title), and where the module comes from."""
    chapters = list({p.cell.chapter.path: p.cell.chapter for p in draft.pieces}.values())
    target = draft.path.removeprefix("tangled/")
    stated = [(c.front.get("modules") or {}).get(target) for c in chapters]
    if not draft.path.startswith("tangled/"):
        head = f"Checks of the chapter “{chapters[0].title}”."
    else:
        head = next(filter(None, stated), None) or _sentence("; ".join(c.title for c in chapters))
    source = f"Tangled from {' and '.join(c.path for c in chapters)}."
    wrapped = textwrap.fill(source, WIDTH, break_long_words=False, break_on_hyphens=False)
    return _quoted(f"{head}\n\n{wrapped}\n")


def _sentence(title: str) -> str:
    return title if title.endswith((".", "?", "!")) else f"{title}."


def _quoted(text: str) -> str:
    """A docstring with this text; a title may hold mathematics, and thus backslashes."""
    prefix = "r" if "\\" in text else ""
    return prefix + '"""' + text.replace('"""', "'''") + '"""'


def _packages(book: Book, drafts: dict[str, Draft]) -> dict[str, Module]:
    """The `__init__.py` files, a docstring each, and the marker of a typed package."""
    made: dict[str, str] = {}
    for path in sorted(path for path in drafts if path.startswith("tangled/")):
        first = drafts[path].pieces[0].cell.chapter
        *folders, _, _ = PurePosixPath(path).parents
        for folder in folders:
            name = folder.as_posix().removeprefix("tangled/")
            stated = (first.front.get("modules") or {}).get(name)
            head = stated or _sentence(first.part or first.title)
            made.setdefault(f"{folder}/__init__.py", _quoted(head))
    if made:
        root = book.chapters[0].title
        head = _quoted(f"{root}: the code of the book, tangled from its chapters.")
        made["tangled/__init__.py"] = head + _version(book.root)
        made["tangled/py.typed"] = ""
    return {
        path: Module(path, tuple(Placed(line) for line in text.splitlines()))
        for path, text in made.items()
    }


def _version(root: Path) -> str:
    """Code for `tangled.__version__`, if `pyproject.toml` says what the package is called."""
    file = root / "pyproject.toml"
    project = tomllib.loads(file.read_text("utf-8")).get("project", {}) if file.is_file() else {}
    return VERSION.replace("NAME", json.dumps(project["name"])) if "name" in project else ""


def _definitions(module: Module, draft: Draft) -> Iterator[Definition]:
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
    decorators = [d.lineno for d in getattr(node, "decorator_list", [])]
    first, last = (min([node.lineno, *decorators]), node.end_lineno or node.lineno)
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
