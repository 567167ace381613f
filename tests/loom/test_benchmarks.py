"""The figures that the book tells are those that were measured."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def rows(text: str) -> set[tuple[str, ...]]:
    """The rows with decimal numbers in the tables of a text, without what is in brackets."""
    lines = re.findall(r"(?m)^\|(.*\d\.\d\d.*)\|$", text)
    plain = (re.sub(r"`|\s\(\d+\.\d\d\)", "", line) for line in lines)
    return {tuple(cell.strip() for cell in line.split("|")) for line in plain}


@pytest.mark.parametrize(
    ("chapter", "heading", "count"),
    [
        ("appendix/compiling", "How fast it is", 3),
        ("workshop/checkpoint", "What it costs", 11),
        ("foundations/training", "A judge of digits", 1),
        ("foundations/training", "What it costs", 3),
        ("attention/pretrained", "What it costs", 5),
    ],
)
def test_the_book_tells_what_was_measured(
    chapter: str, heading: str, count: int
) -> None:
    text = (ROOT / f"book/{chapter}.md").read_text()
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    told = rows(section)
    assert len(told) == count
    assert told <= rows((ROOT / "benchmarks/results.md").read_text())
