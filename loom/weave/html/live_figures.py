"""Interactive figures on the site: the picture that opens, and a script that makes it live.

Pictures, and data of more than a few kilobytes, are files: a page is read before they are.
"""

import base64
import gzip
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.builders.html import StandaloneHTMLBuilder
from sphinx.util.osutil import relative_uri

from loom.figures import engine
from loom.weave.nodes import Widget

__all__ = ["drawn", "setup"]

IMAGE = re.compile(r"data:image/(\w+);base64,([A-Za-z0-9+/=]+)")
FOLDER = "_figures"
INLINE = 60_000  # bytes, compressed: more is a file


def drawn(builder: StandaloneHTMLBuilder, spec: str) -> str:
    """The figure as it opens, with its data; the files of both are written."""
    page = builder.current_docname
    folder = Path(builder.outdir, FOLDER, page)
    to: str = relative_uri(builder.get_target_uri(page), f"{FOLDER}/{page}/")

    def filed(text: str) -> str:
        return IMAGE.sub(lambda image: to + _image(folder, image[1], image[2]), text)

    opened, data, script = filed(engine().call("page", spec)), filed(spec), ""
    figure = json.loads(data)
    if len(gzip.compress(data.encode())) > INLINE:
        props = _json(figure.pop("props"))
        name = hashlib.sha256(props.encode()).hexdigest()[:16]
        _write(folder / f"{name}.js", f"bookFigures.arrived({_json(name)},{props})".encode())
        data = _json({**figure, "data": name})
        script = f' data-script="{to}{name}.js"'
    # Nothing ends a script element but its own end.
    inside = data.replace("</", "<\\/")
    return (
        f'<div class="widget" data-widget="{figure["family"]}"{script}>'
        f'<div class="widget-face">{opened}</div>'
        f'<script type="application/json">{inside}</script></div>\n'
    )


def assets(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Give a page with figures their script and style; remove files that it no longer has."""
    if doctree is None or app.builder.format != "html":
        return
    if next(doctree.findall(Widget), None):
        app.add_js_file("widgets.js", loading_method="defer")
        app.add_css_file("widgets.css")
    for file in Path(app.outdir, FOLDER, page).glob("*.*"):
        if file.name not in context["body"]:
            file.unlink()


def tidy(app: Sphinx, error: Exception | None) -> None:
    """Remove the files of pages that are gone."""
    if error is not None or app.builder.format != "html":
        return
    folder = Path(app.outdir, FOLDER)
    for file in sorted(folder.rglob("*"), reverse=True):
        if file.is_dir():
            if not any(file.iterdir()):
                file.rmdir()
        elif file.parent.relative_to(folder).as_posix() not in app.env.found_docs:
            file.unlink()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def _image(folder: Path, kind: str, data: str) -> str:
    """Write an image into a file; what was drawn here, uncompressed, becomes a PNG."""
    content = base64.b64decode(data)
    if kind == "bmp":
        from PIL import Image

        file = io.BytesIO()
        Image.open(io.BytesIO(content)).save(file, "png")
        content, kind = file.getvalue(), "png"
    name = f"{hashlib.sha256(content).hexdigest()[:16]}.{kind}"
    _write(folder / name, content)
    return name


def setup(app: Sphinx) -> None:
    """Write what belongs to the figures of a page beside it."""
    app.connect("html-page-context", assets)
    app.connect("build-finished", tidy)
