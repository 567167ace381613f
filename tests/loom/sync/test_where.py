"""`loom where`: from a module to its chapter and back."""

from collections.abc import Callable
from pathlib import Path

import pytest

from loom.__main__ import main

CHAPTER = (
    "# Chapter\n\n```{code-cell} python\n:tangle:\n\nONE, TWO = 1, 2\n```\n"
)
RUN = "\n```{code-cell} python\nprint(ONE)\n```\n"
PAGE, MODULE = "book/diffusion/a.md", "tangled/diffusion/a.py"


@pytest.fixture
def root(write_book: Callable[[dict[str, str]], Path]) -> Path:
    root = write_book({PAGE: CHAPTER + RUN})
    assert main(["-C", str(root), "tangle"]) == 0
    return root


def test_there_and_back(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = (root / MODULE).read_text().split("\n").index(
        "ONE, TWO = 1, 2"
    ) + 1
    capsys.readouterr()
    assert main(["-C", str(root), "where", f"{MODULE}:{line}"]) == 0
    assert capsys.readouterr().out == f"{PAGE}:11\n"
    assert main(["-C", str(root), "where", f"{PAGE}:11"]) == 0
    assert capsys.readouterr().out == f"{MODULE}:{line}\n"
    monkeypatch.chdir(root / "book/diffusion")
    for place in (f"{root / PAGE}:11", "a.md:11", "a.md:11:4"):
        assert main(["-C", str(root), "where", place]) == 0
        assert capsys.readouterr().out == f"{MODULE}:{line}\n"


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (f"{MODULE}:1", "loom wrote this line"),
        (f"{MODULE}:999", "there is no such line: the file ends at 8"),
        (f"{PAGE}:0", "there is no such line"),
        (f"{PAGE}:6", "this is text, which goes into no module"),
        (f"{PAGE}:9", "no module has this line of its cell"),
        (f"{PAGE}:15", "this cell is only run"),
        ("book/none.md:3", "this is neither a module nor a chapter"),
        (PAGE, "this is no place: write a file and a line"),
    ],
)
def test_what_has_no_other_side(
    place: str, said: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-C", str(root), "where", place]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert said in told
