"""Show the chapter's line beside each line of a tangled module in a failing test's report.

`pytest -p loom.pytest_plugin` turns it on; the tests of this book do.
"""

from collections.abc import Generator
from functools import cached_property
from pathlib import Path

import pytest

from loom.errors import Problems
from loom.read.book import read
from loom.tangle.package import Tangled, tangle

__all__ = ["Places", "pytest_configure", "pytest_runtest_makereport"]

PLACES = pytest.StashKey["Places"]()


class Places:
    """Where the lines of the tangled files of a project come from; found at the first failure."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def tangled(self) -> Tangled | None:
        """The package as the chapters make it, if they do."""
        try:
            return tangle(read(self.root))
        except Problems:
            return None

    def of(self, file: Path, line: int) -> str | None:
        """`chapter:line (module:line)`; None for a line that comes from no chapter."""
        if self.tangled is None or not file.is_relative_to(self.root):
            return None
        path = file.relative_to(self.root).as_posix()
        module = self.tangled.modules.get(path)
        # A module that differs from its chapters would be given wrong lines.
        if module is None or file.read_bytes() != module.text.encode():
            return None
        source = module.lines[line - 1]
        return f"{source.path}:{source.number} ({path}:{line})" if source.number else None


def pytest_configure(config: pytest.Config) -> None:
    """Remember the project's root."""
    config.stash[PLACES] = Places(config.rootpath)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add a section to the report of a failure, one line for each frame of tangled code."""
    report = yield
    if report.failed and call.excinfo is not None:
        places = item.config.stash[PLACES]
        frames = [(Path(e.path), e.lineno + 1) for e in call.excinfo.traceback]
        if lines := [line for frame in frames if (line := places.of(*frame))]:
            report.sections.append(("in the chapters", "\n".join(lines)))
    return report
