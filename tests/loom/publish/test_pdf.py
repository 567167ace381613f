"""The gates of the build, shown the errors that they are there for."""

import pytest

from loom.publish.build import pdf
from loom.publish.last_build import State, sources_digest
from loom.publish.pdf import failure, faults, missing
from loom.weave.latex.lines import Lines, find_line, line_mark, without_marks
from loom.weave.macros import latex

SOURCE, LINES = without_marks(
    "The preamble\n"
    + line_mark("book/a/b.md", 7, 2)
    + "\n\\sphinxAtStartPar\na line with ℓ\n"
    + "a very long line\n"
    + line_mark("book/a/c.md", 3, 0)
    + "\\label{\\detokenize{book/a/c:thm-x}} and ℓ\nmore\nmore\n"
)
SOURCE = SOURCE.split("\n")
GLYPH = "Missing character: There is no ℓ (U+2113) in font DejaVu/OT:script=latn;!"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (GLYPH, "book/a/b.md:7, book/a/c.md:3: the font DejaVu has no ℓ"),
        (GLYPH.replace("ℓ", "ℵ"), "somewhere: the font DejaVu has no ℵ"),
        (
            "LaTeX Warning: Reference `book/a:thm-y' on page 3 undefined on input line 5.",
            "book/a/b.md:8: the reference to 'book/a:thm-y' leads nowhere",
        ),
        (
            "LaTeX Warning: Hyper reference `book/a:thm-y' on page 3 undefined on input line 8.",
            "book/a/c.md:3: the reference to 'book/a:thm-y' leads nowhere",
        ),
        (
            "LaTeX Warning: Label `book/a/c:thm-x' multiply defined.",
            "book/a/c.md:3: the label 'book/a/c:thm-x' stands twice",
        ),
        (
            r"Overfull \hbox (7.5pt too wide) in paragraph at lines 5--5",
            "book/a/b.md:8: sticks out by 8 pt: ",
        ),
        (
            r"Overfull \hbox (7.5pt too wide) in paragraph at lines 1--1",
            "the first pages: sticks out by 8 pt: The preamble",
        ),
    ],
)
def test_faults_of_print_are_found(line, said):
    (fault,) = faults(line, SOURCE, LINES)
    assert fault.startswith(said)


def test_an_error_of_tex_is_told_with_its_place():
    log = "! Undefined control sequence.\n<argument> \\nocommand\n\nl.4 See \\nocommand\n  more\n"
    said = "book/a/b.md:7: Undefined control sequence: See \\nocommand"
    assert failure(log, LINES) == said
    assert failure("all is well", LINES) == ""


def test_a_line_that_sticks_out_a_little_is_none():
    line = r"Overfull \hbox (4.9pt too wide) in paragraph at lines 2--2"
    assert not list(faults(line, SOURCE, LINES))


def test_marks_leave_no_trace_and_their_places_are_kept(tmp_path):
    text = "".join(part for line in SOURCE for part in (line, "\n"))
    assert "\0" not in text
    assert text.count("\n") == 9
    LINES.save(tmp_path / "lines.json")
    again = Lines.load(tmp_path / "lines.json")
    lines = range(1, 10)
    assert [again.at(n) for n in lines] == [LINES.at(n) for n in lines]
    assert Lines.load(tmp_path / "none.json").at(5) == "the first pages"


def test_a_block_is_found_near_the_line_that_the_parser_names():
    chapter = ["Words.", "", "Other words,", "more.", "", "Words."]
    assert find_line("Other words,\nmore.", chapter, 1) == 3
    assert find_line("\nWords.", chapter, 5) == 6
    assert find_line("Words.", chapter, 2) == 1
    assert find_line("None.", chapter, 2) == find_line("", chapter, 2) == 2


WIDE = "a" * 120
TOO_DEEP = "".join(f"{'  ' * n}- item {n}\n" for n in range(7))


@pytest.mark.skipif(missing() is not None, reason="LaTeX is not there")
@pytest.mark.filterwarnings("ignore")
def test_what_tex_complains_of_is_told_by_chapter_and_line(woven):
    woven.built("tangle", "run", "pdf")
    text = (woven.root / "book/part/one.md").read_text()
    line = text.count("\n") + 3
    for wrong, offset, said in (
        (f"Words.\n\n$$\nx_{{{WIDE}}}\n$$", 3, "sticks out by"),
        (f"Words.\n\n| {WIDE} | b |\n|--|--|\n| a | b |", 2, "sticks out by"),
        ("Words.\n\nLine\nᚠ.\n", 3, "the font"),
        ("```python\nx = 1\ny = 'ᚠ'\n```\n", 2, "the font"),
        (f"Words.\n\n{TOO_DEEP}", 6, "LaTeX Error: Too deeply nested"),
        ("Words.\n\n$$\na\n\\nocommand\n$$", 4, "Undefined control sequence"),
    ):
        woven.write("book/part/one.md", f"{text}\n\n{wrong}\n")
        err = woven.refused("pdf")
        assert err.startswith(f"book/part/one.md:{line + offset}: {said}")


def test_without_tex_one_line_says_what_to_install(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert pdf(tmp_path) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "latexmk is missing: install the packages of apt-book.txt"


def test_macros_are_the_same_for_both_outputs():
    text = latex({"E": r"\mathbb{E}", "norm": [r"\lVert#1\rVert", 1]})
    assert (
        text
        == "\\newcommand{\\E}{\\mathbb{E}}\n\\newcommand{\\norm}[1]{\\lVert#1\\rVert}"
    )


def test_any_change_of_an_input_is_noticed(tmp_path):
    chapter = tmp_path / "book/part/chapter.md"
    chapter.parent.mkdir(parents=True)
    chapter.write_text("one")
    state = State(tmp_path, "html")
    assert not state.matches(sources_digest(tmp_path))
    state.keep(sources_digest(tmp_path))
    assert state.matches(sources_digest(tmp_path))
    chapter.write_text("two")
    assert not state.matches(sources_digest(tmp_path))
