"""Cut the text of a module into what loom wrote on top, and its definitions."""

import ast
from collections.abc import Sequence
from dataclasses import dataclass

from loom.tangle.syntax import DEFINITION, constants, is_guard

__all__ = ["Segment", "cut"]


@dataclass(frozen=True)
class Segment:
    """A top-level statement with the comments above it: lines `first` to `end`, from 0."""

    name: str
    first: int
    end: int


def cut(lines: Sequence[str]) -> tuple[int, list[Segment]]:
    """Return where the docstring, the imports and `__all__` end, and the definitions below.

    Blank lines between definitions belong to none of them. Comments at the end belong to the last.

    Raises:
        SyntaxError: if the text is not Python.
    """
    nodes = _parsed(lines)
    top = 0
    while nodes and _on_top(nodes[0], top):
        top = nodes.pop(0).end_lineno or 0
    segments: list[Segment] = []
    end = top
    for node in nodes:
        first = _next_text(lines, end)
        end = max(end, node.end_lineno or 0)
        segments.append(Segment(_name(node), min(first, end), end))
    last = len(lines)
    while last > end and not lines[last - 1].strip():
        last -= 1
    if segments:
        segments[-1] = Segment(segments[-1].name, segments[-1].first, last)
    elif last > end:
        segments.append(Segment("", _next_text(lines, end), last))
    return top, segments


def _parsed(lines: Sequence[str]) -> list[ast.stmt]:
    try:
        return ast.parse("\n".join(lines)).body
    except ValueError as error:  # a null byte
        raise SyntaxError(str(error)) from None


def _on_top(node: ast.stmt, above: int) -> bool:
    if isinstance(node, ast.Expr):
        return not above and isinstance(node.value, ast.Constant)
    return isinstance(node, ast.Import | ast.ImportFrom) or constants(node) == ["__all__"]


def _next_text(lines: Sequence[str], at: int) -> int:
    while at < len(lines) and not lines[at].strip():
        at += 1
    return at


def _name(node: ast.stmt) -> str:
    if isinstance(node, DEFINITION):
        return node.name
    return "__main__" if is_guard(node) else ",".join(constants(node)) or type(node).__name__
