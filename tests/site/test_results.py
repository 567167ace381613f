"""The pages that the build writes: the map of results, the gaps, the names, the package."""

from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from loom.prove.theorems import Results
from loom.read.book import read
from loom.tangle.package import tangle
from loom.weave.map_drawing import COLUMN, Box, draw
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
    boxes = [
        a["data-name"]
        for a in pages["results"].select("[data-map] a:not(.guest)")
    ]
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
    boxes = pages["results"].select("[data-map] a:not(.guest)")
    named = {box["data-name"]: box for box in boxes}
    for result in results.all():
        box = named[result.label.name]
        for mark, has in result.standing.items():
            (dot,) = box.select(f"circle.{mark}")
            assert ("has" in dot["class"]) == has
        assert len(box.select("circle")) == len(result.standing)
        assert ("complete" in box["class"]) == all(result.standing.values())


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


def test_the_map_opens_on_the_part_one_comes_from(browser, address):
    page = browser.new_page()
    for start in ("diffusion/forward", "workshop/data"):
        page.goto(f"{address}/book/{start}.html")
        link = "nav a[href$='appendix/results.html']"
        page.locator(link).first.click()
        page.locator(".map-bar").wait_for()
        shown = page.locator(".map-part:visible")
        assert shown.count() == 1
        boxes = shown.locator("[data-map] a:not(.guest)")
        assert f"{start}.html#" in " ".join(
            box.get_attribute("href") for box in boxes.all()
        )
    page.close()


def test_the_map_fits_the_page_and_is_lit_by_the_keyboard(browser, address):
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.goto(f"{address}/book/appendix/results.html#thm-forward-marginal")
    shown = page.locator(".map-part:visible")
    frame = shown.locator("[data-map]").bounding_box()
    assert shown.locator("svg").bounding_box()["width"] <= frame["width"]
    # Ten pixels are the least that one reads.
    scale = shown.locator("svg").evaluate("svg => svg.getScreenCTM().a")
    assert 12 * scale >= 10
    marked = "a[data-name='thm-forward-marginal']"
    assert page.locator(f"{marked}:focus").count() == 1
    assert page.locator("path.use.below").count() >= 2
    assert page.locator("path.use.above").count() >= 2
    page.close()


def test_a_part_of_many_chapters_is_no_wider_than_one_of_three():
    boxes = [
        Box(f"thm-{c}-{i}", f"Theorem {c}.{i}", "A title", "#", c, {})
        for c in range(60)
        for i in range(3 + c % 7)
    ]
    uses = [(f"thm-{c}-0", f"thm-{c - 1}-0") for c in range(1, 60)]
    titles = [f"Chapter {c}" for c in range(60)]
    drawing = BeautifulSoup(
        draw(boxes, uses, titles, "All"), "html.parser"
    ).svg
    assert float(drawing["width"]) == 16 + 3 * COLUMN
    corners = {(r["x"], r["y"]) for r in drawing.select("rect")}
    assert len(corners) == len(boxes)
    assert len(drawing.select("path.use")) == 59
