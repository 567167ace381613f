"""The list of chapters at the side: its captions are headings, and say of what level."""

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

__all__ = ["level"]


def level(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Give the captions that Sphinx marks as headings the level that a screen reader needs."""
    listed = context.get("generate_toctree_html")
    if listed is None:
        return

    def with_levels(*arguments: Any, **options: Any) -> str:
        made = str(listed(*arguments, **options))
        return made.replace('role="heading"', 'role="heading" aria-level="2"')

    context["generate_toctree_html"] = with_levels
