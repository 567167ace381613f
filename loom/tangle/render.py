"""Write a module: its docstring, imports, `__all__`, and the pieces, whole lines as they are."""

import ast
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import replace

from loom.read.chapter import Line
from loom.tangle.names import Import
from loom.tangle.pieces import Piece
from loom.tangle.syntax import DEFINITION

__all__ = ["WIDTH", "render"]

# As the line length of the formatter, so that what loom writes needs no formatting.
WIDTH = 78


def render(
    docstring: str, imports: Iterable[Import], pieces: Sequence[Piece], public: bool
) -> list[Line]:
    """Return the lines of a module. `public` asks for an `__all__`."""
    out = [Line(line) for line in docstring.split("\n")]
    if statements := _import_lines(imports):
        out += [Line(""), *map(Line, statements)]
    names = [n for p in pieces for n in p.names if not n.startswith("_")]
    if public and names:
        entries = [f'"{name}"' for name in sorted(names, key=_by_type)]
        out += [Line(""), *map(Line, _wrapped("__all__ = [", entries, "]"))]
    previous: Piece | None = None
    for piece in sorted(pieces, key=lambda p: p.kind == "guard"):
        out += [Line("")] * _gap(previous, piece)
        out += cited(piece)
        previous = piece
    return out


def _gap(previous: Piece | None, piece: Piece) -> int:
    """Blank lines above a piece: as a formatter would set them."""
    if piece.kind != "constant":
        return 2
    if previous is None:
        return 1
    if previous.kind != "constant":
        return 2
    return 0 if piece.lines[0].number == previous.lines[-1].number + 1 else 1


def _by_type(name: str) -> tuple[int, list[tuple[int, str]], str]:
    """Sort as isort does: constants (of two bytes or more), classes, the rest."""
    kind = 0 if name.isupper() and len(name.encode()) > 1 else 1 if name[:1].isupper() else 2
    return kind, _natural(name), name


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort without regard to case, numbers in names by value."""
    return [
        (int(part), "") if part.isdigit() else (-1, part.lower())
        for part in re.split(r"(\d+)", name)
        if part
    ]


def _wrapped(head: str, entries: list[str], tail: str) -> list[str]:
    line = f"{head}{', '.join(entries)}{tail}"
    if len(line) <= WIDTH:
        return [line]
    return [head, *(f"    {entry}," for entry in entries), tail]


def _import_lines(imports: Iterable[Import]) -> list[str]:
    """Import statements in three groups: the standard library, third parties, the package."""
    groups: list[list[Import]] = [[], [], []]
    for entry in sorted(set(imports)):
        top = entry.module.partition(".")[0]
        groups[2 if top == "tangled" else 0 if top in sys.stdlib_module_names else 1].append(entry)
    out: list[str] = []
    for group in groups:
        if group and out:
            out.append("")
        plain = [i for i in group if not i.name]
        for entry in sorted(plain, key=lambda i: (_natural(i.module), i.module, i.alias)):
            out.append(f"import {entry.module}" + (f" as {entry.alias}" if entry.alias else ""))
        for module in sorted({i.module for i in group if i.name}, key=lambda m: (_natural(m), m)):
            out += _from(module, [i for i in group if i.name and i.module == module])
    return out


def _from(module: str, named: list[Import]) -> list[str]:
    """One statement for the names that keep theirs, and one for each that gets another."""
    named.sort(key=lambda i: (_by_type(i.name), i.alias))
    plain = [i.name for i in named if not i.alias]
    out: list[str] = []
    for entry in named:
        if entry.alias:
            out.append(f"from {module} import {entry.name} as {entry.alias}")
        elif entry.name == plain[0]:
            line = f"from {module} import {', '.join(plain)}"
            whole = len(line) <= WIDTH
            out += [line] if whole else _wrapped(f"from {module} import (", plain, ")")
    return out


def cited(piece: Piece) -> list[Line]:
    """The lines of a piece; docstrings end with the labels that their definition carries."""
    lines = list(piece.lines)
    labelled = any(c.implements or c.verifies or c.refutes for _, c in piece.members)
    if not labelled:
        return lines
    node = ast.parse(piece.text).body[0]
    places: list[tuple[ast.Expr, str]] = []
    for member, cell in piece.members:
        verb = "Implements" if cell.implements else "Verifies" if cell.verifies else "Refutes"
        labels = cell.implements or cell.verifies or cell.refutes
        if not labels or (member and cell is piece.cell):
            continue
        if not cell.implements and not piece.name.startswith("test_"):
            continue
        target = _member(node, member) if member else node
        if (docstring := _docstring(target)) is not None:
            where = cell.chapter.path
            names = {"Refutes": "Negative control of"}.get(verb, verb)
            places.append((docstring, f"{names} {', '.join(labels)} ({where})."))
    for docstring, sentence in sorted(places, key=lambda place: -place[0].lineno):
        lines = _with_sentence(lines, docstring, sentence)
    return lines


def _member(node: ast.stmt, name: str) -> ast.stmt | None:
    body = node.body if isinstance(node, ast.ClassDef) else []
    return next((child for child in body if getattr(child, "name", "") == name), None)


def _docstring(node: ast.stmt | None) -> ast.Expr | None:
    body = getattr(node, "body", None)
    if isinstance(node, DEFINITION) and body:
        first = body[0]
        if (
            isinstance(first, ast.Expr)
            and isinstance(first.value, ast.Constant)
            and isinstance(first.value.value, str)
        ):
            return first
    return None


def _with_sentence(lines: list[Line], docstring: ast.Expr, sentence: str) -> list[Line]:
    """Add a last paragraph to a docstring. Only the line with the closing quotes is rewritten."""
    assert docstring.end_lineno is not None
    assert docstring.end_col_offset is not None
    at = docstring.end_lineno - 1
    # Columns of the syntax tree count bytes.
    raw = lines[at].text.encode()
    text, rest = (
        raw[: docstring.end_col_offset].decode(),
        raw[docstring.end_col_offset :].decode(),
    )
    quotes = text[-3:]
    if quotes not in ('"""', "'''") or rest.strip():
        return lines
    indent = " " * docstring.col_offset
    added = [
        Line(indent + part)
        for part in textwrap.wrap(sentence, WIDTH - len(indent), break_on_hyphens=False)
    ]
    before = text[:-3].rstrip()
    if before:
        kept = replace(lines[at], text=before, rest=lines[at].text[len(before) :])
        return [*lines[:at], kept, Line(""), *added, Line(indent + quotes), *lines[at + 1 :]]
    return [*lines[:at], Line(""), *added, *lines[at:]]
