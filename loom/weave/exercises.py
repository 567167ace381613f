"""Exercises with their hints and solutions: folded away on the page, an appendix in print.

`{hint}` and `{solution}` belong to the exercise before them, or to the one whose label they name.
A solution that holds executed cells stands between `{solution-start}` and `{solution-end}`,
because a code cell cannot stand inside a directive.
"""

# mypy: disallow-subclassing-any=False

from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from loom.weave.nodes import Answer, Exercise, Gate, Solutions
from loom.weave.statements import name, statement

__all__ = ["DIRECTIVES", "Gather", "Pair", "setup"]

logger = logging.getLogger(__name__)


class ExerciseDirective(SphinxDirective):
    """`{exercise} Title` with `:label: ex-...`."""

    has_content = True
    optional_arguments = 1
    final_argument_whitespace = True
    option_spec: ClassVar[dict[str, Any]] = {"label": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        return statement(self, Exercise(), "exercise")


class AnswerDirective(SphinxDirective):
    """`{hint}` or `{solution}`, with the label of its exercise if that is not the last one."""

    has_content = True
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        of = self.arguments[0] if self.arguments else ""
        node = Answer(kind=self.name, of=of, docname=self.env.docname)
        self.set_source_info(node)
        node += self.parse_content_to_nodes()
        return [node]


class GateDirective(SphinxDirective):
    """`{solution-start}` and `{solution-end}`."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        of = self.arguments[0] if self.arguments else ""
        node = Gate(opens=self.name == "solution-start", of=of)
        self.set_source_info(node)
        return [node]


class SolutionsDirective(SphinxDirective):
    """`{solutions}`: the appendix."""

    def run(self) -> list[nodes.Node]:
        return [Solutions(docname=self.env.docname)]


DIRECTIVES = {
    "exercise": ExerciseDirective,
    "hint": AnswerDirective,
    "solution": AnswerDirective,
    "solution-start": GateDirective,
    "solution-end": GateDirective,
    "solutions": SolutionsDirective,
}


class Gather(SphinxTransform):
    """Move what stands between the two gates of a solution into it."""

    default_priority = 200

    def apply(self, **kwargs: Any) -> None:
        for gate in list(self.document.findall(Gate)):
            if not gate["opens"]:
                continue
            parent = gate.parent
            start = parent.index(gate)
            rest = parent.children[start + 1 :]
            end = next((n for n in rest if isinstance(n, Gate) and not n["opens"]), None)
            if end is None:
                logger.warning("this solution is never closed in its section", location=gate)
                parent.remove(gate)
                continue
            answer = Answer(kind="solution", of=gate["of"], docname=self.env.docname)
            answer += rest[: rest.index(end)]
            parent[start : parent.index(end) + 1] = [answer]
        for gate in list(self.document.findall(Gate)):
            logger.warning("this ends a solution that was never started", location=gate)
            gate.parent.remove(gate)


class Pair(SphinxTransform):
    """Give each hint and solution the label of its exercise."""

    default_priority = 210

    def apply(self, **kwargs: Any) -> None:
        last = ""
        for node in self.document.findall():
            if isinstance(node, Exercise):
                last = node["label"]
            elif isinstance(node, Answer):
                node["of"] = node["of"] or last
                node["ids"] = [f"{node['kind']}-{node['of']}"]
                if not node["of"]:
                    logger.warning("this %s follows no exercise", node["kind"], location=node)


def setup(app: Sphinx) -> None:
    """Add the directives, of which the theme has some already, and pair what belongs together."""
    app.add_enumerable_node(Exercise, "exercise", name)
    for directive, cls in DIRECTIVES.items():
        app.add_directive(directive, cls, override=True)
    app.add_transform(Gather)
    app.add_transform(Pair)
