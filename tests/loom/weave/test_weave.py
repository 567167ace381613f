"""What pages make of code and of drawings, without a page: docstrings, colours."""

import ast
import io
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from loom.tangle.syntax import defined
from loom.weave.docstrings import folded, rests, shortened, together
from loom.weave.html.dark_figures import dark, width
from loom.weave.html.figure_panels import panels
from loom.weave.html.translator import framed

ROOT = Path(__file__).parents[3]
MODULES = sorted(
    path
    for path in (ROOT / "tangled").rglob("*.py")
    if path.name != "__init__.py"
)


def bare(source):
    """The syntax tree of a source without its docstrings, and their first paragraphs."""
    tree = ast.parse(source)
    first = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        if text := ast.get_docstring(node):
            first.append(text.partition("\n\n")[0].strip())
            node.body[0] = ast.Pass()
    return ast.dump(tree), first


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_shortened_source_differs_in_its_docstrings_alone(path):
    source = path.read_text("utf-8").rstrip("\n")
    short = shortened(source)
    assert bare(short) == bare(source)
    new = set(short.split("\n")) - set(source.split("\n"))
    assert all(len(line) <= 78 for line in new)
    assert rests(short) == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_folding_changes_no_letter_of_the_code(path):
    source = path.read_text("utf-8").rstrip("\n")
    html = highlight(source, PythonLexer(), HtmlFormatter())
    made = folded(html, rests(source))
    assert made.count("<details") == made.count("</details>")
    assert made.count("<details") == len(rests(source))
    text = re.compile(r"<[^>]*>")
    assert text.sub("", made) == text.sub("", html)


def test_one_paragraph_is_not_folded():
    assert rests('def f():\n    """One line."""\n    return 1') == []
    assert rests('def f():\n    """Two\n    lines.\n    """') == []
    assert len(rests('def f():\n    """One.\n\n    Two.\n    """')) == 1
    assert rests("%timeit f()") == []


def test_a_head_stands_with_its_docstring():
    source = (
        "X = 1\nY = 2\nZ = 3\n\n\n@one\ndef f(\n    a,\n):\n"
        '    """Do."""\n    b = a\n    c = b\n    d = c\n    e = d\n    return e'
    )
    lines = source.split("\n")
    kept = {lines[n].strip() for n in together(source)}
    assert {"@one", "def f(", "a,", "):", "X = 1", "d = c", "e = d"} <= kept
    assert "b = a" not in kept
    assert len(lines) - 1 not in together(source)


def test_in_the_dark_greys_turn_round_and_colours_stay():
    svg = (
        '<svg width="300pt"><path style="fill: #000000; stroke: #e69f00"/>'
        '<use xlink:href="#m000000"/><path fill="#ffffff"/></svg>'
    )
    made = dark(svg)
    assert "#e69f00" in made
    assert 'xlink:href="#m000000"' in made
    greys = [int(g, 16) for g in re.findall(r"#(\w\w)\1\1\b", made)]
    assert greys[0] == greys[1] > 200  # what names no colour is black
    assert greys[2] < 60
    assert width(svg) == 400
    assert width("<svg>") == 0


def drawn(columns, rows=1, alter=lambda fig, axes: None):
    """A drawing of some panels as SVG, and where their axes stand, as shares of the width."""
    fig, axes = plt.subplots(
        rows,
        columns,
        figsize=(2.2 * columns, 2),
        squeeze=False,
        layout="constrained",
    )
    for ax in axes.flat:
        ax.plot([0, 1000], [-1000, 1])
        ax.set(xlabel="step", ylabel="value", title="A title")
    alter(fig, axes)
    file = io.StringIO()
    fig.savefig(file, format="svg")
    places = [ax.get_position() for ax in axes[0]]
    plt.close(fig)
    return file.getvalue(), places


@pytest.mark.parametrize("columns", [1, 2, 3, 5])
def test_panels_in_a_row_are_told_apart_between_their_axes(columns):
    svg, places = drawn(columns)
    parts = panels(svg)
    assert len(parts) == columns
    assert (parts[0][0], parts[-1][1]) == (0, 1)
    for (a, b), (c, _), here, there in zip(
        parts, parts[1:], places, places[1:], strict=False
    ):
        assert a < here.x0 < here.x1 < b == c < there.x0


def arrow(fig, axes):
    axes[0, 1].annotate(
        "",
        (0.5, 0.5),
        (0.5, 0.5),
        xycoords=axes[0, 0].transAxes,
        textcoords=axes[0, 1].transAxes,
        arrowprops={"arrowstyle": "-"},
        annotation_clip=False,
    )


@pytest.mark.parametrize(
    ("rows", "alter", "count"),
    [
        (2, lambda fig, axes: None, 1),
        (1, arrow, 1),
        (1, lambda fig, axes: fig.suptitle("A title of all " * 5), 1),
        (1, lambda fig, axes: fig.colorbar(axes[0, 1].pcolor([[1]])), 2),
    ],
)
def test_panels_that_belong_together_stay_together(rows, alter, count):
    svg, _ = drawn(2, rows, alter)
    assert len(panels(svg)) == count
    assert panels("<svg>") == panels("<svg></svg>") == [(0, 1)]


def test_of_stacked_panels_one_has_the_text():
    image = '<img alt="What is seen" src="a.svg" />'
    assert "panel" not in framed(image, 9, [(0, 1)])
    made = framed(image, 9, [(0, 0.5), (0.5, 0.8), (0.8, 1)])
    whole, _, stacked = made.partition('<span class="panels">')
    assert whole.count('alt="What is seen"') == 1
    assert stacked.count('alt="What is seen"') == 1
    assert stacked.count('alt=""') == 2
    shares = map(float, re.findall(r"--share: ([\d.]+)", stacked))
    assert abs(sum(shares) - 1) < 1e-6


def test_one_statement_defines_several_names():
    node = ast.parse("PAD, START = 0, 1").body[0]
    assert defined(node) == ["PAD", "START"]
