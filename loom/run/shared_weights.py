"""Make the weights that chapters share, before the chapters run.

A recipe for such weights is a definition of the package, and the package itself makes what is
missing, in a process of its own: loom imports neither torch nor `tangled`. What was made lies in
`_build/artifacts`, and says in its config.json how long it took.
"""

import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

from loom.errors import INTERRUPTED
from loom.read.book import Book
from loom.read.chapter import Chapter
from loom.run import kernel
from loom.run.inputs import modules
from loom.tangle.package import tangle

__all__ = ["main", "make", "seconds", "wanted"]

MODULE = Path("tangled/workshop/artifacts.py")


def main(root: Path) -> int:
    """The command `loom artifacts`: make what is missing, and show all that there is."""
    if (root / MODULE).is_file():
        return make(root, stdout=None)
    print("no chapter of this book makes weights for others")
    return 0


def wanted(root: Path, chapters: Iterable[Chapter]) -> bool:
    """Whether one of the chapters uses weights, itself or through the modules that it imports."""
    module = root / MODULE
    return module.is_file() and any(module in modules(root, c.text) for c in chapters)


def make(root: Path, stdout: int | None = subprocess.DEVNULL) -> int:
    """Make what is missing, by the package's own command.

    On standard error it tells how far it is, and on `stdout` it prints its table.

    Returns:
        0; or 1 after a failure, which is reported; or 130 after Ctrl-C or SIGTERM.
    """
    environment = os.environ | kernel.environment(root)
    if sys.stderr.isatty():
        del environment["TQDM_DISABLE"]
    command = [sys.executable, "-m", ".".join(MODULE.with_suffix("").parts)]
    # In a process group of its own it hears of Ctrl-C once, and from here.
    process = subprocess.Popen(command, cwd=root, env=environment, stdout=stdout, process_group=0)
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        process.send_signal(signal.SIGINT)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return INTERRUPTED if stopped else min(abs(status), 1)


def seconds(book: Book) -> dict[str, float]:
    """How long the weights took to make, by the chapter that their recipe stands in."""
    took: dict[str, float] = {}
    files = kernel.artifacts(book.root).glob("*/config.json")
    for path in sorted(files, key=lambda path: path.stat().st_mtime):  # the newest counts
        try:
            told = json.loads(path.read_text("utf-8"))
            took[f"{told['module']}.{told['recipe']}"] = told["seconds"]
        except (OSError, ValueError, LookupError, TypeError):
            continue  # of something else
    by_chapter: defaultdict[str, float] = defaultdict(float)
    for found in tangle(book).definitions:
        by_chapter[found.chapter] += took.get(found.dotted, 0.0)
    return by_chapter
