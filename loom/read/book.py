"""Read the book: the chapters that `_toc.yml` lists, in its order, and their code cells."""

import graphlib
import keyword
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from loom.errors import Problem, Problems
from loom.read.blocks import CELL, Block, Page, halves, page

__all__ = ["Book", "Cell", "Chapter", "Line", "read", "revised", "settings"]

ROLES = ("tangle", "verifies", "refutes")
# Options of a cell: loom's own, and those of the notebook.
OPTIONS = (*ROLES, "implements", "open", "tags", "mystnb")
OPTION = re.compile(r":([A-Za-z_][\w-]*):(?:\s+(.*))?$")
STRAY = re.compile(r"\s*:[A-Za-z_][\w-]*:")
MODULE = re.compile(r"tangled(/(?!__)[a-z_][a-z0-9_]*)+\.py")
PAGE = re.compile(r"[A-Za-z0-9._/-]+")  # also a part of names in notebooks, tests and addresses
ENTRY = re.compile(r"\b(?:root|file):\s*['\"]?([^'\"\s,}#]+)")
TITLE = re.compile(r" {0,3}#[ \t]+(?P<title>.*?)(?:[ \t]+#+)?[ \t]*$")
CONFLICT = re.compile(r"(<{7}|>{7}|\|{7}) \S|={7}$")

# Ten times as fast as the one in Python.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

NESTED = "a code cell stands at the top level, at the beginning of a line, not in another block"
COLONS = "a code cell has a fence of backticks, as ```{code-cell}: one of colons is never run"
OPEN = "this code cell is never closed"


@dataclass(frozen=True)
class Line:
    """A line of text and the line of the chapter it came from (0: written by loom)."""

    text: str
    number: int = 0


@dataclass(frozen=True)
class Cell:
    """A code cell; `index` counts those of its chapter from 0, `line` and `end` are its fences."""

    chapter: "Chapter" = field(repr=False, compare=False)
    index: int
    line: int
    end: int
    options: dict[str, Any]
    lines: tuple[Line, ...]

    @cached_property
    def source(self) -> str:
        """The code, as the kernel gets it."""
        return "\n".join(line.text for line in self.lines)

    @cached_property
    def kind(self) -> str:
        """What becomes of the cell: `tangle`, `verify`, `refute`, or `run` for none of these."""
        kinds = {"tangle": "tangle", "verifies": "verify", "refutes": "refute"}
        return next((kinds[role] for role in ROLES if role in self.options), "run")

    @cached_property
    def module(self) -> str | None:
        """The file that the cell is tangled into, from the root of the project."""
        if self.kind == "run":
            return None
        if self.kind != "tangle":
            return self.chapter.tests
        target = self.options["tangle"]
        if target in ("", None):
            target = self.chapter.front.get("tangle")
        return None if target is None else f"tangled/{target}"

    def labels(self, option: str) -> tuple[str, ...]:
        """The labels that an option names, separated by blanks or commas."""
        return tuple(str(self.options.get(option) or "").replace(",", " ").split())

    @property
    def implements(self) -> tuple[str, ...]:
        """Labels of what the cell's definition implements."""
        return self.labels("implements")

    @property
    def verifies(self) -> tuple[str, ...]:
        """Labels of what the cell's tests verify."""
        return self.labels("verifies")

    @property
    def refutes(self) -> tuple[str, ...]:
        """Labels of what the cell's tests are negative controls of."""
        return self.labels("refutes")


