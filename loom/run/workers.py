"""Workers execute chapters side by side until none is left, one fails, or someone stops them."""

import asyncio
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from loom.errors import INTERRUPTED
from loom.read.chapter import Chapter
from loom.run.cache import Cache
from loom.run.execute import ANSI, Failure, Limits, execute
from loom.run.progress import Progress
from loom.run.timings import Row

if TYPE_CHECKING:
    from nbformat import NotebookNode

__all__ = ["Job", "Workers"]


@dataclass(frozen=True)
class Job:
    """A chapter to execute, with its row but for the times, and the seconds it should take."""

    chapter: Chapter
    notebook: "NotebookNode"
    row: Row
    expected: float


class Workers:
    """One run over `jobs`, in their order; `keep` receives the row of each finished chapter."""

    def __init__(
        self, root: Path, jobs: list[Job], cache: Cache, limits: Limits, keep: Callable[[Row], None]
    ) -> None:
        self.root, self.cache, self.limits, self.keep = root.absolute(), cache, limits, keep
        self.jobs, self.waiting = jobs, iter(jobs)
        self.progress = Progress(len(jobs), sum(len(job.chapter.cells) for job in jobs))
        self.begin = time.perf_counter()

    async def run(self, count: int) -> int:
        """Execute all; 0, or 1 after a failing cell, or 130 after Ctrl-C or SIGTERM."""
        tasks = [asyncio.create_task(self._work()) for _ in range(min(count, len(self.jobs)))]
        stopped = False

        def stop() -> None:
            nonlocal stopped
            stopped = True
            for task in tasks:
                task.cancel()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        # Only the first failure counts: a worker that is stopped for it may end in another.
        failure = next(
            (e for t in tasks if t.done() and not t.cancelled() if (e := t.exception())), None
        )
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.progress.close()
        if stopped:
            done = f"{self.progress.done} of {len(self.jobs)} chapters are done and kept"
            print(f"interrupted: {done}; the next run does the rest", file=sys.stderr)
            return INTERRUPTED
        if isinstance(failure, Failure):
            detail = failure.detail if sys.stderr.isatty() else ANSI.sub("", failure.detail)
            print(failure, *filter(None, [detail]), sep="\n", file=sys.stderr)
            return 1
        if failure:
            raise failure
        return 0

    async def _work(self) -> None:
        for job in self.waiting:
            chapter, began = job.chapter, time.perf_counter()
            file = self.root / chapter.path
            with self.progress.chapter(chapter.path, len(chapter.cells)):
                await execute(chapter, job.notebook, file.parent, self.limits, self.progress.cell)
                seconds = round(time.perf_counter() - began, 2)
                # Nothing is awaited from here on: an interruption comes before this or after.
                self.cache.store(job.notebook, file, seconds)
            self.keep(replace(job.row, seconds=seconds, started=round(began - self.begin, 2)))
