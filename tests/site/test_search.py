"""The search finds results and names, and other projects can link to the package."""

from urllib.parse import unquote

import pytest
from sphinx.util.inventory import InventoryFile

from tests.site.conftest import HTML

BASE = "https://book.example/"


@pytest.fixture(scope="module")
def inventory(site):
    with (HTML / "objects.inv").open("rb") as stream:
        return InventoryFile.load(stream, BASE, lambda base, uri: base + uri)


@pytest.fixture(scope="module")
def found(browser, address):
    """The results of a search, best first: the link's text and the whole."""
    page = browser.new_page()

    def search(query):
        page.goto(f"{address}/search.html?q={query.replace(' ', '+')}")
        page.get_by_text("Search finished").wait_for()
        results = page.locator("#search-results ul.search > li")
        return [
            (r.locator("a").first.inner_text(), r.inner_text())
            for r in results.all()
        ]

    yield search
    page.close()


def test_a_result_is_found_by_its_number(browser, address, site):
    """One of each chapter, of another place in it each time; what else is found is not read."""
    page = browser.new_page()
    for place, chapter in enumerate(site.chapters.values()):
        statements = chapter.select(".statement .statement-kind")
        if not statements:
            continue
        number = " ".join(
            statements[place % len(statements)].get_text().split()
        )
        page.goto(f"{address}/search.html?q={number.replace(' ', '+')}")
        first = page.locator("#search-results ul.search > li a").first
        assert first.inner_text().startswith(number)
    page.close()


def test_a_result_links_to_its_place(browser, address, site):
    page = browser.new_page()
    page.goto(f"{address}/search.html?q=Theorem")
    page.get_by_text("Search finished").wait_for()
    links = page.locator("#search-results ul.search > li > a").evaluate_all(
        "links => links.map(link => [link.pathname.slice(1), link.hash])"
    )
    page.close()
    anchors = [(path, unquote(tag[1:])) for path, tag in links if tag]
    assert anchors
    assert [(p, tag) for p, tag in anchors if tag not in site.ids[p]] == []


def test_a_result_is_found_by_its_words(found):
    titles = [title for title, _ in found("posterior variance")]
    assert any(title.startswith("Proposition") for title in titles[:3])


def test_a_name_of_the_package_is_found(found):
    (first, _), *_ = found("diffuse")
    assert first == "tangled.diffusion.forward.diffuse"


def test_excerpts_show_no_markup(found):
    texts = [text for _, text in found("posterior variance")]
    assert any("…" in text for text in texts)
    assert not [text for text in texts if "\\" in text or "$" in text]


def test_every_public_name_is_in_the_inventory(inventory, site):
    kinds = [k for k in inventory if k.startswith("py:") and k != "py:module"]
    names = {
        name: entry for k in kinds for name, entry in inventory[k].items()
    }
    project, _, uri, _ = names["tangled.diffusion.forward.diffuse"]
    assert project == "Signal from Noise"
    assert uri == f"{BASE}book/diffusion/forward.html#code-diffuse"
    for _, _, uri, _ in names.values():
        path, _, anchor = uri.removeprefix(BASE).partition("#")
        assert anchor in site.ids[path]


def test_results_are_in_the_inventory(inventory):
    _, _, uri, title = inventory["prf:theorem"]["thm-forward-marginal"]
    place = f"{BASE}book/diffusion/forward.html#thm-forward-marginal"
    assert unquote(uri) == place
    assert title.startswith("Theorem ")
