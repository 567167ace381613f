"""Show the site in a browser while one writes: rebuild what was saved, reload the page."""

import importlib
import socket
import sys
from pathlib import Path

from livereload import Server

from loom.__main__ import main
from loom.errors import INTERRUPTED
from loom.publish.separate_process import run_apart

__all__ = ["serve", "steps"]

HOST = "127.0.0.1"
WATCHED = ("book/**/*.md", "book/_static/*.css", "book/references.bib", "_toc.yml", "_config.yml")
STEPS = ("tangle", "run", "html")


def serve(root: Path, port: int) -> int:
    """Build the site, serve it on this machine, and build it again at each change of a source.

    Returns:
        1, where another program has the port; or 130 after Ctrl-C, which ends it.
    """
    if reason := taken(port):
        print(f"port {port} is not free ({reason}): loom serve --port N", file=sys.stderr)
        return 1

    def build() -> None:
        # A chapter that does not build ends the build, and the last good page stays.
        run_apart(lambda: steps(root))

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


def steps(root: Path) -> int:
    """Tangle, run and weave, as far as all goes well; the status of the last."""
    return main(["-C", str(root), "make", *STEPS])
