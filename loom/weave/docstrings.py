"""The docstrings of a cell: the first paragraph is for reading, the rest for reference.

And the heads of its definitions, which stand with their docstrings on one page.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from loom.tangle.render import WIDTH
from loom.tangle.syntax import DEFINITION, first_line

__all__ = ["Rest", "folded", "rests", "shortened", "together"]

SUMMARY = '<summary style="--indent: {indent}ch" aria-label="The rest of the docstring"></summary>'


@dataclass(frozen=True)
class Rest:
    """The lines of a docstring behind its first paragraph, counted from 0; `end` is not one."""

    first: int
    end: int
    indent: int


def rests(source: str) -> list[Rest]:
    """What follows the first paragraph of each docstring, where that is more than its quotes."""
    return sorted(_rests(source), key=lambda rest: rest.first)


def _rests(source: str) -> Iterator[Rest]:
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a magic command
        return
    lines = source.split("\n")
    for node in ast.walk(tree):
        if not isinstance(node, DEFINITION) or ast.get_docstring(node) is None:
            continue
        text = node.body[0]
        assert text.end_lineno is not None
        inner = range(text.lineno, text.end_lineno - 1)
        first = next((n for n in inner if not lines[n].strip()), None)
        if first is not None and lines[text.end_lineno - 1].strip() in ('"""', "'''"):
            yield Rest(first, text.end_lineno, text.col_offset)


def shortened(source: str) -> str:
    """The source with the first paragraph of each docstring alone."""
    lines = source.split("\n")
    for rest in reversed(rests(source)):
        quotes = lines[rest.end - 1].strip()
        closed = lines[rest.first - 1] + quotes
        fits = len(closed) <= WIDTH
        end = [closed] if fits else [lines[rest.first - 1], " " * rest.indent + quotes]
        lines[rest.first - 1 : rest.end] = end
    return "\n".join(lines)


def folded(html: str, found: list[Rest]) -> str:
    """Highlighted code in which the rest of each docstring opens; its text stays what it was."""
    opening, pre, code = html.partition("<pre>")
    code, close, end = code.rpartition("</pre>")
    # An element of no text, by which Pygments keeps an empty first line.
    code = re.sub(r"^<span></span>", "", code)
    lines = code.splitlines(keepends=True)
    for rest in reversed(found):
        inner = "".join(lines[rest.first : rest.end])
        summary = SUMMARY.format(indent=rest.indent)
        lines[rest.first : rest.end] = [f'<details class="rest">{summary}{inner}</details>']
    return opening + pre + "".join(lines) + close + end


def together(source: str) -> set[int]:
    """The lines, counted from 0, that stand on one page with the next.

    These are the heads of definitions with their docstrings, and three lines at either end.
    """
    lines = source.rstrip("\n").split("\n")
    kept = {0, 1, *range(len(lines) - 3, len(lines) - 1)}
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a magic command
        tree = ast.Module([], [])
    for node in ast.walk(tree):
        if isinstance(node, DEFINITION):
            text = node.body[0]
            last = text.end_lineno if ast.get_docstring(node) is not None else text.lineno
            kept.update(range(first_line(node) - 1, last or node.lineno))
    return {n for n in kept if 0 <= n < len(lines) - 1}
