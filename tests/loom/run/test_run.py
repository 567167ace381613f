"""`loom run`: what is executed, what is reported, and what survives an interruption."""

import json
import signal
import time

import pytest

from loom.__main__ import main
from loom.run.cache import Cache
from loom.run.inputs import inputs_digest
from loom.run.notebook import executable

WAIT = "import time, pathlib\npathlib.Path('{0}').touch()\ntime.sleep({1})"


def rows(book):
    file = book.root / "_build/loom/seconds.json"
    return {row["chapter"]: row for row in json.loads(file.read_text())}


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_a_plain_build_finds_only_hits_and_reruns_only_what_changed(
    small_book,
):
    small_book.write("tangled/one.py", "X = 1\n")
    small_book.write("tangled/two.py", "Y = 2\n")
    small_book.chapters(
        a=[
            ":tags: [hide-input]\n\nfrom tangled import one\nprint(one.X)",
            "---\nverifies: eq-x\n---\n\ndef test_x():\n    assert one.X",
        ],
        b=["from tangled.two import Y\n\nprint(Y)"],
    )
    assert small_book.run()[0] == 0
    built = small_book.build()
    assert built.count("Using cached notebook") == 2
    assert "Executing notebook" not in built
    page = (small_book.root / "_build/html/book/a.html").read_text()
    assert "passed: test_x" in page

    chapter = small_book.root / "book/a.md"
    chapter.write_text(chapter.read_text().replace("Prose.", "Other prose."))
    small_book.write("tangled/two.py", "Y = 3\n")
    built = small_book.build()
    assert "a.md: Using cached notebook" in built
    assert "b.md: Executing notebook" in built
    assert built.count("Executing notebook") == 1
    assert (
        ">3\n<" in (small_book.root / "_build/html/book/b.html").read_text()
    )

    status, out, _ = small_book.run()
    assert (status, out) == (0, "2 of 2 chapters unchanged\n")
    small_book.write("tangled/two.py", "Y = 2\n")
    assert small_book.run()[1] == "2 of 2 chapters unchanged\n"
    built = small_book.build()
    assert "b.md: Using cached notebook" in built
    assert "Executing notebook" not in built


def test_only_what_is_missing_runs(small_book):
    small_book.write("tangled/one.py", "X = 1\n")
    small_book.chapters(a=["import tangled.one"], b=["print(2)"])
    status, out, err = small_book.run()
    assert (status, err) == (0, "")
    assert "book/a.md: 1 cells in" in out
    assert "book/b.md: 1 cells in" in out
    assert small_book.run()[1] == "2 of 2 chapters unchanged\n"

    small_book.write("tangled/one.py", "X = 2\n")
    out = small_book.run()[1]
    assert "book/a.md: 1 cells in" in out
    assert "book/b.md" not in out

    small_book.write("constraints.txt", "one==2\n")
    out = small_book.run("book/b.md")[1]
    assert "book/b.md: 1 cells in" in out
    assert "book/a.md" not in out
    assert "book/b.md: 1 cells in" in small_book.run("b", "--force")[1]
    assert rows(small_book)["book/b.md"]["cached"] is False
    status, _, err = small_book.run("c")
    assert (status, err) == (1, "_toc.yml:1: R06 there is no chapter c\n")


def test_a_byte_order_mark_and_tildes_hide_no_change(small_book):
    small_book.write("tangled/one.py", "X = 1\n")
    small_book.chapters(a=["import tangled.one"])
    chapter = small_book.root / "book/a.md"
    text = chapter.read_text().replace("```", "~~~")
    chapter.write_text(text, "utf-8-sig")
    assert "book/a.md: 1 cells in" in small_book.run()[1]
    small_book.write("tangled/one.py", "X = 2\n")
    assert "book/a.md: 1 cells in" in small_book.run()[1]
    assert small_book.run()[1] == "1 of 1 chapters unchanged\n"
    notebook = executable(chapter, small_book.root)
    assert notebook.metadata.kernelspec.digest == inputs_digest(
        small_book.root, text
    )


