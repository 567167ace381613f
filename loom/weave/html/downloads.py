"""Each chapter as a notebook to download: a button in the page's header."""

from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from sphinx.application import Sphinx

from loom.read.chapter import Chapter
from loom.run import timings
from loom.run.cache import Cache
from loom.weave.book_data import book_data
from loom.weave.html import jupyter_markdown, jupyter_notebook

__all__ = ["button", "setup", "write"]


def place(docname: str) -> str:
    return f"notebooks/{docname.removeprefix('book/')}.ipynb"


def notebooks(app: Sphinx) -> list[Chapter]:
    """The chapters that have code; the page in front of the book is none, whatever it draws."""
    return [c for c in book_data(app).book.chapters if c.cells and c.docname != app.config.root_doc]


def button(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Add the button to the header of a chapter that has code."""
    if any(chapter.docname == page for chapter in notebooks(app)):
        context["header_buttons"].append(
            {
                "type": "link",
                "url": context["pathto"](place(page), 1),
                "text": "",
                "icon": "fas fa-download",
                "label": "download-notebook",
                "tooltip": "Download this chapter as a notebook",
            }
        )


def write(app: Sphinx, error: Exception | None) -> None:
    """Write the notebooks beside the pages."""
    if error is not None or app.builder.format != "html":
        return
    root = Path(app.srcdir)
    makers = [Path(module.__file__ or "") for module in (jupyter_notebook, jupyter_markdown)]
    macros = root / "book" / "_static" / "macros.json"
    cache, rows = Cache(root), timings.load(root)
    for chapter in notebooks(app):
        file = Path(app.outdir) / place(chapter.docname)
        sources = [root / chapter.path, macros, *makers]
        if row := rows.get(chapter.path):
            sources.append(cache.file(row.key))
        if older(file, sources):
            file.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(jupyter_notebook.downloadable(root / chapter.path, root, cache), file)


def older(file: Path, sources: list[Path]) -> bool:
    """Tell whether a file is missing, or older than one of those that it is made from."""
    return not file.is_file() or any(
        path.is_file() and path.stat().st_mtime_ns >= file.stat().st_mtime_ns for path in sources
    )


def setup(app: Sphinx) -> None:
    """Add the button, once the theme has made its list of buttons, and write the notebooks."""
    app.connect("html-page-context", button, priority=900)
    app.connect("build-finished", write)
