"""A chapter as the notebook that a reader downloads."""

import ast
import json
import re
from pathlib import Path

import nbformat
from myst_nb.core.variables import format_plain_text

from loom.run.cache import Cache
from loom.run.kernel.checks import find_tests
from loom.run.notebook import executable
from loom.weave.html.jupyter_markdown import jupyter_markdown

__all__ = ["downloadable"]

# Tags of cells whose code a page does not show at first, or not at all.
HIDDEN = {"hide-input", "hide-cell", "remove-input", "remove-cell"}
# What the kernel of the book prints when checks have passed, and under what it keeps glued values.
PASSED = "passed: "
GLUED = "application/papermill.record/"
GLUE = re.compile(r"\{glue:text\}`(?P<key>[^`]+)`")

INSTALL = """\
*This notebook is made from the book's chapter. To run it, install the package that the book
derives, from a copy of the book's repository:*

```
pip install ".[book]"
```"""


def downloadable(chapter: Path, root: Path, cache: Cache | None = None) -> nbformat.NotebookNode:
    """The chapter as a notebook that plain Jupyter shows and runs.

    The tests that a cell defines are called in the cell itself, since the book's kernel hook is
    absent; directives and roles that Jupyter does not know become ordinary Markdown. It carries
    the outputs that the cache has. The same chapter gives the same bytes.
    """
    source = executable(chapter, root)
    ran = cache.executed(source) if cache else None
    outputs = [_shown(c.outputs) for c in ran.cells if c.cell_type == "code"] if ran else []
    v4 = nbformat.v4
    glued = _glued(ran.cells) if ran else {}
    words = [
        jupyter_markdown(GLUE.sub(lambda role: _value(role, glued), cell.source))
        if cell.cell_type == "markdown"
        else ""
        for cell in source.cells
    ]
    title, _, words[0] = words[0].partition("\n") if words else ("", "", "")
    cells = [v4.new_markdown_cell(f"{title}\n\n{INSTALL}")]
    if macros := _macros(root):
        cells.append(v4.new_markdown_cell(macros))
    for cell, text in zip(source.cells, words, strict=True):
        if cell.cell_type == "code":
            code = v4.new_code_cell(_with_calls(cell.source))
            code.outputs = outputs.pop(0) if outputs else []
            if HIDDEN.intersection(cell.metadata.get("tags", ())):
                code.metadata["jupyter"] = {"source_hidden": True}
            cells.append(code)
        elif text.strip():
            cells.append(v4.new_markdown_cell(text.strip()))
    for index, cell in enumerate(cells):
        cell["id"] = f"{chapter.stem[:50]}-{index}"
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": spec, "language_info": {"name": "python"}}
    return v4.new_notebook(cells=cells, metadata=metadata)


def _glued(cells: list[nbformat.NotebookNode]) -> dict[str, str]:
    """The values that the chapter's cells glued, as text, by their keys."""
    return {
        output.metadata["scrapbook"]["name"]: output.data[f"{GLUED}text/plain"]
        for cell in cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if f"{GLUED}text/plain" in output.get("data", ())
    }


def _value(role: re.Match[str], glued: dict[str, str]) -> str:
    """What stands for `{glue:text}`key:.2f`` on the page; the role itself, if nothing does."""
    key, _, form = role["key"].partition(":")
    return str(format_plain_text(glued[key], form)) if key in glued else role[0]


def _shown(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """The outputs that a reader sees: not the glued ones, nor what the book's kernel adds."""
    kept = []
    for output in outputs:
        if output.output_type == "stream":
            lines = [s for s in output.text.splitlines(True) if not s.startswith(PASSED)]
            text = "".join(lines)
            kept += [nbformat.v4.new_output("stream", name=output.name, text=text)] * bool(lines)
        elif not any(name.startswith(GLUED) for name in output.get("data", ())):
            kept.append(output)
    return kept


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
