"""What is wrong with the front matter of a chapter, and with what chapters need of each other."""

import graphlib
from collections.abc import Iterable, Iterator

from loom.errors import Problem
from loom.read.chapter import Chapter
from loom.read.source_text import line_of, nested

__all__ = ["refused_front", "unmet"]

FRONT = {
    "kernelspec": "is {name: python3, display_name: Python 3, language: python}",
    "jupytext": "is {text_representation: {extension: .md, format_name: myst}}",
    "tangle": "is the path of a module, such as diffusion/forward.py",
    "modules": "gives each module its sentence",
    "needs": "is a list of chapters, such as [diffusion/forward]",
    "budget": "is a number of seconds",
}


def refused_front(chapter: Chapter) -> Iterator[Problem]:
    """What in the front matter is not of the kind that loom, Jupyter and Sphinx read."""
    front = chapter.front
    kernel, budget = front.get("kernelspec"), front.get("budget")
    spec = ("name", "display_name", "language")
    right = {
        "kernelspec": isinstance(kernel, dict)
        and all(isinstance(kernel.get(key), str) for key in spec)
        and kernel["name"] == "python3",
        "jupytext": nested(front, "jupytext", "text_representation", "format_name") == "myst",
        "tangle": isinstance(front.get("tangle"), str),
        "modules": isinstance(front.get("modules"), dict)
        and all(isinstance(x, str) for pair in front["modules"].items() for x in pair),
        "needs": isinstance(front.get("needs"), list)
        and all(isinstance(need, str) for need in front["needs"]),
        "budget": isinstance(budget, int | float) and budget > 0,
    }
    for key, kind in FRONT.items():
        if front.get(key) is not None and not right[key]:
            sentence = f"'{key}' in the front matter {kind}"
            yield Problem(chapter.path, line_of(chapter.text, key), "B05", sentence)


def unmet(chapters: Iterable[Chapter]) -> Iterator[Problem]:
    """Prerequisites that are no chapters, or that go round in a circle."""
    known = {c.docname.removeprefix("book/"): c for c in chapters}
    for chapter in known.values():
        for need in chapter.needs:
            if need not in known:
                sentence = f"'needs' names '{need}', which is no chapter"
                yield Problem(chapter.path, line_of(chapter.text, "needs"), "B11", sentence)
    graph = {name: [n for n in c.needs if n in known] for name, c in known.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        circle = list(reversed(error.args[1][1:]))
        last = max(circle, key=lambda name: known[name].order)
        at, chapter = circle.index(last), known[last]
        around = " -> ".join([*circle[at:], *circle[:at], last])
        sentence = f"'needs' goes round in a circle: {around}"
        yield Problem(chapter.path, line_of(chapter.text, "needs"), "B11", sentence)
