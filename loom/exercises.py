"""What the exercises of all chapters share."""

from collections.abc import Callable
from typing import Any

__all__ = ["refuses"]


def refuses(check: Callable[[Any], object], *planted: Any) -> None:
    """Make sure that a checker refuses every planted wrong answer.

    Raises:
        AssertionError: if it accepts one. What a checker raises besides is passed on.
    """
    for wrong in planted:
        try:
            check(wrong)
        except AssertionError:
            continue
        raise AssertionError(f"{check.__name__} accepts a wrong answer")
