"""A chapter as the notebook that is executed."""

from pathlib import Path

import nbformat

from loom.read.settings import settings
from loom.run.inputs import stamped

__all__ = ["executable"]

# What Jupyter Book reads chapters with unless `_config.yml` says otherwise; of its list, these
# are the extensions that can decide where a code cell begins.
EXTENSIONS = ("colon_fence", "dollarmath")


def executable(chapter: Path, root: Path) -> nbformat.NotebookNode:
    """The chapter as myst-nb reads it with its digest in the front matter."""
    # They take longer to import than a run with nothing to do.
    from myst_nb.core.read import read_myst_markdown_notebook
    from myst_parser.config.main import MdParserConfig

    parse = settings(root).get("parse") or {}
    config = MdParserConfig(enable_extensions=set(parse.get("myst_enable_extensions", EXTENSIONS)))
    text = stamped(root, chapter.read_text("utf-8-sig"))
    return read_myst_markdown_notebook(text, config=config, add_source_map=True, path=chapter)
