"""Interactive figures: a cell's output that holds one becomes a node of the page."""

# mypy: disallow-subclassing-any=False

import html
import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

from loom.figures import SCRIPT
from loom.weave.nodes import Widget

__all__ = ["setup"]

MARK = '<div data-figure="book">'
DATA = re.compile(r"<template>(.*)</template></div>$", re.DOTALL)


class Find(SphinxTransform):
    """Replace the outputs that hold a figure by figures."""

    default_priority = 400

    def apply(self, **kwargs: Any) -> None:
        for bundle in list(self.document.findall(nodes.container)):
            if bundle.get("nb_element") != "mime_bundle":
                continue
            texts = (raw.astext() for raw in bundle.findall(nodes.raw))
            text = next((text for text in texts if text.startswith(MARK)), "")
            if found := DATA.search(text):
                # What the page shows depends on the script that draws it.
                self.env.note_dependency(str(SCRIPT))
                bundle.replace_self(Widget("", spec=html.unescape(found[1])))


def setup(app: Sphinx) -> None:
    """Find them as pages are read."""
    app.add_transform(Find)
