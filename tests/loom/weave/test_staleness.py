"""The site built again after an edit: what is written, and what stays as it was."""

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TOC = """\
format: jb-book
root: book/index
parts:
  - caption: Sums
    numbered: 2
    chapters: [{file: book/a}, {file: book/b}]
  - caption: Appendices
    numbered: 2
    style: alphaupper
    chapters: [{file: book/results}, {file: book/package}, {file: book/plain}]
"""
LISTINGS = {"results": "map-of-results", "package": "package-reference"}


@pytest.fixture
def site(small_book):
    """Two chapters, each with a definition and its code, and appendices that list them."""
    small_book.chapters(
        **{
            name: [
                f":tangle: sums/{name}.py\n:implements: def-{name}\n\n"
                f'def {name}() -> int:\n    """Return {name}."""\n    return 1'
            ]
            for name in "ab"
        }
    )
    (small_book.root / "tangled/__init__.py").unlink()
    shutil.copytree(ROOT / "book/_static", small_book.root / "book/_static")
    small_book.write("_config.yml", (ROOT / "_config.yml").read_text())
    small_book.write("book/references.bib", "")
    small_book.write("_toc.yml", TOC)
    for name in "ab":
        text = (small_book.root / f"book/{name}.md").read_text()
        block = f"```{{prf:definition}} Sum {name}\n:label: def-{name}\n\nOne.\n```\n"
        small_book.write(f"book/{name}.md", f"{text}\n{block}")
    for name, listing in LISTINGS.items():
        text = f"# The {name}\n\n```{{{listing}}}\n```\n"
        small_book.write(f"book/{name}.md", text)
    small_book.write("book/plain.md", "# Plain\n\nNothing is listed here.\n")
    made(small_book)
    return small_book


def made(book) -> None:
    process = book.start("-m", "loom", "make", "tangle", "run", "html")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err


def changed(book, old: str, new: str) -> set[str]:
    """The pages of the book and of the package that are written when chapter `a` changes."""
    html, file = book.root / "_build/html", book.root / "book/a.md"
    pages = [*html.glob("book/*.html"), *html.glob("code/**/*.html")]
    before = {page: page.stat().st_mtime_ns for page in pages}
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    made(book)
    return {
        page.stem for page in pages if page.stat().st_mtime_ns != before[page]
    }


def test_an_edit_writes_the_pages_that_say_something_else(site):
    assert changed(site, "Prose.", "Other prose.") <= {"a", "index"}
    results = site.root / "_build/html/book/results.html"
    pages = changed(site, "Sum a", "Total a")
    assert {"a", "results"} <= pages
    assert not {"plain", "b"} & pages
    assert "Total a" in results.read_text()
    pages = changed(site, "Return a", "Give a")
    assert {"a", "package"} <= pages
    assert not {"plain", "b"} & pages
    module = site.root / "_build/html/code/tangled/sums/a.html"
    assert "Give a" in module.read_text()
    title = changed(site, "# a", "# The first")
    every = {"a", "b", "index", "package", "results", "plain"}
    assert every <= title  # the list of chapters stands on each page
