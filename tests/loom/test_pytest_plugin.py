"""A failure in tangled code is shown with the chapter's line."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from loom.__main__ import main

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]

CHAPTER = """\
# Chapter

```{prf:theorem} One
:label: thm-one

One.
```

```{code-cell} python
:tangle:

def half(x: int) -> float:
    return 1 / x
```

```{code-cell} python
:verifies: thm-one

def test_half() -> None:
    assert half(0) == 0
```
"""


Run = Callable[[], pytest.RunResult]


@pytest.fixture
def root(write_book: Callable[[dict[str, str]], Path]) -> Path:
    root = write_book({"book/diffusion/a.md": CHAPTER})
    assert main(["-C", str(root), "tangle"]) == 0
    return root


@pytest.fixture
def run(
    root: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Run the tests of the small book."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (root, ROOT))))
    options = ["-p", "loom.pytest_plugin", "--import-mode=importlib"]
    return lambda: pytester.runpytest_subprocess(
        *options, f"--rootdir={root}", root / "tests"
    )


def test_each_frame_is_shown_in_its_chapter(run: Run) -> None:
    result = run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*- in the chapters -*",
            "book/diffusion/a.md:25 (tests/book/diffusion/test_a.py:*)",
            "book/diffusion/a.md:18 (tangled/diffusion/a.py:*)",
        ]
    )


def test_a_module_that_is_not_its_chapter_is_not_placed(
    root: Path, run: Run
) -> None:
    page = root / "book/diffusion/a.md"
    page.write_text(page.read_text().replace("1 / x", "2 / x"))
    said = run().stdout.str()
    assert "(tangled/" not in said
    assert "(tests/book/" in said


def test_a_broken_chapter_breaks_no_report(root: Path, run: Run) -> None:
    (root / "_toc.yml").write_text("root: [")
    result = run()
    result.assert_outcomes(failed=1)
    assert "in the chapters" not in result.stdout.str()
