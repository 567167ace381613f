"""The pages of the site, as files: anchors, links, pictures, notebooks."""

from collections import Counter
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

from tests.site.conftest import HTML

ELSEWHERE = ("http:", "https:", "mailto:", "data:", "javascript:")


def test_no_id_stands_twice(site):
    for path, page in site.pages.items():
        counts = Counter(tag["id"] for tag in page.select("[id]"))
        assert [name for name, count in counts.items() if count > 1] == [], (
            path
        )


def test_links_and_anchors_lead_somewhere(site):
    ids = {
        path: {tag["id"] for tag in page.select("[id]")}
        for path, page in site.pages.items()
    }
    for path, page in site.pages.items():
        for tag in page.select("a[href], link[href], img[src], script[src]"):
            address = tag.get("href") or tag.get("src")
            if address.startswith(ELSEWHERE) or address in ("#", ""):
                continue
            parts = urlsplit(address)
            target = path
            if parts.path:
                target = str(PurePosixPath(path).parent / unquote(parts.path))
                resolved = (HTML / target).resolve()
                assert resolved.exists(), f"{path}: {address}"
                target = str(resolved.relative_to(HTML.resolve()))
            if parts.fragment and target in ids:
                anchor = unquote(parts.fragment)
                assert anchor in ids[target] | {"main-content"}, (
                    f"{path}: {address}"
                )


def test_every_picture_is_described(site):
    pictures = [
        (p, i)
        for p, page in site.written.items()
        for i in page.select("article img")
    ]
    assert pictures
    for path, picture in pictures:
        assert len(picture.get("alt", "")) >= 40, f"{path}: {picture['src']}"


def test_figures_are_vectors(site):
    for path, page in site.written.items():
        for picture in page.select("figure img"):
            assert picture["src"].endswith(".svg"), (
                f"{path}: {picture['src']}"
            )


def test_every_tangled_cell_says_where_it_went(site):
    for path, page in site.chapters.items():
        for cell in page.select("div.cell[id^=code-]"):
            note = cell.find_next_sibling()
            assert "provenance-cell" in note.get("class", []), (
                f"{path}: {cell['id']}"
            )
            assert note.select_one("a[href*='code/t']"), (
                f"{path}: {cell['id']}"
            )


def test_checks_that_ran_are_said_to_have_passed(site):
    """A test whose cell printed `passed` is called passed under its statement, and no other is."""
    for path, page in site.chapters.items():
        ran = {
            name
            for output in page.select("div.cell_output pre")
            for line in output.get_text().splitlines()
            if line.startswith("passed: ")
            for name in line.removeprefix("passed: ").split(", ")
        }
        for note in page.select(
            "p.provenance-statement, p.provenance-equation"
        ):
            for link in note.select("a[href^='#code-test-']"):
                # The word stands once, behind the last of a list.
                after = [n for n in link.next_siblings if isinstance(n, str)]
                said = (
                    "".join(after)
                    .lstrip(", ")
                    .startswith(("(passed)", "(all passed)"))
                )
                assert said == (link.get_text() in ran), (
                    f"{path}: {link.get_text()}"
                )


def test_modules_link_back_to_their_cells(site):
    modules = [
        page
        for path, page in site.pages.items()
        if path.startswith("code/tangled/")
    ]
    if not any(
        "implements" in page.get_text() for page in site.chapters.values()
    ):
        pytest.fail("no chapter implements anything")
    assert modules
    assert all(page.select("a.back[href*='#code-']") for page in modules)


def test_solutions_are_folded(site):
    exercises = [
        e
        for page in site.written.values()
        for e in page.select("div.exercise")
    ]
    answers = [
        a
        for page in site.written.values()
        for a in page.select("details.answer.solution")
    ]
    assert len(exercises) == len(answers)
    assert not any(answer.has_attr("open") for answer in answers)


def test_chapters_can_be_downloaded_as_notebooks(site):
    chapters = [
        path
        for path, page in site.written.items()
        if page.select("div.cell_input")
    ]
    assert chapters
    for path in chapters:
        (link,) = site.pages[path].select("a.btn-download-notebook")
        file = (HTML / PurePosixPath(path).parent / link["href"]).resolve()
        notebook = nbformat.read(file, as_version=nbformat.NO_CONVERT)
        nbformat.validate(notebook)
        assert notebook.nbformat == 4
        assert any(cell.cell_type == "code" for cell in notebook.cells)
