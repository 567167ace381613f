"""How long each chapter takes, against its budget: `_build/loom/seconds.json` and its table."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

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
    print(table(root))
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


def table(root: Path) -> str:
    """The table of the last runs: chapter, seconds, budget, and whether that is exceeded."""
    rows = list(load(root).values())
    width = max([len(row.chapter) for row in rows], default=0)
    lines = [f"{'chapter':{width}}  seconds  budget"]
    for row in rows:
        budget = f"{row.budget:6g}" if row.budget else "     -"
        over = "  over" if row.budget and row.seconds > row.budget else ""
        lines.append(f"{row.chapter:{width}}  {row.seconds:7.1f}  {budget}{over}")
    lines.append(f"{'together':{width}}  {sum(row.seconds for row in rows):7.1f}")
    return "\n".join(lines)
