"""Write the notes of provenance into the pages: under cells, statements and equations."""

# mypy: disallow-subclassing-any=False

from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms.post_transforms import SphinxPostTransform

from loom.weave import provenance
from loom.weave.links import Links
from loom.weave.provenance import Map, Name, Note
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
        return Provenance("", "", *Links(self.app).written(note, home), place=place)
