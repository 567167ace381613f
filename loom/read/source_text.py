"""The text of a file of the book, the YAML in it, and the line of what is wrong there."""

from pathlib import Path
from typing import Any

import yaml

from loom.errors import Problem, Problems

__all__ = ["file_text", "line_of", "nested", "yaml_mapping"]

# Ten times as fast as the one in Python.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def file_text(root: Path, path: str) -> str:
    """What a file of the book says.

    Raises:
        Problems: if it cannot be read, or is not UTF-8.
    """
    try:
        return (root / path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        sentence = f"this file is not UTF-8 (byte {error.start})"
        raise Problems([Problem(path, 1, "B02", sentence)]) from None
    except OSError as error:
        sentence = f"this file cannot be read: {error.strerror}"
        raise Problems([Problem(path, 1, "B02", sentence)]) from None


def yaml_mapping(path: str, above: int, text: str) -> dict[str, Any]:
    """Read YAML that must be a mapping; `above` lines stand above it in its file."""
    line = above + 1
    try:
        found = _yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line += mark.line if mark else 0
        reason = getattr(error, "problem", None) or str(error).partition("\n")[0]
    except (ValueError, RecursionError) as error:  # for instance a 30th of February
        reason = str(error)
    else:
        if found is None or isinstance(found, dict):
            return found or {}
        reason = "it is no mapping"
    raise Problems([Problem(path, line, "B03", f"this YAML does not parse: {reason}")])


def _yaml(text: str) -> Any:
    """Read YAML in C, where that can be; what is wrong with it is said better in Python.

    Tabs are refused by the one in Python alone, which Jupyter and Sphinx read with.
    """
    if "\t" in text:
        return yaml.safe_load(text)
    try:
        return yaml.load(text, _LOADER)
    except yaml.YAMLError:
        return yaml.safe_load(text)


def nested(tree: object, *keys: str) -> object:
    """What stands at nested keys of a mapping; None where there is none."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def line_of(text: str, key: str) -> int:
    """The first line that begins with a key, wherever it is indented to; 1 if there is none."""
    lines = enumerate(text.split("\n"), 1)
    return next((n for n, line in lines if line.lstrip().startswith(f"{key}:")), 1)
