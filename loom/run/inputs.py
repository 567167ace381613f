"""One hash for everything that a chapter's results depend on besides its own cells.

jupyter-cache recognises a notebook by the source and options of its cells. A chapter's results
depend on more: on the modules of this project that its cells import, directly or through one
another; on the versions in the lock file; on the kernel's profile; on the Python that runs it.
"""

import ast
import contextlib
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import yaml

from loom.read.blocks import halves, page
from loom.run import kernel

__all__ = ["inputs_digest", "modules", "stamped"]

LOCK = "constraints.txt"
PACKAGES = ("tangled", "loom")
MAGIC = re.compile(r"^[ \t]*[%!].*$", re.MULTILINE)


def inputs_digest(root: Path, chapter_source: str) -> str:
    """The hash for a chapter whose text is `chapter_source`, of the book in `root`."""
    parts = [(f"python {sys.version_info.major}.{sys.version_info.minor}", b"")]
    lock = root / LOCK
    parts.append((LOCK, lock.read_bytes() if lock.is_file() else b""))
    parts += [(file.name, file.read_bytes()) for file in kernel.files()]
    for file in modules(root, chapter_source):
        parts.append((file.relative_to(root).as_posix(), file.read_bytes()))
    total = hashlib.sha256()
    for name, content in parts:
        total.update(f"{name}\0{len(content)}\0".encode() + content)
    return total.hexdigest()[:32]


def modules(root: Path, chapter_source: str) -> list[Path]:
    """The project's own modules that the chapter's cells import, transitively."""
    found: set[Path] = set()
    lines = chapter_source.split("\n")
    codes = [halves(lines, cell)[1] for cell in page(chapter_source).cells]
    cells = ("\n".join(lines[number - 1] for number in code) for code in codes)
    pending = [name for cell in cells for name in _cell_imports(cell)]
    while pending:
        for file in _files(root, pending.pop()):
            if file not in found:
                found.add(file)
                pending += _file_imports(file.read_bytes(), _package(root, file))
    return sorted(found)


@lru_cache(maxsize=512)
def _file_imports(content: bytes, package: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_imports(ast.parse(content), package))


@lru_cache(maxsize=4096)
def _cell_imports(cell: str) -> tuple[str, ...]:
    """Names imported in a cell, whose magics are no Python."""
    if "import" not in cell:
        return ()
    code = MAGIC.sub("", cell)
    try:
        return tuple(_imports(ast.parse(code), ()))
    except SyntaxError:  # a mistake, or one shown on purpose: whatever lines make sense alone
        found: list[str] = []
        for line in code.splitlines():
            with contextlib.suppress(SyntaxError):
                found += _imports(ast.parse(line.strip()), ())
        return tuple(found)


def _imports(tree: ast.AST, package: tuple[str, ...]) -> Iterator[str]:
    """Dotted names that may be modules; `package` is where relative imports start from."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join(filter(None, (*above, node.module)))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _files(root: Path, name: str) -> Iterator[Path]:
    """The files that Python runs to import a name: its packages, then the module itself."""
    parts = name.split(".")
    if parts[0] not in PACKAGES:
        return
    for depth in range(1, len(parts) + 1):
        place = root.joinpath(*parts[:depth])
        for file in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            if file.is_file():
                yield file


def _package(root: Path, file: Path) -> tuple[str, ...]:
    return file.relative_to(root).parent.parts


def stamped(root: Path, text: str) -> str:
    """The chapter with its digest in the kernelspec, and each of its lines where it was."""
    above = text.index("\n") + 1 if "\n" in text else 0
    front = "\n".join(text.split("\n")[1 : page(text).front - 1]) if page(text).front else ""
    tree = yaml.compose(front, yaml.SafeLoader)
    if not isinstance(tree, yaml.MappingNode):
        return text
    for key, value in tree.value:
        if key.value == "kernelspec" and isinstance(value, yaml.MappingNode):
            spec = {name.value: item.value for name, item in value.value}
            spec["digest"] = inputs_digest(root, text)
            start, end = (above + m.index for m in (key.start_mark, value.end_mark))
            same_lines = "\n" * text.count("\n", start, end)
            return f"{text[:start]}kernelspec: {json.dumps(spec)}{same_lines}{text[end:]}"
    return text
