"""`loom sync`: an edit in a module goes back to its cell, or is refused and nothing is touched."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from loom.__main__ import main
from loom.tangle.last_written import LAST

Write = Callable[[dict[str, str]], Path]
CHAPTER = '''# Chapter

```{code-cell} python
import math

from loom import continues
```

One is above two.

$$
x
$$ (eq-one)

```{code-cell} python
:tangle:
:implements: eq-one

def one(x: float) -> float:
    """Return one."""
    return x + math.tau
```

```{code-cell} python
:tangle:

TWO = 2
THREE = 3  # more than two


def four() -> int:
    return 4


class Net:
    size = 5
```

Prose between.

```{code-cell} python
:tangle:

@continues(Net)
class Net:
    def six(self) -> int:
        return 6
```

```{prf:theorem} Seven
:label: thm-seven

Seven.
```

```{code-cell} python
:verifies: thm-seven

def test_seven() -> None:
    assert one(7) > 7
```
'''
PAGE = Path("book/diffusion/a.md")
MODULE = Path("tangled/diffusion/a.py")
TESTS = Path("tests/book/diffusion/test_a.py")


@pytest.fixture
def root(write_book: Write) -> Path:
    second = "# Other\n\n```{code-cell} python\n:tangle: diffusion/b.py\n\nNINE = 9\n```\n"
    root = write_book(
        {PAGE.as_posix(): CHAPTER, "book/diffusion/b.md": second}
    )
    assert main(["-C", str(root), "tangle"]) == 0
    return root


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def sync(root: Path) -> int:
    return main(["-C", str(root), "sync"])


def files(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for folder in ("book", "tangled", "tests")
        for path in (root / folder).rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("old", "new", "there"),
    [
        ("x + math.tau", "x - math.tau", "    return x - math.tau\n"),
        (
            "TWO = 2\n",
            "TWO = 2\nTWENTY = 20\n",
            "TWO = 2\nTWENTY = 20\nTHREE",
        ),
        ("THREE = 3  # more than two\n", "", "TWO = 2\n\n\ndef four"),
        ('"""Return one.\n', '"""Return 1.\n', '    """Return 1."""\n'),
        (
            "one.\n",
            "one.\n\n    Or so.\n",
            '    """Return one.\n\n    Or so."""\n',
        ),
        (
            "    size = 5\n",
            "    size = 5\n    depth = 5\n",
            "    depth = 5\n```",
        ),
        (
            "        return 6\n",
            "        return 6\n\n    def six_again(self) -> int:\n        return 6\n",
            "        return 6\n\n    def six_again(self) -> int:\n        return 6\n```",
        ),
        ("\n\ndef four() -> int:\n    return 4\n", "", "two\n\n\nclass Net:"),
        ("def four", "# Above.\ndef four", "\n\n\n# Above.\ndef four"),
        (
            "class Net:",
            "def five() -> int:\n    return 5\n\n\nclass Net:",
            "    return 4\n\n\ndef five() -> int:\n    return 5\n\n\nclass Net:",
        ),
        (
            "\n\nTWO = 2",
            "\n\ndef half() -> float:\n    return 0.5\n\n\nTWO = 2",
            "```\n\n```{code-cell} python\n:tangle:\n\ndef half() -> float:\n"
            "    return 0.5\n```\n\n```{code-cell} python\n:tangle:\n\nTWO = 2",
        ),
    ],
)
def test_an_edit_goes_to_its_cell(
    old: str, new: str, there: str, root: Path
) -> None:
    edit(root / MODULE, old, new)
    wanted = (root / MODULE).read_text()
    assert sync(root) == 0
    assert there in (root / PAGE).read_text()
    definitions = wanted.partition("\n\n\n")[2]
    assert definitions in (root / MODULE).read_text()
    assert main(["-C", str(root), "check"]) in (0, 1)
    assert main(["-C", str(root), "tangle"]) == 0
    assert sync(root) == 0


def test_a_cell_without_definitions_goes(root: Path) -> None:
    edit(root / MODULE, "\n    def six(self) -> int:\n        return 6\n", "")
    assert sync(root) == 0
    text = (root / PAGE).read_text()
    assert "@continues" not in text
    assert "Prose between.\n\n```{prf:theorem}" in text


def test_a_new_test_joins_its_label(root: Path) -> None:
    path = root / TESTS
    path.write_text(
        path.read_text() + '\n\ndef test_eight() -> None:\n    """Eight."""\n'
    )
    assert sync(root) == 0
    cell = ":verifies: thm-seven\n\ndef test_eight() -> None:\n"
    assert cell in (root / PAGE).read_text()
    assert "Verifies thm-seven" in path.read_text()


def test_several_modules_and_chapters_at_once(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(root / MODULE, "TWO = 2", "TWO = 22")
    edit(root / TESTS, "one(7) > 7", "one(7) > 77")
    edit(root / "tangled/diffusion/b.py", "NINE = 9", "NINE = 99")
    capsys.readouterr()
    assert sync(root) == 0
    pages = [PAGE.as_posix(), "book/diffusion/b.md"]
    assert capsys.readouterr().out.split() == pages
    assert "TWO = 22" in (root / PAGE).read_text()
    assert "one(7) > 77" in (root / PAGE).read_text()
    assert "NINE = 99" in (root / pages[1]).read_text()


def test_edits_on_both_sides_are_merged(root: Path) -> None:
    edit(root / MODULE, "return 4", "return 44")
    edit(root / PAGE, "TWO = 2", "TWO = 22")
    edit(
        root / PAGE,
        "def one",
        "def one_more() -> float:\n    return math.e\n\n\ndef one",
    )
    edit(root / PAGE, ":implements: eq-one\n", "")
    edit(root / PAGE, "Prose between.", "Prose, between.")
    assert sync(root) == 0
    for text in (root / PAGE).read_text(), (root / MODULE).read_text():
        assert "return 44" in text
        assert "TWO = 22" in text
        assert "return math.e" in text
    assert "Prose, between." in (root / PAGE).read_text()


def test_the_same_edit_on_both_sides_is_one(root: Path) -> None:
    edit(root / MODULE, "TWO = 2", "TWO = 22")
    edit(root / PAGE, "TWO = 2", "TWO = 22")
    before = files(root)
    assert sync(root) == 0
    assert files(root) == before


def refused(root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What is said about an edit that is refused; no file was touched."""
    before = files(root)
    capsys.readouterr()
    assert sync(root) == 1
    assert files(root) == before
    return capsys.readouterr().err


