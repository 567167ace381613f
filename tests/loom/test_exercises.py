"""`refuses`: a checker that accepts a wrong answer does not get through."""

import pytest

from loom import refuses


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
