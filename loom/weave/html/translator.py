"""The blocks of the book on the site: plain elements with classes; the looks are in book.css."""

# mypy: disallow-subclassing-any=False

import re
from pathlib import Path

from docutils.nodes import Element, SkipNode, Text
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

from loom.weave.docstrings import folded
from loom.weave.html.dark_figures import dark, width
from loom.weave.html.figure_panels import panels
from loom.weave.html.live_figures import drawn
from loom.weave.statements import number

__all__ = ["BookTranslator", "framed", "setup"]

# A word of code as Sphinx writes it, and where a line may break in it.
PIECE = re.compile(r'(<span class="pre">)(.*)(</span>)', re.DOTALL)
ALT = re.compile(r'\balt="[^"]*"')
logger = logging.getLogger(__name__)
JOINT = re.compile(r"(?<=\w)(?:[_./,(=\[]|-&gt;)(?=\w{2})")


class BookTranslator(HTML5Translator):
    """Sphinx' HTML with docstrings that open, names that break well, figures for the dark."""

    def visit_literal_block(self, node: Element) -> None:
        """Fold the docstrings of what ships."""
        try:
            super().visit_literal_block(node)
        finally:
            if node.get("rests"):
                self.body[-1] = folded(self.body[-1], node["rests"])

    def visit_Text(self, node: Text) -> None:
        """Let a long name break where its parts meet."""
        start = len(self.body)
        super().visit_Text(node)
        if self.protect_literal_text:
            self.body[start:] = [breakable(piece) for piece in self.body[start:]]

    def visit_image(self, node: Element) -> None:
        """Show a drawing in a frame that scrolls, in colours for the light and for the dark."""
        if not node.get("alt", "").strip():
            place: Element | None = node
            while place is not None and not place.line:
                place = place.parent
            logger.warning("this figure has no alt text: say what is seen", location=place)
        source, uri = Path(self.builder.srcdir, node["uri"]), node["uri"]
        if uri not in self.builder.images or source.suffix != ".svg":
            super().visit_image(node)
            return
        text = source.read_text("utf-8")
        name = self.builder.images[uri].removesuffix(".svg") + ".dark.svg"
        folder = Path(self.builder.outdir, self.builder.imagedir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(dark(text), "utf-8")
        start, classes = len(self.body), node["classes"]
        node["classes"] = [*classes, "for-light"]
        super().visit_image(node)
        node["classes"] = [*classes, "for-dark"]
        node["uri"] = f"{self.builder.imgpath}/{name}"
        super().visit_image(node)
        self.body[start:] = [framed("".join(self.body[start:]), width(text), panels(text))]

    def visit_Widget(self, node: Element) -> None:
        self.body.append(drawn(self.builder, node["spec"]))
        raise SkipNode

    # Statements, proofs, answers, folds, notes

    def visit_Statement(self, node: Element) -> None:
        self.body.append(self.starttag(node, "div", CLASS=f"statement {node['kind']}"))

    def depart_Statement(self, node: Element) -> None:
        self.body.append("</div>\n")

    def visit_StatementTitle(self, node: Element) -> None:
        parent = node.parent
        if "kind" not in parent:
            self.body.append(
                '<p class="proof-head">Proof ' if len(node) else '<p class="proof-head">Proof'
            )
            return
        tag = number(self.builder.env, parent["docname"], parent["counter"], parent["label"])
        self.body.append(
            '<p class="statement-title"><span class="statement-kind">'
            f'{parent["kind"].title()} <span class="statement-number">{tag}</span></span> '
        )
        self.body.append('<span class="statement-name">')

    def depart_StatementTitle(self, node: Element) -> None:
        if "kind" not in node.parent:
            self.body.append(".</p>\n")
            return
        self.body.append("</span>")
        self.add_permalink_ref(node.parent, "Link to this " + node.parent["kind"])
        self.body.append("</p>\n")

    def visit_Proof(self, node: Element) -> None:
        self.body.append(self.starttag(node, "div", CLASS="proof"))

    def depart_Proof(self, node: Element) -> None:
        self.body.append('<span class="qed" role="img" aria-label="end of proof"></span></div>\n')

    def visit_Answer(self, node: Element) -> None:
        self.body.append(self.starttag(node, "details", CLASS=f"answer {node['kind']}"))
        self.body.append(f"<summary>{node['kind'].title()}</summary>\n")

    def depart_Answer(self, node: Element) -> None:
        self.body.append("</details>\n")

    def visit_Fold(self, node: Element) -> None:
        self.body.append(self.starttag(node, "div", CLASS=f"fold {node.get('kind', 'code')}"))

    def visit_Details(self, node: Element) -> None:
        self.body.append(self.starttag(node, "details") + "<summary>")
        if mark := node["mark"]:
            self.body.append(f'<span class="tick" aria-hidden="true">{mark}</span> ')
        self.body.append(f"{self.encode(node['text'])}</summary>\n")

    def visit_Provenance(self, node: Element) -> None:
        place = node["place"]
        self.body.append(self.starttag(node, "div", "", CLASS=f"provenance provenance-{place}"))

    depart_Fold = depart_Provenance = depart_Statement

    def depart_Details(self, node: Element) -> None:
        self.body.append("</details>\n")


def framed(pictures: str, wide: int, parts: list[tuple[float, float]]) -> str:
    """A drawing in its frame; of several panels each once more, for a page as narrow as one."""
    stacked = ""
    silent = ALT.sub('alt=""', pictures)
    for n, (start, end) in enumerate(parts if len(parts) > 1 else ()):
        place = f"--from: {start:.4f}; --share: {end - start:.4f}"
        inside = silent if n else pictures
        stacked += f'<span class="panel" style="{place}">{inside}</span>'
    if stacked:
        pictures = f'<span class="whole">{pictures}</span><span class="panels">{stacked}</span>'
    return f'<span class="picture" style="--natural: {wide}px">{pictures}</span>'


def breakable(piece: str) -> str:
    """A word of code in which a line may break behind `_`, `.`, `/` and the like."""
    match = PIECE.fullmatch(piece)
    return match[1] + JOINT.sub(r"\g<0><wbr>", match[2]) + match[3] if match else piece


def setup(app: Sphinx) -> None:
    """Write the site by this translator, with the search field of this book."""
    app.set_translator("html", BookTranslator)
    # The theme includes "../components/search-field.html", which is looked up from here first.
    app.config.templates_path = [str(Path(__file__).parent / "components")]
