"""Write what stands behind statements and equations: one line, and a list that opens."""

# mypy: disallow-subclassing-any=False

from collections.abc import Iterable
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

from loom.weave.book_data import book_data
from loom.weave.folds import home
from loom.weave.links import Links
from loom.weave.nodes import Details, Provenance, Statement
from loom.weave.page_facts import passed
from loom.weave.provenance import Notes, Standing, Test

__all__ = ["Annotate", "setup"]


class Annotate(SphinxPostTransform):
    """Add the notes, with links, before references are resolved."""

    default_priority = 6

    def run(self, **kwargs: Any) -> None:
        """Go through the statements and the equations of a page, or of the book."""
        notes, ran = book_data(self.app).notes, passed(self.env)
        self.links = Links(self.app)
        for statement in list(self.document.findall(Statement)):
            if standing := notes.standing(statement["label"], ran):
                statement += self.written(standing, "statement", statement["docname"])
        for equation in list(self.document.findall(nodes.math_block)):
            label = equation.get("label")
            standing = notes.standing(label, ran) if label else Standing()
            if standing and not said_around(equation, standing, notes, ran):
                note = self.written(standing, "equation", home(self.env, equation))
                equation.parent.insert(equation.parent.index(equation) + 1, note)

    def written(self, standing: Standing, place: str, docname: str) -> Provenance:
        """The line; on the site the number of tests opens the list of their names."""
        note: Provenance = Provenance(
            "", "", *self.links.written(standing.head, docname), place=place
        )
        between = " · " if standing.head and standing.tally else ""
        note += nodes.Text(between)
        if self.app.builder.format == "latex":
            note += nodes.Text(standing.tally)
        elif standing.tally:
            checks = self.items(standing.checks, "", docname)
            controls = self.items(standing.controls, "control: ", docname)
            listing = nodes.bullet_list("", *checks, *controls)
            note[:] = [nodes.inline("", "", *note.children)] if standing.head else []
            note += Details("", listing, mark="", text=standing.tally)
        return note

    def items(self, tests: Iterable[Test], before: str, docname: str) -> list[nodes.list_item]:
        """Each test with its verdict, or with the file in which it stands."""
        made = []
        for test in tests:
            after = f", in {test.file}" if test.file else ", passed" if test.passed else ""
            line = self.links.written((before, test.name, after), docname)
            made.append(nodes.list_item("", nodes.paragraph("", "", *line)))
        return made


def said_around(
    equation: nodes.Node, standing: Standing, notes: Notes, ran: dict[str, set[str]]
) -> bool:
    """Tell whether an equation stands in a statement whose own note says the same."""
    parent = equation.parent
    while parent is not None and not isinstance(parent, Statement):
        parent = parent.parent
    return parent is not None and standing.within(notes.standing(parent["label"], ran))


def setup(app: Sphinx) -> None:
    """Add the notes when the pages are written."""
    app.add_post_transform(Annotate)
