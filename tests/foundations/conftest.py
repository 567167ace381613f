"""What the tests of this part share: a way past the shape checker."""

from collections.abc import Iterator

import pytest
from jaxtyping import config


@pytest.fixture
def plain_errors() -> Iterator[None]:
    """Let the package's own messages through, instead of the shape checker's."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
