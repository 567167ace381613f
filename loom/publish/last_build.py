"""What the last good build of an output was made from, so that nothing is built in vain."""

import hashlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["State", "files_digest", "one_at_a_time", "sources_digest"]

# What the pages are made from. Of the tests, the marks tell which labels they verify.
INPUTS = (
    "_config.yml",
    "_toc.yml",
    "constraints.txt",
    "book/**/*",
    "loom/**/*",
    "tangled/**/*.py",
    "tests/**/*.py",
)


class State:
    """What the last good build of one output was made from; kept below `_build/loom`."""

    def __init__(self, root: Path, name: str) -> None:
        self.file = root / "_build/loom" / f"{name}.digest"

    def matches(self, now: str) -> bool:
        """Whether it was made from what is there now."""
        return self._lines()[:1] == [now]

    def lost(self) -> list[str]:
        """What the build made and somebody removed."""
        return [line for line in self._lines()[1:] if not (self.file.parents[1] / line).is_file()]

    def forget(self) -> None:
        """Take the output for unmade."""
        self.file.unlink(missing_ok=True)

    def keep(self, now: str, folder: Path | None = None) -> None:
        """Note what the output was made from, and which files of a folder it consists of."""
        files = sorted(file for file in folder.rglob("*") if file.is_file()) if folder else ()
        made = (file.relative_to(self.file.parents[1]).as_posix() for file in files)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text("\n".join([now, *made]), "utf-8")

    def _lines(self) -> list[str]:
        return self.file.read_text("utf-8").split("\n") if self.file.is_file() else []


@contextmanager
def one_at_a_time(root: Path) -> Iterator[None]:
    """Let one build of a book work at a time; the next one says that it waits."""
    lock = FileLock(root / "_build/loom/lock")
    Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print("another build of this book is at work: waiting for its end", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def sources_digest(root: Path) -> str:
    """The digest of everything that the pages are made from."""
    files = (file for pattern in INPUTS for file in sorted(root.glob(pattern)))
    return files_digest(root, (file for file in files if "__pycache__" not in file.parts))


def files_digest(root: Path, files: Iterable[Path]) -> str:
    """The digest of files with their names."""
    total = hashlib.sha256(sys.version.encode())
    for file in files:
        if file.is_file():
            content = file.read_bytes()
            total.update(f"{file.relative_to(root)}\0{len(content)}\0".encode() + content)
    return total.hexdigest()
