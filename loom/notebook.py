"""A chapter as a notebook: the one that is executed, and the one that a reader downloads."""

import ast
import json
from pathlib import Path
from typing import Any

import nbformat
import yaml

from loom.kernel.checks import find_tests
from loom.plain import plain
from loom.stamp import stamped

__all__ = ["downloadable", "executable", "settings"]

# What Jupyter Book reads chapters with unless `_config.yml` says otherwise; of its list, these
# are the extensions that can decide where a code cell begins.
EXTENSIONS = ("colon_fence", "dollarmath")

INSTALL = """\
*This notebook is made from the book's chapter. To run it, install the package that the book
derives, from a copy of the book's repository:*

```
pip install ".[book]"
```"""


def settings(root: Path) -> dict[str, Any]:
    """The settings of Jupyter Book, `_config.yml`."""
    file = root / "_config.yml"
    content = yaml.safe_load(file.read_text("utf-8")) if file.is_file() else None
    return content if isinstance(content, dict) else {}


def executable(chapter: Path, root: Path) -> nbformat.NotebookNode:
    """The chapter as myst-nb reads it after `loom.stamp` put its digest into the front matter."""
    from myst_nb.core.read import read_myst_markdown_notebook
    from myst_parser.config.main import MdParserConfig

    parse = settings(root).get("parse") or {}
    config = MdParserConfig(enable_extensions=set(parse.get("myst_enable_extensions", EXTENSIONS)))
    text = stamped(root, chapter.read_text("utf-8"))
    return read_myst_markdown_notebook(text, config=config, add_source_map=True, path=chapter)


def downloadable(chapter: Path, root: Path) -> nbformat.NotebookNode:
    """The chapter as a notebook that plain Jupyter shows and runs.

    The tests that a cell defines are called in the cell itself, since the book's kernel hook is
    absent; directives and roles that Jupyter does not know become ordinary Markdown. The same
    chapter gives the same bytes.
    """
    executed = executable(chapter, root)
    v4 = nbformat.v4
    cells = [v4.new_markdown_cell(INSTALL)]
    if macros := _macros(root):
        cells.append(v4.new_markdown_cell(macros))
    for cell in executed.cells:
        if cell.cell_type == "code":
            cells.append(v4.new_code_cell(_with_calls(cell.source)))
        elif text := plain(cell.source):
            cells.append(v4.new_markdown_cell(text))
    for index, cell in enumerate(cells):
        cell["id"] = f"{chapter.stem[:50]}-{index}"
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": spec, "language_info": {"name": "python"}}
    return v4.new_notebook(cells=cells, metadata=metadata)


def _with_calls(source: str) -> str:
    """The cell, followed by calls of the tests that it defines."""
    try:
        found = find_tests(ast.parse(source))
    except SyntaxError:  # a magic, or an error shown on purpose
        return source
    return "\n".join([source, *([""] if found else []), *(f"{test.name}()" for test in found)])


def _macros(root: Path) -> str:
    """The book's mathematical macros, as definitions that MathJax keeps for the whole notebook."""
    file = root / "book" / "_static" / "macros.json"
    if not file.is_file():
        return ""
    lines = []
    for name, macro in json.loads(file.read_text("utf-8")).items():
        body, arguments = macro if isinstance(macro, list) else (macro, 0)
        count = f"[{arguments}]" if arguments else ""
        command = "\\" + name.lstrip("\\")
        lines.append(rf"\newcommand{{{command}}}{count}{{{body}}}")
    return "$$\n" + "\n".join(lines) + "\n$$"
