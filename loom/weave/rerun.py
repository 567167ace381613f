"""Let myst-nb run a chapter again exactly when something that its results depend on changed.

The digest of a chapter is written into the `kernelspec` of its front matter while Sphinx reads
it. There it enters the key of jupyter-cache; in the file nothing changes. Sphinx reads a page
again only when the page changed, so it is also told which digests did.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from loom.run import cache, kernel
from loom.run.inputs import inputs_digest, stamped

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

__all__ = ["setup"]


def setup(app: "Sphinx") -> None:
    """Make a plain `jupyter-book build .` run chapters as `loom run` does."""
    os.environ.update(kernel.environment(Path(app.srcdir)))
    app.connect("builder-inited", _heal)
    app.connect("source-read", _stamp)
    app.connect("env-get-outdated", _outdated)
    app.connect("env-purge-doc", _purge)
    app.connect("env-merge-info", _merge)


def _heal(app: "Sphinx") -> None:
    cache.heal(cache.place(Path(app.srcdir)))


def _digests(env: "BuildEnvironment") -> dict[str, str]:
    """The digest that each page was last read with; pickled with the environment."""
    if not hasattr(env, "loom_digests"):
        env.loom_digests = {}
    digests: dict[str, str] = env.loom_digests
    return digests


def _stamp(app: "Sphinx", docname: str, source: list[str]) -> None:
    root, text = Path(app.srcdir), source[0]
    source[0] = stamped(root, text)
    if source[0] != text:
        _digests(app.env)[docname] = inputs_digest(root, text)


def _outdated(
    app: "Sphinx", env: "BuildEnvironment", added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    root, known = Path(app.srcdir), _digests(env)
    return [
        name
        for name in known.keys() - removed - changed
        if inputs_digest(root, Path(env.doc2path(name)).read_text("utf-8-sig")) != known[name]
    ]


def _purge(app: "Sphinx", env: "BuildEnvironment", docname: str) -> None:
    _digests(env).pop(docname, None)


def _merge(
    app: "Sphinx", env: "BuildEnvironment", docnames: list[str], other: "BuildEnvironment"
) -> None:
    read = _digests(other)
    _digests(env).update({name: read[name] for name in docnames if name in read})
