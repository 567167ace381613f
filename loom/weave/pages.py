"""The blocks of the book on the site: plain elements with classes; the looks are in book.css."""

from docutils.nodes import Element
from sphinx.writers.html5 import HTML5Translator

from loom.weave.statements import number

__all__ = [
    "depart_answer",
    "depart_division",
    "depart_proof",
    "depart_provenance",
    "depart_title",
    "visit_answer",
    "visit_proof",
    "visit_provenance",
    "visit_statement",
    "visit_title",
]


def visit_statement(self: HTML5Translator, node: Element) -> None:
    self.body.append(self.starttag(node, "div", CLASS=f"statement {node['kind']}"))


def visit_title(self: HTML5Translator, node: Element) -> None:
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


def depart_title(self: HTML5Translator, node: Element) -> None:
    if "kind" not in node.parent:
        self.body.append(".</p>\n")
        return
    self.body.append("</span>")
    self.add_permalink_ref(node.parent, "Link to this " + node.parent["kind"])
    self.body.append("</p>\n")


def visit_proof(self: HTML5Translator, node: Element) -> None:
    self.body.append(self.starttag(node, "div", CLASS="proof"))


def depart_proof(self: HTML5Translator, node: Element) -> None:
    self.body.append('<span class="qed" role="img" aria-label="end of proof"></span></div>\n')


def depart_division(self: HTML5Translator, node: Element) -> None:
    self.body.append("</div>\n")


def visit_answer(self: HTML5Translator, node: Element) -> None:
    self.body.append(self.starttag(node, "details", CLASS=f"answer {node['kind']}"))
    self.body.append(f"<summary>{node['kind'].title()}</summary>\n")


def depart_answer(self: HTML5Translator, node: Element) -> None:
    self.body.append("</details>\n")


def visit_provenance(self: HTML5Translator, node: Element) -> None:
    self.body.append(self.starttag(node, "p", "", CLASS=f"provenance provenance-{node['place']}"))


def depart_provenance(self: HTML5Translator, node: Element) -> None:
    self.body.append("</p>\n")
