"""The times that the appendix tells are those that were measured."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def rows(text: str) -> dict[str, list[str]]:
    """The rows of times in a text: the program, and the first number of each cell."""
    found = {}
    for line in text.splitlines():
        name, *cells = [
            cell.strip(" `") for cell in line.strip("|").split("|")
        ]
        numbers = [
            match[0]
            for cell in cells
            if (match := re.match(r"\d+\.\d\d\b", cell))
        ]
        if len(numbers) == 4:
            found[name] = numbers
    return found


def test_the_appendix_tells_what_was_measured() -> None:
    measured = rows((ROOT / "benchmarks/results.md").read_text())
    told = rows((ROOT / "book/appendix/compiling.md").read_text())
    assert measured == told
    assert len(told) == 3
