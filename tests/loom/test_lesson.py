"""What chapters import.

A class grown over several cells is the class that one cell would have made, and a checker that
accepts a wrong answer does not get through.
"""

import abc
import dataclasses
import functools

import pytest
import torch

from loom import continues, refuses


class Base:
    def name(self) -> str:
        return "base"


def begun() -> type:
    class Net(Base):
        """A net."""

        def __init__(self) -> None:
            self.__private = 1

    return Net


def test_super_means_the_superclass_of_the_first_class() -> None:
    Net = begun()
    earlier = Net()

    @continues(Net)
    class Net:
        def name(self) -> str:
            return "net of " + super().name()

    assert earlier.name() == "net of base"
    assert isinstance(earlier, Net)
    assert Net.__mro__[1:] == (Base, object)
    assert Net.__doc__ == "A net."


@pytest.mark.parametrize(
    "decorator",
    [
        torch.no_grad(),
        functools.cache,
        functools.partialmethod,
        property,
        functools.cached_property,
    ],
    ids=["no_grad", "cache", "partialmethod", "property", "cached_property"],
)
def test_super_survives_decorators(decorator) -> None:
    Net = begun()

    @continues(Net)
    class Net:
        @decorator
        def name(self) -> str:
            return "net of " + super().name()

    named = Net().name
    assert (named if isinstance(named, str) else named()) == "net of base"


def test_class_and_static_methods() -> None:
    Net = begun()

    @continues(Net)
    class Net:
        @classmethod
        def made(cls) -> tuple:
            return cls, __class__

        @staticmethod
        def plain() -> type:
            return __class__

    assert Net.made() == (Net, Net)
    assert Net.plain() is Net


def test_private_names_are_mangled_as_in_one_class() -> None:
    Net = begun()

    @continues(Net)
    class Net:
        def private(self) -> int:
            return self.__private

    assert Net().private() == 1


def test_subclasses_made_earlier_see_the_members() -> None:
    Net = begun()
    Sub = type("Sub", (Net,), {})

    @continues(Net)
    class Net:
        limit = 3

    assert Sub().limit == 3


def test_abstract_methods_can_be_filled_in() -> None:
    class Shape(abc.ABC):
        @abc.abstractmethod
        def area(self) -> float: ...

    class Square(Shape):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Square()

    @continues(Square)
    class Square:
        def area(self) -> float:
            return 1.0

    assert Square().area() == 1.0


def test_a_frozen_dataclass_can_go_on() -> None:
    @dataclasses.dataclass(frozen=True)
    class Table:
        n: int

    @continues(Table)
    class Table:
        @property
        def double(self) -> int:
            return 2 * self.n

    assert Table(3).double == 6
    assert Table(3) == Table(3)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"__init__": lambda self: None}, "__init__"),
        ({"__post_init__": lambda self: None}, "__post_init__"),
        ({"__slots__": ()}, "__slots__"),
        ({}, "cannot continue"),
    ],
)
def test_what_a_continuation_cannot_do(body: dict, message: str) -> None:
    Net = begun()
    other = type("Net" if body else "Other", (), body)
    with pytest.raises(TypeError, match=message):
        continues(Net)(other)


def check_even(number: int) -> None:
    """Check an answer."""
    assert number % 2 == 0, "odd"


def test_wrong_answers_that_are_refused_say_nothing() -> None:
    refuses(check_even)
    refuses(check_even, 1, 3)


@pytest.mark.parametrize("planted", [(2,), (1, 2), (2, 1)])
def test_a_wrong_answer_that_is_accepted_is_told(
    planted: tuple[int, ...],
) -> None:
    with pytest.raises(
        AssertionError, match=r"^check_even accepts a wrong answer$"
    ):
        refuses(check_even, *planted)


def test_a_checker_that_breaks_is_not_one_that_refuses() -> None:
    with pytest.raises(TypeError):
        refuses(check_even, "three", 1)
