"""One list of mathematical macros for MathJax and LaTeX: `book/_static/macros.json`.

A macro is a name with its body, or with a pair of body and number of arguments.
"""

import json
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config

__all__ = ["latex", "read", "share"]

Macros = dict[str, str | list[str | int]]


def read(root: Path) -> Macros:
    macros: Macros = json.loads((root / "book/_static/macros.json").read_text(encoding="utf-8"))
    return macros


def latex(macros: Macros) -> str:
    """The macros as definitions of new commands: a clash with a package then stops the build."""
    lines = []
    for name, macro in macros.items():
        body, arguments = (macro, 0) if isinstance(macro, str) else macro
        count = f"[{arguments}]" if arguments else ""
        lines.append(f"\\newcommand{{\\{name}}}{count}{{{body}}}")
    return "\n".join(lines)


def share(app: Sphinx, config: Config) -> None:
    """Hand the macros to both outputs."""
    macros = read(Path(app.srcdir))
    config.mathjax3_config = {
        # An unknown command is an error on the page, which a test finds, and no red text.
        "tex": {"macros": macros, "packages": {"[-]": ["noerrors", "noundefined"]}},
        "options": {"enableMenu": False},
    }
    elements = config.latex_elements
    elements["preamble"] = elements.get("preamble", "") + "\n" + latex(macros)
