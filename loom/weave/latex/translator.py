"""The book in print: a LaTeX writer that takes every number from Sphinx, as the site does.

Equations, figures and tables are tagged with the number that the site shows, so the two outputs
agree by construction. The looks are in `book/_latex/signal.sty`.
"""

# mypy: disallow-subclassing-any=False

from functools import cache
from pathlib import Path

from docutils import nodes
from docutils.nodes import Element
from sphinx.application import Sphinx
from sphinx.util.math import wrap_displaymath
from sphinx.writers.latex import LaTeXTranslator

from loom.weave.docstrings import together
from loom.weave.latex.lines import LINES, find_line, line_mark, without_marks
from loom.weave.latex.stills import included
from loom.weave.nodes import Answer, AnswerHead, Provenance, Statement, StatementTitle
from loom.weave.statements import number

__all__ = ["BookTranslator", "setup"]

# Blocks that a message of TeX may be about, and those whose lines are lines in the LaTeX too.
PLACED = (
    nodes.paragraph,
    nodes.title,
    nodes.math_block,
    nodes.literal_block,
    nodes.table,
    nodes.figure,
    nodes.bullet_list,
    nodes.enumerated_list,
    nodes.Admonition,
    Statement,
)
KEPT = (nodes.paragraph, nodes.math_block, nodes.literal_block)

# Admonitions that have looks of their own; the class stands in the chapter.
BOXES = ("prerequisites", "pitfall", "wrong", "correct", "erratum", "worked")


