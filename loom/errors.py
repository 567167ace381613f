"""What loom says when a book is not right: one line a problem, with its place."""

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["INTERRUPTED", "UNREAD", "Problem", "Problems"]

INTERRUPTED = 130  # the exit status after Ctrl-C, as a shell gives it
UNREAD = 141  # the exit status when nobody reads on, as a shell gives it


@dataclass(frozen=True, order=True)
class Problem:
    """A sentence about one line of one file, printed `file:line: code sentence`."""

    path: str
    line: int
    code: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.code} {self.sentence}"


class Problems(Exception):
    """One or more problems, sorted by place; printing it prints one line for each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(set(problems))
        super().__init__("\n".join(map(str, self.problems)))
