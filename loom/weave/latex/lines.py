"""Which line of a chapter a line of the LaTeX file comes from.

The writer puts a mark before what each block of a chapter becomes. The marks are taken out of the
text again, and where they stood is kept in a file beside it: a comment in the LaTeX itself would
have the book typeset again whenever a line of a chapter moves.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["LINES", "Lines", "find_line", "line_mark", "without_marks"]

LINES = "lines.json"
# Sphinx begins a paragraph, a formula or code on the second line of what it writes.
START = 2
AROUND = 80
MARK = re.compile("\0([^\0]*)\0")


def find_line(source: str, chapter: Sequence[str], near: int) -> int:
    """The line of a chapter on which a block's source begins.

    The number that the parser gives a block inside a directive or a cell is a few lines off.
    """
    first = source.strip().partition("\n")[0].strip()
    lines = range(max(near - AROUND, 1), min(near + AROUND, len(chapter)) + 1)
    found = (number for number in lines if first and first in chapter[number - 1])
    return min(found, key=lambda number: abs(number - near), default=near)


def line_mark(path: str, line: int, more: int) -> str:
    """A mark for a block that begins on a line of a chapter and has so many more lines."""
    return f"\0{path}:{line}:{more}\0"


def without_marks(text: str) -> tuple[str, "Lines"]:
    """The text without its marks, and where they stood."""
    parts = MARK.split(text)
    number, places = 1, []
    for i, part in enumerate(parts):
        if i % 2:
            path, line, more = part.split(":")
            places.append((number, path, int(line), int(more)))
        else:
            number += part.count("\n")
    return "".join(parts[::2]), Lines(places)


@dataclass(frozen=True)
class Lines:
    """For each mark the line of the LaTeX, the chapter, its line and how many more it covers."""

    places: list[tuple[int, str, int, int]]

    @classmethod
    def load(cls, file: Path) -> "Lines":
        """Read them from a file; none, where there is no such file."""
        return cls(json.loads(file.read_text("utf-8")) if file.is_file() else [])

    def save(self, file: Path) -> None:
        """Keep them in a file."""
        file.write_text(json.dumps(self.places), "utf-8")

    def at(self, number: int) -> str:
        """The chapter and its line for a line of the LaTeX: `book/part/name.md:12`."""
        i = bisect_right(self.places, number, key=lambda place: place[0]) - 1
        if i < 0:
            return "the first pages"
        first, path, line, more = self.places[i]
        return f"{path}:{line + min(max(number - first - START, 0), more)}"
