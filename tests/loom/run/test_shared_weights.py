"""`loom run` makes the weights that chapters share before it runs them."""

import json
import os
import signal
import time

import pytest

from loom.__main__ import main

# What the package of a real book does with torch, done with a file: `how.py` says what happens.
MAKER = """\
import os, pathlib, sys, time

ROOT = pathlib.Path(os.environ["TANGLED_ARTIFACTS"])


def judge():
    return (ROOT / "judge").read_text()


if __name__ == "__main__":
    ROOT.mkdir(parents=True, exist_ok=True)
    print("the table of all weights")
    print("a bar", os.environ.get("TQDM_DISABLE"), file=sys.stderr)
    try:
        exec(pathlib.Path("how.py").read_text())
    except KeyboardInterrupt:
        print("what was trained is kept", file=sys.stderr)
        sys.exit(130)
    (ROOT / "judge").write_text("the weights of the judge")
"""
WAIT = "(ROOT / 'started').touch()\ntime.sleep(60)"
FAIL = "sys.exit('the weights cannot be made')"


@pytest.fixture
def book(small_book):
    """A book whose chapter `a` uses weights through a module; `b` does without."""
    (small_book.root / "tangled/workshop").mkdir()
    small_book.write("tangled/workshop/__init__.py", "")
    small_book.write("tangled/workshop/artifacts.py", MAKER)
    uses = "from .workshop.artifacts import judge\n"
    small_book.write("tangled/uses.py", uses)
    small_book.write("how.py", "")
    small_book.chapters(
        a=["from tangled.uses import judge\n\nprint(judge())"],
        b=["print(1)"],
    )
    return small_book


def said(book, *arguments):
    """Exit status and both outputs of loom in a process of its own."""
    process = book.start("-m", "loom", *arguments)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def artifacts(book):
    return {f.name for f in (book.root / "_build/artifacts").glob("*")}


def test_weights_are_made_before_the_chapters_that_use_them(book):
    status, out, err = said(book, "run", "b")
    assert (status, err) == (0, "")
    assert artifacts(book) == set()

    status, out, err = said(book, "run")
    assert (status, err) == (0, "a bar 1\n")
    assert out.startswith("1 of 2 chapters unchanged\nbook/a.md: 1 cells")
    assert artifacts(book) == {"judge"}

    # Nothing changed: the package is not asked again.
    book.write("how.py", FAIL)
    assert said(book, "run") == (0, "2 of 2 chapters unchanged\n", "")
    # A plain build finds the same weights by itself.
    assert "a.md: Using cached notebook" in book.build()
    page = (book.root / "_build/html/book/a.html").read_text()
    assert "the weights of the judge" in page
    book.write(
        "tangled/uses.py",
        "# New.\nfrom .workshop.artifacts import judge\n",
    )
    assert "a.md: Executing notebook" in book.build()


def test_the_command_shows_the_table(book):
    status, out, err = said(book, "artifacts")
    assert (status, out, err) == (
        0,
        "the table of all weights\n",
        "a bar 1\n",
    )
    assert artifacts(book) == {"judge"}
    (book.root / "tangled/workshop/artifacts.py").unlink()
    status, out, err = said(book, "artifacts")
    assert (status, err) == (0, "")
    assert out == "no chapter of this book makes weights for others\n"


def test_where_weights_cannot_be_made_no_chapter_runs(book):
    book.write("how.py", FAIL)
    for command in ("run", "artifacts"):
        status, out, err = said(book, command)
        assert status == 1
        assert err == "a bar 1\nthe weights cannot be made\n"
        assert "book/" not in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_reaches_the_maker(book, number):
    book.write("how.py", WAIT)
    process = book.start("-m", "loom", "run")
    deadline = time.monotonic() + 20
    while "started" not in artifacts(book):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out) == (130, "")
    # The maker came to its own end, and said the last word.
    assert err == "a bar 1\nwhat was trained is kept\n"
    assert artifacts(book) == {"started"}
    book.write("how.py", "")
    assert said(book, "run")[0] == 0


def test_weights_are_charged_to_the_chapter_of_their_recipe(
    small_book, capsys
):
    small_book.chapters(
        a=[":tangle: diffusion/a.py\n\ndef judge():\n    return 1"],
        b=["print(1)"],
    )
    chapter = small_book.root / "book/a.md"
    chapter.write_text(
        chapter.read_text().replace("---\n#", "budget: 4\n---\n#")
    )
    assert small_book.run()[0] == 0

    def table():
        assert main(["-C", str(small_book.root), "seconds"]) == 0
        return capsys.readouterr().out.splitlines()

    assert "artefacts" not in "".join(table())
    for when, (name, took) in enumerate(
        [("judge", 7.0), ("judge", 4.06), ("gone", 9.0)], start=1
    ):
        folder = small_book.root / f"_build/artifacts/{name}-{when}"
        folder.mkdir(parents=True)
        told = {
            "recipe": name,
            "module": "tangled.diffusion.a",
            "seconds": took,
        }
        (folder / "config.json").write_text(json.dumps(told))
        os.utime(folder / "config.json", (when, when))
    head, a, b, together = table()
    assert head.split() == ["chapter", "seconds", "budget"]
    assert a.endswith("4  + 4.1 artefacts  over")
    assert "artefacts" not in b
    assert together.endswith("  + 4.1 artefacts")
    for bad in ("{", "[]", "3", '{"recipe": "judge"}'):
        for config in (small_book.root / "_build/artifacts").glob(
            "judge-*/*"
        ):
            config.write_text(bad)
        assert "artefacts" not in "".join(table())
