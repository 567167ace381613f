"""Hand-written tests that say which result they are about: `@pytest.mark.verifies("thm-x")`."""

import ast
from dataclasses import dataclass
from pathlib import Path

from loom.errors import Problem, Problems
from loom.tangle.syntax import walk

__all__ = ["Mark", "marked_tests"]

VERBS = ("verifies", "refutes")


@dataclass(frozen=True)
class Mark:
    """A label on a test; `verb` is `verifies` or `refutes`."""

    path: str
    line: int
    test: str
    verb: str
    label: str


def marked_tests(root: Path) -> list[Mark]:
    """Return the marks of all tests under `tests/`, by file and line, those of loom's own left out.

    The tests of `tests/book/` carry no marks: their cells in the chapters say what they verify.

    Raises:
        Problems: if a file does not parse.
    """
    found: list[Mark] = []
    for file in sorted((root / "tests").rglob("test_*.py")):
        path = file.relative_to(root).as_posix()
        text = file.read_text(encoding="utf-8", errors="replace")
        if path.startswith(("tests/book/", "tests/loom/")) or "pytest.mark." not in text:
            continue
        tests = (node for node in walk(_tree(text, path)) if isinstance(node, ast.FunctionDef))
        for test in sorted(tests, key=lambda test: test.lineno):
            found += _of(test, path)
    return found


def _tree(text: str, path: str) -> ast.Module:
    try:
        return ast.parse(text, path)
    except SyntaxError as error:
        sentence = f"this file does not parse: {error.msg}"
        raise Problems([Problem(path, error.lineno or 1, "L02", sentence)]) from None


def _of(test: ast.FunctionDef, path: str) -> list[Mark]:
    found: list[Mark] = []
    for decorator in test.decorator_list:
        if not isinstance(decorator, ast.Call):
            continue
        _, _, verb = ast.unparse(decorator.func).rpartition("pytest.mark.")
        if verb in VERBS:
            labels = [a.value for a in decorator.args if isinstance(a, ast.Constant)]
            found += [Mark(path, decorator.lineno, test.name, verb, str(n)) for n in labels]
    return found
