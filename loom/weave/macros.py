"""One list of mathematical macros for MathJax and LaTeX: `book/_static/macros.json`.

A macro is a name with its body, or with a pair of body and number of arguments. Whoever reads a
page sees an unknown command as an error in red, so the build looks for them in the formulas.
"""

import json
import re
from functools import cache
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ExtensionError
from sphinx.util import logging

from loom.errors import Problem, Problems

__all__ = ["balanced", "check", "latex", "read", "setup", "share"]

FILE = "book/_static/macros.json"
MATHJAX = "book/_static/mathjax/tex-chtml-full.js"
# A command in a formula; an escaped character; a key of MathJax' tables of commands.
COMMAND = re.compile(r"\\([A-Za-z]+)")
ESCAPED = re.compile(r"\\[^A-Za-z]")
KEY = re.compile(r'[{,]"?\\*([A-Za-z]+)\*?"?:')

Macros = dict[str, str | list[str | int]]

logger = logging.getLogger(__name__)


def read(root: Path) -> Macros:
    """The macros of a book; none, if it has no such file.

    Raises:
        Problems: if the file is not as it should be.
    """
    if not (root / FILE).is_file():
        return {}
    text = (root / FILE).read_text(encoding="utf-8")
    try:
        macros: Macros = json.loads(text)
    except json.JSONDecodeError as error:
        sentence = f"this JSON does not parse: {error.msg}"
        raise Problems([Problem(FILE, error.lineno, "B03", sentence)]) from None
    problems = []
    for name, macro in macros.items():
        match macro if isinstance(macro, list) else [macro, 0]:
            case [str(body), int()] if name.isalpha() and balanced(body):
                continue
        line = next((n for n, x in enumerate(text.split("\n"), 1) if f'"{name}"' in x), 1)
        sentence = (
            f"'{name}' is no macro: letters for a name, a body whose braces close, alone or with "
            "a number of arguments"
        )
        problems.append(Problem(FILE, line, "B05", sentence))
    if problems:
        raise Problems(problems)
    return macros


def balanced(formula: str) -> bool:
    """Tell whether each brace of a formula is closed."""
    depth = 0
    for mark in re.findall("[{}]", ESCAPED.sub("", formula)):
        depth += 1 if mark == "{" else -1
        if depth < 0:
            return False
    return depth == 0


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
    try:
        macros = read(Path(app.srcdir))
    except Problems as problems:
        raise ExtensionError(str(problems)) from None
    config.mathjax3_config = {
        # An unknown command is an error on the page, which a test finds, and no red text.
        "tex": {"macros": macros, "packages": {"[-]": ["noerrors", "noundefined"]}},
        "options": {"enableMenu": False},
    }
    elements = config.latex_elements
    elements["preamble"] = elements.get("preamble", "") + "\n" + latex(macros)


def check(app: Sphinx, doctree: nodes.document) -> None:
    """Warn of formulas that a reader would see as errors."""
    known = _commands(Path(app.srcdir))
    for formula in doctree.findall(lambda n: isinstance(n, nodes.math | nodes.math_block)):
        text = formula.astext()
        if not balanced(text):
            logger.warning("the braces of this formula do not close: %s", text, location=formula)
        for name in sorted(set(COMMAND.findall(text)) - known) if known else ():
            logger.warning("\\%s is no command of MathJax, and no macro", name, location=formula)


@cache
def _commands(root: Path) -> frozenset[str]:
    """The commands that MathJax has, and some other names; none, if the book brings no MathJax."""
    if not (root / MATHJAX).is_file():
        return frozenset()
    return frozenset(KEY.findall((root / MATHJAX).read_text("utf-8"))) | set(read(root))


def setup(app: Sphinx) -> None:
    """Hand the macros to both outputs, and look through the formulas of each page."""
    app.connect("config-inited", share)
    app.connect("doctree-read", check)
