"""What print needs and a site does not: parts, front matter, a place for the bibliography.

A page whose front matter says `print: false` is for the site alone.
"""

# mypy: disallow-subclassing-any=False

from docutils import nodes
from docutils.nodes import Element
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.builders.latex.nodes import thebibliography
from sphinx.transforms.post_transforms import SphinxPostTransform

__all__ = ["LongTables", "Parts", "setup"]


class Parts(SphinxPostTransform):
    """Open parts and appendices, number no front matter, and put the bibliography in its place."""

    formats = ("latex",)
    # After Sphinx has gathered the citations of the book at its end (750).
    default_priority = 760

    def run(self, **kwargs: object) -> None:
        root = self.env.get_doctree(self.config.root_doc)
        opened: dict[str, str] = {}
        for toctree in root.findall(addnodes.toctree):
            if toctree["includefiles"] and toctree["caption"]:
                style = toctree["style"]
                appendix = "alphaupper" in (style if isinstance(style, list) else [style])
                command = r"\bookappendix" if appendix else r"\bookpart"
                opened[toctree["includefiles"][0]] = f"{command}{{{toctree['caption']}}}\n"
        front = next(self.document.findall(nodes.section))
        for start in list(front.findall(addnodes.start_of_file)):
            section = next((n for n in start.children if isinstance(n, nodes.section)), None)
            if section is None:
                continue
            section["numbered"] = "secnumber" in self.env.titles[start["docname"]]
            if opening := opened.get(start["docname"]):
                start.insert(0, nodes.raw("", opening, format="latex"))
        # The root page is the door of the site; a printed book has a title page.
        chapters = [n for n in front.children[1:] if next(n.findall(addnodes.start_of_file), None)]
        front[:] = [front[0], *chapters]
        self.leave_out()
        self.place_bibliography()

    def leave_out(self) -> None:
        """Take out the pages that are for the site alone, and the links to them."""
        absent = {
            name for name, page in self.env.metadata.items() if str(page.get("print")) == "False"
        }
        for start in list(self.document.findall(addnodes.start_of_file)):
            if start["docname"] in absent:
                start.parent.remove(start)
        for reference in list(self.document.findall(nodes.reference)):
            if str(reference.get("refuri", "")).removeprefix("%").partition("#")[0] in absent:
                reference.replace_self(reference.children)

    def place_bibliography(self) -> None:
        bibliography = next(self.document.findall(thebibliography), None)
        home = next((n for n in self.document.findall(nodes.citation)), None)
        if bibliography is None or home is None:
            return
        for start in self.document.findall(addnodes.start_of_file):
            if start["docname"] == home.get("docname"):
                section = next(n for n in start.children if isinstance(n, nodes.section))
                bibliography.parent.remove(bibliography)
                section.append(bibliography)
                return


class LongTables(SphinxPostTransform):
    """Let long tables run over pages; their columns are then as wide as their text asks for."""

    formats = ("latex",)
    default_priority = 300
    rows = 12

    def run(self, **kwargs: object) -> None:
        for table in self.document.findall(nodes.table):
            rows = list(table.findall(nodes.row))
            if len(rows) <= self.rows or "colwidths-given" in table["classes"]:
                continue
            table["classes"] += ["longtable", "colwidths-given"]
            for column, spec in enumerate(table.findall(nodes.colspec)):
                widest = max(width(row[column]) for row in rows)
                spec["colwidth"] = round(min(max(widest, 8), 32))


def width(cell: Element) -> float:
    """About how wide a cell's text is: code is wide, and formulas are shorter than their source."""
    code = sum(len(node.astext()) for node in cell.findall(nodes.literal))
    formula = sum(len(node.astext()) for node in cell.findall(nodes.math))
    return len(cell.astext()) + 0.3 * code - 0.6 * formula


def setup(app: Sphinx) -> None:
    """Lay out the printed book."""
    app.add_post_transform(Parts)
    app.add_post_transform(LongTables)
