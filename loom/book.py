"""Read the book: the chapters that `_toc.yml` lists, in its order, and their code cells."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.front_matter import front_matter_plugin

from loom.errors import Problem, Problems

__all__ = ["Book", "Cell", "Chapter", "Line", "read"]

ROLES = ("tangle", "verifies", "refutes")
OPTION = re.compile(r":([A-Za-z_][\w-]*):(?:\s+(.*))?$")


@dataclass(frozen=True)
class Line:
    """A line of text and the line of the chapter it came from (0: written by loom)."""

    text: str
    number: int = 0


@dataclass(frozen=True)
class Cell:
    """A code cell; `index` counts those of its chapter from 0, `line` is its fence's."""

    chapter: "Chapter" = field(repr=False, compare=False)
    index: int
    line: int
    options: dict[str, Any]
    lines: tuple[Line, ...]

    @property
    def source(self) -> str:
        """The code, as the kernel gets it."""
        return "\n".join(line.text for line in self.lines)

    @property
    def kind(self) -> str:
        """What becomes of the cell: `tangle`, `verify`, `refute`, or `run` for none of these."""
        kinds = {"tangle": "tangle", "verifies": "verify", "refutes": "refute"}
        return next((kinds[role] for role in ROLES if role in self.options), "run")

    @property
    def module(self) -> str | None:
        """The file that the cell is tangled into, from the root of the project."""
        if self.kind == "run":
            return None
        if self.kind != "tangle":
            return self.chapter.tests
        target = self.options["tangle"] or self.chapter.front.get("tangle")
        return f"tangled/{target}" if target else None

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
    front: dict[str, Any]
    title: str
    cells: tuple[Cell, ...] = field(repr=False, default=())

    @property
    def docname(self) -> str:
        """The name that Sphinx gives the page."""
        return self.path.removesuffix(".md")

    @property
    def needs(self) -> tuple[str, ...]:
        """Prerequisites, as docnames without the leading `book/`."""
        return tuple(self.front.get("needs") or ())

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
    for line, part, name in _pages(root / "_toc.yml"):
        path = f"{name}.md"
        if not (root / path).is_file():
            problems.append(Problem("_toc.yml", line, "B01", f"{path} does not exist"))
            continue
        try:
            text = (root / path).read_text(encoding="utf-8")
            chapters.append(_chapter(path, len(chapters), part, text))
        except UnicodeDecodeError as error:
            sentence = f"this file is not UTF-8 (byte {error.start})"
            problems.append(Problem(path, 1, "B02", sentence))
        except Problems as found:
            problems.extend(found.problems)
    if problems:
        raise Problems(problems)
    return Book(root, tuple(chapters))


def _pages(toc: Path) -> list[tuple[int, str, str]]:
    """The pages that a table of contents lists: line, caption of the part, path without suffix."""
    if not toc.is_file():
        raise Problems(
            [Problem(toc.name, 1, "B01", f"there is no table of contents in {toc.parent}")]
        )
    text = toc.read_text(encoding="utf-8")
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise Problems([_yaml_problem(toc.name, 0, "B03", error)]) from None
    if not isinstance(tree, dict) or "root" not in tree:
        raise Problems([Problem(toc.name, 1, "B03", "the table of contents names no root")])
    lines = text.splitlines()

    def line_of(name: str) -> int:
        pattern = re.compile(rf"\b(root|file):\s*['\"]?{re.escape(name)}['\"]?\s*$")
        return next((n for n, line in enumerate(lines, 1) if pattern.search(line)), 1)

    def walk(node: dict[str, Any], part: str) -> Iterator[tuple[int, str, str]]:
        name = str(node.get("root") or node.get("file") or "").removesuffix(".md")
        if name:
            yield line_of(name), part, name
        for child in node.get("parts") or ():
            yield from walk(child, str(child.get("caption", "")))
        for key in ("chapters", "sections"):
            for child in node.get(key) or ():
                yield from walk(child, part)

    return list(walk(tree, ""))


def _yaml_problem(path: str, above: int, code: str, error: yaml.YAMLError) -> Problem:
    """A problem for YAML that does not parse; `above` lines stand above it in its file."""
    mark = getattr(error, "problem_mark", None)
    sentence = f"this YAML does not parse: {getattr(error, 'problem', None) or error}"
    return Problem(path, above + (mark.line if mark else 0) + 1, code, sentence)


