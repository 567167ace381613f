"""What all tests share: checked shapes, no network, one thread, the book's trained weights."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from hypothesis import settings
from jaxtyping import config, install_import_hook

from loom.run.kernel import artifacts

# From here on, a call whose tensors have other shapes than its signature says is an error.
install_import_hook("tangled", "beartype.beartype")
torch.set_num_threads(1)
# Started in the background, pytest would pass to its children that they ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
# What the book trained is not trained again.
os.environ["TANGLED_ARTIFACTS"] = str(artifacts(Path(__file__).parents[1]))
# Every run draws the same examples, and the first call of a law may pay for imports.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")

# The front matter that a chapter of the tests gets if it has none: five lines.
FRONT = """\
---
jupytext: {text_representation: {extension: .md, format_name: myst}}
kernelspec: {name: python3, display_name: Python 3, language: python}
tangle: diffusion/a.py
---
"""


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Deal out the tests, and skip those that need an accelerator where there is none."""
    if hasattr(config, "workerinput"):  # one of several processes
        # The longest first, so that no process waits for it at the end.
        items.sort(key=lambda item: item.path.parent.name != "site")
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(
                    pytest.mark.skip(reason="needs an accelerator")
                )


@pytest.fixture
def plain_errors() -> Iterator[None]:
    """Let the package's own messages through, instead of the shape checker's."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture
def write_book(tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    """Return a function that writes a book into a temporary folder and returns the folder.

    Files under `book/` are its chapters, in the order given. A first page is added.
    """

    def write(files: dict[str, str]) -> Path:
        pages = [name for name in files if name.startswith("book/")]
        toc = [
            "format: jb-book",
            "root: book/index",
            "parts:",
            "  - caption: A part",
        ]
        toc += [
            "    chapters:",
            *(f"      - file: {name.removesuffix('.md')}" for name in pages),
        ]
        made = {
            "_toc.yml": "\n".join(toc) + "\n",
            "book/index.md": "# The book\n",
            **files,
        }
        for name, text in made.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            front = (
                FRONT if name in pages and not text.startswith("---") else ""
            )
            path.write_text(front + text)
        return tmp_path

    return write
