"""What earlier builds left in the folder of the site and this book no longer has."""

from pathlib import Path

from sphinx.application import Sphinx

from loom.weave.book_data import book_data
from loom.weave.html import downloads, module_pages

__all__ = ["remove", "setup"]

# Folders in which every file is a page, a notebook or a picture of the book.
OURS = ("book", "code", "notebooks", "_images")


def remove(app: Sphinx, error: Exception | None) -> None:
    """Remove the pages, notebooks and pictures of chapters and modules that are gone."""
    if error is not None or app.builder.format != "html":
        return
    kept = {f"{docname}.html" for docname in app.env.found_docs}
    kept |= {f"{module_pages.place(path)}.html" for path in book_data(app).tangled.modules}
    kept |= {downloads.place(chapter.docname) for chapter in downloads.notebooks(app)}
    for _, name in app.env.images.values():
        kept |= {f"_images/{name}", f"_images/{Path(name).stem}.dark.svg"}
    for folder in OURS:
        for file in sorted(Path(app.outdir, folder).rglob("*"), reverse=True):
            if file.is_dir():
                if not any(file.iterdir()):
                    file.rmdir()
            elif file.relative_to(app.outdir).as_posix() not in kept:
                file.unlink()


def setup(app: Sphinx) -> None:
    """Remove them at the end of a build."""
    app.connect("build-finished", remove)
