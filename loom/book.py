"""Read the book: the chapters that `_toc.yml` lists, in its order, and their code cells."""

import keyword
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.colon_fence import colon_fence_plugin
from mdit_py_plugins.front_matter import front_matter_plugin

from loom.errors import Problem, Problems

__all__ = ["Book", "Cell", "Chapter", "Line", "read", "revised"]

ROLES = ("tangle", "verifies", "refutes")
# Options of a cell: loom's own, and those of the notebook.
OPTIONS = (*ROLES, "implements", "open", "tags", "mystnb")
OPTION = re.compile(r":([A-Za-z_][\w-]*):(?:\s+(.*))?$")
MODULE = re.compile(r"tangled(/(?!__)[a-z_][a-z0-9_]*)+\.py")
ENTRY = re.compile(r"\b(?:root|file):\s*['\"]?([^'\"\s,}#]+)")
CELL = re.compile(r"[\s>*+-]*(?:`{3,}|~{3,})\s*\{code-cell\}")
FENCE = re.compile(r"\s*(?P<mark>`{3,}|~{3,}|:{3,})\s*(?P<name>\{[^}\s]+\})?(?P<rest>.*)$")
# Directives that show their text as it is.
LITERAL = {"{code-cell}", "{code-block}", "{code}", "{raw}", "{parsed-literal}"}


# Ten times as fast as the one in Python.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

NESTED = "a code cell stands at the top level, at the beginning of a line, not in another block"


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
    """A page: `order` is its place in `_toc.yml`, `part` the caption it stands under.

    `shown` are the lines that say nothing themselves: code, examples of markup, comments.
    """

    path: str
    order: int
    part: str
    text: str = field(repr=False)
    front: dict[str, Any]
    title: str
    shown: frozenset[int] = field(repr=False, default=frozenset())
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
    if problems:
        raise Problems(problems)
    return Book(root, tuple(chapters))


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
    """Read YAML in C, where that can be; what is wrong with it is said better in Python."""
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


def _parser() -> MarkdownIt:
    """Only the rules that decide where a top-level fence or a title stands."""
    parser = MarkdownIt("zero", {"html": True}).use(front_matter_plugin).use(colon_fence_plugin)
    parser.enable(["code", "fence", "heading", "html_block"])
    parser.disable(["inline", "text_join"], ignoreInvalid=True)
    return parser


_PARSER = _parser()
# A line on which no block begins or ends. Nothing but its first letter matters; and the next one,
# if it is such a line and stands in the same column, belongs to the same block.
PLAIN = re.compile(r"[ \t]*[A-Za-z](?=[^<>]*$)")


def _blocks(lines: list[str]) -> list[Token]:
    """The top-level blocks of a page; the parser is spared what cannot matter to it."""
    front = len(lines) if lines[0].startswith("---") else 0
    if lines[0] == "---" and "---" in lines[1:]:
        front = lines.index("---", 1)
    kept, texts = list(range(front)), lines[:front]
    column = 0
    for at, line in enumerate(lines[front:], front):
        match = PLAIN.match(line)
        if match is None:
            column = 0
            if not line.strip():
                # Plain lines between two blank ones say nothing.
                if len(texts) > front + 1 and texts[-1].strip().isalpha() and not texts[-2]:
                    del texts[-2:], kept[-2:]
                line = ""
        elif column == match.end():
            continue
        else:
            column, line = match.end(), match[0]
        texts.append(line)
        kept.append(at)
    tokens = _PARSER.parse("\n".join(texts))
    for token in tokens:
        if token.map:
            first, end = token.map
            token.map = [kept[first], kept[end - 1] + 1 if end < len(kept) else len(lines)]
    return tokens


