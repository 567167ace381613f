"""The commands `loom html` and `loom pdf`: the book as a site and in print, if anything changed."""

import sys
from collections.abc import Callable
from pathlib import Path

from loom.errors import INTERRUPTED, Problem, Problems
from loom.publish.jupyter_book import jupyter_book
from loom.publish.last_build import State, one_at_a_time, sources_digest
from loom.publish.pdf import NAME, missing, typeset
from loom.read.book import read
from loom.run import cache
from loom.tangle.package import tangle
from loom.weave import macros

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
    """Run Jupyter Book's builder and what finishes its work; the file `made` comes out.

    Returns:
        0; or 1 after a failure, which is reported; or 130 after Ctrl-C.

    Raises:
        Problems: if the chapters are not as they should be, or a file cannot be written.
    """
    try:
        with one_at_a_time(root):
            return _weave(root, builder, made, finish)
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        file = Path(error.filename or root / "_build")
        path = file.relative_to(root) if file.is_relative_to(root) else file
        sentence = f"this file cannot be written: {error.strerror or error}"
        raise Problems([Problem(str(path), 1, "L31", sentence)]) from None


def _weave(root: Path, builder: str, made: Path, finish: Callable[[Path], int]) -> int:
    state, now, name = State(root, made.suffix[1:]), sources_digest(root), made.relative_to(root)
    lost = state.lost()
    if made.is_file() and state.matches(now) and not lost:
        print(f"{name} is up to date")
        return 0
    tangle(read(root))  # whatever is wrong with a chapter is said first, and plainly
    cache.place(root)  # then what is wrong with the folder, and with the macros
    macros.read(root)
    state.forget()
    # Sphinx sees for itself that the page of a chapter is gone, and nothing else.
    whole = any(not name.startswith("html/book/") for name in lost)
    if code := jupyter_book(root, builder, whole=whole):
        print(f"{name} was not built: what stopped it stands above", file=sys.stderr)
        return code
    if code := finish(root):
        return code
    state.keep(now, made.parent if builder == "html" else None)
    print(name)
    return 0
