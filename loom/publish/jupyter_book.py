"""Run Jupyter Book only when something changed, and wholly after a build that did not finish.

Sphinx reports a warning only while it reads a page again, and takes a half-written page for a
finished one. So a build that failed or was killed leaves a mark, and the next one reads it all;
so does the first one after a change of loom itself, and at once a build that fails and names no
file of the book, since what it kept of the last one may be torn.
"""

import errno
import gc
import os
import re
import sys
import tempfile
from pathlib import Path

from loom.errors import Problems
from loom.publish import bibtex
from loom.publish.last_build import State, files_digest
from loom.publish.separate_process import run_apart

__all__ = ["jupyter_book"]


# Where Sphinx says what is wrong; what Jupyter Book adds to that is a traceback.
ANSI = re.compile(r"\x1b\[[\d;]*m")
TOLD = re.compile(r"\b(WARNING|ERROR|CRITICAL|[A-Z]\w+Error): \S")
NAMED = re.compile(r"\.(md|bib|json|yml)\b")
DENIED = re.compile(r"\[Errno (\d+)\] [^:'\"]*(?:: '([^']+)')?")
SQLITE = re.compile(r"\b(database or disk is full|disk I/O error)\b")
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


def jupyter_book(root: Path, builder: str, *, whole: bool = False) -> int:
    """Run `jupyter-book build .` with warnings as errors, saying nothing but them.

    Raises:
        OSError: if a file cannot be written.
        Problems: if it is the list of references that does not parse.
    """
    unfinished = root / "_build/loom/unfinished"
    loom, now = State(root, "loom"), files_digest(root, sorted((root / "loom").rglob("*.py")))
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

        code = run_apart(work)
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
    from jupyter_book.cli.main import main  # here, in the copy: it imports all of Sphinx

    try:
        main(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    return 0
