"""The site in a browser: nothing fails, nothing is fetched from elsewhere, all of it fits.

Each page that an author wrote is opened once, wide in one theme, and then made narrow and put into
the other theme where it stands. Which theme is which changes from page to page. Of the pages of
source code, which differ in their code alone (`test_pages.py` sees to that), one of each kind is
opened.
"""

from dataclasses import dataclass, field

import pytest
from axe_playwright_python.sync_playwright import Axe

from benchmarks.shares import reading, shares
from tests.site.conftest import visit

WIDTHS = (1280, 390)
THEMES = (("light", "dark"), ("dark", "light"))

# What sticks out of the window; whether a word is broken in its middle; room around formulas.
FITS = "[document.documentElement.scrollWidth, innerWidth]"
THEME = "document.documentElement.dataset.theme"
# The parts of visible words of code, between one <wbr> and the next, that run over two lines.
BROKEN = """() => [...document.querySelectorAll(".bd-article code .pre")]
  .filter(word => word.checkVisibility()).flatMap(word => [...word.childNodes])
  .filter(part => part.nodeType === 3).filter(part => {
    const range = document.createRange();
    range.selectNodeContents(part);
    return new Set([...range.getClientRects()].filter(box => box.width > 1)
      .map(box => Math.round(box.top))).size > 1;
  }).map(part => part.data)"""
# Another machine draws letters of another width.
WIDER = ".bd-article code .pre { font-size: 1.08em }"
SCROLLS = """() => {
  const boxes = [...document.querySelectorAll("div.math > mjx-container, .picture")]
    .filter(box => !box.closest("details:not([open])"));
  const wide = boxes.filter(box => box.scrollWidth > box.clientWidth + 2);
  return [wide.length, wide.filter(box => box.dataset.more === "right").length];
}"""
# Of a drawing in panels: how far it scrolls, how many of its panels and of its whole are seen, and
# by how much the widths of the panels differ from those that they have in print.
STACKED = """() => [...document.querySelectorAll(".picture:has(.panels)")]
  .filter(picture => picture.checkVisibility()).map(picture => {
    const seen = (nodes) => [...nodes].filter(node => node.getClientRects().length);
    const panels = seen(picture.querySelectorAll(".panel"));
    const natural = parseFloat(picture.style.getPropertyValue("--natural"));
    const room = picture.clientWidth;
    const off = panels.map(panel => panel.getBoundingClientRect().width
      - Math.min(room, natural * panel.style.getPropertyValue("--share")));
    return [picture.scrollWidth - room, panels.length, seen(picture.querySelectorAll("img")).length,
            Math.max(...off.map(Math.abs))];
  })"""
# White space above and below each formula between two paragraphs, from text to text.
ROOM = """() => [...document.querySelectorAll("p + div.math:not(.nowrap) + p")].map(below => {
  const formula = below.previousElementSibling, above = formula.previousElementSibling;
  const box = formula.querySelector("mjx-math").getBoundingClientRect();
  return [box.top - above.getBoundingClientRect().bottom,
          below.getBoundingClientRect().top - box.bottom];
})"""
DRAWINGS = """() => [...document.querySelectorAll(".picture")].map(picture =>
  [...picture.querySelectorAll("img")].filter(image => image.getClientRects().length)
    .map(image => [image.src.endsWith(".dark.svg"), image.naturalWidth > 0,
                   getComputedStyle(image).filter]))"""


