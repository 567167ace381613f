"""Drawings on the site: colours in the dark, panels on a narrow page."""

import io
import re

import matplotlib.pyplot as plt
import pytest

from loom.weave.html.dark_figures import dark, width
from loom.weave.html.figure_panels import panels
from loom.weave.html.translator import framed


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
