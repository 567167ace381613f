"""How long each chapter takes, against its budget: `_build/loom/seconds.json` and its table."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from loom.read.book import Book, read
from loom.run import shared_weights

__all__ = ["Row", "load", "main", "save", "table"]


@dataclass(frozen=True)
class Row:
    """One chapter: when it started in its run and how long it took, in seconds."""

    chapter: str
    seconds: float
    budget: float | None
    cached: bool
    started: float
    inputs: str  # a hash of the chapter's text and digest
    key: str  # the name of its entry in the cache


def main(root: Path) -> int:
    """The command `loom seconds`."""
    print(table(read(root)))
    return 0


def _file(root: Path) -> Path:
    return root / "_build" / "loom" / "seconds.json"


def load(root: Path) -> dict[str, Row]:
    """The rows of the last runs by chapter; none where there was no run, or another loom's."""
    try:
        rows = [Row(**row) for row in json.loads(_file(root).read_text("utf-8"))]
    except (OSError, ValueError, TypeError):
        return {}
    return {row.chapter: row for row in rows}


def save(root: Path, rows: Iterable[Row]) -> None:
    """Write the rows, so that a reader finds the old file or the new one."""
    file = _file(root)
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f"{file.name}.{os.getpid()}")
    new.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", "utf-8")
    new.replace(file)


def table(book: Book) -> str:
    """The table of the last runs: chapter, seconds, budget, and whether that is exceeded.

    Weights count as seconds of the chapter that their recipe stands in, whoever uses them.
    """
    rows, made = list(load(book.root).values()), shared_weights.seconds(book)
    width = max([len(row.chapter) for row in rows], default=0)
    lines = [f"{'chapter':{width}}  seconds  budget"]
    for row in rows:
        more = made.get(row.chapter, 0.0)
        budget = f"{row.budget:6g}" if row.budget else "     -"
        over = "  over" if row.budget and row.seconds + more > row.budget else ""
        line = f"{row.chapter:{width}}  {row.seconds:7.1f}  {budget}"
        lines.append(line + _more(more) + over)
    line = f"{'together':{width}}  {sum(row.seconds for row in rows):7.1f}"
    lines.append(line + _more(sum(made.values())))
    return "\n".join(lines)


def _more(seconds: float) -> str:
    return f"  + {seconds:.1f} artefacts" if seconds else ""
