"""Write the notes of provenance into the pages: under cells, statements and equations."""

# mypy: disallow-subclassing-any=False

from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.builders.latex.nodes import math_reference
from sphinx.transforms.post_transforms import SphinxPostTransform

from loom.weave import provenance
from loom.weave.numbers import locate
from loom.weave.provenance import Code, Label, Map, Module, Name, Note, Part
from loom.weave.results import passed
from loom.weave.source import source
from loom.weave.statements import Statement

__all__ = ["Annotate", "Provenance"]


class Provenance(nodes.General, nodes.TextElement):
    """A note; `place` is what it stands under: cell, statement or equation."""


class Annotate(SphinxPostTransform):
    """Add the notes, with links, before references are resolved."""

    default_priority = 5

    def run(self, **kwargs: Any) -> None:
        charted = source(self.app).notes
        results = passed(self.env)
        used: dict[tuple[str, str], int] = {}
        for node in list(self.document.findall(nodes.container)):
            if node.get("nb_element") != "cell_code" or not node.children:
                continue
            docname, code = self.home(node), provenance.key(node[0].astext())
            entries = charted.cells.get(docname, {}).get(code, [])
            count = used.setdefault((docname, code), 0)
            if count < len(entries) and node[0].get("nb_element") == "cell_code_source":
                used[docname, code] += 1
                anchors, note = entries[count]
                node["ids"] = [*node["ids"], *anchors]
                self.put_after(node, note, "cell")
        for statement in list(self.document.findall(Statement)):
            if note := charted.note(statement["label"], results):
                statement += self.written(note, "statement", statement["docname"])
        for equation in list(self.document.findall(nodes.math_block)):
            label = equation.get("label")
            note = charted.note(label, results) if label else ()
            if note and not self.said_below(equation, note, charted, results):
                self.put_after(equation, note, "equation")

    def said_below(
        self, equation: nodes.Node, note: Note, charted: Map, results: dict[str, set[str]]
    ) -> bool:
        """Tell whether an equation stands in a statement whose own note says the same."""
        parent = equation.parent
        while parent is not None and not isinstance(parent, Statement):
            parent = parent.parent
        if parent is None:
            return False
        named = {part for part in note if isinstance(part, Name)}
        return named <= set(charted.note(parent["label"], results))

    def home(self, node: nodes.Node | None) -> str:
        """The document that a node comes from; in print, all are one tree."""
        while node is not None:
            if isinstance(node, nodes.section | addnodes.start_of_file) and "docname" in node:
                return str(node["docname"])
            node = node.parent
        return str(self.env.docname)

    def put_after(self, node: nodes.Element, note: Note, place: str) -> None:
        parent = node.parent
        parent.insert(parent.index(node) + 1, self.written(note, place, self.home(node)))

    def written(self, note: Note, place: str, home: str) -> Provenance:
        result = Provenance(place=place)
        for part in note:
            result += self.part(part, home)
        return result

    def part(self, part: Part, home: str) -> nodes.Node:
        builder = self.app.builder
        if isinstance(part, Name):
            code = nodes.literal(part.text, part.text)
            uri = "" if part.docname == home else builder.get_relative_uri(home, part.docname)
            return self.link(f"{uri}#{part.anchor}", code)
        if isinstance(part, Code):
            return nodes.literal(part.text, part.text)
        if isinstance(part, Module):
            code = nodes.literal(part.path, part.path)
            if builder.format != "html":
                return code
            page = f"code/{part.path.removesuffix('.py')}"
            return self.link(f"{builder.get_relative_uri(home, page)}#{part.anchor}", code)
        if isinstance(part, Label):
            place = locate(self.env, part.name)
            if place is None:
                return nodes.literal(part.name, part.name)
            if place.equation and builder.format == "latex":
                reference = math_reference(docname=place.docname, target=part.name)
                return nodes.inline("", "", nodes.Text("Equation "), reference)
            uri = "" if place.docname == home else builder.get_relative_uri(home, place.docname)
            return self.link(f"{uri}#{place.anchor}", nodes.Text(place.text))
        return nodes.Text(part)

    def link(self, uri: str, text: nodes.Node) -> nodes.reference:
        return nodes.reference("", "", text, refuri=uri, internal=True)