@dataclass(frozen=True)
class Chapter:
    """A page: `order` is its place in `_toc.yml`, `part` the caption it stands under."""

    path: str
    order: int
    part: str
    text: str = field(repr=False)
    front: dict[str, Any] = field(compare=False)  # of the text, as are the title and the cells
    title: str
    cells: tuple[Cell, ...] = field(repr=False, compare=False, default=())

    @property
    def page(self) -> Page:
        """The blocks of the page."""
        return page(self.text)

    @property
    def shown(self) -> frozenset[int]:
        """The lines that say nothing themselves: code, examples of markup, comments."""
        return self.page.silent

    @property
    def docname(self) -> str:
        """The name that Sphinx gives the page."""
        return self.path.removesuffix(".md")

    @property
    def needs(self) -> tuple[str, ...]:
        """Prerequisites, as docnames without the leading `book/`."""
        return tuple(need.removeprefix("book/") for need in self.front.get("needs") or ())

    @property
    def tests(self) -> str:
        """The file that the chapter's checks are tangled into."""
        part, _, slug = self.docname.removeprefix("book/").rpartition("/")
        name = f"test_{slug.replace('-', '_')}.py"
        return "/".join(filter(None, ("tests/book", part, name)))


@dataclass(frozen=True)
class Book:
    """The chapters in reading order."""

    root: Path
    chapters: tuple[Chapter, ...]

    def cells(self) -> Iterator[Cell]:
        """Every code cell of the book, in reading order."""
        for chapter in self.chapters:
            yield from chapter.cells


def read(root: Path) -> Book:
    """Read the book whose `_toc.yml` stands in `root`.

    Raises:
        Problems: if a page is missing, or a chapter is not as the book's rules ask.
    """
    problems: list[Problem] = []
    chapters: list[Chapter] = []
    checks: dict[str, str] = {}
    for line, part, name in _pages(root / "_toc.yml"):
        path = f"{name}.md"
        if not (root / path).is_file():
            problems.append(Problem("_toc.yml", line, "B01", f"{path} does not exist"))
            continue
        try:
            chapter = _chapter(path, len(chapters), part, _text(root, path))
        except Problems as found:
            problems.extend(found.problems)
            continue
        if (other := checks.setdefault(chapter.tests, path)) != path:
            sentence = f"its checks would stand in {chapter.tests}, as those of {other}: rename one"
            problems.append(Problem(path, 1, "B09", sentence))
        chapters.append(chapter)
    try:
        settings(root)
    except Problems as found:
        problems.extend(found.problems)
    if not problems:
        problems.extend(_unmet(chapters))
    if problems:
        raise Problems(problems)
    return _book(root, tuple(chapters))


@lru_cache(maxsize=8)
def _book(root: Path, chapters: tuple[Chapter, ...]) -> Book:
    """The same book for the same chapters: what is known of it is kept with it."""
    return Book(root, chapters)


def settings(root: Path) -> dict[str, Any]:
    """The settings of Jupyter Book, `_config.yml`; none where there is no such file.

    Raises:
        Problems: if it is no YAML, or what loom uses of it is of the wrong kind.
    """
    name = "_config.yml"
    if not (root / name).is_file():
        return {}
    text = _text(root, name)
    found = _mapping(name, 0, text)
    timeout = _at(found, "execute", "timeout")
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int)):
        raise Problems(
            [Problem(name, _line_of(text, "timeout"), "B05", "'timeout' is a number of seconds")]
        )
    for key in ("execute", "parse"):
        if not isinstance(found.get(key) or {}, dict):
            sentence = f"'{key}' holds settings, each on a line"
            raise Problems([Problem(name, _line_of(text, key), "B05", sentence)])
    return found


def revised(book: Book, texts: Mapping[str, str]) -> Book:
    """The book with other texts of some chapters, by their paths; nothing is read from disk.

    Raises:
        Problems: if one of these chapters is not as the book's rules ask.
    """
    chapters = [
        _chapter(c.path, c.order, c.part, texts[c.path]) if c.path in texts else c
        for c in book.chapters
    ]
    return Book(book.root, tuple(chapters))


