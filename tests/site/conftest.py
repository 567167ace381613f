"""What the tests of the built book share: its pages, a server, a browser, the print edition."""

import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import cached_property, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parents[2]
HTML = ROOT / "_build" / "html"
LATEX = ROOT / "_build" / "latex"
PDF = LATEX / "signal-from-noise.pdf"


# The colours of code: nine tags of ten, of which no test asks.
COLOURS = re.compile(r'<span class="[a-z]{1,2}">([^<]*)</span>')


def built(path: Path) -> Path:
    """The path, if it was built; these tests fail on a book that was not."""
    if not path.exists():
        pytest.fail(
            f"{path.relative_to(ROOT)} is not there: run `make book` first",
            pytrace=False,
        )
    return path


class Site:
    """The pages of the built site, parsed, by their path below `_build/html`."""

    def __init__(self) -> None:
        built(HTML / "index.html")
        files = {
            str(path.relative_to(HTML)): BeautifulSoup(
                COLOURS.sub(r"\1", path.read_text("utf-8")), "html.parser"
            )
            for path in sorted(HTML.rglob("*.html"))
        }
        # The front door only sends one on to the first page; templates of the theme are no pages.
        self.pages = {
            path: page
            for path, page in files.items()
            if path != "index.html" and not path.startswith("_static/")
        }
        # The pages of source code, and their kinds: modules and tests.
        self.code = {
            path: path.split("/")[1]
            for path in self.pages
            if path.startswith("code/")
        }
        # The pages that an author wrote, in contrast to the index, the search and the modules.
        self.written = {
            p: page for p, page in self.pages.items() if p.startswith("book/")
        }
        # Of these, the pages that are in the print edition too.
        self.printed = {
            p: page
            for p, page in self.written.items()
            if "\nprint: false\n"
            not in (ROOT / p).with_suffix(".md").read_text("utf-8")
        }
        self.chapters = {
            p: page
            for p, page in self.written.items()
            if page.select("div.cell, .statement")
        }

    @cached_property
    def ids(self) -> dict[str, set[str]]:
        """The anchors of each page."""
        return {
            path: {tag["id"] for tag in page.select("[id]")}
            for path, page in self.pages.items()
        }

    def example(self, *selectors: str) -> str:
        """The path of the shortest chapter that has something for each of the selectors."""
        return min(
            (
                path
                for path, page in self.chapters.items()
                if all(map(page.select_one, selectors))
            ),
            key=lambda path: (HTML / path).stat().st_size,
        )


@pytest.fixture(scope="session")
def site() -> Site:
    return Site()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    built(HTML / "index.html")
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=HTML)
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


# Closed after the last test of this folder: while it is open, nothing in this process may have
# an event loop of its own.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    names = (
        "chromium",
        "google-chrome",
        "google-chrome-stable",
        "chromium-browser",
    )
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.fail(
            "no Chromium is there: install the packages of apt-test.txt",
            pytrace=False,
        )
    options = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
    ]
    options += [
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=options
        )
        yield browser
        browser.close()


def visit(page: Page, url: str) -> None:
    """Open a page and wait for its formulas."""
    page.goto(url)
    page.evaluate("() => window.MathJax && MathJax.startup.promise")


@pytest.fixture(scope="session")
def pdf() -> Path:
    return built(PDF)


@pytest.fixture(scope="session")
def printed(pdf: Path) -> str:
    """The text of the print edition."""
    command = ["pdftotext", "-raw", "-enc", "UTF-8", str(pdf), "-"]
    return subprocess.run(
        command, check=True, capture_output=True
    ).stdout.decode()


@pytest.fixture(scope="session")
def aux(pdf: Path) -> dict[str, str]:
    """The number that LaTeX printed for each label."""
    text = (LATEX / "signal-from-noise.aux").read_text("utf-8")
    pairs = re.findall(
        r"\\newlabel\{(.*?)\}\{\{(?:\{([^{}]*)\}|([^{}]*))\}", text
    )
    return {label: braced or plain for label, braced, plain in pairs}
