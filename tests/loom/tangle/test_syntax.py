"""Which names a statement defines."""

import ast

from loom.tangle.syntax import defined


def test_one_statement_defines_several_names():
    node = ast.parse("PAD, START = 0, 1").body[0]
    assert defined(node) == ["PAD", "START"]
