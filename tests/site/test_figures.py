"""Every interactive figure of the book, as readers meet it: by mouse, by keyboard, by neither.

A new figure is tested by being there. One of a new family needs a line in
`tests/widgets/references.py`, which computes its readouts by the package.
"""

import base64
import gzip
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from PIL import Image

from loom.figures import engine
from tests.site.conftest import HTML, LATEX, built, visit
from tests.site.test_browser import watched
from tests.widgets.references import REFERENCES, compare

# What a picture is made of, apart from its colours and from what makes it live.
FREE = {"class", "role", "tabindex", "fill", "stroke", "font-family", "style"}
# What a press of a key does to each kind of control, and to one that is at its end.
KEYS = {"range": ("ArrowRight", "ArrowLeft"), "checkbox": ("Space", "Space")}
KEYS["text"] = ("x", "z")
KEYS["radio"] = KEYS["handle"] = ("ArrowRight", "ArrowLeft")


@dataclass(frozen=True)
class Drawn:
    """A figure on a page: where it is, and what it was made from."""

    page: str
    id: str
    family: str
    spec: str
    html: str

    def reads(self, state: dict) -> dict:
        """The readouts in a state, by the package."""
        return REFERENCES[self.family](json.loads(self.spec)["props"], state)


@pytest.fixture(scope="session")
def figures(site) -> list[Drawn]:
    """All figures of the site, their data put together again."""
    found = []
    for path, page in site.pages.items():
        for root in page.select("[data-widget]"):
            spec = json.loads(root.select_one("script").string)
            if "data" in spec:
                file = (HTML / path).parent / root["data-script"]
                text = file.read_text("utf-8")
                spec["props"] = json.loads(text[text.index(",") + 1 : -1])
            figure = root.find_parent("figure")
            text = json.dumps(spec, ensure_ascii=False)
            found.append(
                Drawn(
                    path, figure["id"], root["data-widget"], text, str(root)
                )
            )
    assert found
    return found


class Live:
    """A figure in a browser."""

    def __init__(self, page, address: str, figure: Drawn, query: str = ""):
        self.page, self.figure = page, figure
        visit(page, f"{address}/{figure.page}#{figure.id}{query}")
        self.root = page.locator(f"[id='{figure.id}'] [data-widget]")
        self.root.scroll_into_view_if_needed()
        page.wait_for_selector(f"[id='{figure.id}'] [data-live][data-state]")
        self.opening = self.state()

    def state(self) -> dict:
        self.page.evaluate("() => new Promise(requestAnimationFrame)")
        self.page.evaluate("() => new Promise(requestAnimationFrame)")
        return json.loads(self.root.get_attribute("data-state"))

    def agrees(self) -> dict:
        """Hold the numbers on the page to those of the package."""
        state = self.state()
        read = self.root.locator("[data-readout]").evaluate_all(
            "all => all.map(o => [o.dataset.readout, o.dataset.value,"
            " o.textContent])"
        )
        found = {key: float(value) for key, value, _ in read}
        compare(found, self.figure.reads(state))
        assert all(text for _, _, text in read)
        return state

    def controls(self) -> list:
        """One place to take hold of for each control and each handle."""
        all_of_them = self.root.locator("[data-control], [data-handle]").all()
        chosen, names = [], set()
        for control in all_of_them:
            kind = control.get_attribute("type") or "handle"
            name = control.get_attribute("data-control")
            if kind == "radio" and not control.is_checked():
                continue
            if name is None or name not in names:
                chosen.append((kind, control))
            names.add(name)
        return chosen


@pytest.fixture
def page(browser, address):
    """A page on which nothing may go wrong."""
    page, wrong = browser.new_page(), []
    watched(page, address, wrong)
    yield page
    page.close()
    assert wrong == []


def test_every_control_works_by_keyboard(figures, address, page):
    for figure in figures:
        live = Live(page, address, figure)
        live.agrees()
        for kind, control in live.controls():
            before = live.state()
            control.focus()
            for key in KEYS[kind]:
                page.keyboard.press(key)
                if live.agrees() != before:
                    break
            assert live.state() != before, (figure.id, kind)
        again = live.root.get_by_role("button", name="Start again")
        again.focus()
        page.keyboard.press("Enter")
        assert live.agrees() == live.opening, figure.id


