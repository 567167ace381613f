"""Writing: nothing that a person wrote is lost, nothing is half-written, CI sees every drift."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from loom.__main__ import main
from loom.tangle.last_written import LAST

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


def test_a_deletion_is_announced_with_who_links_there(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "book/b.md").write_text("# B\n\nSee [A](diffusion/a.md).\n")
    (root / "_toc.yml").write_text("format: jb-book\nroot: book/b\n")
    capsys.readouterr()
    assert tangle(root) == 0
    said = capsys.readouterr().out
    assert f"{MODULE} is deleted: no chapter makes it any more" in said
    assert "book/b.md:3: this links to book/diffusion/a.md, which" in said


def test_an_unreadable_module_is_named(
    root: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path == root / MODULE:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    for verb in (tangle, check):
        assert verb(root) == 1
        sentence = (
            f"{MODULE}:1: L31 this file cannot be read: Permission denied"
        )
        assert capsys.readouterr().err == f"{sentence}\n"


def test_the_package_tells_its_version(write_book: Write) -> None:
    root = write_book({"book/diffusion/a.md": CHAPTER})
    (root / "pyproject.toml").write_text('[project]\nname = "numpy"\n')
    assert tangle(root) == 0
    code = (
        "import sys; sys.path.insert(0, '.'); before = set(sys.modules)\n"
        "import tangled\n"
        "assert set(sys.modules) - before == {'tangled'}\n"
        "assert not hasattr(tangled, 'other')\n"
        "print(tangled.__version__)"
    )
    said = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (said.stdout.strip(), said.stderr) == (version("numpy"), "")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("execute: [", "_config.yml:1: B03 this YAML does not parse"),
        (
            "execute:\n  timeout: long\n",
            "_config.yml:2: B05 'timeout' is a number of seconds",
        ),
    ],
)
def test_broken_settings(
    settings: str,
    message: str,
    root: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (root / "_config.yml").write_text(settings)
    for verb in ("tangle", "check", "run"):
        assert main(["-C", str(root), verb]) == 1
        assert capsys.readouterr().err.startswith(message)


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


@pytest.mark.parametrize("step", ["fdopen", "replace"])
def test_a_full_disk_changes_nothing(
    step: str,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    edit(root / "book/diffusion/a.md", "SIZE = 3", "SIZE = 4")
    before = snapshot(root)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, step, full)
        assert tangle(root) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("tangled/diffusion/a.py:1: L31")
    assert "No space left" in said
    assert snapshot(root) == before
    assert tangle(root) == 0
    assert check(root) == 0


def test_after_an_interruption_nothing_seems_edited(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chapter = root / "book/diffusion/a.md"
    second = CHAPTER.replace("# Chapter", "").replace(
        ":tangle:", ":tangle: diffusion/b.py"
    )
    chapter.write_text(chapter.read_text() + second.replace("SIZE", "WIDTH"))
    assert tangle(root) == 0
    edit(chapter, "= 3", "= 4")
    replaced: list[object] = []
    replace = os.replace

    def interrupted(temporary: str, target: Path) -> None:
        if replaced:
            raise KeyboardInterrupt
        replaced.append(target)
        replace(temporary, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tangle(root)
    assert "SIZE = 4" in (root / MODULE).read_text()
    assert "WIDTH = 3" in (root / MODULE).with_stem("b").read_text()
    assert not list(root.rglob(".loom-*"))
    edit(chapter, "= 4", "= 5")
    assert tangle(root) == 0
    assert check(root) == 0


@pytest.mark.parametrize("kind", ["folder", "link", "linked folder", "file"])
def test_something_else_stands_in_the_way(
    kind: str, write_book: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_book({"book/diffusion/a.md": CHAPTER, "else/a.py": "mine\n"})
    module = root / MODULE
    if kind == "file":
        module.parent.parent.write_text("mine\n")
    elif kind == "linked folder":
        module.parent.parent.mkdir()
        module.parent.symlink_to(root / "else")
    else:
        module.parent.mkdir(parents=True)
        module.mkdir() if kind == "folder" else module.symlink_to(
            root / "else/a.py"
        )
    before = snapshot(root)
    assert tangle(root) == 1
    assert f"{MODULE}:1: L17" in capsys.readouterr().err
    assert snapshot(root) == before
    assert (root / "else/a.py").read_text() == "mine\n"


def test_without_the_program_git(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(root / LAST)
    edit(root / "book/diffusion/a.md", "SIZE = 3", "SIZE = 4")
    monkeypatch.setenv("PATH", "")
    assert tangle(root) == 1
    assert "SIZE = 3" in (root / MODULE).read_text()


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
        (b"root: \xff\n", "_toc.yml:1: B02 this file is not UTF-8"),
        (
            "- root\n",
            "_toc.yml:1: B03 this YAML does not parse: it is no mapping",
        ),
        ("root: ../a\n", "_toc.yml:1: B03 '../a' is no path of this folder"),
        ("root: a\nparts: 3\n", "_toc.yml:1: B03 'parts' is a list"),
        ("root: a\nchapters:\n- b\n", "_toc.yml:1: B03 'b' is no entry"),
        (
            "root: a\nchapters:\n- glob: b*\n",
            "_toc.yml:1: B03 loom does not read 'glob'",
        ),
        (
            "root: a\nchapters: &x\n- chapters: *x\n",
            "_toc.yml:1: B03 an entry contains itself",
        ),
        (
            "root: a\nchapters:\n- file: b\n- file: b.md\n",
            "_toc.yml:4: B03 b is listed twice",
        ),
        (
            "root: a\nchapters:\n- file: a2\n  sections:\n  - {file: b.md}  # later\n",
            "_toc.yml:1: B01 a.md does not exist\n_toc.yml:3: B01 a2.md does not exist\n"
            "_toc.yml:5: B01 b.md does not exist",
        ),
    ],
)
def test_a_broken_table_of_contents(
    toc: str | bytes | None,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if toc is not None:
        data = toc if isinstance(toc, bytes) else toc.encode()
        (tmp_path / "_toc.yml").write_bytes(data)
    assert main(["-C", str(tmp_path), "check"]) == 1
    assert capsys.readouterr().err.startswith(message)
