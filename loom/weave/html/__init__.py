"""What the site alone needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

__all__ = ["setup"]


def setup(app: Sphinx) -> None:
    """Set up what the site alone has."""
    # Imported when Sphinx asks, as in `loom.weave`.
    from loom.weave.html import (
        downloads,
        leftovers,
        live_figures,
        module_pages,
        punctuation,
        search,
        sidebar,
        translator,
    )

    for feature in (
        translator,
        punctuation,
        search,
        module_pages,
        downloads,
        sidebar,
        live_figures,
        leftovers,
    ):
        feature.setup(app)
