"""Weave: the Sphinx extension that makes the site and the printed book of the chapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

__all__ = ["setup"]


def setup(app: Sphinx) -> dict[str, Any]:
    """Set up the features of the book; each is a module, which says what it is."""
    # Imported when Sphinx asks: a build that finds nothing to do needs neither them nor Sphinx.
    from loom.weave import (
        answers,
        appendix_letters,
        book_data,
        captions,
        exercises,
        figures,
        folds,
        html,
        latex,
        listings,
        macros,
        page_facts,
        reference,
        rerun,
        staleness,
        statements,
    )

    for feature in (
        statements,
        exercises,
        answers,
        listings,
        page_facts,
        figures,
        folds,
        captions,
        book_data,
        staleness,
        reference,
        rerun,
        macros,
        appendix_letters,
        html,
        latex,
    ):
        feature.setup(app)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