def _parser() -> MarkdownIt:
    """Only the rules that decide where a top-level fence or a title stands."""
    parser = MarkdownIt("commonmark").use(front_matter_plugin)
    parser.disable(["inline", "text_join"], ignoreInvalid=True)
    return parser


_PARSER = _parser()


def _chapter(path: str, order: int, part: str, text: str) -> Chapter:
    tokens = _PARSER.parse(text)
    front: dict[str, Any] = {}
    if tokens and tokens[0].type == "front_matter":
        try:
            front = yaml.safe_load(tokens[0].content) or {}
        except yaml.YAMLError as error:
            raise Problems([_yaml_problem(path, 1, "B03", error)]) from None
    title = next(
        (
            tokens[i + 1].content
            for i, token in enumerate(tokens)
            if token.type == "heading_open" and token.tag == "h1"
        ),
        None,
    )
    if title is None:
        raise Problems([Problem(path, 1, "B04", "this page has no title (a line '# ...')")])
    chapter = Chapter(path, order, part, text, front, title)
    cells: list[Cell] = []
    problems: list[Problem] = []
    for token in tokens:
        if token.type != "fence" or not token.info.startswith("{code-cell}"):
            continue
        try:
            cells.append(_cell(chapter, len(cells), token, text.split("\n")))
        except Problems as found:
            problems.extend(found.problems)
    if cells and "kernelspec" not in front:
        sentence = "a chapter with code cells needs 'jupytext' and 'kernelspec' in its front matter"
        problems.append(Problem(path, 1, "B05", sentence))
    if problems:
        raise Problems(problems)
    object.__setattr__(chapter, "cells", tuple(cells))
    return chapter


def _cell(chapter: Chapter, index: int, token: Token, text: list[str]) -> Cell:
    """Read one fence: its options (a YAML block, or lines `:name: value`), then its code."""
    assert token.map is not None
    first, end = token.map[0] + 1, token.map[1]

    def refuse(line: int, code: str, sentence: str) -> Problems:
        return Problems([Problem(chapter.path, line, code, sentence)])

    if token.level:
        raise refuse(first, "B06", "a code cell stands at the top level, not inside another block")
    if not (end <= len(text) and text[end - 1].strip().startswith(token.markup)):
        raise refuse(first, "B07", "this code cell is never closed")
    body = [Line(text[number - 1], number) for number in range(first + 1, end)]
    options: dict[str, Any] = {}
    if body and body[0].text.strip() == "---":
        close = next((i for i, line in enumerate(body[1:], 1) if line.text.strip() == "---"), None)
        if close is None:
            raise refuse(first, "B08", "the option block of this cell is never closed by '---'")
        block = "\n".join(line.text for line in body[1:close])
        try:
            options = yaml.safe_load(block) or {}
        except yaml.YAMLError as error:
            raise Problems([_yaml_problem(chapter.path, first + 1, "B03", error)]) from None
        body = body[close + 1 :]
    else:
        while body and (match := OPTION.match(body[0].text)):
            options[match[1]] = match[2] or ""
            body = body[1:]
    while body and not body[0].text.strip():
        body = body[1:]
    while body and not body[-1].text.strip():
        body = body[:-1]
    cell = Cell(chapter, index, first, options, tuple(body))
    roles = [role for role in ROLES if role in options]
    if len(roles) > 1:
        raise refuse(first, "L01", f"a cell cannot be both '{roles[0]}' and '{roles[1]}'")
    if "implements" in options and cell.kind != "tangle":
        raise refuse(first, "L01", "':implements:' belongs to a cell with ':tangle:'")
    for role in ("verifies", "refutes", "implements"):
        if role in options and not cell.labels(role):
            raise refuse(first, "L01", f"':{role}:' names no label")
    if cell.kind == "tangle" and cell.module is None:
        sentence = "':tangle:' names no module, and neither does the front matter"
        raise refuse(first, "L01", sentence)
    if cell.kind == "tangle" and not re.fullmatch(
        r"tangled(/[a-z_][a-z0-9_]*)+\.py", cell.module or ""
    ):
        sentence = f"'{cell.module}' is no path of a module, such as diffusion/forward.py"
        raise refuse(first, "L01", sentence)
    return cell