def test_every_control_works_by_mouse(figures, address, page):
    for figure in figures:
        live = Live(page, address, figure)
        for kind, control in live.controls():
            if kind == "text":  # no mouse types
                continue
            before = live.state()
            if kind == "radio":
                name = control.get_attribute("name")
                others = live.root.locator(
                    f"input[name='{name}']:not(:checked)"
                )
                others.first.click()
                assert live.agrees() != before, (figure.id, kind)
                continue
            control.scroll_into_view_if_needed()
            box = control.bounding_box()
            x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
            if kind == "checkbox":
                page.mouse.click(x, y)
            elif kind == "range":
                page.mouse.click(box["x"] + 0.31 * box["width"], y)
            else:  # one at the end of its way moves backwards only
                for way in (20, -20):
                    page.mouse.move(x, y)
                    page.mouse.down()
                    page.mouse.move(x + way, y, steps=4)
                    page.mouse.up()
                    if live.agrees() != before:
                        break
            assert live.agrees() != before, (figure.id, kind)


def shapes(svg: str) -> list:
    """The parts of a picture, in order, with all that is not colour."""
    parts = BeautifulSoup(svg, "html.parser").select_one("svg").find_all(True)
    return [
        (
            part.name,
            {
                name: value
                for name, value in part.attrs.items()
                if name not in FREE | {"href"}
                and not name.startswith(("aria-", "data-"))
            },
            part.get_text() if part.name == "text" else "",
        )
        for part in parts
    ]


# The live picture, with what its canvases show in the images' places.
AS_PRINTED = """svg => {
  const copy = svg.cloneNode(true);
  const canvases = svg.querySelectorAll("canvas");
  copy.querySelectorAll("foreignObject").forEach((place, n) => {
    const image = document.createElementNS(svg.namespaceURI, "image");
    for (const { name, value } of place.attributes)
      image.setAttribute(name, value);
    image.setAttribute("href", canvases[n].toDataURL());
    image.setAttribute("image-rendering", "optimizeSpeed");
    image.setAttribute("preserveAspectRatio", "none");
    place.replaceWith(image);
  });
  return copy.outerHTML;
}"""


def pixels(address: str, page: str) -> bytes:
    """The pixels of an image of a page, which is in the page or a file."""
    file = (
        io.BytesIO(base64.b64decode(address.partition(",")[2]))
        if address.startswith("data:")
        else (HTML / page).parent / address
    )
    return Image.open(file).convert("RGB").tobytes()


def test_the_first_picture_is_the_still_that_is_printed(
    figures, address, page
):
    for figure in figures:
        live = Live(page, address, figure)
        width = engine().call("widths", figure.spec)["wide"]
        still = engine().call("stills", figure.spec, width)[0]
        svg = live.root.locator("svg").first.evaluate(AS_PRINTED)
        assert shapes(svg) == shapes(still), figure.id
        images = [
            BeautifulSoup(text, "html.parser").select("image")
            for text in (svg, still)
        ]
        for one, other in zip(*images, strict=True):
            seen, drawn = (
                pixels(image["href"], figure.page) for image in (one, other)
            )
            assert seen == drawn, figure.id


def test_the_address_keeps_the_state(figures, address, page):
    for figure in figures:
        live = Live(page, address, figure)
        kind, control = live.controls()[0]
        control.focus()
        for key in KEYS[kind]:
            page.keyboard.press(key)
        page.keyboard.press(KEYS[kind][1])
        state = live.state()
        page.wait_for_function(
            "id => location.hash.startsWith(`#${id}?`)", arg=figure.id
        )
        page.wait_for_timeout(500)  # it is written when the hand rests
        query = page.evaluate("location.hash").partition("?")[2]
        page.goto("about:blank")
        assert Live(page, address, figure, f"?{query}").state() == state


@pytest.mark.parametrize("query", ["?t=1e9", "?t=x&u=1", "?mask=&row=-1"])
def test_an_address_that_no_control_allows_is_ignored(
    figures, address, page, query
):
    for figure in figures:
        page.goto("about:blank")
        live = Live(page, address, figure, query)
        spec = figure.spec
        assert live.agrees() == engine().call("state", spec), figure.id


