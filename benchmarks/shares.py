"""What a chapter's page is made of: shares of its visible height, as it opens, at 1400 px.

    make html && python benchmarks/shares.py

Prose holds headings, lists, tables and the text of statements and boxes; hints, solutions and what
else is folded count with the one line that is seen.
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

KINDS = (
    "prose",
    "formulas",
    "figures",
    "code that ships",
    "checks",
    "demonstrations",
)
HTML = Path(__file__).parents[1] / "_build" / "html"

# A block is of one kind; one that holds blocks of other kinds counts what is left of its height.
MEASURE = """() => {
  const kinds = [
    ["formulas", "div.math"],
    ["figures", "figure, .picture"],
    ["checks", ".fold.verify, .fold.refute"],
    ["demonstrations", ".fold.code"],
    ["cell", "div.cell, .provenance-cell"],
    ["prose", ".statement, .proof, .admonition, details.answer, " +
      ".provenance:not(.provenance-cell, .provenance-fold), " +
      "h1, h2, h3, h4, p, ul, ol, dl, table, blockquote"],
  ];
  const all = kinds.map(([, selector]) => selector).join(", ");
  const article = document.querySelector("article");
  const blocks = [...article.querySelectorAll(all)].filter(b => b.checkVisibility());
  const height = block => block.getBoundingClientRect().height;
  const outer = block => {
    const around = block.parentElement.closest(all);
    return around && article.contains(around) ? around : null;
  };
  const inside = new Map();
  for (const block of blocks) {
    const around = outer(block);
    if (around) inside.set(around, (inside.get(around) || 0) + height(block));
  }
  const kind = block => {
    const [found] = kinds.find(([, selector]) => block.matches(selector));
    if (found !== "cell") return found;
    if (block.closest(".fold.verify, .fold.refute")) return "checks";
    const note = block.matches(".provenance-cell") ? block : block.nextElementSibling;
    if (!note || !note.matches(".provenance-cell")) return "demonstrations";
    return note.textContent.startsWith("tests/") ? "checks" : "code that ships";
  };
  const total = {};
  for (const block of blocks) {
    const own = Math.max(height(block) - (inside.get(block) || 0), 0);
    total[kind(block)] = (total[kind(block)] || 0) + own;
  }
  return total;
}"""


def shares(page: Page) -> dict[str, float]:
    """Return the share of each kind on the page that is open; they add up to 1."""
    page.set_viewport_size({"width": 1400, "height": 1000})
    page.evaluate("() => window.MathJax && MathJax.startup.promise")
    heights = page.evaluate(MEASURE)
    whole = sum(heights.values())
    return {kind: heights.get(kind, 0) / whole for kind in KINDS}


def reading(found: dict[str, float]) -> float:
    """Return the share of what one reads and sees: prose, formulas, figures."""
    return sum(found[kind] for kind in KINDS[:3])


def main() -> None:
    """Print a table of the chapters."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("html", type=Path, nargs="?", default=HTML)
    folder = parser.parse_args().html.resolve()
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(
            executable_path=browser, args=["--no-sandbox"]
        ).new_page()
        print(" | ".join(("chapter", *KINDS, "read and seen")))
        for path in sorted(folder.glob("book/*/*.html")):
            if "cell_input" not in path.read_text("utf-8"):
                continue
            page.goto(path.as_uri())
            found = shares(page)
            cells = [f"{found[kind]:.0%}" for kind in KINDS]
            print(" | ".join((path.stem, *cells, f"{reading(found):.0%}")))


if __name__ == "__main__":
    main()
