"""What pages make of docstrings, without a page."""

import ast
import re
from pathlib import Path

import pytest
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from loom.weave.docstrings import folded, rests, shortened, together

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
