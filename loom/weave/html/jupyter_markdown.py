"""MyST Markdown to the Markdown that Jupyter shows: nothing is lost, little is styled."""

import re
from collections.abc import Iterator

from loom.read.blocks import page

__all__ = ["jupyter_markdown"]

KINDS = {
    "def": "Definition",
    "lem": "Lemma",
    "prop": "Proposition",
    "thm": "Theorem",
    "cor": "Corollary",
    "alg": "Algorithm",
    "ex": "Exercise",
    "rem": "Remark",
    "eq": "Equation",
    "fig": "Figure",
    "tab": "Table",
}
# Blocks that only lay out a page, and say nothing a reader of the notebook would miss.
SILENT = {"tableofcontents", "bibliography", "index", "raw", "toctree", "contents", "solution-end"}

OPTION = re.compile(r"\s*:(?P<name>[\w-]+):\s*(?P<value>.*)$")
TARGET = re.compile(r"\([\w:.-]+\)=\s*$")
TAGGED = re.compile(r"^\$\$\s*\((?P<label>[\w:.-]+)\)\s*$")
ROLE = re.compile(r"\{(?P<role>[\w:.+-]+)\}`(?P<body>[^`]+)`")
TITLED = re.compile(r"(?P<text>.*?)\s*<(?P<target>[^<>]+)>$", re.DOTALL)


def jupyter_markdown(text: str) -> str:
    """The text with directives, labels and roles written out."""
    return re.sub(r"\n{3,}", "\n\n", "\n".join(_blocks(text.split("\n")))).strip("\n")


def _blocks(lines: list[str]) -> Iterator[str]:
    fences = {block.line: block for block in page("\n".join(lines)).blocks if not block.inside}
    at = 0
    while at < len(lines):
        line = lines[at]
        at += 1
        if block := fences.get(at):
            inside, at = lines[at : block.end - 1], block.end
            if block.name:
                yield from _directive(block.name, block.title, inside)
            else:  # ordinary code: as it stands
                yield from (line, *inside, re.sub(r"[^\s>]", " ", block.before) + block.mark)
        elif tagged := TAGGED.match(line):
            yield rf"\tag{{{_slug(tagged['label'])}}}"
            yield "$$"
        elif not TARGET.match(line):
            yield ROLE.sub(_role, line)


def _directive(name: str, title: str, lines: list[str]) -> Iterator[str]:
    """A directive: its options are read, its title becomes a bold line, its text follows."""
    options: dict[str, str] = {}
    while lines and (option := OPTION.match(lines[0])):
        options[option["name"]] = option["value"]
        lines = lines[1:]
    label = options.get("label") or options.get("name") or ""
    glued, _, name = name.rpartition(":")
    if name in SILENT:
        return
    yield ""
    if name in ("code-block", "code", "sourcecode"):
        yield from (f"```{title}", *lines, "```")
    elif name == "math":
        yield from ("$$", *lines, *([rf"\tag{{{_slug(label)}}}"] if label else []), "$$")
    elif glued == "glue":  # a picture of another cell: its caption says what it shows
        yield from (f"**Figure ({_slug(label)}).**", "", *_blocks(lines))
    elif name in ("figure", "image"):
        yield f"![{options.get('alt', '')}]({title})"
        yield from ("", *_blocks(lines))
    elif name in ("solution", "solution-start"):
        yield from (f"**Solution of {_reference(title)}.**", "", *_blocks(lines))
    elif name == "proof":
        yield from ("*Proof.*", *_blocks(lines), r"$\square$")
    else:
        head = f"{_words(name)} ({_slug(label)})" if label else _words(name)
        plain_name = name in ("admonition", "dropdown", "table", "list-table")
        bold = title if plain_name and title else ". ".join(filter(None, (head, title)))
        yield from (f"**{ROLE.sub(_role, bold)}.**".replace("..", "."), "", *_blocks(lines))
    yield ""


def _role(role: re.Match[str]) -> str:
    """A role as words: the text that the author gave, or the kind and name of what it points to."""
    name, body = role["role"], role["body"]
    if titled := TITLED.match(body):
        text, target = titled["text"], titled["target"]
        return text.replace("%s", _slug(target)) if text else target
    if name == "eq":
        return f"({_slug(body)})"
    if name.startswith("cite"):
        return f"[{body}]"
    if name in ("prf:ref", "numref", "ref"):
        return _reference(body)
    if name == "math":
        return f"${body}$"
    return f"`{body}`" if name.startswith(("glue", "eval")) else body


def _reference(label: str) -> str:
    """What a label points to: `Theorem (forward-marginal)`."""
    kind = KINDS.get(label.partition("-")[0])
    return f"{kind} ({_slug(label)})" if kind else label


def _slug(label: str) -> str:
    """A label without its kind: `forward-marginal` for `eq-forward-marginal`."""
    kind, _, rest = label.partition("-")
    return rest if kind in KINDS and rest else label


def _words(name: str) -> str:
    return name.replace("-", " ").capitalize()
