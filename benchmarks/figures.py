"""What an update of each interactive figure costs a page: main-thread CPU time, and its weight.

`python -m benchmarks.figures` after `make html`. A slider is moved 200 times, a frame each; the
time that the same number of idle frames takes is subtracted. Time on the clock would tell more of
the machine's other work than of the figure.
"""

import gzip
import shutil
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tests.site.conftest import HTML

UPDATES = 200
# Move the first slider of a figure to and fro, or choose in turn where there is none; or do nothing
# as often.
FRAMES = """async ([id, move, updates]) => {
  const figure = document.getElementById(id);
  const slider = figure.querySelector("input[type=range]");
  const choices = figure.querySelectorAll("input[type=radio]");
  for (let n = 0; n < updates; n++) {
    if (move && slider) {
      const [min, max] = [Number(slider.min), Number(slider.max)];
      slider.value = min + Math.round((max - min) * (0.5 + 0.4 * Math.sin(n)));
      slider.dispatchEvent(new Event("input", { bubbles: true }));
    } else if (move) choices[n % choices.length].click();
    await new Promise(requestAnimationFrame);
  }
}"""


def main() -> None:
    """Print a row for each figure."""
    pages = [
        p for p in HTML.rglob("*.html") if 'data-widget="' in p.read_text()
    ]
    print(
        "figure                    ms CPU an update    KB of data, compressed"
    )
    with sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu"]
        )
        for path in sorted(pages):
            page = browser.new_page()
            page.goto(path.as_uri())
            for root in page.locator("[data-widget]").all():
                measure(page, root)
            page.close()
        browser.close()


def measure(page: Page, root) -> None:
    """Print the row of a figure."""
    root.scroll_into_view_if_needed()
    page.wait_for_timeout(1500)
    name = root.evaluate("root => root.closest('[id]').id")
    script = root.get_attribute("data-script")
    text = root.locator("script").text_content()
    if script:
        file = page.evaluate("s => new URL(s, location).pathname", script)
        text += Path(file).read_text("utf-8")
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    rounds = []
    for _ in range(4):
        idle, busy = (ticks(page, session, name, move) for move in (0, 1))
        rounds.append(1e3 * (busy - idle) / UPDATES)
    low, high = min(rounds), max(rounds)
    size = len(gzip.compress(text.encode())) / 1000
    print(f"{name:24s}  {low:6.2f} to {high:.2f}  {size:18.1f}")


def ticks(page: Page, session, name: str, move: int) -> float:
    """Return the seconds of main-thread CPU that so many frames take."""

    def now() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return {m["name"]: m["value"] for m in metrics}["TaskDuration"]

    start = now()
    page.evaluate(FRAMES, [name, move, UPDATES])
    return now() - start


if __name__ == "__main__":
    main()
