"""`loom serve`: an edited paragraph appears on the page, and the chapter is not run again."""

import re
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

CLOCK = "import time\nprint('made at', time.time_ns())"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def until(page: Callable[[], str], words: str) -> str:
    """The page, once the words stand on it."""
    end = time.monotonic() + 60
    while words not in (text := page()):
        assert time.monotonic() < end, f"'{words}' did not appear"
        time.sleep(0.05)
    return text


def test_an_edited_paragraph_appears(small_book: Any) -> None:
    (small_book.root / "tangled/__init__.py").unlink()
    small_book.chapters(a=[CLOCK])
    port = free_port()

    def page() -> str:
        try:
            url = f"http://127.0.0.1:{port}/book/a.html"
            return urllib.request.urlopen(url, timeout=10).read().decode()
        except (urllib.error.URLError, OSError):
            return ""

    server = small_book.start("-m", "loom", "serve", "--port", str(port))
    try:
        before = until(page, "Prose.")
        chapter = small_book.root / "book/a.md"
        chapter.write_text(
            chapter.read_text().replace("Prose.", "Other prose.")
        )
        after = until(page, "Other prose.")
    finally:
        server.send_signal(signal.SIGINT)
        _, err = server.communicate(timeout=30)
    assert server.returncode == 130
    assert "Traceback" not in err
    made = r"made at (\d+)"
    assert re.search(made, before)[1] == re.search(made, after)[1]


def test_a_port_that_is_taken_is_one_sentence(small_book: Any) -> None:
    small_book.chapters(a=[])
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        server = small_book.start("-m", "loom", "serve", "--port", port)
        out, err = server.communicate(timeout=60)
    assert (server.returncode, out) == (1, "")
    assert err.startswith(f"port {port} is not free (")
    assert err.count("\n") == 1
