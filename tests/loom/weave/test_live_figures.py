"""An interactive figure of a small book: what its page and its LaTeX hold, and what is removed."""

import json
import re

import pytest
from bs4 import BeautifulSoup

from loom.publish.jupyter_book import jupyter_book

# Jupyter Book's own; a build runs in a copy of the process of the tests.
pytestmark = pytest.mark.filterwarnings("ignore")
FIGURE = """
```{{code-cell}} python
---
tags: [remove-input]
mystnb: {{figure: {{name: fig-moving, caption: "It moves."}}}}
---
import numpy as np
from loom.figures import Quantised, widget

side = {side}
draw = np.random.default_rng(0)
widget(
    "frame-strip",
    question="When is it gone?",
    origin="All of it is computed live </script>.",
    alt="Noise.",
    t={{"label": "t", "min": 0, "max": 100, "step": 1}},
    moments=[0, 50],
    forward={{
        "x0": Quantised(draw.uniform(-1, 1, (3, side, side)), -1, 1),
        "eps": Quantised(draw.normal(size=(3, side, side)), -6, 6),
        "T": 100,
        "schedules": [("linear", "linear")],
        "lowest": -1,
        "highest": 1,
    }},
    stills=[("early", {{"t": 10}}), ("late", {{"t": 90}})],
)
```

See {{numref}}`fig-moving`.
"""


def test_a_figure_is_live_on_its_page_and_drawn_in_print(woven):
    plain = (woven.root / "book/part/one.md").read_text()
    woven.append(FIGURE.format(side=8))
    woven.built("tangle", "run", "html")
    page = BeautifulSoup(
        (woven.html / "book/part/one.html").read_text(), "html.parser"
    )
    root = page.select_one("figure#fig-moving [data-widget=frame-strip]")
    spec = json.loads(root.select_one("script").string)
    assert spec["props"]["forward"]["x0"]["shape"] == [3, 8, 8]
    assert spec["origin"].endswith("</script>.")
    files = woven.html / "_figures/book/part/one"
    pictures = {image["href"].rpartition("/")[2] for image in root("image")}
    assert pictures == {file.name for file in files.iterdir()}
    assert page.select("script[src*='widgets.js']")
    other = (woven.html / "book/part/two.html").read_text()
    assert "widgets.js" not in other

    # Much data is a file of its own, and what a page no longer has is removed.
    (woven.root / "book/part/one.md").write_text(plain)
    woven.append(FIGURE.format(side=128))
    woven.built("tangle", "run", "html")
    page = (woven.html / "book/part/one.html").read_text()
    script = re.search(r'data-script="[./]*(_figures/\S+\.js)"', page)[1]
    assert "bookFigures.arrived(" in (woven.html / script).read_text()[:40]
    assert not pictures & {file.name for file in files.iterdir()}

    assert jupyter_book(woven.root, "latex") == 0
    folder = woven.root / "_build/latex"
    tex = next(folder.glob("*.tex")).read_text()
    block = re.search(r"\\begin\{figure\}.*?\\end\{figure\}", tex, re.DOTALL)[
        0
    ]
    assert "It moves." in block
    name = re.search(r"\{\{(figure-\w+)\}\.pdf\}", block)[1]
    assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")

    (woven.root / "book/part/one.md").write_text(plain)
    woven.built("tangle", "run", "html")
    assert not files.exists()
