"""The reference of the package: each public definition with its docstring and its derivation.

Its names are in Sphinx' Python domain too, so that the search finds them and other projects link to
them.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.domains.python import ModuleEntry, ObjectEntry, PythonDomain
from sphinx.environment import BuildEnvironment

from loom.prove.call_graph import CallGraph
from loom.tangle.definitions import Definition
from loom.tangle.package import Tangled
from loom.tangle.syntax import defined
from loom.weave.book_data import BookData, book_data
from loom.weave.links import Links
from loom.weave.provenance import Label, Module, Name, Note, anchor, listed

__all__ = ["package", "public", "register", "setup", "users"]

CITATION = re.compile(r"Implements [\w:, -]+\s+\([^)]*\)\.$", re.DOTALL)


def public(tangled: Tangled) -> list[Definition]:
    """The definitions of the package that have no leading underscore, in the book's order."""
    return [
        d
        for d in tangled.definitions
        if d.path.startswith("tangled/") and not any(p.startswith("_") for p in d.name.split("."))
    ]


def users(graph: CallGraph, tangled: Tangled) -> dict[str, list[Definition]]:
    """For each definition of the package, by its dotted name, those that use it directly."""
    found: dict[str, list[Definition]] = {}
    for d in tangled.definitions:
        if d.path.startswith("tangled/"):
            for used in graph.used(d.dotted) if d.dotted in graph.units else ():
                if used != d.dotted and not used.startswith(f"{d.dotted}."):
                    found.setdefault(used, []).append(d)
    return found


def register(app: Sphinx, env: BuildEnvironment) -> None:
    """Enter the public names of the package into the Python domain, each where it is derived."""
    domain = env.domains["py"]
    assert isinstance(domain, PythonDomain)
    domain.objects.clear()
    domain.modules.clear()
    for d in public(book_data(app).tangled):
        docname = d.chapter.removesuffix(".md")
        module = d.path.removesuffix(".py").replace("/", ".")
        entry = ObjectEntry(docname, anchor(d.name), kind(d), aliased=False)
        domain.objects[d.dotted] = entry
        if module not in domain.modules:
            domain.modules[module] = ModuleEntry(docname, anchor(d.name), "", "", False)


def kind(definition: Definition) -> str:
    """What the Python domain calls a definition, as its name tells."""
    outer, _, member = definition.name.rpartition(".")
    name = member or outer
    if outer:
        return "attribute" if name.isupper() else "method"
    if name.isupper() and len(name) > 1:
        return "data"
    return "class" if name[:1].isupper() else "function"


def package(loaded: BookData, links: Links, home: str) -> list[nodes.Node]:
    """For each module its sentence, then its definitions as they are called."""
    made: list[nodes.Node] = []
    for path, module in loaded.tangled.modules.items():
        own = [d for d in public(loaded.tangled) if d.path == path]
        if not own:
            continue
        tree = ast.parse(module.text)
        summary = (ast.get_docstring(tree) or "").partition("\n")[0]
        title = path.removesuffix(".py").replace("/", ".")
        made += [nodes.rubric("", "", nodes.literal(title, title)), nodes.paragraph("", summary)]
        nested = _nodes(tree)
        for d in own:
            made += _entry(d, nested[d.name], module.text.split("\n"), links, home)
    return made


def _nodes(tree: ast.Module) -> dict[str, ast.stmt]:
    found: dict[str, ast.stmt] = {}
    for node in tree.body:
        for name in defined(node):
            found[name] = node
        if isinstance(node, ast.ClassDef):
            for child in node.body:
                for name in defined(child):
                    found.setdefault(f"{node.name}.{name}", child)
    return found


def _entry(
    definition: Definition, node: ast.stmt, lines: list[str], links: Links, home: str
) -> list[nodes.Node]:
    """A definition: its head as it is written, its docstring, where it comes from."""
    body = getattr(node, "body", None)
    last = body[0].lineno - 1 if body else node.end_lineno
    head = inspect.cleandoc("\n".join(lines[definition.first - 1 : last]))
    docstring = ast.get_docstring(node) if body else None  # type: ignore[arg-type]
    made: list[nodes.Node] = [nodes.literal_block(head, head, language="python")]
    for paragraph in re.split(r"\n\s*\n", docstring or ""):
        if paragraph and not CITATION.match(paragraph):
            made += _paragraph(paragraph)
    where = Name("in the chapter", definition.chapter.removesuffix(".md"), anchor(definition.name))
    parts: Note = (where, " · ", Module(definition.path, definition.name))
    if definition.implements:
        parts = (
            "Implements ",
            *listed([Label(label)] for label in definition.implements),
            " · ",
            *parts,
        )
    made.append(nodes.paragraph("", "", *links.written(parts, home), classes=["provenance"]))
    return made


def _paragraph(text: str) -> Iterator[nodes.Node]:
    """A paragraph of a docstring; a section such as `Raises:` becomes a list."""
    first, _, rest = text.partition("\n")
    if not (first.endswith(":") and first[:-1].isalpha() and rest):
        yield nodes.paragraph("", "", *_inline(" ".join(text.split())))
        return
    entries: list[str] = []
    for line in textwrap.dedent(rest).split("\n"):
        if line[:1].isspace() and entries:
            entries[-1] += " " + line.strip()
        else:
            entries.append(line.strip())
    yield nodes.paragraph("", "", nodes.emphasis("", first))
    items = (nodes.list_item("", nodes.paragraph("", "", *_inline(e))) for e in entries)
    yield nodes.bullet_list("", *items)


def _inline(text: str) -> Iterator[nodes.Node]:
    """Text with its code between backticks."""
    for i, part in enumerate(text.split("`")):
        if part:
            yield nodes.literal(part, part) if i % 2 else nodes.Text(part)


def setup(app: Sphinx) -> None:
    """Enter the names when every page has been read."""
    app.connect("env-updated", register)
