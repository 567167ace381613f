"""Show the site in a browser while one writes: rebuild what was saved, reload the page."""

import multiprocessing
from pathlib import Path

from livereload import Server

from loom.__main__ import main

__all__ = ["serve", "steps"]

WATCHED = ("book/**/*.md", "book/_static/*.css", "book/references.bib", "_toc.yml", "_config.yml")
STEPS = ("tangle", "run", "html")


def serve(root: Path, port: int) -> int:
    """Build the site, serve it on this machine, and build it again at each change of a source."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["loom.warm"])

    def build() -> None:
        # In a process of its own, which leaves nothing behind; the tools of the site are in it
        # already. A chapter that does not build ends the build, and the last good page stays.
        process = context.Process(target=steps, args=(root,))
        process.start()
        process.join()

    build()
    server = Server()
    for pattern in WATCHED:
        server.watch(str(root / pattern), build)
    server.serve(port=port, root=str(root / "_build/html"), open_url_delay=None)
    return 0


def steps(root: Path) -> None:
    """Tangle, run and weave, as far as all goes well."""
    main(["-C", str(root), "make", *STEPS])
