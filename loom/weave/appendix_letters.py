"""Let the numbers of the appendices, which are letters, be what they were in the last build."""

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx_external_toc.collectors import TocTreeCollectorWithStyles

__all__ = ["setup"]

assign = TocTreeCollectorWithStyles.assign_section_numbers


def assigned(self: TocTreeCollectorWithStyles, env: BuildEnvironment) -> list[str]:
    """Number the sections; return the pages whose numbers changed.

    The library compares letters with the numbers that they are made from, and so returns the
    appendices in every build.
    """
    before = env.toc_secnumbers
    assign(self, env)  # type: ignore[no-untyped-call]
    return [name for name, now in env.toc_secnumbers.items() if before.get(name) != now]


def setup(app: Sphinx) -> None:
    """Make it so: Sphinx has no event between the numbers and the pages that they change."""
    TocTreeCollectorWithStyles.assign_section_numbers = assigned  # type: ignore[method-assign]
