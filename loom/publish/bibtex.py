"""What is wrong with the list of references, with its file and line."""

from collections.abc import Iterator
from pathlib import Path

from loom.errors import Problem

__all__ = ["problems"]


def problems(root: Path) -> Iterator[Problem]:
    """Yield the first error of each `.bib` below `book/`; asked after a build that failed."""
    # Nothing else of a build needs it.
    from pybtex.database import parse_file
    from pybtex.exceptions import PybtexError

    for file in sorted((root / "book").rglob("*.bib")):
        try:
            parse_file(str(file), "bibtex")
        except PybtexError as error:
            line = getattr(error, "lineno", None) or 1
            yield Problem(file.relative_to(root).as_posix(), line, "B03", str(error))
