"""The panels of a drawing that stand in one row, so that a narrow page can stack them.

Between two panels there is a place where nothing is drawn; where there is none, as with an arrow
from one panel to the next, they stay together.
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from xml.etree import ElementTree

__all__ = ["panels"]

Span = tuple[float, float]

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
SVG = "{http://www.w3.org/2000/svg}"
# The width of a glyph and half of that of a mark, in units of its font and of the drawing.
GLYPH, MARK = 64.0, 4.0
# What is narrower than this share of the drawing, such as a bar of colours, is no panel.
NARROW = 0.08


def panels(svg: str) -> list[Span]:
    """Where each panel begins and ends, as shares of the width; one panel if there is one row."""
    try:
        root = ElementTree.fromstring(svg.encode())
    except ElementTree.ParseError:
        return [(0.0, 1.0)]
    *_, width, _ = (float(number) for number in NUMBER.findall(root.get("viewBox", "0 0 1 1")))
    boxes = sorted(_boxes(root))
    if not boxes or max(top for _, (top, _) in boxes) > min(end for _, (_, end) in boxes):
        return [(0.0, 1.0)]
    ink = list(_ink(root))
    cuts = [0.0]
    for (left, _), (right, _) in pairwise(boxes):
        wide = right[1] - right[0] > NARROW * width
        if wide and (cut := _cut(left[1], right[0], ink)) is not None:
            cuts.append(cut)
    cuts.append(width)
    return [(a / width, b / width) for a, b in pairwise(cuts)]


def _boxes(root: ElementTree.Element) -> Iterator[tuple[Span, Span]]:
    """What each pair of axes spans, to the right and downwards."""
    for rect in root.iterfind(f".//{SVG}clipPath/{SVG}rect"):
        x, y, w, h = (float(rect.get(name, "0")) for name in ("x", "y", "width", "height"))
        yield (x, x + w), (y, y + h)


def _cut(start: float, end: float, ink: list[Span]) -> float | None:
    """The middle of the widest stretch between two panels on which nothing is drawn."""
    at, best = start, (0.0, 0.0)
    for a, b in sorted([*(span for span in ink if span[1] > start and span[0] < end), (end, end)]):
        best = max(best, (a - at, (a + at) / 2))
        at = max(at, b)
    return best[1] if best[0] > 0 else None


def _ink(element: ElementTree.Element) -> Iterator[Span]:
    """What is drawn outside of the axes: letters, marks, lines."""
    # The first patch is the ground of the whole figure.
    if element.tag == f"{SVG}defs" or element.get("clip-path") or element.get("id") == "patch_1":
        return
    move = element.get("transform", "")
    if element.tag == f"{SVG}g" and move:
        yield _text(element, move)
        return
    if element.tag == f"{SVG}path":
        if numbers := [float(number) for number in NUMBER.findall(element.get("d", ""))]:
            yield min(numbers[::2]), max(numbers[::2])
    elif element.tag == f"{SVG}use":
        x = float(element.get("x", "0"))
        yield x - MARK, x + MARK
    for child in element:
        yield from _ink(child)


def _text(group: ElementTree.Element, move: str) -> Span:
    """What a line of text spans; it may stand upright."""
    x, scale = float(NUMBER.findall(move)[0]), abs(float(NUMBER.findall(move)[-1]))
    if "rotate" in move:
        return x - 100 * scale, x + 30 * scale
    ends = [NUMBER.findall(child.get("transform", "translate(0 0)"))[0] for child in group]
    return x, x + (max(map(float, ends), default=0.0) + GLYPH) * scale