class BookTranslator(LaTeXTranslator):
    """Sphinx' LaTeX, with the blocks of this book and without numbers of LaTeX' own."""

    @property
    def docname(self) -> str:
        return str(self.curfilestack[-1])

    # Places

    waiting = ""  # the mark of a block that has written nothing yet

    def dispatch_visit(self, node: nodes.Node) -> None:
        """Mark what a block of a chapter becomes with its line there."""
        # (MyST gives what stands in a table a line that is not its own.)
        if isinstance(node, PLACED) and node.line and not isinstance(node.parent, nodes.entry):
            # A table and the like has no source of its own, but what stands in it has.
            source = next((n.rawsource for n in node.findall(Element) if n.rawsource), "")
            first = find_line(source, self.chapter(self.docname), node.line)
            more = node.astext().strip().count("\n") if isinstance(node, KEPT) else 0
            self.waiting = line_mark(f"{self.docname}.md", first, more)
        body, at = self.body, len(self.body)
        try:
            super().dispatch_visit(node)
        finally:
            # Before the text, as Sphinx looks at how the last piece ends.
            if self.waiting and body[at:]:
                body[at] = self.waiting + body[at]
                self.waiting = ""

    @cache  # noqa: B019  (there is one translator a build)
    def chapter(self, docname: str) -> list[str]:
        """The lines of a chapter."""
        return Path(self.builder.env.doc2path(docname)).read_text("utf-8-sig").split("\n")

    def astext(self) -> str:
        """The LaTeX; the places of its marks are kept in a file."""
        text, lines = without_marks(super().astext())
        lines.save(Path(self.builder.outdir, LINES))
        return text

    def number(self, counter: str, node: Element) -> str:
        return (
            number(self.builder.env, self.docname, counter, node["ids"][0]) if node["ids"] else ""
        )

    # Chapters

    def visit_title(self, node: Element) -> None:
        section = node.parent
        if isinstance(section, nodes.section) and "numbered" in section:
            self.body.append(r"\bookchapter{" if section["numbered"] else r"\bookfrontchapter{")
            self.context.append("}\n" + self.hypertarget_to(section))
            self.in_title = 1
        else:
            super().visit_title(node)

    # Numbers

    def visit_math_block(self, node: Element) -> None:
        # What implements an equation or its statement stands on its page.
        following = node.next_node(descend=False, siblings=True)
        together = isinstance(following, Provenance)
        if together:
            self.body.append(r"\begingroup\postdisplaypenalty10000 ")
        try:
            self.formula(node)
        finally:
            if together:
                self.body.append(r"\endgroup ")

    def formula(self, node: Element) -> None:
        """A formula with its number, or with the square that ends a proof."""
        label = node.get("label")
        if node.get("nowrap") or not (label or node.get("last")):
            super().visit_math_block(node)
        if not label:
            text = wrap_displaymath(node.astext(), None, False)
            start = r"\begin{equation*}"
            self.body.append(text.replace(start, start + r"\tag*{\qedsign}", 1))
            raise nodes.SkipNode
        tag = self.number("displaymath", node)
        text = wrap_displaymath(node.astext(), f"equation:{node['docname']}:{label}", False)
        self.body.append(text.replace(r"\label{", rf"\tag{{{tag}}}\label{{", 1))
        raise nodes.SkipNode

    def visit_caption(self, node: Element) -> None:
        if isinstance(node.parent, nodes.figure) and (tag := self.number("figure", node.parent)):
            self.body.append(rf"\renewcommand{{\thefigure}}{{{tag}}}")
        super().visit_caption(node)

    def visit_table(self, node: Element) -> None:
        tag = self.number("table", node)
        self.body.append(rf"{{\renewcommand{{\thetable}}{{{tag}}}" if tag else "{")
        super().visit_table(node)

    def depart_table(self, node: Element) -> None:
        super().depart_table(node)
        self.body.append("}")

    # Statements, proofs, exercises

    def visit_Statement(self, node: Element) -> None:
        tag = number(self.builder.env, node["docname"], node["counter"], node["label"])
        target = self.idescape(f"{self.docname}:{node['label']}")
        head = f"{node['kind'].title()} {tag}".strip()
        self.body.append(f"\n\\begin{{statement}}{{{node['kind']}}}{{{head}}}{{{tag}}}{{{target}}}")
        self.no_latex_floats += 1

    def depart_Statement(self, node: Element) -> None:
        if answers := node.get("answers"):
            kinds = " and ".join(kind for kind, _ in answers).capitalize()
            target = self.idescape(f"{node['docname']}:{answers[0][1]}")
            self.body.append(f"\n\\answered{{{kinds}}}{{{target}}}")
        self.body.append("\n\\end{statement}\n")
        self.no_latex_floats -= 1

    visit_Exercise, depart_Exercise = visit_Statement, depart_Statement

    def visit_StatementTitle(self, node: Element) -> None:
        self.body.append("{")

    def depart_StatementTitle(self, node: Element) -> None:
        self.body.append("}\n")

    def visit_Proof(self, node: Element) -> None:
        self.body.append("\n\\begin{bookproof}")
        last = node[-1]
        if isinstance(last, nodes.math_block) and not (last.get("label") or last.get("nowrap")):
            last["last"] = True  # the square stands beside the formula

    def depart_Proof(self, node: Element) -> None:
        self.body.append("" if node[-1].get("last") else r"\qedsquare")
        self.body.append("\n\\end{bookproof}\n")

    def visit_paragraph(self, node: Element) -> None:
        if isinstance(node.parent, nodes.entry) and not node.children:
            raise nodes.SkipNode  # a cell with an empty line in it would be two lines high
        at = node.parent.index(node)
        before = node.parent[at - 1] if at else None
        if isinstance(before, Provenance) and before["place"] == "equation":
            self.body.append("\n\\noindent")  # as after any other formula
        head = isinstance(before, (AnswerHead, StatementTitle))
        if not (head or (before is None and isinstance(node.parent, Answer))):
            super().visit_paragraph(node)  # a blank line; not after a run-in head

    def visit_Answer(self, node: Element) -> None:
        self.body.append(f"\n\\begin{{answer}}{{{node['kind'].title()}}}")
        if not isinstance(node[0], AnswerHead):
            self.body.append("{}")
            self.end_of_head(node)

    def depart_Answer(self, node: Element) -> None:
        self.body.append("\n\\end{answer}\n")

    def visit_AnswerHead(self, node: Element) -> None:
        self.body.append("{")

    def depart_AnswerHead(self, node: Element) -> None:
        self.body.append("}")
        self.end_of_head(node.parent)

    def end_of_head(self, answer: Element) -> None:
        self.body.append("{" + self.idescape(f"{self.docname}:{answer['ids'][0]}") + "}\n")

    # Code

    def visit_literal_block(self, node: Element) -> None:
        """Mark the lines of code behind which no page may end."""
        start = len(self.body)
        try:
            super().visit_literal_block(node)
        finally:
            if node.get("language") in ("ipython3", "python"):
                self.body[start:] = [
                    marked(piece, node.astext()) if r"\begin{sphinxVerbatim}" in piece else piece
                    for piece in self.body[start:]
                ]

    # Boxes and cells

    def visit_admonition(self, node: Element) -> None:
        kind = next((c for c in node["classes"] if c in BOXES), "note")
        self.body.append(f"\n\\begin{{bookbox}}{{{kind}}}")
        self.no_latex_floats += 1

    def depart_admonition(self, node: Element) -> None:
        self.body.append("\n\\end{bookbox}\n")
        self.no_latex_floats -= 1

    def visit_named(self, node: Element) -> None:
        kind = node.tagname
        self.body.append(f"\n\\begin{{bookbox}}{{{kind}}}{{{kind.title()}}}\n")
        self.no_latex_floats += 1

    visit_note = visit_tip = visit_important = visit_warning = visit_named
    depart_note = depart_tip = depart_important = depart_warning = depart_admonition

    def visit_container(self, node: Element) -> None:
        if node["ids"] and node.get("nb_element") == "cell_code":
            self.body.append("\n" + self.hypertarget_to(node, anchor=True))
        if noted(node):
            self.body.append("\n\\begin{codewithnote}")
        super().visit_container(node)

    def depart_container(self, node: Element) -> None:
        super().depart_container(node)
        if noted(node):
            self.body.append("\n\\end{codewithnote}\n")

    def visit_Widget(self, node: Element) -> None:
        self.body.append(included(self.builder, node["spec"]))
        raise nodes.SkipNode

    def visit_Provenance(self, node: Element) -> None:
        self.body.append("\n\\begin{provenance}{" + node["place"] + "}")

    def depart_Provenance(self, node: Element) -> None:
        self.body.append("\\end{provenance}\n")


def noted(node: Element) -> bool:
    """Tell whether a cell is followed by a note that says where it went."""
    following = node.next_node(descend=False, siblings=True)
    return node.get("nb_element") == "cell_code" and isinstance(following, Provenance)


def marked(verbatim: str, code: str) -> str:
    """Typeset code with a mark on each line that stands on one page with the next."""
    head, begin, body = verbatim.rpartition(r"\begin{sphinxVerbatim}")
    lines = body.split("\n")
    for n in together(code):
        # The first line is the options of the environment.
        lines[n + 1] += r"\codekeep{}"
    return head + begin + "\n".join(lines)


def setup(app: Sphinx) -> None:
    """Write LaTeX by this translator."""
    app.set_translator("latex", BookTranslator)
