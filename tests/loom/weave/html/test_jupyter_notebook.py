"""A chapter as the notebook that a reader downloads."""

import json
import os
from unittest import mock

import nbformat
import pytest
from nbclient import NotebookClient

from loom.run.cache import Cache
from loom.weave.html.jupyter_markdown import jupyter_markdown
from loom.weave.html.jupyter_notebook import downloadable

CHAPTER = r"""
Some $\veps$ prose.

```{prf:theorem} A title
:label: thm-sum

Let $x = 1$.
```

$$
x = 1
$$ (eq-one)

```{code-cell} python
:verifies: thm-sum

def test_sum():
    print("called")
```

By {eq}`eq-one` and {prf:ref}`thm-sum`.
"""
GLUED = """
$$
x
$$ (eq-a)

About {glue:text}`e:.1f`.
"""


@pytest.fixture
def chapter(small_book):
    small_book.chapters(a=["x = 1"])
    file = small_book.root / "book/a.md"
    file.write_text(file.read_text() + CHAPTER)
    return file


def test_the_download_is_whole_and_the_same_every_time(small_book, chapter):
    notebook = downloadable(chapter, small_book.root)
    assert notebook == downloadable(chapter, small_book.root)
    nbformat.validate(notebook)
    assert notebook.cells[0].source.startswith("# ")
    assert "pip install" in notebook.cells[0].source
    assert [cell.id for cell in notebook.cells[:2]] == ["a-0", "a-1"]
    assert all(not c.outputs for c in notebook.cells if c.cell_type == "code")
    text = "\n".join(cell.source for cell in notebook.cells)
    assert "{" not in text.replace(r"\tag{one}", "")
    assert text.count("test_sum()") == 2


def test_the_download_runs_without_the_book(small_book, chapter, tmp_path):
    notebook = downloadable(chapter, small_book.root)
    with mock.patch.dict(os.environ, {"IPYTHONDIR": str(tmp_path)}):
        NotebookClient(notebook).execute()
    (output,) = notebook.cells[-2].outputs
    assert output.text == "called\n"


def test_the_download_carries_what_the_run_showed(small_book):
    small_book.chapters(
        a=[
            "from myst_nb import glue\n\nglue('e', 2.718, display=False)\nprint(2)",
            ":verifies: eq-a\n\ndef test_sum():\n    print('called')",
        ]
    )
    file = small_book.root / "book/a.md"
    file.write_text(file.read_text() + GLUED)
    assert small_book.run()[0] == 0
    cache = Cache(small_book.root)
    notebook = downloadable(file, small_book.root, cache)
    nbformat.validate(notebook)
    assert notebook.cells[-1].source.endswith("About 2.7.")
    outputs = [c.outputs for c in notebook.cells if c.cell_type == "code"]
    assert [[o.text for o in shown] for shown in outputs] == [
        ["2\n"],
        ["called\n"],
    ]


def test_no_fence_hides_what_follows_it():
    text = "````{prf:theorem} One\n:label: thm-one\n\nTrue.\n`````\n\n{eq}`eq-one`"
    assert (
        jupyter_markdown(text) == "**Theorem (one). One.**\n\nTrue.\n\n(one)"
    )
    code = "~~~python\nx = '{eq}`eq-one`'\n~~~"
    assert jupyter_markdown(code) == code


def test_macros_are_defined_first(small_book, chapter):
    assert "newcommand" not in str(downloadable(chapter, small_book.root))
    static = small_book.root / "book/_static"
    static.mkdir()
    macros = {"veps": r"\boldsymbol{\epsilon}", "KL": [r"D(#1\|#2)", 2]}
    (static / "macros.json").write_text(json.dumps(macros))
    cell = downloadable(chapter, small_book.root).cells[1]
    assert cell.source.splitlines() == [
        "$$",
        r"\newcommand{\veps}{\boldsymbol{\epsilon}}",
        r"\newcommand{\KL}[2]{D(#1\|#2)}",
        "$$",
    ]


@pytest.mark.parametrize(
    ("myst", "markdown"),
    [
        ("By {eq}`eq-one`.", "By (one)."),
        ("{prf:ref}`thm-sum`", "Theorem (sum)"),
        ("{prf:ref}`the sum <thm-sum>`", "the sum"),
        ("{numref}`Figure %s <fig-x>`", "Figure x"),
        ("{cite:t}`ho2020`", "[ho2020]"),
        ("{doc}`../notation`", "../notation"),
        ("{glue:text}`loss:.2f`", "`loss:.2f`"),
        ("(a-target)=\n## Title", "## Title"),
        ("$$\nx\n$$ (eq-one)", "$$\nx\n\\tag{one}\n$$"),
        ("```{math}\n:label: eq-a\nx\n```", "$$\nx\n\\tag{a}\n$$"),
        ("```{prf:proof}\nClear.\n```", "*Proof.*\nClear.\n$\\square$"),
        (
            "````{prf:theorem} T\n:label: thm-a\nLet\n```{math}\nx\n```\n````",
            "**Theorem (a). T.**\n\nLet\n\n$$\nx\n$$",
        ),
        (":::{admonition} Wrong\n:class: tip\nNo.\n:::", "**Wrong.**\n\nNo."),
        ("```{note}\nYes.\n```", "**Note.**\n\nYes."),
        ("```{code-block} python\nx = 1\n```", "```python\nx = 1\n```"),
        ("```python\n{eq}`eq-one`\n```", "```python\n{eq}`eq-one`\n```"),
        ("```{tableofcontents}\n```", ""),
        (
            "```{solution-start} ex-a\n```\nSo.\n```{solution-end}\n```",
            "**Solution of Exercise (a).**\n\nSo.",
        ),
        (
            "```{figure} a.svg\n:alt: A.\nClaim.\n```",
            "![A.](a.svg)\n\nClaim.",
        ),
        (
            "```{glue:figure} made\n:name: fig-a\n:alt: A.\n\nClaim.\n```",
            "**Figure (a).**\n\nClaim.",
        ),
    ],
)
def test_myst_becomes_plain_markdown(myst, markdown):
    assert jupyter_markdown(myst) == markdown
