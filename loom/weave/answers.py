"""Where the answers stand: in print in an appendix, on the site under their exercises."""

# mypy: disallow-subclassing-any=False

from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

from loom.weave.nodes import Answer, AnswerHead, Exercise, Solutions
from loom.weave.statements import ProofDomain, number

__all__ = ["Collect", "setup"]

logger = logging.getLogger(__name__)


class Collect(SphinxPostTransform):
    """In print, move hints and solutions to their appendix; on the site, list them there."""

    default_priority = 4

    def run(self, **kwargs: Any) -> None:
        place = next(self.document.findall(Solutions), None)
        if self.app.builder.format == "latex":
            answers = list(self.document.findall(Answer))
            for answer in answers:
                answer.parent.remove(answer)
            if place is not None:
                place.replace_self(self.printed(answers))
            elif answers:
                logger.warning("no page has `{solutions}`, where print has its solutions")
        elif place is not None:
            place.replace_self(self.listed(place["docname"]))

    def heading(self, docname: str) -> nodes.rubric:
        title = self.env.titles[docname]
        numbered = ".".join(map(str, title.get("secnumber") or ()))
        text = f"{numbered}  {title.astext()}".strip()
        return nodes.rubric(text, text)

    def link(self, home: str, label: str) -> nodes.reference:
        docname, _, counter, _ = domain(self).labels[label]
        text = f"Exercise {number(self.env, docname, counter, label)}"
        builder = self.app.builder
        return make_refnode(builder, home, docname, label, nodes.inline(text, text))

    def printed(self, answers: list[Answer]) -> list[nodes.Node]:
        """The answers by chapter; the first to an exercise begins with a link to it."""
        exercises = {n["label"]: n for n in self.document.findall(Exercise)}
        result: list[nodes.Node] = []
        chapter = ""
        for answer in answers:
            if (exercise := exercises.get(answer["of"])) is None:
                continue
            if answer["docname"] != chapter:
                chapter = answer["docname"]
                result.append(self.heading(chapter))
            if "answers" not in exercise:
                exercise["answers"] = []
                title = nodes.Text(" " + exercise[0].astext())
                answer.insert(0, AnswerHead("", "", self.link(chapter, answer["of"]), title))
            exercise["answers"].append((answer["kind"], answer["ids"][0]))
            # The scope of its chapter, in which the labels of the answer are looked up.
            start = addnodes.start_of_file(docname=chapter)
            start += answer
            result.append(start)
        return result

    def listed(self, home: str) -> list[nodes.Node]:
        """Links to the exercises, by chapter."""
        result: list[nodes.Node] = []
        chapter = ""
        exercises = [(k, v) for k, v in domain(self).labels.items() if v[1] == "exercise"]
        for label, (docname, _, _, title) in sorted(exercises, key=self.place):
            if docname != chapter:
                chapter = docname
                result += [self.heading(chapter), nodes.bullet_list()]
            line = nodes.paragraph("", "", self.link(home, label), nodes.Text(f" {title}"))
            result[-1] += nodes.list_item("", line)
        return result

    def place(self, labelled: tuple[str, tuple[str, str, str, str]]) -> list[tuple[bool, Any]]:
        """The number of an exercise, to sort by; lettered appendices come last."""
        label, (docname, _, counter, _) = labelled
        numbers = self.env.toc_fignumbers.get(docname, {}).get(counter, {}).get(label, ())
        return [(isinstance(part, str), part) for part in numbers]


def domain(transform: SphinxPostTransform) -> ProofDomain:
    found = transform.env.get_domain("prf")
    assert isinstance(found, ProofDomain)
    return found


def setup(app: Sphinx) -> None:
    """Gather the answers in print, and list them on the site."""
    app.add_post_transform(Collect)
