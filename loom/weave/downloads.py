"""Each chapter as a notebook to download: a button in the page's header."""

from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from sphinx.application import Sphinx

from loom.notebook import downloadable
from loom.weave.source import source

__all__ = ["button", "write"]


def place(docname: str) -> str:
    return f"notebooks/{docname.removeprefix('book/')}.ipynb"


def button(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Add the button to the header of a chapter that has code."""
    if any(chapter.docname == page and chapter.cells for chapter in source(app).book.chapters):
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
    for chapter in source(app).book.chapters:
        if chapter.cells:
            notebook = downloadable(Path(app.srcdir) / chapter.path, Path(app.srcdir))
            file = Path(app.outdir) / place(chapter.docname)
            file.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, file)
