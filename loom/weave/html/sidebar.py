"""The list of chapters at the side: its captions are headings, and it ends with the index."""

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

__all__ = ["level", "setup"]


def level(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Give captions the level of heading that a screen reader needs, and list the index last."""
    listed = context.get("generate_toctree_html")
    if listed is None:
        return

    def with_levels(*arguments: Any, **options: Any) -> str:
        made = str(listed(*arguments, **options))
        made = made.replace('role="heading"', 'role="heading" aria-level="2"')
        head, end, tail = made.rpartition("</ul>")
        here = " current" if page == "genindex" else ""
        link = f'<a class="reference internal" href="{context["pathto"]("genindex")}">Index</a>'
        return f'{head}<li class="toctree-l1{here}">{link}</li>\n{end}{tail}'

    context["generate_toctree_html"] = with_levels


def setup(app: Sphinx) -> None:
    """Change the list, once the theme has made it."""
    app.connect("html-page-context", level, priority=900)
