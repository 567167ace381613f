"""The table of contents, `_toc.yml`: which pages there are, in reading order."""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from loom.errors import Problem, Problems
from loom.read.source_text import file_text, yaml_mapping

__all__ = ["listed_pages"]

PAGE = re.compile(r"[A-Za-z0-9._/-]+")  # also a part of names in notebooks, tests and addresses
ENTRY = re.compile(r"\b(?:root|file):\s*['\"]?([^'\"\s,}#]+)")


def listed_pages(toc: Path) -> list[tuple[int, str, str]]:
    """The pages that a table of contents lists: line, caption of the part, path without suffix."""
    if not toc.is_file():
        raise Problems(
            [Problem(toc.name, 1, "B01", f"there is no table of contents in {toc.parent}")]
        )
    text = file_text(toc.parent, toc.name)
    tree = yaml_mapping(toc.name, 0, text)
    if "root" not in tree:
        raise Problems([Problem(toc.name, 1, "B03", "the table of contents names no root")])
    places: dict[str, list[int]] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if match := ENTRY.search(line):
            places.setdefault(match[1].removesuffix(".md"), []).append(number)
    listed: set[str] = set()

    def page(part: str, name: str) -> tuple[int, str, str]:
        line = next(iter(places.get(name, ())), 1)
        if ".." in name or str(PurePosixPath(name)) != name or name.startswith("/"):
            raise Problems([Problem(toc.name, line, "B03", f"'{name}' is no path of this folder")])
        if not PAGE.fullmatch(name):
            sentence = f"'{name}' has more than letters without accents, digits and . _ - /"
            raise Problems([Problem(toc.name, line, "B03", sentence)])
        if name in listed:
            line = places.get(name, [1])[-1]
            raise Problems([Problem(toc.name, line, "B03", f"{name} is listed twice")])
        listed.add(name)
        return line, part, name

    def walk(node: object, part: str) -> Iterator[tuple[int, str, str]]:
        if not isinstance(node, dict):
            sentence = f"{node!r} is no entry: write 'file: book/part/chapter'"
            raise Problems([Problem(toc.name, 1, "B03", sentence)])
        for key in ("glob", "subtrees", "entries"):
            if key in node:
                sentence = f"loom does not read '{key}': list each chapter as a 'file'"
                raise Problems([Problem(toc.name, 1, "B03", sentence)])
        if name := str(node.get("root") or node.get("file") or "").removesuffix(".md"):
            yield page(part, name)
        for key in ("parts", "chapters", "sections"):
            children = node.get(key) or []
            if not isinstance(children, list):
                sentence = f"'{key}' is a list, each line with a hyphen"
                raise Problems([Problem(toc.name, 1, "B03", sentence)])
            for child in children:
                inner = part if key != "parts" else _caption(child)
                yield from walk(child, inner)

    try:
        return list(walk(tree, ""))
    except RecursionError:
        raise Problems([Problem(toc.name, 1, "B03", "an entry contains itself")]) from None


def _caption(part: object) -> str:
    return str(part.get("caption") or "") if isinstance(part, dict) else ""
