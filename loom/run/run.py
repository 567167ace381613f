"""Execute the chapters whose results are not in the cache yet, two side by side.

Weights that they share are made first. The results go where `jupyter-book build .` looks for
them, which then finds only hits. The longest chapter starts first, so that the two workers end
close together.
"""

import asyncio
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace

from loom.errors import Problem, Problems
from loom.read.book import Book
from loom.read.chapter import Chapter
from loom.read.settings import settings
from loom.run import kernel, shared_weights
from loom.run.cache import Cache
from loom.run.execute import Limits
from loom.run.inputs import inputs_digest
from loom.run.notebook import executable
from loom.run.timings import Row, load, save
from loom.run.workers import Job, Workers

__all__ = ["main", "run"]


def main(book: Book, names: Sequence[str] = (), *, lanes: int = 2, force: bool = False) -> int:
    """The command `loom run`: execute the chapters of these names, all by default.

    Raises:
        Problems: if there is no chapter of a given name.
    """
    return run(book, _named(book, names), lanes=lanes, force=force)


def run(
    book: Book, chapters: Iterable[Chapter] | None = None, *, lanes: int = 2, force: bool = False
) -> int:
    """Execute what is missing among the chapters (all of the book by default).

    Returns:
        0; or 1 after a failure, which is reported; or 130 after Ctrl-C or SIGTERM.
    """
    os.environ.update(kernel.environment(book.root))
    cache, rows = Cache(book.root), load(book.root)
    chosen = [c for c in (book.chapters if chapters is None else chapters) if c.cells]
    found = [_row_or_job(book, c, rows.get(c.path), cache, force) for c in chosen]
    rows |= {row.chapter: row for row in found if isinstance(row, Row)}
    jobs = [job for job in found if isinstance(job, Job)]
    jobs.sort(key=lambda job: job.expected, reverse=True)
    order = [chapter.path for chapter in book.chapters if chapter.cells]

    def keep(row: Row | None = None) -> None:
        if row:
            rows[row.chapter] = row
        save(book.root, [rows[path] for path in order if path in rows])

    keep()
    if len(chosen) > len(jobs):
        print(f"{len(chosen) - len(jobs)} of {len(chosen)} chapters unchanged")
    if not jobs:
        return 0
    if shared_weights.wanted(book.root, [job.chapter for job in jobs]) and (
        status := shared_weights.make(book.root)
    ):
        return status
    execution = settings(book.root).get("execute") or {}
    strict = execution.get("stderr_output", "show") not in ("show", "remove")
    limits = Limits(execution.get("timeout", Limits.timeout), strict)
    return asyncio.run(Workers(book.root, jobs, cache, limits, keep).run(lanes))


def _named(book: Book, names: Sequence[str]) -> list[Chapter] | None:
    """The chapters that the command line names by path, with or without `book/` and `.md`."""
    if not names:
        return None
    known = {chapter.docname.removeprefix("book/"): chapter for chapter in book.chapters}
    wanted = [name.removeprefix("./").removeprefix("book/").removesuffix(".md") for name in names]
    if unknown := [name for name in wanted if name not in known]:
        raise Problems(Problem("_toc.yml", 1, "R06", f"there is no chapter {n}") for n in unknown)
    return [known[name] for name in dict.fromkeys(wanted)]


def _row_or_job(
    book: Book, chapter: Chapter, seen: Row | None, cache: Cache, force: bool
) -> Row | Job:
    """The row of a chapter whose result is in the cache; of another, the work on it.

    The row of an earlier run tells what was `seen` then, so that a book in which nothing changed
    costs no import of the notebook tools.
    """
    read = inputs_digest(book.root, chapter.text) + chapter.text
    inputs = hashlib.sha256(read.encode()).hexdigest()[:32]
    budget = chapter.front.get("budget")
    if seen and seen.inputs == inputs and cache.has(seen.key) and not force:
        return replace(seen, cached=True, budget=budget)
    file = book.root.absolute() / chapter.path
    notebook = executable(file, book.root)
    row = Row(chapter.path, 0.0, budget, False, 0.0, inputs, cache.key(notebook))
    seconds = cache.seconds(notebook)
    if seconds is not None and not force:
        return replace(row, seconds=seconds, cached=True)
    # Before the first run, and without a budget, long chapters are taken to be slow ones.
    expected = cache.last_seconds(file) or budget or len(chapter.text) / 1000
    return Job(chapter, notebook, row, expected)
