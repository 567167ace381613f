"""What the pages tell the build as they are read: the tests that ran, the labels they refer to."""

# mypy: disallow-subclassing-any=False

from typing import cast

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.environment.collectors import EnvironmentCollector

from loom.weave.nodes import Listing, Solutions

__all__ = ["EXERCISES", "LISTED", "Passed", "passed", "referred", "setup"]

PASSED = "passed: "
# Stand among the targets of a page for all exercises, and for what a listing is made from.
EXERCISES = "(exercises)"
LISTED = "(listed)"


class Passed(EnvironmentCollector):
    """Collects, as pages are read, the tests that ran in them and the labels they refer to."""

    def clear_doc(self, app: Sphinx, env: BuildEnvironment, docname: str) -> None:
        passed(env).pop(docname, None)
        referred(env).pop(docname, None)

    def merge_other(
        self, app: Sphinx, env: BuildEnvironment, docnames: set[str], other: BuildEnvironment
    ) -> None:
        for docname in docnames:
            passed(env)[docname] = passed(other)[docname]
            referred(env)[docname] = referred(other)[docname]

    def process_doc(self, app: Sphinx, doctree: nodes.document) -> None:
        names: set[str] = set()
        for cell in doctree.findall(nodes.container):
            if cell.get("nb_element") == "cell_code_output":
                for block in cell.findall(nodes.literal_block):
                    for line in block.astext().splitlines():
                        if line.startswith(PASSED):
                            names.update(line.removeprefix(PASSED).split(", "))
        passed(app.env)[app.env.docname] = names
        targets = {node["reftarget"] for node in doctree.findall(addnodes.pending_xref)}
        for kind, target in ((Solutions, EXERCISES), (Listing, LISTED)):
            if next(doctree.findall(kind), None) is not None:
                targets.add(target)
        referred(app.env)[app.env.docname] = targets


def passed(env: BuildEnvironment) -> dict[str, set[str]]:
    if not hasattr(env, "weave_passed"):
        env.weave_passed = {}
    return cast("dict[str, set[str]]", env.weave_passed)


def referred(env: BuildEnvironment) -> dict[str, set[str]]:
    if not hasattr(env, "weave_referred"):
        env.weave_referred = {}
    return cast("dict[str, set[str]]", env.weave_referred)


def setup(app: Sphinx) -> None:
    """Collect the facts as pages are read."""
    app.add_env_collector(Passed)
