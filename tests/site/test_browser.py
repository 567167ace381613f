"""The site in a browser: nothing fails, nothing is fetched from elsewhere, all of it fits."""

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.site.conftest import visit


@pytest.fixture
def quiet_page(browser, address):
    """A page that collects whatever goes wrong; it must be nothing."""
    context = browser.new_context()
    page = context.new_page()
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "console",
        lambda m: (
            wrong.append(m.text) if m.type in ("error", "warning") else None
        ),
    )
    # Leaving a page aborts what it still loads; that is no failure.
    page.on(
        "requestfailed",
        lambda r: (
            None
            if "ABORTED" in r.failure
            else wrong.append(f"{r.failure}: {r.url}")
        ),
    )
    page.on(
        "request",
        lambda r: (
            None
            if r.url.startswith((address, "data:"))
            else wrong.append(r.url)
        ),
    )
    yield page
    context.close()
    assert wrong == []


def test_pages_load_without_errors_and_from_here_alone(
    site, address, quiet_page
):
    for path in site.pages:
        visit(quiet_page, f"{address}/{path}")


def test_formulas_are_rendered(site, address, quiet_page):
    for path, page in site.written.items():
        written = len(page.select("span.math, div.math"))
        visit(quiet_page, f"{address}/{path}")
        assert quiet_page.locator("mjx-container").count() >= written
        assert (
            quiet_page.locator("mjx-merror, [data-mjx-error]").count() == 0
        ), path


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out(site, address, browser, theme, width):
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=theme
    )
    page = context.new_page()
    for path in site.pages:
        visit(page, f"{address}/{path}")
        assert (
            page.evaluate("document.documentElement.dataset.theme") == theme
        )
        shown, room = page.evaluate(
            "[document.documentElement.scrollWidth, innerWidth]"
        )
        assert shown <= room, f"{path} is {shown} px wide in {room} px"
    context.close()


def test_search_finds_a_theorem_by_its_name(site, address, quiet_page):
    path, name = next(
        (path, name.get_text())
        for path, page in site.chapters.items()
        for name in page.select(".statement.theorem .statement-name")
    )
    quiet_page.goto(f"{address}/search.html?q={name.replace(' ', '+')}")
    quiet_page.wait_for_selector("#search-results li a")
    found = quiet_page.locator("#search-results li a").evaluate_all(
        "a => a.map(x => x.href)"
    )
    assert any(path in link for link in found)


def test_a_solution_unfolds_by_keyboard(site, address, quiet_page):
    path = next(
        path
        for path, page in site.chapters.items()
        if page.select("details.answer")
    )
    visit(quiet_page, f"{address}/{path}")
    quiet_page.locator("details.answer > summary").first.focus()
    quiet_page.keyboard.press("Enter")
    assert (
        quiet_page.locator("details.answer").first.get_attribute("open")
        is not None
    )


def test_in_the_dark_labels_have_a_ground_or_are_turned(
    site, address, browser
):
    page, seen = browser.new_page(color_scheme="dark"), set()
    for path in site.chapters:
        visit(page, f"{address}/{path}")
        for kept, ground, turned in page.eval_on_selector_all(
            '.bd-content img[src$=".svg"]',
            """images => images.map(image => {
                const style = getComputedStyle(image);
                return [image.classList.contains("keep-colours"),
                        style.backgroundColor, style.filter];
            })""",
        ):
            assert (ground == "rgb(255, 255, 255)") == kept, path
            assert (turned == "none") == kept, path
            seen.add(kept)
    page.close()
    assert seen == {True, False}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    "path",
    [
        "book/index.html",
        "book/diffusion/forward.html",
        "book/appendix/results.html",
        "code/tangled/diffusion/forward.html",
    ],
)
def test_nothing_keeps_a_reader_out(browser, address, path, scheme):
    page = browser.new_page(color_scheme=scheme)
    visit(page, f"{address}/{path}")
    # Colours that are still on their way from one theme to the other count as they look now.
    page.add_style_tag(content="* { transition: none !important }")
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
    found = Axe().run(page, options=rules).response["violations"]
    page.close()
    assert [(v["id"], v["nodes"][0]["html"][:120]) for v in found] == []
