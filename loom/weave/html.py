"""`loom html`: the book as a site, in `_build/html`."""

import sys
from pathlib import Path

from loom.book import read
from loom.tangle import tangle
from loom.weave.state import State, inputs, jupyter_book

__all__ = ["build"]


def build(root: Path) -> int:
    """Build the site if anything that it is made from changed; 0 if it is there."""
    state, now, page = State(root, "html"), inputs(root), root / "_build/html/index.html"
    if page.is_file() and state.matches(now):
        print(f"{page.relative_to(root)} is up to date")
        return 0
    tangle(read(root))  # whatever is wrong with a chapter is said first, and plainly
    state.forget()
    if code := jupyter_book(root, "html"):
        print("the site was not built: what stopped it stands above", file=sys.stderr)
        return code
    state.keep(now)
    print(page.relative_to(root))
    return 0
