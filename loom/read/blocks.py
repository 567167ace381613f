"""The one reader of a page's blocks: front matter, directives, code, comments.

Everything of loom that asks where a block begins and ends asks here, so that no two parts of it
disagree: cells, labels, digests, downloads. The rules are those of CommonMark for fences, with
backticks, tildes or colons; what stands inside a directive is read as well, at any depth.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["CELL", "Block", "Page", "halves", "page"]

CELL = "code-cell"
# Directives that show their text as it is.
LITERAL = frozenset({"", CELL, "code-block", "code", "raw", "parsed-literal"})
# What may stand before a fence on its line: blanks, marks of quotations and of lists.
FENCE = re.compile(
    r"(?P<before>(?:\s|>|[-*+](?=\s)|\d+[.)](?=\s))*)(?P<mark>`{3,}|~{3,}|:{3,})[ \t]*"
    r"(?:\{(?P<name>[^}\s]+)\})?(?P<title>.*)$"
)
HTML = re.compile(r" {0,3}</?[A-Za-z][\w-]*(?:[\s/>]|$)")
COMMENT = re.compile(r"\s*<!--")


@dataclass(frozen=True)
class Block:
    """A fenced block; `name` is that of its directive, "" for ordinary code.

    `line` and `end` are its fences, from 1; a block that is never closed ends after the last line.
    """

    name: str
    title: str
    mark: str
    before: str
    line: int
    end: int
    closed: bool
    inside: bool

    @property
    def literal(self) -> bool:
        """Whether its text is shown as it is."""
        return self.name in LITERAL


@dataclass(frozen=True)
class Page:
    """The blocks of a page, outer ones before those inside them.

    `front` counts the lines of the front matter with its fences, 0 where there is none; `silent`
    are the lines that say nothing themselves: code, examples of markup, comments.
    """

    front: int
    blocks: tuple[Block, ...]
    silent: frozenset[int]

    @property
    def cells(self) -> tuple[Block, ...]:
        """The blocks that are code cells."""
        return tuple(block for block in self.blocks if block.name == CELL)


@dataclass
class _Open:
    name: str
    title: str
    mark: str
    before: str
    line: int
    inside: bool
    literal: bool

    def closes(self, text: str) -> bool:
        """Whether a line is the fence that ends this block."""
        inner = text.lstrip(" \t>" if ">" in self.before else " \t")
        bare = inner.rstrip()
        if len(bare) < len(self.mark) or bare.strip(self.mark[0]):
            return False
        indent = len(text.expandtabs(4)) - len(inner.expandtabs(4))
        return indent < len(self.before.expandtabs(4)) + 4


@lru_cache(maxsize=256)
def page(text: str) -> Page:
    """Read the blocks of a page."""
    lines = text.split("\n")
    front = _front(lines)
    opened: list[_Open] = []
    found: list[Block] = []
    silent: set[int] = set()
    html = comment = False

    def close(depth: int, end: int, last: bool) -> None:
        for at, o in reversed(list(enumerate(opened))):
            if at >= depth:
                closed = last and at == depth
                found.append(
                    Block(o.name, o.title, o.mark, o.before, o.line, end, closed, o.inside)
                )
        del opened[depth:]

    for number, line in enumerate(lines[front:], front + 1):
        closing = next((at for at, o in enumerate(opened) if o.closes(line)), None)
        if closing is not None:
            close(closing, number, True)
            html = comment = False
        elif opened and opened[-1].literal:
            silent.add(number)
        elif comment or COMMENT.match(line):
            silent.add(number)
            comment = "-->" not in line
        elif line.startswith("%"):
            silent.add(number)
        elif not line.strip():
            html = False
        elif HTML.match(line):
            html = True
        elif match := FENCE.match(line):
            name, mark = match["name"] or "", match["mark"]
            if (mark[0] == "`" and "`" in match["title"]) or (mark[0] == ":" and not name):
                continue
            title = match["title"].strip()
            # Up to the next blank line Markdown reads nothing below a tag of HTML.
            if html and name.lower() != CELL:
                continue
            inside = html or bool(opened)
            literal = name in LITERAL
            opened.append(_Open(name, title, mark, match["before"], number, inside, literal))
    close(0, len(lines) + 1, False)
    return Page(front, tuple(sorted(found, key=lambda b: b.line)), frozenset(silent))


def _front(lines: Sequence[str]) -> int:
    if lines[0].rstrip() != "---":
        return 0
    return next((n for n, line in enumerate(lines[1:], 2) if line.rstrip() == "---"), 0)


def halves(lines: Sequence[str], cell: Block) -> tuple[range, range]:
    """The lines of a cell that hold its options, and those that hold its code, from 1.

    Options are a YAML block between two `---`, or lines that begin with a colon. Of a block that
    is never closed by `---`, all lines are options.
    """
    first, end = cell.line + 1, cell.end
    inside = [lines[number - 1] for number in range(first, end)]
    if inside and inside[0].strip() == "---":
        close = next((at for at, t in enumerate(inside[1:], 1) if t.strip() == "---"), None)
        middle = end if close is None else first + close + 1
    else:
        count = next((at for at, t in enumerate(inside) if not t.startswith(":")), len(inside))
        middle = first + count
    start = middle
    while start < end and not lines[start - 1].strip():
        start += 1
    while end > start and not lines[end - 2].strip():
        end -= 1
    return range(first, middle), range(start, end)
