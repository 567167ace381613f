"""Work out something about an immutable object once, however often it is asked for."""

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

__all__ = ["memo"]

T = TypeVar("T")
R = TypeVar("R")


def memo(function: Callable[[T], R]) -> Callable[[T], R]:
    """Keep what a function of one object returns with that object, for as long as it lives."""
    name = f"_{function.__module__}.{function.__name__}"

    @wraps(function)
    def kept(thing: T) -> R:
        known = vars(thing)
        if name not in known:
            known[name] = function(thing)
        found: R = known[name]
        return found

    return kept
