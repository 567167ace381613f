"""A page for each tangled module, with links from its definitions back to their cells."""

from collections import defaultdict
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any, cast

from sphinx.application import Sphinx
from sphinx.builders.html import StandaloneHTMLBuilder

from loom.tangle.definitions import Definition
from loom.weave.book_data import book_data
from loom.weave.provenance import anchor
from loom.weave.staleness import outdated

__all__ = ["pages", "place", "setup"]


def pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield the pages that are new or changed as Sphinx wants them: name, context, template."""
    tangled = book_data(app).tangled
    definitions: dict[str, list[Definition]] = defaultdict(list)
    for definition in tangled.definitions:
        definitions[definition.path].append(definition)
    for path, found in definitions.items():
        name = place(path)
        if Path(app.outdir, f"{name}.html").is_file() and not outdated(app, path):
            continue
        body = page(app, name, path, tangled.modules[path].text, found)
        yield name, {"title": path, "body": body, "parents": []}, "page.html"


def place(path: str) -> str:
    """The page of a module, by its name below the site, without suffix."""
    return f"code/{path.removesuffix('.py')}"


def page(app: Sphinx, name: str, path: str, text: str, definitions: list[Definition]) -> str:
    builder = cast(StandaloneHTMLBuilder, app.builder)
    code = builder.highlighter.highlight_block(text, "python", linenos=False)
    opening, _, rest = code.partition("<pre>")
    lines = rest.split("\n")
    chapters: dict[str, str] = {}
    for definition in definitions:
        docname = definition.chapter.removesuffix(".md")
        uri = builder.get_relative_uri(name, docname)
        chapters[uri] = app.env.titles[docname].astext()
        back = (
            f'<span id="{escape(definition.name)}"></span>'
            f'<a class="back" href="{uri}#{anchor(definition.name)}">in the chapter</a>'
        )
        if "." in definition.name:
            back = f'<span id="{escape(definition.name)}"></span>'
        lines[definition.first - 1] = back + lines[definition.first - 1]
    links = ", ".join(f'<a href="{uri}">{escape(title)}</a>' for uri, title in chapters.items())
    return (
        f"<h1>{escape(path)}</h1>\n<p>Tangled from {links}.</p>\n"
        f'<div class="source">{opening}<pre>' + "\n".join(lines) + "</div>"
    )


def setup(app: Sphinx) -> None:
    """Write the pages with those of the site."""
    app.connect("html-collect-pages", pages)
