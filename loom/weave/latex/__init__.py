"""What the print edition alone needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

__all__ = ["setup"]


def setup(app: Sphinx) -> None:
    """Set up what print alone has."""
    # Imported when Sphinx asks, as in `loom.weave`.
    from loom.weave.latex import layout, translator

    for feature in (translator, layout):
        feature.setup(app)
