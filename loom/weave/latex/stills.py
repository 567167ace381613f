"""Interactive figures in print: their stills, drawn by the script of the page, as vectors."""

import hashlib
import html
import json
import re
from pathlib import Path

from sphinx.builders.latex import LaTeXBuilder

from loom.figures import engine

__all__ = ["included", "sheet"]

# The width of a page's text, in the units of a picture, and what stills leave between them.
TEXT, GAP = 640, 24
SIZE = re.compile(r'<svg[^>]* width="([\d.]+)" height="([\d.]+)"')


def included(builder: LaTeXBuilder, spec: str) -> str:
    """The command that includes the stills, which are written beside the LaTeX."""
    svg = sheet(spec)
    name = f"figure-{hashlib.sha256(svg.encode()).hexdigest()[:16]}"
    file = Path(builder.outdir, f"{name}.pdf")
    if not file.is_file():
        import cairosvg

        cairosvg.svg2pdf(bytestring=svg.encode(), write_to=str(file))
    share = _size(svg)[0] / TEXT
    return f"\\sphinxincludegraphics[width={share:.4g}\\linewidth]{{{{{name}}}.pdf}}\n"


def sheet(spec: str) -> str:
    """The stills beside each other, as many in a row as there is room for, each with its label."""
    figure, script = json.loads(spec), engine()
    alone = len(figure["stills"]) == 1
    width = TEXT if alone else script.call("widths", spec)["still"]
    drawn = script.call("stills", spec, width)
    per = min(len(drawn), max(1, (TEXT + GAP) // (width + GAP)))
    head = 0 if alone else 22  # where the labels stand
    room, high = per * (width + GAP) - GAP, head + max(_size(svg)[1] for svg in drawn)
    parts = []
    for n, (svg, still) in enumerate(zip(drawn, figure["stills"], strict=True)):
        x, y = (n % per) * (width + GAP), (n // per) * (high + GAP)
        middle, label = x + width / 2, html.escape(still["label"])
        parts.append(f'<text x="{middle}" y="{y + 13}" text-anchor="middle">{label}</text>')
        parts.append(svg.replace("<svg ", f'<svg x="{x}" y="{y + head}" ', 1))
    total = -(-len(drawn) // per) * (high + GAP) - GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {room} {total}" width="{room}" '
        f'height="{total}" font-family="DejaVu Sans" font-size="12">{"".join(parts)}</svg>'
    )


def _size(svg: str) -> tuple[float, float]:
    found = SIZE.search(svg)
    assert found, "the script gives every picture its size"
    return float(found[1]), float(found[2])
