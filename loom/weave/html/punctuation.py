"""Keep a full stop with the formula before it: browsers would break the line between them."""

# mypy: disallow-subclassing-any=False

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

__all__ = ["KeepTogether", "setup"]

# What may not begin a line.
AFTER = re.compile(r"[.,;:!?)\]’”]+")


class KeepTogether(SphinxPostTransform):
    """Put each inline formula and the punctuation after it into one unbreakable piece."""

    formats = ("html",)
    default_priority = 900

    def run(self, **kwargs: object) -> None:
        for formula in list(self.document.findall(nodes.math)):
            parent = formula.parent
            at = parent.index(formula)
            after = parent[at + 1] if at + 1 < len(parent) else None
            if not isinstance(after, nodes.Text) or not (mark := AFTER.match(after)):
                continue
            kept = nodes.inline("", "", formula.deepcopy(), nodes.Text(mark[0]), classes=["kept"])
            parent[at : at + 2] = [kept, nodes.Text(str(after)[mark.end() :])]


def setup(app: Sphinx) -> None:
    """Keep together what belongs together when the pages are written."""
    app.add_post_transform(KeepTogether)
