"""The map of results as drawings: a column for each chapter, a line for each use in a proof."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from textwrap import wrap

__all__ = ["Box", "draw"]

WIDTH, HEIGHT = 206, 58  # of a box
COLUMN, ROW = 250, 76  # from one box to the next
COLUMNS = 3  # beside each other, so that a drawing is as wide as a page
TOP = 64  # the chapter's title
MARKS = ("proved", "implemented", "verified", "refuted")


@dataclass(frozen=True)
class Box:
    """A result: its number and title, its page, its column, and which of MARKS it has.

    `marks` holds True for a mark that it has, False for one that it lacks; a mark that is not asked
    of its kind does not occur. A result of another part is a `guest`.
    """

    name: str
    number: str
    title: str
    href: str
    column: int
    marks: Mapping[str, bool]
    guest: bool = False

    @property
    def state(self) -> str:
        """The class that colours it."""
        if all(self.marks.values()):
            return "complete"
        if not self.marks.get("proved", True):
            return "stated"
        return "verified" if self.marks.get("verified", False) else "proved"


def draw(
    boxes: Sequence[Box], uses: Iterable[tuple[str, str]], titles: Sequence[str], label: str
) -> str:
    """Return the drawing as SVG; `uses` are pairs of a result and another that its proof uses."""
    rows = [0] * len(titles)
    for box in boxes:
        rows[box.column] += 1
    bands = [max(rows[i : i + COLUMNS]) for i in range(0, len(rows), COLUMNS)]
    tops = [sum(TOP + ROW * rows for rows in bands[:band]) for band in range(len(bands) + 1)]
    corners = [(16 + COLUMN * (i % COLUMNS), tops[i // COLUMNS]) for i in range(len(titles))]
    filled = [0] * len(titles)
    places: dict[str, tuple[float, float]] = {}
    for box in boxes:
        x, y = corners[box.column]
        places[box.name] = (x, y + TOP + ROW * filled[box.column])
        filled[box.column] += 1
    width = 16 + COLUMN * min(len(titles), COLUMNS)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {tops[-1]}" '
        f'width="{width}" height="{tops[-1]}" role="group" aria-label="{escape(label)}">'
    ]
    for (x, y), title in zip(corners, titles, strict=True):
        for i, line in enumerate(wrap(title, 34)[:2]):
            parts.append(
                f'<text class="chapter" x="{x}" y="{y + 22 + 17 * i}">{escape(line)}</text>'
            )
    for user, used in uses:
        if user in places and used in places:
            parts.append(_line(user, used, places))
    parts += [_box(box, *places[box.name]) for box in boxes]
    return "\n".join([*parts, "</svg>"])


def _line(user: str, used: str, places: Mapping[str, tuple[float, float]]) -> str:
    """A curve from what is used to the result whose proof uses it."""
    (x1, y1), (x2, y2) = places[used], places[user]
    y1, y2 = y1 + HEIGHT / 2, y2 + HEIGHT / 2
    if x1 == x2:
        right = x1 + WIDTH
        out = right + 14 + 12 * min(abs(y2 - y1) / ROW, 6)
        path = f"M{right} {y1}C{out} {y1} {out} {y2} {right} {y2}"
    else:
        left, right = (x1 + WIDTH, x2) if x1 < x2 else (x1, x2 + WIDTH)
        middle = (left + right) / 2
        path = f"M{left} {y1}C{middle} {y1} {middle} {y2} {right} {y2}"
    return f'<path class="use" data-from="{escape(used)}" data-to="{escape(user)}" d="{path}"/>'


def _box(box: Box, x: float, y: float) -> str:
    told = ", ".join(mark if has else f"not {mark}" for mark, has in box.marks.items())
    parts = [
        f'<a href="{escape(box.href)}" data-name="{escape(box.name)}" '
        f'class="{box.state}{" guest" * box.guest}">',
        f"<title>{escape(box.number)} {escape(box.title)}: {told}</title>",
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="3"/>',
        f'<text class="number" x="{x + 10}" y="{y + 17}">{escape(box.number)}</text>',
    ]
    for i, line in enumerate(wrap(box.title, 30)[:2]):
        parts.append(f'<text x="{x + 10}" y="{y + 33 + 15 * i}">{escape(line)}</text>')
    for i, mark in enumerate(MARKS):
        if mark in box.marks:
            has = "has" if box.marks[mark] else "lacks"
            cx = x + WIDTH - 48 + 12 * i
            parts.append(f'<circle class="{mark} {has}" cx="{cx}" cy="{y + 13}" r="3.5"/>')
    return "".join([*parts, "</a>"])
