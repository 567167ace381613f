"""Writing: nothing that a person wrote is lost, nothing is half-written, CI sees every drift."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loom.__main__ import main
from loom.write import LAST, write_atomically

Write = Callable[[dict[str, str]], Path]
CHAPTER = "# Chapter\n\n```{code-cell} python\n:tangle:\n\nSIZE = 3\n```\n"
MODULE = Path("tangled/diffusion/a.py")


@pytest.fixture
def root(write_book: Write) -> Path:
    root = write_book({"book/diffusion/a.md": CHAPTER})
    assert main(["-C", str(root), "tangle"]) == 0
    return root


def edit(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def tangle(root: Path) -> int:
    return main(["-C", str(root), "tangle"])


def check(root: Path) -> int:
    return main(["-C", str(root), "check"])


def snapshot(root: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(p): (p.read_bytes(), p.stat().st_mtime_ns)
        for folder in ("tangled", "tests")
        for p in (root / folder).rglob("*")
        if p.is_file()
    }


def test_a_second_run_writes_nothing(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(root)
    capsys.readouterr()
    assert tangle(root) == 0
    assert (snapshot(root), capsys.readouterr().out) == (before, "")
    assert check(root) == 0


def test_prose_changes_no_module(root: Path) -> None:
    before = snapshot(root)
    edit(root / "book/diffusion/a.md", "# Chapter\n", "# Chapter\n\nProse.\n")
    assert tangle(root) == 0
    assert snapshot(root) == before


def test_a_chapter_edit_is_carried(root: Path) -> None:
    edit(root / "book/diffusion/a.md", "SIZE = 3", "SIZE = 4")
    assert check(root) == 1
    assert tangle(root) == 0
    assert "SIZE = 4" in (root / MODULE).read_text()
    assert check(root) == 0


def test_a_hand_edit_is_never_overwritten(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(root / MODULE, "SIZE = 3", "SIZE = 5")
    edit(root / "book/diffusion/a.md", "SIZE = 3", "SIZE = 4")
    before = snapshot(root)
    assert tangle(root) == 1
    assert snapshot(root) == before
    said = capsys.readouterr().err
    assert said.startswith("tangled/diffusion/a.py:8: L18 edited by hand")
    assert "book/diffusion/a.md:11" in said
    (root / MODULE).unlink()
    assert tangle(root) == 0
    assert "SIZE = 4" in (root / MODULE).read_text()


def test_check_shows_the_difference(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(root / MODULE, "SIZE = 3", "SIZE = 5")
    assert check(root) == 1
    said = capsys.readouterr()
    assert "-SIZE = 3\n+SIZE = 5\n" in said.out
    assert said.err.startswith("tangled/diffusion/a.py:8: L18 this differs")


def test_a_file_of_somebody_else_is_in_the_way(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "tangled/diffusion/mine.py").write_text("x = 1\n")
    for verb in (tangle, check):
        assert verb(root) == 1
        assert capsys.readouterr().err.startswith(
            "tangled/diffusion/mine.py:1: L17"
        )
    assert (root / "tangled/diffusion/mine.py").read_text() == "x = 1\n"


def test_a_module_that_lost_its_chapter_goes(root: Path) -> None:
    edit(root / "book/diffusion/a.md", ":tangle:", ":tangle: attention/b.py")
    assert tangle(root) == 0
    assert not (root / "tangled/diffusion").exists()
    assert (root / "tangled/attention/b.py").is_file()
    assert check(root) == 0


def test_an_orphan_that_was_edited_stays(root: Path) -> None:
    edit(root / MODULE, "SIZE = 3", "SIZE = 5")
    edit(root / "book/diffusion/a.md", ":tangle:", ":tangle: attention/b.py")
    assert tangle(root) == 1
    assert "SIZE = 5" in (root / MODULE).read_text()
    assert not (root / "tangled/attention").exists()


def test_in_a_fresh_clone_the_commit_is_the_base(root: Path) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "book"]):
        subprocess.run([*git, *command], cwd=root, check=True)
    shutil.rmtree(root / LAST)
    edit(root / "book/diffusion/a.md", "SIZE = 3", "SIZE = 4")
    assert tangle(root) == 0
    assert "SIZE = 4" in (root / MODULE).read_text()
    shutil.rmtree(root / LAST)
    edit(root / MODULE, "SIZE = 4", "SIZE = 5")
    assert tangle(root) == 1


def test_without_git_or_memory_nothing_is_overwritten(root: Path) -> None:
    shutil.rmtree(root / LAST)
    edit(root / "book/diffusion/a.md", "SIZE = 3", "SIZE = 4")
    assert tangle(root) == 1


def test_a_broken_chapter_leaves_the_package_alone(root: Path) -> None:
    edit(root / "book/diffusion/a.md", "SIZE = 3", "SIZE = (")
    before = snapshot(root)
    assert tangle(root) == 1
    assert snapshot(root) == before


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "module.py"
    target.write_text("old\n")

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(target, b"new\n")
    assert [p.name for p in tmp_path.iterdir()] == ["module.py"]
    assert target.read_text() == "old\n"


def test_the_result_does_not_depend_on_the_hash_seed(root: Path) -> None:
    texts = set()
    for seed in ("0", "1", "2"):
        shutil.rmtree(root / "tangled")
        subprocess.run(
            [sys.executable, "-m", "loom", "-C", str(root), "tangle"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        )
        texts.add((root / MODULE).read_bytes())
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("toc", "message"),
    [
        (None, "_toc.yml:1: B01 there is no table of contents"),
        ("root: [", "_toc.yml:1: B03 this YAML does not parse"),
        (
            "format: jb-book\n",
            "_toc.yml:1: B03 the table of contents names no root",
        ),
        ("root: book/none\n", "_toc.yml:1: B01 book/none.md does not exist"),
    ],
)
def test_a_broken_table_of_contents(
    toc: str | None,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if toc is not None:
        (tmp_path / "_toc.yml").write_text(toc)
    assert main(["-C", str(tmp_path), "check"]) == 1
    assert capsys.readouterr().err.startswith(message)
