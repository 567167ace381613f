"""The commands `loom html` and `loom pdf`: the book as a site and in print, if anything changed."""

import sys
from collections.abc import Callable
from pathlib import Path

from loom.book import read
from loom.tangle import tangle
from loom.weave.pdf import NAME, missing, typeset
from loom.weave.state import State, inputs, jupyter_book

__all__ = ["html", "pdf"]


def html(root: Path) -> int:
    """Build the site if anything that it is made from changed; 0 if it is there."""
    return _build(root, "html", root / "_build/html/index.html")


def pdf(root: Path) -> int:
    """Build the printed book if anything that it is made from changed; 0 if it is there."""
    if tool := missing():
        print(f"{tool} is missing: install the packages of apt-book.txt", file=sys.stderr)
        return 1
    return _build(root, "latex", root / f"_build/latex/{NAME}.pdf", typeset)


def _build(
    root: Path, builder: str, made: Path, finish: Callable[[Path], int] = lambda root: 0
) -> int:
    """Run Jupyter Book's builder and what finishes its work; the file `made` comes out."""
    state, now, name = State(root, made.suffix[1:]), inputs(root), made.relative_to(root)
    if made.is_file() and state.matches(now):
        print(f"{name} is up to date")
        return 0
    tangle(read(root))  # whatever is wrong with a chapter is said first, and plainly
    state.forget()
    if code := jupyter_book(root, builder):
        print(f"{name} was not built: what stopped it stands above", file=sys.stderr)
        return code
    if code := finish(root):
        return code
    state.keep(now)
    print(name)
    return 0