def test_two_lanes_overlap_and_the_longest_starts_first(small_book, capsys):
    sleep = "import time\ntime.sleep({})"
    small_book.chapters(
        a=[sleep.format(0.1)], b=[sleep.format(0.1)], c=[sleep.format(1.5)]
    )
    chapter = small_book.root / "book/c.md"
    text = chapter.read_text().replace("---\n#", "budget: 1\n---\n#")
    chapter.write_text(text)
    assert small_book.run()[0] == 0
    times = rows(small_book)
    assert list(times) == ["book/a.md", "book/b.md", "book/c.md"]
    assert times["book/c.md"]["started"] < 0.1
    end = times["book/c.md"]["seconds"]
    assert times["book/a.md"]["started"] < end
    assert times["book/b.md"]["started"] < end
    assert main(["-C", str(small_book.root), "seconds"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["chapter", "seconds", "budget"]
    assert table[3].split()[0] == "book/c.md"
    assert table[3].split()[2:] == ["1", "over"]


def test_hashing_is_the_same_in_every_run(small_book):
    small_book.chapters(a=["print(list({'x', 'y', 'z'}), hash('a'))"])
    small_book.run()
    (entry,) = small_book.root.glob("_build/.jupyter_cache/executed/*/*")
    first = json.loads(entry.read_text())["cells"][0]["outputs"]
    small_book.run("--force")
    assert json.loads(entry.read_text())["cells"][0]["outputs"] == first


FAILURES = {
    "the line in the cell": (
        [":tags: [hide-input]\n\n\nx = 0\ny = 1 / x"],
        "y = 1 / x",
        "R01 ZeroDivisionError: division by zero",
    ),
    "a function of an earlier cell": (
        [
            "two = 2\n\ndef f():\n    raise ValueError('no\\nnot')",
            "x = 1\nf()",
        ],
        "f()\n```",
        "R01 ValueError: no",
    ),
    "a function of the same cell": (
        ["def f():\n    raise KeyError\n\nf()"],
        "raise KeyError",
        "R01 KeyError: raise KeyError",
    ),
    "what does not parse": (
        ["x = 1\ny = )"],
        "y = )",
        "R01 SyntaxError: unmatched ')'",
    ),
    "a check": (
        [
            ":verifies: eq-x\n\ndef test_x():\n    two = 2\n    assert 1 == two"
        ],
        "assert 1 == two",
        "R01 AssertionError: assert 1 == two",
    ),
    "a check that is never called": (
        ["x = 1", ":refutes: eq-x\n\ndef test_x(two):\n    assert 1 == two"],
        "def test_x",
        "R05 no test was called",
    ),
    "a warning": (
        ["import warnings\ndef f():\n    warnings.warn('careful')", "f()"],
        "warnings.warn(",
        "R02 UserWarning: careful",
    ),
    "standard error": (
        ["import sys\nprint('no', file=sys.stderr)"],
        "import sys",
        "R02 this cell writes to standard error: no",
    ),
    "a kernel that dies": (
        ["x = 1", "import os\nos._exit(3)"],
        "import os",
        "R04 the kernel died in this cell",
    ),
    "a cell that leaves": (
        ["x = 1", "exit()", "y = 2"],
        "exit()",
        "R01 SystemExit: this cell calls exit()",
    ),
    "ten megabytes in one line": (
        ["x = 1", "print('x' * 10_000_000)"],
        "print(",
        "R07 this cell prints 10,000,001 characters",
    ),
    "two megabytes of HTML": (
        ["x = 1", "from IPython.display import HTML\nHTML('x' * 2_000_000)"],
        "from IPython",
        "R07 this cell prints 2,000",
    ),
    "half a character": (
        ["x = 1", "print('\\ud800')"],
        "print(",
        "R02 this cell prints half a character",
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_names_chapter_and_line(small_book, case):
    cells, code, sentence = FAILURES[case]
    small_book.chapters(a=cells)
    text = (small_book.root / "book/a.md").read_text()
    line = text[: text.rindex(code)].count("\n") + 1
    if sentence[:3] in ("R04", "R05", "R07") or case in (
        "standard error",
        "half a character",
        "a cell that leaves",
    ):
        fences = text[: text.rindex(code)].rindex("```{code-cell}")
        line = text[:fences].count("\n") + 1
    status, out, err = small_book.run()
    assert status == 1
    assert err.startswith(f"book/a.md:{line}: {sentence}"), err
    assert "Task exception" not in err
    assert out == ""
    assert "book/a.md" not in rows(small_book)


def test_a_stream_is_one_text_in_which_a_return_begins_the_line_anew(
    small_book,
):
    small_book.chapters(
        a=[
            "import sys, time\nfor i in range(3):\n"
            "    print(f'\\r{i} of 3', end='', flush=True)\n"
            "    time.sleep(0.3)\nprint('\\nlast\\r')"
        ]
    )
    assert small_book.run()[0] == 0
    chapter = executable(small_book.root / "book/a.md", small_book.root)
    (cell,) = [
        c
        for c in Cache(small_book.root).executed(chapter).cells
        if c.cell_type == "code"
    ]
    assert [o.text for o in cell.outputs] == ["2 of 3\nlast\n"]


def test_a_cell_that_hangs_is_stopped(small_book):
    small_book.write(
        "_config.yml", "execute: {execute_notebooks: cache, timeout: 1}\n"
    )
    small_book.chapters(a=["while True: pass"])
    status, _, err = small_book.run()
    assert status == 1
    line = small_book.line("a", "```{code-cell}")
    sentence = "R03 this cell did not finish within 1 seconds"
    assert err == f"book/a.md:{line}: {sentence}\n"


def test_errors_and_warnings_shown_on_purpose_do_not_fail(small_book):
    warn = "import warnings\nwarnings.warn('careful')"
    small_book.chapters(
        a=[
            ":tags: [raises-exception]\n\n1 / 0",
            f":tags: [remove-stderr]\n\n{warn}",
            f"---\nmystnb: {{output_stderr: show}}\n---\n{warn}",
        ]
    )
    assert small_book.run()[0] == 0


def test_what_cannot_be_written_is_one_sentence(
    small_book, monkeypatch, capsys
):
    small_book.chapters(a=["x = 1"])

    def full(*_):
        raise OSError(28, "No space left on device", "/_build/x")

    monkeypatch.setattr("loom.run.run.save", full)
    status, _, err = small_book.run()
    assert status == 1
    assert err.endswith(
        "L31 this cannot be read or written: No space left on device\n"
    )
    assert err.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_what_is_done(small_book, alive, number):
    small_book.chapters(
        a=["print(1)"],
        b=[WAIT.format("b", 60)],
        c=[WAIT.format("c", 60)],
    )
    assert small_book.run("a")[0] == 0
    small_book.run("a", "--force")
    process = small_book.start("-m", "loom", "run")
    marks = [small_book.root / "book" / name for name in "bc"]
    wait_for(lambda: all(mark.exists() for mark in marks))
    assert len(alive(str(small_book.root))) == 2
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert out == "1 of 3 chapters unchanged\n"
    sentence = "interrupted: 0 of 2 chapters are done and kept"
    assert err == f"{sentence}; the next run does the rest\n"
    assert alive(str(small_book.root)) == []

    for name in "bc":
        small_book.write(
            f"book/{name}.md",
            (small_book.root / f"book/{name}.md")
            .read_text()
            .replace("60", "0"),
        )
    status, out, _ = small_book.run()
    assert status == 0
    assert out.startswith("1 of 3 chapters unchanged\n")


def test_a_killed_run_is_resumed(small_book, alive):
    small_book.chapters(a=["print(1)"], b=[WAIT.format("b", 60)])
    process = small_book.start("-m", "loom", "run")
    seconds = small_book.root / "_build/loom/seconds.json"
    wait_for(lambda: seconds.is_file() and "book/a.md" in rows(small_book))
    wait_for((small_book.root / "book/b").exists)
    process.kill()
    process.communicate()
    wait_for(lambda: alive(str(small_book.root)) == [], 10.0)

    chapter = small_book.root / "book/b.md"
    chapter.write_text(chapter.read_text().replace("60", "0"))
    status, out, _ = small_book.run()
    assert status == 0
    assert out.startswith("1 of 2 chapters unchanged\nbook/b.md")
