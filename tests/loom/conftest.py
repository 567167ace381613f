"""A small book in a temporary folder, with real kernels but nothing heavy to run in them."""

import contextlib
import io
import os
import shutil
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
from loom.weave import rerun


def setup(app):
    rerun.setup(app)
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


WOVEN = """\
---
jupytext: {{text_representation: {{extension: .md, format_name: myst}}}}
kernelspec: {{name: python3, display_name: Python 3, language: python}}
tangle: part/{name}.py
---
# Chapter {name}

Words.

```{{math}}
:label: eq-{name}
a = b
```

```{{code-cell}} python
:tangle:
:implements: eq-{name}

def {name}() -> int:
    \"\"\"Return one.\"\"\"
    return 1
```
"""
TOC = """\
format: jb-book
root: book/index
parts:
  - caption: Part
    numbered: 2
    chapters:
"""


class Woven:
    """Chapters of one tangled cell each, and the command that weaves them."""

    def __init__(self, root, capsys):
        self.root, self.html, self.capsys = root, root / "_build/html", capsys
        (root / "book/part").mkdir(parents=True)
        shutil.copytree(
            ROOT / "book/_static",
            root / "book/_static",
            ignore=shutil.ignore_patterns("mathjax"),
        )
        shutil.copytree(ROOT / "book/_latex", root / "book/_latex")
        shutil.copy(ROOT / "_config.yml", root)
        self.write("book/index.md", "# A small book\n")
        self.write("book/references.bib", "")
        self.chapters("one", "two")

    def write(self, name, text):
        (self.root / name).write_text(text)

    def chapters(self, *names):
        for name in names:
            if not (self.root / f"book/part/{name}.md").exists():
                self.write(f"book/part/{name}.md", WOVEN.format(name=name))
        files = "".join(f"      - file: book/part/{name}\n" for name in names)
        self.write("_toc.yml", TOC + files)

    def append(self, text, name="one"):
        with (self.root / f"book/part/{name}.md").open("a") as file:
            file.write(text)

    def loom(self, *verbs):
        """Status, standard output and standard error of commands, up to the first that fails."""
        self.capsys.readouterr()
        status = 0
        for verb in verbs or ("html",):
            status = status or main(["-C", str(self.root), verb])
        out, err = self.capsys.readouterr()
        return status, out, err

    def built(self, *verbs):
        """Build without a complaint; what was said."""
        status, out, err = self.loom(*verbs)
        assert (status, err) == (0, ""), err
        return out

    def refused(self, verb="html"):
        """Build, which fails; what was said."""
        status, _, err = self.loom(verb)
        assert status == 1
        return err

    def start(self, **options):
        return subprocess.Popen(
            [sys.executable, "-m", "loom", "html"],
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )


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


@pytest.fixture
def woven(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    return Woven(tmp_path / "book", capsys)
