"""What a label is called: "Theorem 1.2", "Equation (1.3)"; and where it stands."""

from dataclasses import dataclass

from docutils import nodes
from sphinx.environment import BuildEnvironment

from loom.weave.statements import number

__all__ = ["Place", "locate"]


@dataclass(frozen=True)
class Place:
    """A label's name in print, its document and its anchor."""

    text: str
    docname: str
    anchor: str
    equation: bool = False


def locate(env: BuildEnvironment, label: str) -> Place | None:
    """The place of a statement, an exercise, an equation, a figure or a table."""
    if label in (statements := env.domaindata["prf"]["labels"]):
        docname, kind, counter, _ = statements[label]
        tag = number(env, docname, counter, label)
        return Place(f"{kind.title()} {tag}", docname, label)
    if label in (equations := env.domaindata["math"]["objects"]):
        docname = equations[label][0]
        anchor = nodes.make_id(f"equation-{label}")
        tag = number(env, docname, "displaymath", anchor)
        return Place(f"Equation ({tag})", docname, anchor, equation=True)
    if label in (others := env.domaindata["std"]["anonlabels"]):
        docname, anchor = others[label]
        for counter in ("figure", "table"):
            if tag := number(env, docname, counter, anchor):
                return Place(f"{counter.title()} {tag}", docname, anchor)
    return None
