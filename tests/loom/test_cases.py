"""The cases of `*/cases/*.txt`, a file for each subject: chapters in, modules or problems out.

A case begins with `##### title`. Then come files, each under `=== path`: those under `book/` are
chapters (front matter is added where a chapter has none, so the first line of its text is line 6),
those under `tangled/` and `tests/` are what loom must make of them. `=== problems` lists what loom
must say instead; then it must have written nothing.
"""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loom.__main__ import main

HERE = Path(__file__).parent
SETTINGS = Path(__file__).parents[2] / "pyproject.toml"


def cases() -> list:
    found = []
    for path in sorted(HERE.glob("*/cases/*.txt")):
        for case in re.split(r"^##### ", path.read_text(), flags=re.M)[1:]:
            title, _, body = case.partition("\n")
            parts = re.split(r"^=== (.+)\n", body, flags=re.M)[1:]
            texts = [text.rstrip("\n") + "\n" for text in parts[1::2]]
            files = dict(zip(parts[::2], texts, strict=True))
            found.append(pytest.param(files, id=f"{path.stem}: {title}"))
    return found


@pytest.mark.parametrize("files", cases())
def test_case(
    files: dict[str, str],
    write_book: Callable[[dict[str, str]], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = write_book(
        {
            name: text
            for name, text in files.items()
            if name.startswith("book/")
        }
    )
    status = main(["-C", str(root), "tangle"])
    said = capsys.readouterr().err
    written = {
        path.relative_to(root).as_posix(): path.read_text()
        for folder in ("tangled", "tests")
        for path in (root / folder).rglob("*.py")
    }
    if "problems" in files:
        assert said == files["problems"]
        assert (status, written) == (1, {})
        return
    assert (status, said) == (0, "")
    wanted = {
        name: text
        for name, text in files.items()
        if not name.startswith("book/")
    }
    modules = {name for name in written if not name.endswith("__init__.py")}
    assert wanted == {
        name: written[name]
        for name in written
        if name in wanted or name in modules
    }
    for verb in (["check", "--ignore", "D"], ["format", "--diff"]):
        command = [
            sys.executable,
            "-m",
            "ruff",
            *verb,
            "--no-cache",
            "--config",
            str(SETTINGS),
            ".",
        ]
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout
