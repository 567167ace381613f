"""Show the site in a browser while one writes: rebuild what was saved, reload the page."""

import importlib
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from livereload import Server

from loom.errors import INTERRUPTED
from loom.publish.separate_process import run_apart

__all__ = ["serve"]

HOST = "127.0.0.1"
WATCHED = ("book/**/*.md", "book/_static/*.css", "book/references.bib", "_toc.yml", "_config.yml")


def serve(root: Path, port: int, work: Callable[[], int]) -> int:
    """Serve the site on this machine; do the `work` that builds it now and when a source changes.

    Returns:
        1, where another program has the port; or 130 after Ctrl-C, which ends it.
    """
    if reason := taken(port):
        print(f"port {port} is not free ({reason}): loom serve --port N", file=sys.stderr)
        return 1

    def build() -> None:
        # A chapter that does not build ends the build, and the last good page stays.
        run_apart(work)

    try:
        importlib.import_module("loom.publish.preload")  # what the copies need not import again
        build()
        server = Server()
        for pattern in WATCHED:
            server.watch(str(root / pattern), build)
        server.serve(port=port, host=HOST, root=str(root / "_build/html"), open_url_delay=None)
    except KeyboardInterrupt:
        pass
    return INTERRUPTED


def taken(port: int) -> str:
    """Why nobody can listen on a port; "" if one can."""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((HOST, port))
        except (OSError, OverflowError) as error:
            return getattr(error, "strerror", None) or str(error)
    return ""
