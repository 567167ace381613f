"""What a page folds: checks, imports, code of figures, and the docstrings of what ships.

On the site a fold is `<details>`, which opens by mouse, by keyboard, by a link into it and without
JavaScript. In print what is folded is left out; of checks one line stays that counts them.
"""

# mypy: disallow-subclassing-any=False

import ast
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

from loom.weave import docstrings, provenance
from loom.weave.book_data import book_data
from loom.weave.links import Links
from loom.weave.nodes import Details, Fold, Provenance
from loom.weave.page_facts import passed
from loom.weave.provenance import Label, Note, Use, counted, listed

__all__ = ["Folding", "home", "setup"]

# What MyST-NB calls a folded cell whose chapter names it not.
UNNAMED = "Show code cell {type}"


class Folding(SphinxPostTransform):
    """Fold cells, with links, before references are resolved; print keeps what is left."""

    # After MyST-NB has chosen the form of each output (4).
    default_priority = 5

    def run(self, **kwargs: Any) -> None:
        """Go through the cells of a page, or of the book."""
        self.notes = book_data(self.app).notes
        self.ran = passed(self.env)
        self.links = Links(self.app)
        self.printing = self.app.builder.format == "latex"
        seen: dict[tuple[str, str], int] = {}
        for cell in list(self.document.findall(nodes.container)):
            if cell.get("nb_element") != "cell_code" or not cell.children:
                continue
            docname = home(self.env, cell)
            if cell[0].get("nb_element") != "cell_code_source":
                continue
            code = provenance.key(cell[0].astext())
            uses = self.notes.cells.get(docname, {}).get(code, [])
            at = seen.get((docname, code), 0)
            if at < len(uses):
                seen[docname, code] = at + 1
                self.used(cell, uses[at], docname)
            elif cell.get("hide_mode") == "input":
                self.hidden(cell)
        for node in list(self.document.findall(Provenance)):
            if node["place"] == "checks":
                node += self.links.written(summary(node), node["docname"])

    def used(self, cell: nodes.Element, use: Use, docname: str) -> None:
        """A cell that is tangled."""
        cell["ids"] = [*cell["ids"], *use.anchors]
        if use.kind == "tangle":
            self.document_rest(cell[0])
            if cell.get("hide_mode") == "input":
                self.hidden(cell)
                if self.printing:
                    return
        if use.kind == "tangle" or use.open:
            note = use.went
            if use.labels:
                verb = "verifies" if use.kind == "verify" else "negative control of"
                note = (*note, f" · {verb} ", *use.about)
            after(cell, self.note(note, "cell", docname))
            return
        pictures = [o for o in cell[1:] if next(o.findall(nodes.image), None)]
        for output in pictures:
            cell.remove(output)
            after(cell, nodes.container("", output, **cell.attributes, ids=[]))
        if self.printing:
            self.count(cell, use, docname)
            return
        ran = use.tests and set(use.tests) <= self.ran.get(docname, set())
        details = Details(mark="", text=words(use, bool(ran)))
        if ran:
            details["mark"] = "✓" if use.kind == "verify" else "✗"
        fold = Fold("", details, kind=use.kind)
        if use.labels:
            fold += self.note(("of ", *use.about), "fold", docname)
        # (`replace_self` would give the fold the cell's anchors, which a link is to open.)
        cell.parent.replace(cell, fold)
        details += [cell, self.note(use.went, "cell", docname)]

    def document_rest(self, block: nodes.Element) -> None:
        """Fold the rest of the docstrings of a cell."""
        for literal in block.findall(nodes.literal_block):
            code = literal.astext()
            if self.printing:
                short = docstrings.shortened(code)
                literal[:] = [nodes.Text(short)]
                literal.rawsource = short
            else:
                literal["rests"] = docstrings.rests(code)

    def hidden(self, cell: nodes.Element) -> None:
        """A cell whose code its chapter hides: imports, figures, checkers."""
        del cell["hide_mode"]
        code = cell[0]
        pictures = next(cell.findall(nodes.image), None) is not None
        cell.remove(code)
        if self.printing:
            if not (cell.children or cell["ids"]):
                cell.parent.remove(cell)
            return
        # A link to the code is a link into the fold.
        code["ids"], cell["ids"] = cell["ids"], []
        text = cell.get("prompt_show", UNNAMED)
        if text == UNNAMED:
            text = "Show " + called(code.astext(), pictures)
        cell.insert(len(cell) if pictures else 0, Fold("", Details("", code, mark="", text=text)))

    def count(self, cell: nodes.Element, use: Use, docname: str) -> None:
        """In print, leave a check out and count it in the line above, or in a new one."""
        parent = cell.parent
        at = parent.index(cell)
        line = parent[at - 1] if at else None
        if not isinstance(line, Provenance) or line["place"] != "checks":
            line = Provenance(place="checks", docname=docname, verify=0, refute=0, labels=[])
            parent.insert(at, line)
        parent.remove(cell)
        line[use.kind] += len(use.tests)
        line["labels"] += [name for name in use.labels if name not in line["labels"]]

    def note(self, note: Note, place: str, docname: str) -> Provenance:
        return Provenance("", "", *self.links.written(note, docname), place=place)


def home(env: Any, node: nodes.Node | None) -> str:
    """The document that a node comes from; in print, all are one tree."""
    while node is not None:
        if isinstance(node, nodes.section | addnodes.start_of_file) and "docname" in node:
            return str(node["docname"])
        node = node.parent
    return str(env.docname)


def after(node: nodes.Element, *new: nodes.Node) -> None:
    parent = node.parent
    at = parent.index(node) + 1
    parent[at:at] = new


def words(use: Use, ran: bool) -> str:
    """The line of a folded check."""
    if use.kind == "verify":
        return counted(len(use.tests), "check")
    return counted(len(use.tests), "planted error") + (", caught" if ran else "")


def summary(line: Provenance) -> Note:
    """What was checked where print leaves the checks out."""
    kinds = ((line["verify"], "check"), (line["refute"], "planted error"))
    counts = ", ".join(counted(number, word) for number, word in kinds if number)
    about = listed([Label(name)] for name in line["labels"])
    return (f"Checked: {counts} (", *about, ").")


def called(code: str, pictures: bool) -> str:
    """What hidden code is."""
    if pictures:
        return "the code of the figure"
    try:
        body = ast.parse(code).body
    except SyntaxError:  # a magic command
        return "the code"
    imports = body and all(isinstance(node, ast.Import | ast.ImportFrom) for node in body)
    return "the imports" if imports else "the code"


def setup(app: Sphinx) -> None:
    """Fold when the pages are written."""
    app.add_post_transform(Folding)
