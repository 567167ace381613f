"""The gates of the build, shown the errors that they are there for."""

import pytest

from loom.weave.build import pdf
from loom.weave.macros import latex
from loom.weave.pdf import failure, faults
from loom.weave.state import State, inputs

SOURCE = [
    r"\label{\detokenize{book/diffusion/forward::doc}}",
    "a very long line",
]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "Missing character: There is no ℓ (U+2113) in font DejaVu Sans Mono/OT:script=latn;!",
            "the font DejaVu Sans Mono has no ℓ (U+2113)",
        ),
        (
            "LaTeX Warning: Reference `book/a:thm-x' on page 3 undefined on input line 9.",
            "the reference to 'book/a:thm-x' leads nowhere",
        ),
        (
            "LaTeX Warning: Hyper reference `book/a:thm-x' on page 3 undefined on input line 9.",
            "the reference to 'book/a:thm-x' leads nowhere",
        ),
        (
            "LaTeX Warning: Label `fig-x' multiply defined.",
            "the label 'fig-x' stands twice",
        ),
        (
            r"Overfull \hbox (7.5pt too wide) in paragraph at lines 2--2",
            "book/diffusion/forward, line 2, sticks out by 8 pt",
        ),
    ],
)
def test_faults_of_print_are_found(line, said):
    (fault,) = faults(line, SOURCE)
    assert fault.startswith(said)


def test_an_error_of_tex_is_told_with_its_place():
    log = "! Undefined control sequence.\n<argument> \\nocommand\n\nl.2 See \\nocommand\n  more\n"
    said = "book/diffusion/forward, line 2, Undefined control sequence: See \\nocommand"
    assert failure(log, SOURCE) == said
    assert failure("all is well", SOURCE) == ""


def test_a_line_that_sticks_out_a_little_is_none():
    assert not list(
        faults(
            r"Overfull \hbox (4.9pt too wide) in paragraph at lines 2--2",
            SOURCE,
        )
    )


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
    assert not state.matches(inputs(tmp_path))
    state.keep(inputs(tmp_path))
    assert state.matches(inputs(tmp_path))
    chapter.write_text("two")
    assert not state.matches(inputs(tmp_path))