@dataclass
class Seen:
    """What a page was like."""

    wrong: list[str] = field(default_factory=list)
    formulas: int = 0
    bad_formulas: int = 0
    room: list[list[float]] = field(default_factory=list)
    fits: dict[tuple[int, str], list[int]] = field(default_factory=dict)
    themes: dict[tuple[int, str], str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    scrolls: list[int] = field(default_factory=list)
    stacked: list[list[float]] = field(default_factory=list)
    drawings: dict[str, list] = field(default_factory=dict)
    read: float | None = None


def watched(page, address, wrong):
    """Collect in `wrong` whatever goes wrong on a page."""
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


def opened(site):
    """The pages that are opened: of the pages of code of a kind, the one with the longest line."""
    widest = {}
    for path, page in site.pages.items():
        if path not in site.code:
            yield path
            continue
        lines = page.select_one(".source pre").get_text().splitlines()
        lengths = widest.setdefault(site.code[path], {})
        lengths[path] = max(map(len, lines), default=0)
    yield from (max(lengths, key=lengths.get) for lengths in widest.values())


@pytest.fixture(scope="package")
def tour(site, address, browser):
    """The pages as they are seen."""
    context, tour = browser.new_context(), {}
    for number, path in enumerate(opened(site)):
        # Of the pages that it had before, a page keeps a gigabyte.
        page, seen = context.new_page(), Seen()
        tour[path] = seen
        watched(page, address, seen.wrong)
        page.set_viewport_size({"width": WIDTHS[0], "height": 800})
        page.emulate_media(color_scheme=THEMES[number % 2][0])
        visit(page, f"{address}/{path}")
        seen.formulas = page.locator("mjx-container").count()
        seen.bad_formulas = page.locator(
            "mjx-merror, [data-mjx-error]"
        ).count()
        if path in site.chapters:
            seen.room = page.evaluate(ROOM)
        if site.pages[path].select_one(".provenance-cell"):
            seen.read = reading(shares(page))
        for width, theme in zip(WIDTHS, THEMES[number % 2], strict=True):
            page.set_viewport_size({"width": width, "height": 800})
            page.emulate_media(color_scheme=theme)
            page.wait_for_function(f"{THEME} === '{theme}'")
            seen.fits[width, theme] = page.evaluate(FITS)
            if path in site.chapters:
                seen.drawings[theme] = page.evaluate(DRAWINGS)
        if path in site.written:
            page.evaluate("() => new Promise(requestAnimationFrame)")
            seen.scrolls = page.evaluate(SCROLLS)
            seen.stacked = page.evaluate(STACKED)
            page.add_style_tag(content=WIDER)
            seen.broken = page.evaluate(BROKEN)
        page.close()
    context.close()
    return tour


@pytest.fixture
def quiet_page(browser, address):
    """A page on which nothing may go wrong."""
    context = browser.new_context(permissions=["clipboard-read"])
    page, wrong = context.new_page(), []
    watched(page, address, wrong)
    yield page
    context.close()
    assert wrong == []


def test_pages_load_without_errors_and_from_here_alone(tour):
    assert {p: seen.wrong for p, seen in tour.items() if seen.wrong} == {}


def test_formulas_are_rendered(site, tour):
    for path, page in site.written.items():
        written = len(page.select("span.math, div.math"))
        assert tour[path].formulas >= written, path
        assert tour[path].bad_formulas == 0, path


def test_nothing_sticks_out(tour):
    for path, seen in tour.items():
        for at, (shown, room) in seen.fits.items():
            assert shown <= room, f"{path} is {shown} px wide at {at}"


def test_no_word_is_broken_where_its_parts_do_not_meet(tour):
    """At 390 px a name breaks behind `_`, `.`, `/` or `-`, unless it is one long part.

    With letters 8 % wider than ours, so that there is room for those of other machines.
    """
    broken = {part for seen in tour.values() for part in seen.broken}
    assert {p for p in broken if len(p) < 30 and "-" not in p} == set()


def test_what_scrolls_shows_that_it_does(tour):
    wide = [seen.scrolls for seen in tour.values() if seen.scrolls]
    assert sum(count for count, _ in wide) > 0
    assert all(count == hinted for count, hinted in wide), wide


def test_the_panels_of_a_drawing_stand_below_each_other(tour):
    """At 390 px they are as large as in print, and nothing scrolls."""
    stacked = [drawing for seen in tour.values() for drawing in seen.stacked]
    assert len(stacked) > 3
    for scrolls, panels, images, off in stacked:
        assert scrolls <= 0
        assert panels == images >= 2
        assert off < 1


def test_a_formula_has_as_much_room_above_as_below(tour):
    rooms = [room for seen in tour.values() for room in seen.room]
    assert rooms
    uneven = [(a, b) for a, b in rooms if abs(a - b) > 6]
    assert uneven == []


def test_most_of_a_chapter_is_read_and_seen(tour):
    """Prose, formulas and pictures, of the page as it opens."""
    parts = {path: seen.read for path, seen in tour.items() if seen.read}
    assert parts
    assert {path: part for path, part in parts.items() if part < 0.6} == {}


def test_drawings_are_in_the_colours_of_their_theme_and_unfiltered(tour):
    seen = 0
    for path, page in tour.items():
        for theme, pictures in page.drawings.items():
            for shown in pictures:
                each = {tuple(image) for image in shown}
                assert each == {(theme == "dark", True, "none")}, path
                seen += 1
    assert seen


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


FOLDS = [
    "details.answer",
    ".fold.verify > details",
    ".fold.code > details",
    ".provenance > details",
    "details.rest:not(.fold *)",
]


def test_a_fold_opens_by_keyboard(site, address, quiet_page):
    visit(quiet_page, f"{address}/{site.example(*FOLDS)}")
    for fold in FOLDS:
        details = quiet_page.locator(fold).first
        details.locator("> summary").focus()
        quiet_page.keyboard.press("Enter")
        assert details.get_attribute("open") is not None, fold


def test_a_link_to_a_folded_place_opens_it(site, address, quiet_page):
    cell = ".fold details div.cell[id^=code-test-]"
    path = site.example(cell)
    anchor = site.pages[path].select_one(cell)["id"]
    target = quiet_page.locator(f"[id='{anchor}']")
    visit(quiet_page, f"{address}/{path}#{anchor}")
    quiet_page.wait_for_timeout(300)
    assert target.is_visible()
    assert 0 <= target.bounding_box()["y"] < 400
    # And on the page itself, from the list of tests of its statement.
    quiet_page.evaluate(
        "document.querySelectorAll('details').forEach(d => d.open = false)"
    )
    quiet_page.evaluate("location.hash = ''")
    assert not target.is_visible()
    quiet_page.evaluate(
        f"document.querySelector('.provenance li a[href=\"#{anchor}\"]').click()"
    )
    assert target.is_visible()


def test_a_cell_is_copied_whole(site, address, quiet_page):
    """The button copies the folded part of a docstring too."""
    folded = "div.cell_input:not(.fold *):has(details.rest)"
    path = site.example(folded)
    visit(quiet_page, f"{address}/{path}")
    cell = quiet_page.locator(folded).first
    cell.hover()
    cell.locator("button.copybtn").click()
    copied = quiet_page.evaluate("navigator.clipboard.readText()")
    assert copied.strip() == cell.locator("pre").text_content().strip()
    assert copied.count('"""') % 2 == 0
    compile(copied, path, "exec")


def test_without_javascript_every_fold_opens(site, address, browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{address}/{site.example(*FOLDS)}")
    for fold in FOLDS:
        details = page.locator(fold).first
        details.locator("> summary").click()
        assert details.locator("> :not(summary)").first.is_visible(), fold
    context.close()


@pytest.mark.parametrize(
    "path",
    [
        "book/index.html",
        "a chapter",
        "book/appendix/results.html",
        "code/tangled/diffusion/forward.html",
    ],
)
def test_nothing_keeps_a_reader_out(site, browser, address, path):
    page = browser.new_page(color_scheme="light")
    if path == "a chapter":
        path = site.example(*FOLDS, "figure", "table", ".admonition")
    visit(page, f"{address}/{path}")
    # One fold of each kind is enough; all of them together take half a minute.
    page.evaluate(
        "folds => folds.forEach(fold => {"
        " const one = document.querySelector(fold); if (one) one.open = true })",
        FOLDS,
    )
    # Colours that are still on their way from one theme to the other count as they look now.
    page.add_style_tag(content="* { transition: none !important }")
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        page.wait_for_function(f"{THEME} === '{theme}'")
        found = Axe().run(page, options=rules).response["violations"]
        nodes = [(v["id"], v["nodes"][0]["html"][:120]) for v in found]
        assert nodes == [], theme
    page.close()