def _text(root: Path, path: str) -> str:
    try:
        return (root / path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        sentence = f"this file is not UTF-8 (byte {error.start})"
        raise Problems([Problem(path, 1, "B02", sentence)]) from None
    except OSError as error:
        sentence = f"this file cannot be read: {error.strerror}"
        raise Problems([Problem(path, 1, "B02", sentence)]) from None


def _pages(toc: Path) -> list[tuple[int, str, str]]:
    """The pages that a table of contents lists: line, caption of the part, path without suffix."""
    if not toc.is_file():
        raise Problems(
            [Problem(toc.name, 1, "B01", f"there is no table of contents in {toc.parent}")]
        )
    text = _text(toc.parent, toc.name)
    tree = _mapping(toc.name, 0, text)
    if "root" not in tree:
        raise Problems([Problem(toc.name, 1, "B03", "the table of contents names no root")])
    places: dict[str, list[int]] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if match := ENTRY.search(line):
            places.setdefault(match[1].removesuffix(".md"), []).append(number)
    listed: set[str] = set()

    def page(part: str, name: str) -> tuple[int, str, str]:
        line = next(iter(places.get(name, ())), 1)
        if ".." in name or str(PurePosixPath(name)) != name or name.startswith("/"):
            raise Problems([Problem(toc.name, line, "B03", f"'{name}' is no path of this folder")])
        if not PAGE.fullmatch(name):
            sentence = f"'{name}' has more than letters without accents, digits and . _ - /"
            raise Problems([Problem(toc.name, line, "B03", sentence)])
        if name in listed:
            line = places.get(name, [1])[-1]
            raise Problems([Problem(toc.name, line, "B03", f"{name} is listed twice")])
        listed.add(name)
        return line, part, name

    def walk(node: object, part: str) -> Iterator[tuple[int, str, str]]:
        if not isinstance(node, dict):
            sentence = f"{node!r} is no entry: write 'file: book/part/chapter'"
            raise Problems([Problem(toc.name, 1, "B03", sentence)])
        for key in ("glob", "subtrees", "entries"):
            if key in node:
                sentence = f"loom does not read '{key}': list each chapter as a 'file'"
                raise Problems([Problem(toc.name, 1, "B03", sentence)])
        if name := str(node.get("root") or node.get("file") or "").removesuffix(".md"):
            yield page(part, name)
        for key in ("parts", "chapters", "sections"):
            children = node.get(key) or []
            if not isinstance(children, list):
                sentence = f"'{key}' is a list, each line with a hyphen"
                raise Problems([Problem(toc.name, 1, "B03", sentence)])
            for child in children:
                inner = part if key != "parts" else _caption(child)
                yield from walk(child, inner)

    try:
        return list(walk(tree, ""))
    except RecursionError:
        raise Problems([Problem(toc.name, 1, "B03", "an entry contains itself")]) from None


def _caption(part: object) -> str:
    return str(part.get("caption") or "") if isinstance(part, dict) else ""


def _yaml(text: str) -> Any:
    """Read YAML in C, where that can be; what is wrong with it is said better in Python.

    Tabs are refused by the one in Python alone, which Jupyter and Sphinx read with.
    """
    if "\t" in text:
        return yaml.safe_load(text)
    try:
        return yaml.load(text, _LOADER)
    except yaml.YAMLError:
        return yaml.safe_load(text)


def _mapping(path: str, above: int, text: str) -> dict[str, Any]:
    """Read YAML that must be a mapping; `above` lines stand above it in its file."""
    line = above + 1
    try:
        found = _yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line += mark.line if mark else 0
        reason = getattr(error, "problem", None) or str(error).partition("\n")[0]
    except (ValueError, RecursionError) as error:  # for instance a 30th of February
        reason = str(error)
    else:
        if found is None or isinstance(found, dict):
            return found or {}
        reason = "it is no mapping"
    raise Problems([Problem(path, line, "B03", f"this YAML does not parse: {reason}")])


@lru_cache(maxsize=256)
def _chapter(path: str, order: int, part: str, text: str) -> Chapter:
    lines, blocks = text.split("\n"), page(text)
    if lines[0].rstrip() == "---" and not blocks.front:
        raise Problems([Problem(path, 1, "B03", "the front matter is never closed by '---'")])
    front = _mapping(path, 1, "\n".join(lines[1 : max(blocks.front - 1, 1)]))
    chapter = Chapter(path, order, part, text, front, _title(path, lines, blocks))
    problems = [*_refused_front(chapter), *_conflicts(chapter, lines)]
    cells: list[Cell] = []
    for block in blocks.blocks:
        try:
            if block.name.lower() == CELL:
                cells.append(_cell(chapter, len(cells), block, lines))
            elif not block.closed:
                sentence = f"this block is never closed by {block.mark}"
                raise Problems([Problem(path, block.line, "B07", sentence)])
        except Problems as found:
            problems.extend(found.problems)
    if problems:
        raise Problems(problems)
    if cells and not {"jupytext", "kernelspec"} <= front.keys():
        sentence = "a chapter with code cells needs 'jupytext' and 'kernelspec' in its front matter"
        raise Problems([Problem(path, 1, "B05", sentence)])
    object.__setattr__(chapter, "cells", tuple(cells))
    return chapter


def _title(path: str, lines: list[str], blocks: Page) -> str:
    inner = {n for block in blocks.blocks for n in range(block.line, block.end + 1)}
    for number, line in enumerate(lines[blocks.front :], blocks.front + 1):
        if (
            (match := TITLE.match(line))
            and number not in inner
            and number not in blocks.silent
            and match["title"]
        ):
            return " ".join(match["title"].split())
    raise Problems([Problem(path, 1, "B04", "this page has no title (a line '# ...')")])


def _conflicts(chapter: Chapter, lines: list[str]) -> Iterator[Problem]:
    """The marks that git leaves where two versions of a chapter did not merge."""
    marks = [(n, line) for n, line in enumerate(lines, 1) if CONFLICT.match(line)]
    if any(line.startswith("<") for _, line in marks):
        for number, line in marks:
            if not line.startswith("="):
                sentence = f"git left a conflict here: '{line[:7]}'"
                yield Problem(chapter.path, number, "B10", sentence)


FRONT = {
    "kernelspec": "is {name: python3, display_name: Python 3, language: python}",
    "jupytext": "is {text_representation: {extension: .md, format_name: myst}}",
    "tangle": "is the path of a module, such as diffusion/forward.py",
    "modules": "gives each module its sentence",
    "needs": "is a list of chapters, such as [diffusion/forward]",
    "budget": "is a number of seconds",
}


def _refused_front(chapter: Chapter) -> Iterator[Problem]:
    """What in the front matter is not of the kind that loom, Jupyter and Sphinx read."""
    front = chapter.front
    kernel, budget = front.get("kernelspec"), front.get("budget")
    spec = ("name", "display_name", "language")
    right = {
        "kernelspec": isinstance(kernel, dict)
        and all(isinstance(kernel.get(key), str) for key in spec)
        and kernel["name"] == "python3",
        "jupytext": _at(front, "jupytext", "text_representation", "format_name") == "myst",
        "tangle": isinstance(front.get("tangle"), str),
        "modules": isinstance(front.get("modules"), dict)
        and all(isinstance(x, str) for pair in front["modules"].items() for x in pair),
        "needs": isinstance(front.get("needs"), list)
        and all(isinstance(need, str) for need in front["needs"]),
        "budget": isinstance(budget, int | float) and budget > 0,
    }
    for key, kind in FRONT.items():
        if front.get(key) is not None and not right[key]:
            sentence = f"'{key}' in the front matter {kind}"
            yield Problem(chapter.path, _line_of(chapter.text, key), "B05", sentence)


def _at(tree: object, *keys: str) -> object:
    """What stands at nested keys of a mapping; None where there is none."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _line_of(text: str, key: str) -> int:
    """The first line that begins with a key, wherever it is indented to; 1 if there is none."""
    lines = enumerate(text.split("\n"), 1)
    return next((n for n, line in lines if line.lstrip().startswith(f"{key}:")), 1)


def _unmet(chapters: Iterable[Chapter]) -> Iterator[Problem]:
    """Prerequisites that are no chapters, or that go round in a circle."""
    known = {c.docname.removeprefix("book/"): c for c in chapters}
    for chapter in known.values():
        for need in chapter.needs:
            if need not in known:
                sentence = f"'needs' names '{need}', which is no chapter"
                yield Problem(chapter.path, _line_of(chapter.text, "needs"), "B11", sentence)
    graph = {name: [n for n in c.needs if n in known] for name, c in known.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        circle = list(reversed(error.args[1][1:]))
        last = max(circle, key=lambda name: known[name].order)
        at, chapter = circle.index(last), known[last]
        around = " -> ".join([*circle[at:], *circle[:at], last])
        sentence = f"'needs' goes round in a circle: {around}"
        yield Problem(chapter.path, _line_of(chapter.text, "needs"), "B11", sentence)


def _cell(chapter: Chapter, index: int, block: Block, lines: list[str]) -> Cell:
    """Read one cell: its options (a YAML block, or lines `:name: value`), then its code."""

    def refuse(line: int, code: str, sentence: str) -> Problems:
        return Problems([Problem(chapter.path, line, code, sentence)])

    if block.name != CELL:
        raise refuse(block.line, "B06", f"'{block.name}' is written '{CELL}'")
    if block.mark.startswith(":"):
        raise refuse(block.line, "B06", COLONS)
    if block.before or block.inside:
        raise refuse(block.line, "B06", NESTED)
    above, code = halves(lines, block)
    body = tuple(Line(lines[number - 1], number) for number in code)
    if not block.closed or any(line.text.startswith(f"{block.mark}{{") for line in body):
        raise refuse(block.line, "B07", OPEN)
    options: dict[str, Any] = {}
    if above and lines[above[0] - 1].strip() == "---":
        if len(above) == 1 or lines[above[-1] - 1].strip() != "---":
            sentence = "the option block of this cell is never closed by '---'"
            raise refuse(block.line, "B08", sentence)
        text = "\n".join(lines[number - 1] for number in above[1:-1])
        options = _mapping(chapter.path, above[0], text)
    else:
        for number in above:
            if not (match := OPTION.match(lines[number - 1])):
                sentence = f"'{lines[number - 1].strip()}' is no option: write ':name: value'"
                raise refuse(number, "L01", sentence)
            options[match[1]] = (match[2] or "").strip()
    if body and STRAY.match(body[0].text):
        sentence = "options stand at once below the fence of their cell, at the left margin"
        raise refuse(body[0].number, "L01", sentence)
    cell = Cell(chapter, index, block.line, block.end, options, body)
    if refused := _refused_options(cell):
        raise refuse(block.line, "L01", refused)
    return cell


def _refused_options(cell: Cell) -> str | None:
    """What is wrong with the options of a cell, if anything is."""
    unknown = [option for option in cell.options if option not in OPTIONS]
    if unknown:
        return f"'{unknown[0]}' is no option of a cell: there are {', '.join(OPTIONS)}"
    roles = [role for role in ROLES if role in cell.options]
    if len(roles) > 1:
        return f"a cell cannot be both '{roles[0]}' and '{roles[1]}'"
    if "implements" in cell.options and cell.kind != "tangle":
        return "':implements:' belongs to a cell with ':tangle:'"
    for role in ("verifies", "refutes", "implements"):
        if isinstance(cell.options.get(role), list | dict):
            return f"':{role}:' is a line of labels, separated by blanks"
        if role in cell.options and not cell.labels(role):
            return f"':{role}:' names no label"
    if cell.kind != "tangle":
        return None
    if cell.module is None:
        return "':tangle:' names no module, and neither does the front matter"
    parts = cell.module.removesuffix(".py").split("/")
    if not MODULE.fullmatch(cell.module) or any(map(keyword.iskeyword, parts)):
        return f"'{cell.module}' is no path of a module, such as diffusion/forward.py"
    return None
