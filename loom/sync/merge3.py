"""Merge two edits of one text, line by line; where both changed the same lines, say where."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from loom.read.chapter import Line

__all__ = ["Overlap", "matching", "merge"]


@dataclass(frozen=True)
class Hunk:
    """Lines `first` to `end` of the base, counted from 0, that one side replaced at `site`."""

    first: int
    end: int
    lines: tuple[Line, ...]
    site: Line

    def touches(self, other: "Hunk") -> bool:
        """Tell whether no line that both sides left alone stands between two changes."""
        return self.first <= other.end and other.first <= self.end

    def agrees(self, other: "Hunk") -> bool:
        """Tell whether both sides made the same change."""
        texts = [line.text for line in self.lines], [line.text for line in other.lines]
        return (self.first, self.end) == (other.first, other.end) and texts[0] == texts[1]


class Overlap(Exception):
    """Both sides changed the same lines, each in its own way."""

    def __init__(self, ours: Line, theirs: Line) -> None:
        self.ours, self.theirs = ours, theirs
        super().__init__(f"{ours.path}:{ours.number} and {theirs.path}:{theirs.number}")


def matching(old: Sequence[str], new: Sequence[str]) -> Sequence[tuple[str, int, int, int, int]]:
    """How one list of lines became another, as `difflib` tells it."""
    return SequenceMatcher(None, old, new, autojunk=False).get_opcodes()


def merge(base: Sequence[str], ours: Sequence[Line], theirs: Sequence[Line]) -> list[Line]:
    """Return the text with the changes of both sides; unchanged lines are those of `theirs`.

    Raises:
        Overlap: if changes touch each other and are not the same.
    """
    mine, yours = _hunks(base, ours), _hunks(base, theirs)
    for hunk in mine:
        for other in yours:
            if hunk.touches(other) and not hunk.agrees(other):
                raise Overlap(hunk.site, other.site)
    kept = {
        i: theirs[i - i1 + j1]
        for tag, i1, i2, j1, _ in matching(base, [line.text for line in theirs])
        if tag == "equal"
        for i in range(i1, i2)
    }
    new = [hunk for hunk in mine if not any(hunk.agrees(other) for other in yours)]
    merged: list[Line] = []
    at = 0
    for hunk in sorted([*new, *yours], key=lambda hunk: hunk.first):
        merged += [kept[i] for i in range(at, hunk.first)]
        merged += hunk.lines
        at = hunk.end
    return [*merged, *(kept[i] for i in range(at, len(base)))]


def _hunks(base: Sequence[str], side: Sequence[Line]) -> list[Hunk]:
    return [
        Hunk(i1, i2, tuple(side[j1:j2]), side[min(j1, len(side) - 1)])
        for tag, i1, i2, j1, j2 in matching(base, [line.text for line in side])
        if tag != "equal"
    ]
