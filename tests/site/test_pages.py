"""The pages of the site, as files: anchors, links, pictures, notebooks."""

import re
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
            if parts.fragment and target in site.ids:
                anchor = unquote(parts.fragment)
                assert anchor in site.ids[target] | {"main-content"}, (
                    f"{path}: {address}"
                )


def test_nothing_is_taken_from_elsewhere(site):
    """Scripts, styles and pictures are files of the site."""
    for path, page in site.pages.items():
        taken = page.select(
            "script[src], [src]:not(a), link:not([rel=canonical])[href]"
        )
        for tag in taken:
            address = tag.get("src") or tag.get("href")
            assert not address.startswith(("http:", "https:", "//")), path


def test_pages_of_code_differ_in_their_code_alone(site):
    """The browser opens one of each kind: all have the same frame, and nothing but code in it."""
    frames = {}
    for path, kind in site.code.items():
        page = site.pages[path]
        files = [
            urlsplit(tag.get("src") or tag["href"]).path.rpartition("/")[2]
            for tag in page.select("script[src], link[rel=stylesheet]")
        ]
        inside = {
            (tag.name, *tag.get("class", []))
            for tag in page.select("article *")
            if not tag.find_parent("pre")
        }
        frames.setdefault(kind, []).append((files, inside))
    assert set(frames) == {"tangled", "tests"}
    for kind, found in frames.items():
        assert all(frame == found[0] for frame in found), kind


def test_every_picture_is_described(site):
    pictures = [
        (p, i)
        for p, page in site.written.items()
        # Of a drawing whose panels are stacked, the first has the text of all.
        for i in page.select("article img:not(.panel + .panel img)")
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


def ran(page):
    """The tests that the outputs of a chapter name."""
    return {
        name
        for output in page.select("div.cell_output pre")
        for line in output.get_text().splitlines()
        if line.startswith("passed: ")
        for name in line.removeprefix("passed: ").split(", ")
    }


def test_checks_that_ran_are_said_to_have_passed(site):
    """A test whose cell printed `passed` is called passed under its statement, and no other is."""
    seen = 0
    for path, page in site.chapters.items():
        names = ran(page)
        for item in page.select(".provenance li"):
            link = item.select_one("a[href^='#code-test-']")
            name = item.select_one("code").get_text()
            said = item.get_text().endswith(", passed")
            assert said == (link is not None and name in names), (
                f"{path}: {item.get_text()}"
            )
            seen += said
    assert seen


def test_a_statement_counts_its_tests_and_names_each_once(site):
    for path, page in site.chapters.items():
        for note in page.select(".provenance:has(> details)"):
            lines = [item.get_text() for item in note.select("li")]
            assert len(lines) == len(set(lines)), path
            numbers = re.findall(
                r"(\d+) (check|control)", note.summary.get_text()
            )
            counted = {word: int(number) for number, word in numbers}
            controls = sum(line.startswith("control: ") for line in lines)
            assert counted.get("control", 0) == controls, path
            assert counted.get("check", 0) == len(lines) - controls, path


def test_checks_are_folded_and_say_how_many_they_are(site):
    """The line of a fold agrees with the code behind it, and with its output."""
    seen = set()
    for path, page in site.chapters.items():
        for fold in page.select(".fold.verify, .fold.refute"):
            assert not fold.details.has_attr("open"), path
            line = " ".join(fold.summary.get_text().split())
            code = fold.select_one(".cell_input").get_text()
            tests = len(re.findall(r"^def test_", code, re.MULTILINE))
            kind = "verify" if "verify" in fold["class"] else "refute"
            number, what = re.search(r"(\d+) (\w+)", line).groups()
            assert int(number) == tests, f"{path}: {line}"
            assert what.startswith("check") == (kind == "verify"), path
            passed = "passed: " in fold.details.get_text()
            mark = {"verify": "✓", "refute": "✗"}[kind]
            assert line.startswith(mark) == passed, f"{path}: {line}"
            assert fold.select(":scope > .provenance a"), f"{path}: {line}"
            seen.add(kind)
        unfolded = [
            cell
            for cell in page.select("div.cell_input")
            if "def test_" in cell.get_text()
            and not cell.find_parent("details")
        ]
        for cell in unfolded:  # by `:open:` alone
            note = cell.find_parent(class_="cell").find_next_sibling()
            assert "provenance-cell" in note["class"], path
    assert seen == {"verify", "refute"}


def test_code_with_a_folded_docstring_is_that_of_its_module(site):
    """Nothing is lost: the text of a cell is, letter by letter, in the page of its module."""
    modules = [
        " ".join(page.select_one(".source pre").get_text().split())
        for path, page in site.pages.items()
        if path.startswith("code/tangled/")
    ]
    seen = 0
    for path, page in site.chapters.items():
        for rest in page.select("details.rest"):
            assert rest.summary.get_text() == "", path
            assert not rest.has_attr("open"), path
            text = " ".join(rest.get_text().split())
            body = text.removesuffix('"""').strip()
            assert any(body in module for module in modules), (
                f"{path}: {body}"
            )
            seen += 1
    assert seen


def test_pages_have_one_way_to_say_what_is_hidden(site):
    for path, page in site.written.items():
        assert not page.select("details.hide"), path
        for line in page.select(".fold.code summary:not(.rest > summary)"):
            assert line.get_text().startswith("Show the "), path


def test_the_index_is_listed_and_links_to_what_it_names(site):
    for path, page in site.written.items():
        assert page.select(".bd-sidebar-primary a[href$='genindex.html']"), (
            path
        )
    entries = site.pages["genindex.html"].select(".genindextable a")
    assert len(entries) >= 10


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
