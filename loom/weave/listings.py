"""Pages that the build writes: the map of results, what is missing, identifiers, the package."""

# mypy: disallow-subclassing-any=False

from collections.abc import Iterable
from html import escape
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective

from loom.prove.theorems import Result, Results
from loom.weave import reference
from loom.weave.book_data import book_data
from loom.weave.links import Links
from loom.weave.map_drawing import Box, draw
from loom.weave.nodes import Listing
from loom.weave.numbers import locate
from loom.weave.provenance import Code, Label, Name, Note, anchor, listed, named

__all__ = ["DIRECTIVES", "Fill", "ListingDirective", "setup"]

KEY = (
    "A line leads from a result to those whose proofs use it. The dots of a box stand for proved, "
    "implemented, verified and refuted: full, if it is so; empty, if it is missing; absent, if it "
    "is not asked of a result of this kind. A box is green when nothing is missing."
)
LACKS = {
    "proved": "Stated, but neither proved nor cited",
    "implemented": "Defined, but implemented by no code",
    "verified": "Proved, but verified by no test that reaches the code",
    "refuted": "Verified, but without a negative control",
}


class ListingDirective(SphinxDirective):
    """`{map-of-results}` and the like: nothing to say, the build knows it."""

    def run(self) -> list[nodes.Node]:
        return [Listing(kind=self.name, docname=self.env.docname)]


DIRECTIVES = ("map-of-results", "missing-results", "identifiers", "package-reference")


class Fill(SphinxPostTransform):
    """Write the listings."""

    default_priority = 4

    def run(self, **kwargs: Any) -> None:
        for place in list(self.document.findall(Listing)):
            home = place["docname"]
            made = {
                "map-of-results": self.map,
                "missing-results": self.missing,
                "identifiers": self.identifiers,
                "package-reference": self.package,
            }[place["kind"]](home)
            place.replace_self(made)

    @property
    def results(self) -> Results:
        """The results of this build."""
        loaded: Results = book_data(self.app).results
        return loaded

    def map(self, home: str) -> list[nodes.Node]:
        """For each part a drawing, on the site, and the same as a table."""
        chapters = book_data(self.app).book.chapters
        parts = {chapter.path: chapter.part for chapter in chapters}
        made: list[nodes.Node] = []
        if self.app.builder.format == "html":
            made.append(nodes.raw("", f'<p class="map-key">{KEY}</p>', format="html"))
        results = self.results.all()
        for part in dict.fromkeys(parts[r.label.chapter] for r in results):
            own = [r for r in results if parts[r.label.chapter] == part]
            inner: list[nodes.Node] = [nodes.rubric(part, part)]
            if self.app.builder.format == "html":
                inner.append(nodes.raw("", self.drawing(home, own, part), format="html"))
            inner.append(self.listing(home, own))
            made.append(nodes.container("", *inner, classes=["map-part"]))
        return made

    def listing(self, home: str, results: list[Result]) -> nodes.table:
        """Results as rows: what each rests on, what implements it, how many checks it has."""
        rows: list[list[Note]] = [
            [
                (Label(r.label.name), f" {r.label.title}"),
                listed([Label(name)] for name in r.uses),
                listed([named(d)] for d in r.implemented),
                (str(len(r.verified)),),
                (str(len(r.refuted)),),
            ]
            for r in results
        ]
        heads = ("result", "rests on", "implemented by", "checks", "controls")
        return table(heads, (27, 20, 35, 9, 9), self.cells(rows, home))

    def drawing(self, home: str, own: list[Result], part: str) -> str:
        """The results of a part as SVG, with those of other parts on which they rest."""
        names = {r.label.name for r in own}
        used = {name for r in own for name in r.uses} - names
        guests = [r for r in self.results.all() if r.label.name in used]
        chapters = list(dict.fromkeys(r.label.chapter for r in own))
        titles = ["From other parts"] * bool(guests) + [self.title(path) for path in chapters]
        boxes = []
        for r in (*guests, *own):
            if (place := locate(self.env, r.label.name)) is None:
                continue
            uri = self.app.builder.get_relative_uri(home, place.docname)
            guest = r.label.name in used
            column = 0 if guest else chapters.index(r.label.chapter) + bool(guests)
            href = f"{uri}#{place.anchor}"
            title = r.label.title or ", ".join(d.name for d in r.implemented)
            boxes.append(Box(r.label.name, place.text, title, href, column, r.standing, guest))
        uses = [(r.label.name, used) for r in own for used in r.uses]
        return (
            '<div class="map" data-map tabindex="0" role="region" '
            f'aria-label="Map of {escape(part)}">'
            f"{draw(boxes, uses, titles, f'Results of {part}')}</div>"
        )

    def title(self, path: str) -> str:
        """A chapter's number and title."""
        title = self.env.titles[path.removesuffix(".md")]
        number = ".".join(map(str, title.get("secnumber") or ()))
        return f"{number} {title.astext()}".strip()

    def missing(self, home: str) -> list[nodes.Node]:
        """What each kind of gap concerns; nothing, if the book is whole."""
        results = self.results.all()
        made = nodes.definition_list()
        for mark, words in LACKS.items():
            lacking: Note = listed(
                [Label(r.label.name)] for r in results if not r.standing.get(mark, True)
            )
            body = nodes.paragraph("", "", *Links(self.app).written(lacking or ("None.",), home))
            made += nodes.definition_list_item(
                "", nodes.term("", words), nodes.definition("", body)
            )
        return [made]

    def identifiers(self, home: str) -> list[nodes.Node]:
        """Every public name of the package: where it is defined, and what uses it."""
        loaded = book_data(self.app)
        rows: list[list[Note]] = []
        users = reference.users(self.results.call_graph, loaded.tangled)
        for d in sorted(reference.public(loaded.tangled), key=lambda d: d.name.lower()):
            chapter = self.env.titles[d.chapter.removesuffix(".md")]
            number = ".".join(map(str, chapter.get("secnumber") or ()))
            link = Name(d.name, d.chapter.removesuffix(".md"), anchor(d.name))
            rows.append(
                [
                    (link,),
                    (number,),
                    (Code(d.path.removeprefix("tangled/")),),
                    listed([named(user)] for user in users.get(d.dotted, ())),
                ]
            )
        heads = ("name", "chapter", "module", "used by")
        return [table(heads, (28, 10, 27, 35), self.cells(rows, home))]

    def package(self, home: str) -> list[nodes.Node]:
        """The reference of the package, a section for each module."""
        return reference.package(book_data(self.app), Links(self.app), home)

    def cells(self, rows: Iterable[Iterable[Note]], home: str) -> list[list[list[nodes.Node]]]:
        links = Links(self.app)
        return [[links.written(cell, home) for cell in row] for row in rows]


def table(
    heads: Iterable[str], widths: tuple[int, ...], rows: list[list[list[nodes.Node]]]
) -> nodes.table:
    """A table whose cells are one paragraph each."""
    group = nodes.tgroup(cols=len(widths))
    group += [nodes.colspec(colwidth=width) for width in widths]

    def row(cells: Iterable[list[nodes.Node]]) -> nodes.row:
        return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", *cell)) for cell in cells))

    group += nodes.thead("", row([nodes.Text(head)] for head in heads))
    group += nodes.tbody("", *(row(cells) for cells in rows))
    made = nodes.table("", group, classes=["colwidths-given", "longtable", "listing"])
    made["colwidths-given"] = True
    return made


def setup(app: Sphinx) -> None:
    """Add the directives of the listings, which are filled when the whole book has been read."""
    for name in DIRECTIVES:
        app.add_directive(name, ListingDirective)
    app.add_post_transform(Fill)
