"""The pages that the build writes: the map of results, the gaps, the names, the package."""

from pathlib import Path

import pytest

from loom.book import read
from loom.results import Results
from loom.tangle import tangle
from loom.weave.reference import public

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results():
    book = read(ROOT)
    return Results(book, tangle(book))


@pytest.fixture(scope="module")
def pages(site):
    return {
        name: site.pages[f"book/appendix/{name}.html"]
        for name in ("results", "package", "identifiers")
    }


def test_every_result_is_a_box_of_the_map_and_a_row_of_its_table(
    pages, results
):
    names = [r.label.name for r in results.all()]
    boxes = [a["data-name"] for a in pages["results"].select("[data-map] a")]
    assert boxes == names
    rows = pages["results"].select("table tbody tr")
    links = [row.select_one("a")["href"].partition("#")[2] for row in rows]
    assert links == [
        f"equation-{name}" if name.startswith("eq-") else name
        for name in names
    ]


def test_every_use_in_a_proof_is_a_line(pages, results):
    wanted = {(r.label.name, used) for r in results.all() for used in r.uses}
    lines = pages["results"].select("path.use")
    assert {(p["data-to"], p["data-from"]) for p in lines} == wanted


def test_dots_and_colours_are_those_of_the_results(pages, results):
    for result in results.all():
        box = pages["results"].select_one(
            f"a[data-name='{result.label.name}']"
        )
        for mark, has in result.marks.items():
            (dot,) = box.select(f"circle.{mark}")
            assert ("has" in dot["class"]) == has
        assert len(box.select("circle")) == len(result.marks)
        assert ("complete" in box["class"]) == all(result.marks.values())


def test_nothing_is_missing(pages):
    heading = pages["results"].select_one("dl")
    answers = [dd.get_text(strip=True) for dd in heading.select("dd")]
    assert answers == ["None."] * 4


def test_the_package_is_described_name_by_name(pages, results):
    names = public(results.tangled)
    linked = {
        a["href"].partition("#")[2]
        for a in pages["package"].select("p a[href*='code/tangled/']")
    }
    assert linked == {definition.name for definition in names}
    rows = pages["identifiers"].select("table tbody tr")
    listed = {row.select_one("td").get_text(strip=True) for row in rows}
    assert listed == linked


def test_the_map_is_zoomed_by_its_buttons_and_lit_by_the_keyboard(
    browser, address
):
    page = browser.new_page()
    page.goto(f"{address}/book/appendix/results.html")
    drawing = page.locator("[data-map] svg")
    before = drawing.bounding_box()["width"]
    page.get_by_role("button", name="Larger").click()
    assert drawing.bounding_box()["width"] > 1.2 * before
    page.get_by_role("button", name="Fit the width").click()
    frame = page.locator(".map-frame").bounding_box()["width"]
    assert abs(drawing.bounding_box()["width"] - frame) < 20
    page.locator("a[data-name='thm-forward-marginal']").focus()
    assert page.locator("path.use.below").count() >= 2
    assert page.locator("path.use.above").count() >= 2
    page.close()
