"""Call the tests that a cell defines, as part of that cell.

An IPython extension: each function `test_*` without parameters at the top level of a cell is
called after the cell's own code, and one line `passed: test_a, test_b` is printed. A test that
fails therefore fails its cell, with the test's own traceback, and the build with it.
"""

import ast
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["Checks", "find_tests", "load_ipython_extension"]


def find_tests(tree: ast.Module) -> list[ast.FunctionDef]:
    """The functions `test_*` without parameters at the top level, the last of each name."""
    found: dict[str, ast.FunctionDef] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            found.pop(node.name, None)
            if not any(isinstance(inner, ast.arg) for inner in ast.walk(node.args)):
                found[node.name] = node
    return list(found.values())


class Checks(ast.NodeTransformer):
    """Append the calls to a cell that defines tests; leave any other cell as it is."""

    def visit_Module(self, node: ast.Module) -> ast.Module:
        """Rewrite one cell."""
        found = find_tests(node)
        if not found:
            return node
        if isinstance(last := node.body[-1], ast.Expr):
            # The cell no longer ends with this expression, so IPython would not display it.
            last.value = _call("get_ipython().displayhook", last.value, at=last)
        for test in found:
            node.body.append(ast.copy_location(ast.Expr(_call(test.name, at=test)), test))
        line = ast.Constant("passed: " + ", ".join(test.name for test in found))
        node.body.append(ast.Expr(_call("print", line, at=found[-1])))
        return ast.fix_missing_locations(node)


def _call(function: str, *arguments: ast.expr, at: ast.stmt) -> ast.expr:
    """A call that seems to stand at the first line of the statement `at`."""
    name = ast.parse(function, mode="eval").body
    call = ast.Call(name, list(arguments), [])
    for node in (call, *ast.walk(name)):
        if isinstance(node, ast.expr):
            node.lineno, node.col_offset = at.lineno, at.col_offset
            node.end_lineno, node.end_col_offset = at.lineno, at.col_offset
    return call


def load_ipython_extension(shell: "InteractiveShell") -> None:
    """What IPython calls when the kernel starts."""
    shell.ast_transformers.append(Checks())