def test_without_javascript_the_picture_is_there_and_no_dead_control(
    figures, address, browser
):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    for figure in figures:
        page.goto(f"{address}/{figure.page}#{figure.id}")
        root = page.locator(f"[id='{figure.id}'] [data-widget]")
        assert root.locator("svg").first.bounding_box()["height"] > 50
        assert root.locator(".widget-question p").is_visible()
        reached = root.locator("input, button, select, [tabindex]")
        assert not any(control.is_visible() for control in reached.all())
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_no_figure_keeps_a_reader_out(
    figures, browser, address, scheme, width
):
    page = browser.new_page(
        color_scheme=scheme,
        viewport={"width": width, "height": 800},
        reduced_motion="reduce",
    )
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
    for figure in figures:
        live = Live(page, address, figure)
        page.add_style_tag(content="* { transition: none !important }")
        context = {"include": [[f"#{figure.id}"]]}
        found = Axe().run(page, context=context, options=rules)
        violations = found.response["violations"]
        assert len(found.response["passes"]) > 9, "the rules saw nothing"
        assert [
            (v["id"], v["nodes"][0]["html"][:120]) for v in violations
        ] == [], figure.id
        box = live.root.evaluate("e => [e.scrollWidth, e.clientWidth]")
        assert box[0] <= box[1], figure.id
        kind, control = live.controls()[0]
        control.focus()
        page.keyboard.press(KEYS[kind][0])
        moving = f"document.getElementById('{figure.id}')"
        moving += ".getAnimations({subtree: true}).length"
        assert page.evaluate(moving) == 0
    page.close()


def test_figures_live_in_a_folder_without_a_server(figures, browser):
    """From `file://`, where a page may ask for nothing but what lies beside it."""
    page, wrong = browser.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request",
        lambda r: (
            None
            if r.url.startswith((HTML.as_uri(), "data:"))
            else wrong.append(r.url)
        ),
    )
    for figure in figures:
        Live(page, HTML.as_uri(), figure).agrees()
    page.close()
    assert wrong == []


def test_a_figure_adds_little_to_its_page(figures):
    sizes = {f.id: len(gzip.compress(f.html.encode())) for f in figures}
    assert {name: s for name, s in sizes.items() if s > 60_000} == {}


def test_what_is_seen_is_said(figures):
    for figure in figures:
        spec = json.loads(figure.spec)
        assert len(spec["alt"].split()) > 8, figure.id
        assert spec["question"].endswith("?"), figure.id
        assert (
            spec["alt"]
            in BeautifulSoup(figure.html, "html.parser").svg["aria-label"]
        )


def test_print_has_the_stills_as_vectors(figures):
    """In the figure of that label stands a drawing, and its parts are lines and letters."""
    tex = built(LATEX / "signal-from-noise.tex").read_text("utf-8")
    blocks = re.findall(
        r"\\begin\{figure\}.*?\\end\{figure\}", tex, re.DOTALL
    )
    for figure in figures:
        if figure.page == "book/index.html":  # the start page is not printed
            continue
        name = f"{Path(figure.page).with_suffix('').as_posix()}:{figure.id}"
        label = f"\\label{{\\detokenize{{{name}}}}}"
        block = next(block for block in blocks if label in block)
        file = re.search(r"\{\{(figure-\w+)\}\.pdf\}", block)[1]
        content = (LATEX / f"{file}.pdf").read_bytes()
        assert b"/Font" in content, figure.id
        assert "\\caption" in block


def test_what_is_typed_is_read(figures, address, page):
    """Letters and heads are chosen where they are drawn, too."""
    figure = next(f for f in figures if f.family == "text-reader")
    live = Live(page, address, figure)
    live.root.locator("input[type=text]").fill("Tom, tom")
    assert live.agrees()["text"] == "Tom, tom"
    drawn = live.root.locator("svg text")
    drawn.filter(has_text=re.compile("^m$")).last.hover()
    assert live.agrees()["row"] == 8
    drawn.filter(has_text=re.compile(r"^1\.2$")).click()
    assert live.agrees()["head"] == "1.2"
