"""What chapters import: classes that grow over several cells, and exercises that check themselves.

Of loom this is all that readers install, so it imports nothing of the rest. A class grows by
`continues`: in the chapter the decorator moves the members of the new body into the existing class.
In the tangled module the body simply stands inside the class, so nothing of this file is needed
there.
"""

import abc
from collections.abc import Callable, Iterator
from types import CellType, FunctionType
from typing import Any, TypeVar

__all__ = ["FIRST_CELL", "continues", "refuses"]

T = TypeVar("T")

# What every class body has of its own, and what must not replace the original's.
_NOT_MEMBERS = {"__dict__", "__weakref__", "__module__", "__qualname__", "__doc__"} | {
    "__annotations__",
    "__firstlineno__",
    "__static_attributes__",
}


# What Python looks at while it makes a class (and `dataclass` after it): too late in a second cell.
FIRST_CELL = frozenset(
    {"__eq__", "__hash__", "__init__", "__init_subclass__", "__new__", "__post_init__", "__slots__"}
)


def continues(cls: type[T]) -> Callable[[type], type[T]]:
    """Return a decorator that adds the members of a class body to `cls`.

    Instances and subclasses of `cls` made earlier see the new members, `super()` in them means
    the superclass of `cls`, and private names are mangled as usual.

    Raises:
        TypeError: if the body has another name than `cls`, or defines `__init__` or another
            method that Python looks at while it makes a class.

    Example:
        >>> class Net:
        ...     def one(self): return 1
        >>> @continues(Net)
        ... class Net:
        ...     def two(self): return 2 * self.one()
        >>> Net().two()
        2
    """

    def move(body: type) -> type[T]:
        if body.__name__ != cls.__name__:
            raise TypeError(f"a class named {body.__name__} cannot continue {cls.__name__}")
        members = {k: v for k, v in vars(body).items() if k not in _NOT_MEMBERS}
        if fixed := FIRST_CELL.intersection(members):
            raise TypeError(f"the first cell of {cls.__name__} is the place of its {min(fixed)}")
        for name, member in members.items():
            for cell in _class_cells(member, body, set()):
                cell.cell_contents = cls
            setattr(cls, name, member)
        abc.update_abstractmethods(cls)
        return cls

    return move


def _class_cells(thing: object, body: type, seen: set[int]) -> Iterator[CellType]:
    """Yield the closure cells by which functions in `thing` know that they stand in `body`.

    Such a cell is what zero-argument `super()` reads. It can hide behind properties, class
    methods and wrapping decorators, so the search follows every function that it meets.
    """
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, FunctionType):
        for cell in thing.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:  # an empty cell: a name that was never assigned
                continue
            if content is body:
                yield cell
            elif not isinstance(content, type):
                yield from _class_cells(content, body, seen)
    for attribute in ("__func__", "fget", "fset", "fdel", "func", "__wrapped__"):
        inner = getattr(thing, attribute, None)
        if inner is not None:
            yield from _class_cells(inner, body, seen)


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
