"""The mathematical macros, without a page."""

import pytest

from loom.weave.macros import balanced


@pytest.mark.parametrize(
    ("formula", "right"),
    [
        (r"\frac{a}{b}", True),
        (r"\{ a", True),
        (r"{\}", False),
        ("}{", False),
        (r"\\{a}", True),
    ],
)
def test_braces_of_a_formula(formula, right):
    assert balanced(formula) is right
