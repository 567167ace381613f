"""Show the site in a browser while one writes: rebuild what was saved, reload the page."""

import subprocess
import sys
from pathlib import Path

from livereload import Server

__all__ = ["serve"]

WATCHED = ("book/**/*.md", "book/_static/*.css", "book/references.bib", "_toc.yml", "_config.yml")
STEPS = ("tangle", "run", "html")


def serve(root: Path, port: int) -> int:
    """Build the site, serve it on this machine, and build it again at each change of a source."""

    def build() -> None:
        # Each step in a process of its own: a chapter that does not build ends the build, and the
        # last good page stays.
        for step in STEPS:
            command = [sys.executable, "-m", "loom", "-C", str(root), step]
            if subprocess.run(command, check=False).returncode:
                return

    build()
    server = Server()
    for pattern in WATCHED:
        server.watch(str(root / pattern), build)
    server.serve(port=port, root=str(root / "_build/html"), open_url_delay=None)
    return 0
