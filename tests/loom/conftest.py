"""A small book in a temporary folder, with real kernels but nothing heavy to run in them."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import settings

from loom.__main__ import main

# Started in the background, pytest would pass to its children that they ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
# `pytest tests/loom/test_sync_random.py --hypothesis-profile thorough`
settings.register_profile("thorough", max_examples=10_000)
ROOT = Path(__file__).parents[2]
FRONT = """\
---
jupytext: {text_representation: {extension: .md, format_name: myst}}
kernelspec: {name: python3, display_name: Python 3, language: python}
---
"""
CONFIG = """\
title: A small book
only_build_toc_files: true
execute: {execute_notebooks: cache, raise_on_error: true, stderr_output: warn}
sphinx: {local_extensions: {small: .}}
"""
EXTENSION = """\
from loom.stamp import connect


def setup(app):
    connect(app)
    return {"parallel_read_safe": True}
"""


class SmallBook:
    """Chapters `a`, `b`, ... under `book/`, and the commands that build them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "book").mkdir(parents=True)
        (root / "tangled").mkdir()
        self.write("tangled/__init__.py", "")
        self.write("book/index.md", "# A small book\n")
        self.write("_config.yml", CONFIG)
        self.write("small.py", EXTENSION)
        self.write("constraints.txt", "one==1\n")

    def write(self, name: str, text: str) -> None:
        (self.root / name).write_text(text)

    def chapters(self, **cells: list[str]) -> None:
        """Write chapters, each from its cells (with their options) and prose between them."""
        toc = "format: jb-book\nroot: book/index\nchapters:\n"
        for name, sources in cells.items():
            fences = "\n".join(
                f"```{{code-cell}} python\n{source}\n```\n\nProse.\n"
                for source in sources
            )
            self.write(f"book/{name}.md", f"{FRONT}# {name}\n\n{fences}")
            toc += f"- file: book/{name}\n"
        self.write("_toc.yml", toc)

    def line(self, chapter: str, code: str) -> int:
        """The line of a chapter on which the code first stands."""
        lines = (self.root / f"book/{chapter}.md").read_text().splitlines()
        return 1 + next(i for i, line in enumerate(lines) if code in line)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """`loom run`: exit status, standard output, standard error."""
        out, err = io.StringIO(), io.StringIO()
        with (
            mock.patch.dict(os.environ, self.environment),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            status = main(["-C", str(self.root), "run", *arguments])
        return status, out.getvalue(), err.getvalue()

    def build(self) -> str:
        """`jupyter-book build .`, warnings being errors; what it says."""
        main = "from jupyter_book.cli.main import main; main()"
        process = self.start("-c", main, "build", ".", "-W", "-v")
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, out + err
        return out + err


@pytest.fixture
def small_book(tmp_path: Path) -> SmallBook:
    return SmallBook(tmp_path / "book-of-tests")


@pytest.fixture
def alive() -> Callable[[str], list[int]]:
    """Processes whose environment has this text: kernels, by the root of their book."""

    def find(text: str) -> list[int]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                environment = (process / "environ").read_bytes()
                zombie = ") Z" in (process / "stat").read_text()
            except OSError:
                continue
            if f"IPYTHONDIR={text}".encode() in environment and not zombie:
                found.append(int(process.name))
        return found

    return find
