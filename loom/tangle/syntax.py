"""What several parts of loom ask of Python's syntax: above all, which names a statement defines."""

import ast
from collections.abc import Iterator

__all__ = [
    "DEFINITION",
    "bound",
    "constants",
    "continued",
    "defined",
    "first_line",
    "is_guard",
    "walk",
]

DEFINITION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
# What holds no code: numbers and names, and whether a name is read or set.
LEAVES = frozenset({int, str, type(None), ast.Load, ast.Store, ast.Del})


def defined(node: ast.AST) -> list[str]:
    """The names that a definition, an assignment or an annotation gives a meaning."""
    if isinstance(node, DEFINITION):
        return [node.name]
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
        return list(dict.fromkeys(names))
    return []


def constants(node: ast.AST) -> list[str]:
    """The names that an assignment defines which assigns to names alone; else none."""
    if isinstance(node, ast.AnnAssign):
        plain = isinstance(node.target, ast.Name) and node.value is not None
    elif isinstance(node, ast.Assign):
        parts = [p for t in node.targets for p in (t.elts if isinstance(t, ast.Tuple) else [t])]
        plain = all(isinstance(part, ast.Name) for part in parts)
    else:
        plain = False
    return defined(node) if plain else []


def is_guard(node: ast.AST) -> bool:
    """Tell whether a statement is `if __name__ == "__main__":`."""
    return (
        isinstance(node, ast.If)
        and ast.unparse(node.test) == "__name__ == '__main__'"
        and not node.orelse
    )


def continued(node: ast.ClassDef) -> str | None:
    """The name in `@continues(Name)`, if the class has that decorator."""
    for decorator in node.decorator_list:
        if (
            isinstance(decorator, ast.Call)
            and isinstance(decorator.func, ast.Name)
            and decorator.func.id == "continues"
        ):
            return ast.unparse(decorator.args[0]) if decorator.args else ""
    return None


def first_line(node: ast.stmt) -> int:
    """The first line of a statement, that of its first decorator if it has any."""
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def bound(node: ast.stmt) -> Iterator[str]:
    """The names that a statement may bind; those of its inner functions are among them."""
    if isinstance(node, ast.ClassDef) and continued(node) is not None:
        return
    if isinstance(node, DEFINITION):
        yield node.name
        return
    for child in walk(node):
        if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            yield child.id
        elif isinstance(child, DEFINITION):
            yield child.name
        elif isinstance(child, ast.alias):
            yield child.asname or child.name.partition(".")[0]
        elif isinstance(child, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and child.name:
            yield child.name
        elif isinstance(child, ast.MatchMapping) and child.rest:
            yield child.rest


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all below it, in no order and without contexts, which say read or set."""
    stack = [node]
    while stack:
        node = stack.pop()
        yield node
        for child in vars(node).values():
            kind = type(child)
            if kind is list:
                stack += [item for item in child if isinstance(item, ast.AST)]
            elif kind not in LEAVES and isinstance(child, ast.AST):
                stack.append(child)
