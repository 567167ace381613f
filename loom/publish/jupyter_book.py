"""Run Jupyter Book only when something changed, and wholly after a build that did not finish.

Sphinx reports a warning only while it reads a page again, and takes a half-written page for a
finished one. So a build that failed or was killed leaves a mark, and the next one reads it all;
so does the first one after a change of loom itself, and at once a build that fails and names no
file of the book, since what it kept of the last one may be torn.
"""

import errno
import gc
import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from loom.errors import Problems
from loom.publish import bibtex
from loom.publish.separate_process import apart

__all__ = ["State", "alone", "digest", "inputs", "jupyter_book"]

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

# Where Sphinx says what is wrong; what Jupyter Book adds to that is a traceback.
ANSI = re.compile(r"\x1b\[[\d;]*m")
TOLD = re.compile(r"\b(WARNING|ERROR|CRITICAL|[A-Z]\w+Error): \S")
NAMED = re.compile(r"\.(md|bib|json|yml)\b")
DENIED = re.compile(r"\[Errno (\d+)\] [^:'\"]*(?:: '([^']+)')?")
SQLITE = re.compile(r"\b(database or disk is full|disk I/O error)\b")
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


@contextmanager
def alone(root: Path) -> Iterator[None]:
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


def inputs(root: Path) -> str:
    """The digest of everything that the pages are made from."""
    files = (file for pattern in INPUTS for file in sorted(root.glob(pattern)))
    return digest(root, (file for file in files if "__pycache__" not in file.parts))


def digest(root: Path, files: Iterable[Path]) -> str:
    """The digest of files with their names."""
    total = hashlib.sha256(sys.version.encode())
    for file in files:
        if file.is_file():
            content = file.read_bytes()
            total.update(f"{file.relative_to(root)}\0{len(content)}\0".encode() + content)
    return total.hexdigest()


def jupyter_book(root: Path, builder: str, *, whole: bool = False) -> int:
    """Run `jupyter-book build .` with warnings as errors, saying nothing but them.

    Raises:
        OSError: if a file cannot be written.
        Problems: if it is the list of references that does not parse.
    """
    unfinished = root / "_build/loom/unfinished"
    loom, now = State(root, "loom"), digest(root, sorted((root / "loom").rglob("*.py")))
    arguments = ["build", ".", "--builder", builder, "-W", "-n", "--keep-going", "-q"]
    if whole or unfinished.exists() or not loom.matches(now):
        arguments.append("--all")
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    unfinished.touch()
    code, told = _sphinx(root, arguments)
    if code and (found := list(bibtex.problems(root))):
        raise Problems(found)
    if code and "--all" not in arguments and not NAMED.search(told):
        code, told = _sphinx(root, [*arguments, "--all"])
    if code == 0:
        loom.keep(now)
        unfinished.unlink()
    else:
        print(told, file=sys.stderr)
    return code


def _sphinx(root: Path, arguments: list[str]) -> tuple[int, str]:
    """Run Jupyter Book, which leaves its marks in a process, in a copy of this one.

    Where many builds follow each other, none of them waits for the imports.

    Returns:
        Its status, and what it said was wrong.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:

        def work() -> int:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            os.chdir(root)
            sys.stdout, sys.stderr = out, err
            return _status(arguments)

        code = apart(work)
        err.seek(0)
        return code, _told(err.read().replace(f"{root}/", ""))


def _told(said: str) -> str:
    """The lines that say what is wrong; all, if none does.

    Raises:
        OSError: if it is that a file cannot be written.
    """
    text = ANSI.sub("", said)
    told = [line for line in text.splitlines() if TOLD.search(line)]
    for line in told:
        if (match := DENIED.search(line)) and int(match[1]) in FULL:
            raise OSError(int(match[1]), os.strerror(int(match[1])), match[2])
        if match := SQLITE.search(line):
            raise OSError(match[1])
    return "\n".join(dict.fromkeys(told)) or text


def _status(arguments: list[str]) -> int:
    """The exit status of Jupyter Book's command line, run here."""
    # Sphinx makes many small objects and keeps them: looking through them often is in vain.
    gc.freeze()
    gc.set_threshold(50_000)
    from jupyter_book.cli.main import main

    try:
        main(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    return 0