def test_edits_of_one_line_are_refused_with_both_places(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(root / MODULE, "TWO = 2", "TWO = 22")
    edit(root / PAGE, "TWO = 2", "TWO = 222")
    lines = (
        (root / MODULE).read_text().split("\n"),
        (root / PAGE).read_text().split("\n"),
    )
    here, there = (
        lines[0].index("TWO = 22") + 1,
        lines[1].index("TWO = 222") + 1,
    )
    said = refused(root, capsys)
    assert (
        said
        == f"{MODULE}:{here}: S04 {PAGE}:{there} changed too: make the two agree\n"
    )


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("TWO = 2\n", "TWO = (\n", "S01 this does not parse"),
        ("TWO = 2", "TWO = 2\0", "S01 this does not parse"),
        ('"""Chapter.', '"""A chapter.', "S02 loom writes this part"),
        ("import math\n", "import math\nimport os\n", "S02 loom writes this"),
        ("import math\n", "import math  # or not\n", "S02 loom writes this"),
        ('"THREE", ', "", "S02 loom writes this part"),
        (
            "  Implements eq-one",
            "  Makes eq-one",
            "S02 this stands among lines",
        ),
        (
            f"    Implements eq-one ({PAGE}).\n",
            "",
            "S02 the chapter would not",
        ),
        ("    size = 5\n\n", "", "L02 this cell does not parse"),
        ("x + math.tau", "x + os.sep", "L06 'os' is neither defined"),
        ("def four", "print()\n\n\ndef four", "L03 a tangled cell holds"),
        ("return 4\n", "return 4\n\n\nTWO = 3\n", "L05 'TWO' is already"),
    ],
)
def test_what_cannot_be_carried_is_refused(
    old: str,
    new: str,
    said: str,
    root: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    edit(root / MODULE, old, new)
    assert said in refused(root, capsys)


def test_a_comment_above_all_is_not_lost_with_the_module(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "tangled/diffusion/b.py").write_text("# Mine.\nimport math\n\n")
    assert "b.py:2: S02 loom writes this part" in refused(root, capsys)


def test_a_missing_import_is_told_with_its_cell(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(root / MODULE, "x + math.tau", "x + len(os.sep)")
    edit(root / MODULE, "import math\n", "import math\nimport os\n")
    line = (root / PAGE).read_text().split("\n").index("import math") + 1
    assert f"; its imports stand at {PAGE}:{line}\n" in refused(root, capsys)
    edit(root / PAGE, "import math\n", "import math\nimport os\n")
    assert sync(root) == 0
    assert main(["-C", str(root), "tangle"]) == 0


def test_an_edit_of_two_cells_at_once_is_refused(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(
        root / MODULE,
        "    size = 5\n\n    def six(self)",
        "    wide = 5\n    def six_of(self)",
    )
    said = refused(root, capsys)
    assert "S03 this edit spans two cells" in said
    assert said.count(f"{PAGE}:") == 2


def test_a_file_of_nobody_is_refused(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "tangled/diffusion/mine.py").write_text("X = 1\n")
    assert "S01 no chapter makes this file" in refused(root, capsys)


def test_bytes_that_are_no_text_are_refused(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / MODULE).write_bytes(b"X = 1\r\n")
    assert "S01 this is no UTF-8 text" in refused(root, capsys)
    (root / MODULE).write_bytes(b"X = '\xff'\n")
    assert "S01 this is no UTF-8 text" in refused(root, capsys)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_of_a_chapter_stay(mark: bytes, root: Path) -> None:
    page = root / PAGE
    page.write_bytes(mark + page.read_bytes().replace(b"\n", b"\r\n"))
    edit(root / MODULE, "TWO = 2", "TWO = 22")
    before = page.read_bytes()
    assert sync(root) == 0
    assert page.read_bytes() == before.replace(b"TWO = 2", b"TWO = 22")


def test_mixed_line_ends_are_refused(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = root / PAGE
    page.write_bytes(page.read_bytes().replace(b"\n", b"\r\n", 5))
    edit(root / MODULE, "TWO = 2", "TWO = 22")
    assert "S07 this chapter changed meanwhile" in refused(root, capsys)


def test_nothing_to_do(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(root)
    capsys.readouterr()
    assert sync(root) == 0
    assert (
        capsys.readouterr().out
        == "nothing to carry: no module was edited by hand\n"
    )
    edit(root / PAGE, "TWO = 2", "TWO = 22")
    assert sync(root) == 0
    assert files(root)[MODULE.as_posix()] == before[MODULE.as_posix()]


def test_a_full_disk_changes_nothing(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    edit(root / MODULE, "TWO = 2", "TWO = 22")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fdopen", full)
        assert "L31 this file cannot be written" in refused(root, capsys)
    assert sync(root) == 0


def git(root: Path, *arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *who, *arguments], cwd=root, check=True)


def commit(root: Path) -> None:
    git(root, "init", "-q")
    (root / ".gitignore").write_text("_build\n")
    git(root, "add", ".")
    git(root, "commit", "-qm", "book")


def test_a_committed_file_is_no_edit_by_hand(root: Path) -> None:
    """As after `git pull`: loom last wrote something else, and the chapter goes on."""
    edit(root / PAGE, "TWO = 2", "TWO = 22")
    assert main(["-C", str(root), "tangle"]) == 0
    commit(root)
    edit(root / LAST / MODULE, "TWO = 22", "TWO = 2")
    edit(root / PAGE, "TWO = 22", "TWO = 222")
    assert sync(root) == 0
    assert "TWO = 22\n" in (root / MODULE).read_text()
    assert main(["-C", str(root), "tangle"]) == 0
    assert "TWO = 222\n" in (root / MODULE).read_text()


def test_in_a_fresh_clone_the_commit_is_the_base(root: Path) -> None:
    commit(root)
    subprocess.run(["rm", "-r", "_build"], cwd=root, check=True)
    edit(root / MODULE, "TWO = 2", "TWO = 22")
    edit(root / PAGE, "return 4", "return 44")
    assert sync(root) == 0
    assert "TWO = 22\n" in (root / PAGE).read_text()
    assert "return 44\n" in (root / MODULE).read_text()


def test_check_and_tangle_name_the_command(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(root / MODULE, "TWO = 2", "TWO = 22")
    for verb in ("tangle", "check"):
        assert main(["-C", str(root), verb]) == 1
        assert "loom sync" in capsys.readouterr().err


def test_an_edit_after_a_switch_is_of_the_branch(root: Path) -> None:
    """What loom wrote for the other branch is no base of it."""
    commit(root)
    git(root, "switch", "-qc", "other")
    edit(root / PAGE, "return 4", "return 1\n\n\ndef ten() -> int:\n    pass")
    assert main(["-C", str(root), "tangle"]) == 0
    commit(root)
    git(root, "switch", "-q", "-")
    edit(root / MODULE, "return 4", "return 44")
    assert sync(root) == 0
    assert "return 44\n" in (root / PAGE).read_text()
    assert "ten" not in (root / MODULE).read_text()


@pytest.mark.parametrize("typed", ["TWO = 22", "TWO = 22\n# Why."])
def test_an_edit_typed_again_after_a_checkout_is_not_lost(
    typed: str, root: Path
) -> None:
    """The module is what loom once wrote, and yet a person wrote it."""
    commit(root)
    edit(root / PAGE, "TWO = 2", typed)
    assert main(["-C", str(root), "tangle"]) == 0
    git(root, "checkout", "-q", ".")
    edit(root / MODULE, "TWO = 2", typed)
    edit(root / PAGE, "return 4", "return 44")
    assert main(["-C", str(root), "tangle"]) == 1
    assert f"{typed}\n" in (root / MODULE).read_text()
    assert sync(root) == 0
    for path in (root / PAGE, root / MODULE):
        assert f"{typed}\n" in path.read_text()
        assert "return 44\n" in path.read_text()


def test_a_stash_and_its_return_is_no_edit(root: Path) -> None:
    commit(root)
    edit(root / PAGE, "TWO = 2", "TWO = 22")
    assert main(["-C", str(root), "tangle"]) == 0
    git(root, "stash", "-q")
    git(root, "stash", "pop", "-q")
    edit(root / PAGE, "return 4", "return 44")
    assert sync(root) == 0
    assert main(["-C", str(root), "tangle"]) == 0
    text = (root / MODULE).read_text()
    assert "TWO = 22\n" in text
    assert "return 44\n" in text


def test_where_nothing_is_known_both_verbs_say_the_way_out(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy without `.git` and `_build`."""
    subprocess.run(["rm", "-r", "_build"], cwd=root, check=True)
    edit(root / PAGE, "TWO = 2", "TWO = 22")
    for verb in ("tangle", "sync"):
        assert main(["-C", str(root), verb]) == 1
        assert (
            "delete the file to have it made anew" in capsys.readouterr().err
        )
    (root / MODULE).unlink()
    assert main(["-C", str(root), "tangle"]) == 0
    assert "TWO = 22\n" in (root / MODULE).read_text()


def test_the_clone_of_another_user_is_a_base(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container, where git refuses to serve a stranger."""
    commit(root)
    subprocess.run(["rm", "-r", "_build"], cwd=root, check=True)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    edit(root / PAGE, "TWO = 2", "TWO = 22")
    assert main(["-C", str(root), "tangle"]) == 0
    assert "TWO = 22\n" in (root / MODULE).read_text()
