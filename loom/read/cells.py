"""Read a code cell: its options, and what is wrong with them."""

import keyword
import re
from typing import Any

from loom.errors import Problem, Problems
from loom.read.blocks import CELL, Block, halves
from loom.read.chapter import ROLES, Cell, Chapter, Line
from loom.read.source_text import yaml_mapping

__all__ = ["read_cell"]

# Options of a cell: loom's own, and those of the notebook.
OPTIONS = (*ROLES, "implements", "open", "tags", "mystnb")
OPTION = re.compile(r":([A-Za-z_][\w-]*):(?:\s+(.*))?$")
STRAY = re.compile(r"\s*:[A-Za-z_][\w-]*:")
MODULE = re.compile(r"tangled(/(?!__)[a-z_][a-z0-9_]*)+\.py")

NESTED = "a code cell stands at the top level, at the beginning of a line, not in another block"
COLONS = "a code cell has a fence of backticks, as ```{code-cell}: one of colons is never run"
OPEN = "this code cell is never closed"


def read_cell(chapter: Chapter, index: int, block: Block, lines: list[str]) -> Cell:
    """Read one cell: its options (a YAML block, or lines `:name: value`), then its code."""

    def refuse(line: int, code: str, sentence: str) -> Problems:
        return Problems([Problem(chapter.path, line, code, sentence)])

    if block.name != CELL:
        raise refuse(block.line, "B06", f"'{block.name}' is written '{CELL}'")
    if block.mark.startswith(":"):
        raise refuse(block.line, "B06", COLONS)
    if block.before or block.inside:
        raise refuse(block.line, "B06", NESTED)
    above, code = halves(lines, block)
    body = tuple(Line(lines[number - 1], chapter.path, number) for number in code)
    if not block.closed or any(line.text.startswith(f"{block.mark}{{") for line in body):
        raise refuse(block.line, "B07", OPEN)
    options: dict[str, Any] = {}
    if above and lines[above[0] - 1].strip() == "---":
        if len(above) == 1 or lines[above[-1] - 1].strip() != "---":
            sentence = "the option block of this cell is never closed by '---'"
            raise refuse(block.line, "B08", sentence)
        text = "\n".join(lines[number - 1] for number in above[1:-1])
        options = yaml_mapping(chapter.path, above[0], text)
    else:
        for number in above:
            if not (match := OPTION.match(lines[number - 1])):
                sentence = f"'{lines[number - 1].strip()}' is no option: write ':name: value'"
                raise refuse(number, "L01", sentence)
            options[match[1]] = (match[2] or "").strip()
    if body and STRAY.match(body[0].text):
        sentence = "options stand at once below the fence of their cell, at the left margin"
        raise refuse(body[0].number, "L01", sentence)
    cell = Cell(chapter, index, block.line, block.end, options, body)
    if refused := _refused_options(cell):
        raise refuse(block.line, "L01", refused)
    return cell


def _refused_options(cell: Cell) -> str | None:
    """What is wrong with the options of a cell, if anything is."""
    unknown = [option for option in cell.options if option not in OPTIONS]
    if unknown:
        return f"'{unknown[0]}' is no option of a cell: there are {', '.join(OPTIONS)}"
    roles = [role for role in ROLES if role in cell.options]
    if len(roles) > 1:
        return f"a cell cannot be both '{roles[0]}' and '{roles[1]}'"
    if "implements" in cell.options and cell.kind != "tangle":
        return "':implements:' belongs to a cell with ':tangle:'"
    for role in ("verifies", "refutes", "implements"):
        if isinstance(cell.options.get(role), list | dict):
            return f"':{role}:' is a line of labels, separated by blanks"
        if role in cell.options and not cell.labels(role):
            return f"':{role}:' names no label"
    if cell.kind != "tangle":
        return None
    if cell.module is None:
        return "':tangle:' names no module, and neither does the front matter"
    parts = cell.module.removesuffix(".py").split("/")
    if not MODULE.fullmatch(cell.module) or any(map(keyword.iskeyword, parts)):
        return f"'{cell.module}' is no path of a module, such as diffusion/forward.py"
    return None
