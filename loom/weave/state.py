"""Run Jupyter Book only when something changed, and wholly after a build that did not finish.

Sphinx reports a warning only while it reads a page again, and takes a half-written page for a
finished one. So a build that failed or was killed leaves a mark, and the next one reads it all;
so does the first one after a change of loom itself.
"""

import gc
import hashlib
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterable
from pathlib import Path

__all__ = ["State", "digest", "inputs", "jupyter_book"]

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


class State:
    """What the last good build of one output was made from; kept below `_build/loom`."""

    def __init__(self, root: Path, name: str) -> None:
        self.file = root / "_build/loom" / f"{name}.digest"

    def matches(self, now: str) -> bool:
        return self.file.is_file() and self.file.read_text() == now

    def forget(self) -> None:
        self.file.unlink(missing_ok=True)

    def keep(self, now: str) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(now)


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


def jupyter_book(root: Path, builder: str) -> int:
    """Run `jupyter-book build .` with warnings as errors, saying nothing but them."""
    unfinished = root / "_build/loom/unfinished"
    loom, now = State(root, "loom"), digest(root, sorted((root / "loom").rglob("*.py")))
    arguments = ["build", ".", "--builder", builder, "-W", "-n", "--keep-going", "-q"]
    if unfinished.exists() or not loom.matches(now):
        arguments.append("--all")
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    unfinished.touch()
    code, said = _apart(root, arguments)
    if code == 0:
        loom.keep(now)
        unfinished.unlink()
    else:
        text = ANSI.sub("", said)
        told = [line for line in text.splitlines() if TOLD.search(line)]
        print("\n".join(dict.fromkeys(told)) or text, file=sys.stderr)
    return code


def _apart(root: Path, arguments: list[str]) -> tuple[int, str]:
    """Run Jupyter Book in a copy of this process; return its status and its standard error.

    Sphinx leaves its marks in a process. The copy has what this one imported, so that where many
    builds follow each other, none of them waits for the imports.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if not child:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            os.chdir(root)
            os._exit(_status(arguments))
        _, status = os.waitpid(child, 0)
        err.seek(0)
        return os.waitstatus_to_exitcode(status), err.read()


def _status(arguments: list[str]) -> int:
    """The exit status of Jupyter Book's command line, run here."""
    # Sphinx makes many small objects and keeps them: looking through them often is in vain.
    gc.freeze()
    gc.set_threshold(50_000)
    code: object = 1
    try:
        from jupyter_book.cli.main import main

        main(arguments)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else 1
