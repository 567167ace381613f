"""What `loom run` shows while it works: a bar on a terminal, plain lines anywhere else."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

__all__ = ["Progress"]


class Progress:
    """Chapters done, cells done, and the chapters that run at the moment."""

    def __init__(self, chapters: int, cells: int) -> None:
        self.chapters, self.done = chapters, 0
        self.running: list[str] = []
        self.bar = tqdm(total=cells, unit="cell", disable=not sys.stderr.isatty(), leave=False)

    @contextmanager
    def chapter(self, path: str, cells: int) -> Iterator[None]:
        """Around the work on one chapter; a line is left behind when it is finished."""
        self.running.append(path)
        self._show()
        began = time.perf_counter()
        try:
            yield
        finally:
            self.running.remove(path)
        self.done += 1
        self._show()
        seconds = time.perf_counter() - began
        tqdm.write(f"{path}: {cells} cells in {seconds:.1f} s ({self.done} of {self.chapters})")

    def cell(self) -> None:
        """One more cell has run."""
        self.bar.update()

    def close(self) -> None:
        """Remove the bar."""
        self.bar.close()

    def _show(self) -> None:
        self.bar.set_description(f"{self.done}/{self.chapters} chapters")
        self.bar.set_postfix_str(", ".join(self.running))
