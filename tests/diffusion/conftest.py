"""What the tests of this part share: laws without deadlines, and a way past the shape checker."""

from collections.abc import Iterator

import pytest
from hypothesis import settings
from jaxtyping import config

# The first call of a law pays for imports and compilation, so it has no deadline.
settings.register_profile("laws", deadline=None, derandomize=True)
settings.load_profile("laws")


@pytest.fixture
def plain_errors() -> Iterator[None]:
    """Let the package's own messages through, instead of the shape checker's."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