def _chapter(path: str, order: int, part: str, text: str) -> Chapter:
    lines = text.split("\n")
    tokens = _blocks(lines)
    front: dict[str, Any] = {}
    if tokens and tokens[0].type == "front_matter":
        front = _mapping(path, 1, tokens[0].content)
    chapter = Chapter(path, order, part, text, front, _title(path, tokens), _shown(lines))
    cells: list[Cell] = []
    problems = list(_refused_front(chapter))
    places: set[int] = set()
    for token in tokens:
        if token.type != "fence" or not token.info.startswith("{code-cell}"):
            continue
        assert token.map is not None
        places.add(token.map[0] + 1)
        try:
            cells.append(_cell(chapter, len(cells), token, lines))
        except Problems as found:
            problems.extend(found.problems)
    for number, line in enumerate(lines, 1):
        if CELL.match(line) and number not in chapter.shown and number not in places:
            problems.append(Problem(path, number, "B06", NESTED))
    if cells and "kernelspec" not in front:
        sentence = "a chapter with code cells needs 'jupytext' and 'kernelspec' in its front matter"
        problems.append(Problem(path, 1, "B05", sentence))
    if problems:
        raise Problems(problems)
    object.__setattr__(chapter, "cells", tuple(cells))
    return chapter


def _title(path: str, tokens: list[Token]) -> str:
    for i, token in enumerate(tokens):
        if token.type == "heading_open" and token.tag == "h1":
            return " ".join(tokens[i + 1].content.split())
    raise Problems([Problem(path, 1, "B04", "this page has no title (a line '# ...')")])


def _refused_front(chapter: Chapter) -> Iterator[Problem]:
    """What in the front matter is not of the kind that loom reads."""
    needs, modules = chapter.front.get("needs"), chapter.front.get("modules")
    if needs is not None and not isinstance(needs, list):
        yield Problem(chapter.path, 1, "B05", "'needs' in the front matter is a list of chapters")
    if modules is not None and not isinstance(modules, dict):
        sentence = "'modules' in the front matter gives each module its sentence"
        yield Problem(chapter.path, 1, "B05", sentence)


def _shown(lines: list[str]) -> frozenset[int]:
    """The lines of comments and of fences that show their text as it is: they say nothing."""
    found: set[int] = set()
    fences: list[tuple[str, bool]] = []
    comment = False
    for number, text in enumerate(lines, 1):
        mark, literal = fences[-1] if fences else ("", False)
        match = FENCE.match(text)
        if match and match["mark"][0] == "`" and "`" in match["rest"]:
            match = None
        if mark and match and match["mark"].startswith(mark) and text.strip() == match["mark"]:
            fences.pop()
        elif literal:
            found.add(number)
        elif comment or text.startswith("%") or text.lstrip().startswith("<!--"):
            found.add(number)
            comment = "-->" not in text and not text.startswith("%")
        elif match and (match["name"] or match["mark"][0] != ":"):
            fences.append((match["mark"], not match["name"] or match["name"] in LITERAL))
    return frozenset(found)


def _cell(chapter: Chapter, index: int, token: Token, text: list[str]) -> Cell:
    """Read one fence: its options (a YAML block, or lines `:name: value`), then its code."""
    assert token.map is not None
    first, end = token.map[0] + 1, token.map[1]

    def refuse(line: int, code: str, sentence: str) -> Problems:
        return Problems([Problem(chapter.path, line, code, sentence)])

    if not text[first - 1].startswith(token.markup):
        raise refuse(first, "B06", NESTED)
    closing = text[end - 1].strip()
    if not closing.startswith(token.markup) or closing.strip(token.markup[0]):
        raise refuse(first, "B07", "this code cell is never closed")
    body = [Line(text[number - 1], number) for number in range(first + 1, end)]
    options: dict[str, Any] = {}
    if body and body[0].text.strip() == "---":
        close = next((i for i, line in enumerate(body[1:], 1) if line.text.strip() == "---"), None)
        if close is None:
            raise refuse(first, "B08", "the option block of this cell is never closed by '---'")
        block = "\n".join(line.text for line in body[1:close])
        options = _mapping(chapter.path, first + 1, block)
        body = body[close + 1 :]
    else:
        while body and (match := OPTION.match(body[0].text)):
            options[match[1]] = (match[2] or "").strip()
            body = body[1:]
    while body and not body[0].text.strip():
        body = body[1:]
    while body and not body[-1].text.strip():
        body = body[:-1]
    cell = Cell(chapter, index, first, end, options, tuple(body))
    if sentence := _refused_options(cell):
        raise refuse(first, "L01", sentence)
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
