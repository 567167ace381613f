"""The book: the chapters that `_toc.yml` lists, in its order."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from loom.errors import Problem, Problems
from loom.read.blocks import CELL, Page, page
from loom.read.cells import read_cell
from loom.read.chapter import Cell, Chapter
from loom.read.front_matter import refused_front, unmet
from loom.read.settings import settings
from loom.read.source_text import file_text, yaml_mapping
from loom.read.toc import listed_pages

__all__ = ["Book", "read", "revised"]

TITLE = re.compile(r" {0,3}#[ \t]+(?P<title>.*?)(?:[ \t]+#+)?[ \t]*$")
CONFLICT = re.compile(r"(<{7}|>{7}|\|{7}) \S|={7}$")


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
    for line, part, name in listed_pages(root / "_toc.yml"):
        path = f"{name}.md"
        if not (root / path).is_file():
            problems.append(Problem("_toc.yml", line, "B01", f"{path} does not exist"))
            continue
        try:
            chapter = read_chapter(path, len(chapters), part, file_text(root, path))
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
        problems.extend(unmet(chapters))
    if problems:
        raise Problems(problems)
    return _book(root, tuple(chapters))


@lru_cache(maxsize=8)
def _book(root: Path, chapters: tuple[Chapter, ...]) -> Book:
    """The same book for the same chapters: what is known of it is kept with it."""
    return Book(root, chapters)


def revised(book: Book, texts: Mapping[str, str]) -> Book:
    """The book with other texts of some chapters, by their paths; nothing is read from disk.

    Raises:
        Problems: if one of these chapters is not as the book's rules ask.
    """
    chapters = [
        read_chapter(c.path, c.order, c.part, texts[c.path]) if c.path in texts else c
        for c in book.chapters
    ]
    return Book(book.root, tuple(chapters))


@lru_cache(maxsize=256)
def read_chapter(path: str, order: int, part: str, text: str) -> Chapter:
    """Read one chapter from its text.

    Raises:
        Problems: if it is not as the book's rules ask.
    """
    lines, blocks = text.split("\n"), page(text)
    if lines[0].rstrip() == "---" and not blocks.front:
        raise Problems([Problem(path, 1, "B03", "the front matter is never closed by '---'")])
    front = yaml_mapping(path, 1, "\n".join(lines[1 : max(blocks.front - 1, 1)]))
    chapter = Chapter(path, order, part, text, front, _title(path, lines, blocks))
    problems = [*refused_front(chapter), *_conflicts(chapter, lines)]
    cells: list[Cell] = []
    for block in blocks.blocks:
        try:
            if block.name.lower() == CELL:
                cells.append(read_cell(chapter, len(cells), block, lines))
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
