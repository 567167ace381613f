"""The settings of Jupyter Book, `_config.yml`, as far as loom uses them."""

from pathlib import Path
from typing import Any

from loom.errors import Problem, Problems
from loom.read.source_text import file_text, line_of, nested, yaml_mapping

__all__ = ["settings"]


def settings(root: Path) -> dict[str, Any]:
    """The settings of Jupyter Book, `_config.yml`; none where there is no such file.

    Raises:
        Problems: if it is no YAML, or what loom uses of it is of the wrong kind.
    """
    name = "_config.yml"
    if not (root / name).is_file():
        return {}
    text = file_text(root, name)
    found = yaml_mapping(name, 0, text)
    timeout = nested(found, "execute", "timeout")
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int)):
        raise Problems(
            [Problem(name, line_of(text, "timeout"), "B05", "'timeout' is a number of seconds")]
        )
    for key in ("execute", "parse"):
        if not isinstance(found.get(key) or {}, dict):
            sentence = f"'{key}' holds settings, each on a line"
            raise Problems([Problem(name, line_of(text, key), "B05", sentence)])
    return found
