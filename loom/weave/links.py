"""From the parts of a note to nodes of a page, with links that hold in both outputs."""

from collections.abc import Iterable

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.builders.latex.nodes import math_reference

from loom.weave.numbers import locate
from loom.weave.provenance import Code, Label, Module, Name, Part

__all__ = ["Links"]


class Links:
    """Makes nodes for the pages of one build."""

    def __init__(self, app: Sphinx) -> None:
        """Link for the builder of `app`."""
        self.app = app

    def written(self, parts: Iterable[Part], home: str) -> list[nodes.Node]:
        """The parts of a note as nodes of the document `home`."""
        return [self.node(part, home) for part in parts]

    def node(self, part: Part, home: str) -> nodes.Node:
        """One part as a node of the document `home`."""
        if isinstance(part, Name):
            return self.to(part.docname, part.anchor, nodes.literal(part.text, part.text), home)
        if isinstance(part, Code):
            return nodes.literal(part.text, part.text)
        if isinstance(part, Module):
            code = nodes.literal(part.path, part.path)
            if self.app.builder.format != "html":
                return code
            return self.to(f"code/{part.path.removesuffix('.py')}", part.anchor, code, home)
        if isinstance(part, Label):
            return self.label(part, home)
        return nodes.Text(part)

    def label(self, part: Label, home: str) -> nodes.Node:
        """What a label is called, with a link to it."""
        place = locate(self.app.env, part.name)
        if place is None:
            return nodes.literal(part.name, part.name)
        if place.equation and self.app.builder.format == "latex":
            reference = math_reference(docname=place.docname, target=part.name)
            return nodes.inline("", "", nodes.Text("Equation "), reference)
        return self.to(place.docname, place.anchor, nodes.Text(place.text), home)

    def to(self, docname: str, anchor: str, text: nodes.Node, home: str) -> nodes.reference:
        """A link from the document `home` to an anchor of another, or of itself."""
        uri = "" if docname == home else self.app.builder.get_relative_uri(home, docname)
        return nodes.reference("", "", text, refuri=f"{uri}#{anchor}", internal=True)
