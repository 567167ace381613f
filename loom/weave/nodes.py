"""The nodes that a page of this book has besides those of docutils and Sphinx."""

# mypy: disallow-subclassing-any=False

from docutils import nodes

__all__ = [
    "Answer",
    "AnswerHead",
    "Details",
    "Exercise",
    "Fold",
    "Gate",
    "Listing",
    "Proof",
    "Provenance",
    "Solutions",
    "Statement",
    "StatementTitle",
    "Widget",
]


class Statement(nodes.General, nodes.Element):
    """A numbered block: a theorem, a definition, an exercise. Its first child is its title."""


class StatementTitle(nodes.TextElement):
    """The name of a statement; empty when it has none."""


class Proof(nodes.General, nodes.Element):
    """A proof; `of` holds what its run-in heading adds to "Proof"."""


class Exercise(Statement):
    """A statement with a counter of its own."""


class Answer(nodes.General, nodes.Element):
    """A hint or a solution (`kind`) of the exercise with the label `of`."""


class AnswerHead(nodes.General, nodes.TextElement):
    """In print, the number of the exercise that is answered."""


class Gate(nodes.General, nodes.Element):
    """Where a solution starts (`opens`) or ends."""


class Solutions(nodes.General, nodes.Element):
    """The place where the solutions of the book are gathered."""


class Provenance(nodes.General, nodes.TextElement):
    """A note; `place` is what it stands under: cell, statement, equation, fold, checks."""


class Details(nodes.General, nodes.Element):
    """What opens: its `mark` and its `text` are the line that stays."""


class Fold(nodes.General, nodes.Element):
    """Details and, on the same line, a note."""


class Listing(nodes.General, nodes.Element):
    """The place of something that is written when the whole book has been read."""


class Widget(nodes.General, nodes.Element):
    """An interactive figure; `spec` is what the call in its cell made, as JSON."""
