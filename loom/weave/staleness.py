"""Which pages are to be written again, although their chapters did not change.

Sphinx keeps the pages that it has read. A page is written again when a note on it changes: when
code elsewhere implements its theorem, a test of it ran, or what it refers to has a new number.
"""

# mypy: disallow-subclassing-any=False

from collections import defaultdict

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

from loom.weave.book_data import book_data
from loom.weave.numbers import locate
from loom.weave.page_facts import EXERCISES, LISTED, passed, referred
from loom.weave.provenance import Label

__all__ = ["outdated", "setup", "stale"]


def stale(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Pages whose notes, or whose references' numbers, are not those they were written with.

    The pages of the modules are among what is written; `outdated` tells them.
    """
    if app.builder.format != "html":
        return []
    loaded = book_data(app)
    places = {name: locate(env, name) for name in labelled(env)}
    labels: dict[str, list[str]] = defaultdict(list)
    for name, place in places.items():
        if place:
            labels[place.docname].append(name)
    side = titles(env)
    now: dict[str, str] = {}
    for docname in env.found_docs:
        cells = sorted(loaded.notes.cells.get(docname, {}).items())
        targets = referred(env).get(docname, set()) | {
            part.name
            for _, uses in cells
            for use in uses
            for part in (*use.went, *use.about)
            if isinstance(part, Label)
        }
        if EXERCISES in targets:
            targets |= {name for name in places if name.startswith("ex-")}
        written = (
            cells,
            [loaded.notes.standing(name, passed(env)) for name in labels[docname]],
            [(target, locate(env, target)) for target in sorted(targets)],
            (loaded.results.facts, places) if LISTED in targets else None,
            side,
        )
        now[docname] = repr(written)
    ends: dict[str, list[tuple[str, str, int]]] = defaultdict(list)
    for d in loaded.tangled.definitions:
        ends[d.path].append((d.name, d.chapter, d.first))
    for path, module in loaded.tangled.modules.items():
        now[path] = repr((module.text, ends[path], side))
    before = getattr(env, "weave_written", {})
    env.weave_written = now
    app.loom_outdated = {name for name in now if before.get(name) != now[name]}
    return sorted(app.loom_outdated & env.found_docs)


def outdated(app: Sphinx, path: str) -> bool:
    """Tell whether the page of a module is not what this build would write."""
    return path in app.loom_outdated


def titles(env: BuildEnvironment) -> list[tuple[str, str, object]]:
    """What the side bar of every page is made from."""
    found = env.titles.items()
    return sorted((name, title.astext(), title.get("secnumber")) for name, title in found)


def labelled(env: BuildEnvironment) -> list[str]:
    """Every label that a note can stand under."""
    return sorted([*env.domaindata["prf"]["labels"], *env.domaindata["math"]["objects"]])


def setup(app: Sphinx) -> None:
    """Tell Sphinx what to write again, once the sections have their numbers."""
    app.connect("env-get-updated", stale, priority=900)
