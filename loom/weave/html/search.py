"""The search page: a script of ours ranks what is found and makes excerpts that one can read."""

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

__all__ = ["script", "setup"]


def script(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Load the script on the search page, and there alone."""
    if page == "search":
        app.add_js_file("search.js", priority=100)


def setup(app: Sphinx) -> None:
    """Ask for the script."""
    app.connect("html-page-context", script)
