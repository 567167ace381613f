"""The command `loom`."""

import argparse
import errno
import gc
import os
import sys
from pathlib import Path

from loom.errors import INTERRUPTED, UNREAD, Problem, Problems

# Of what the machine refuses, what an author can mend: room, or permissions.
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)

DESCRIPTION = """\
Compile the book of this folder. The chapters that _toc.yml lists are the source;
the package tangled/ and the tests of tests/book/ are made from their code cells.
"""
TANGLE = """\
Write tangled/ and tests/book/ from the chapters. Only files that change are
written. A file that was edited by hand is never overwritten: loom names it, and
writes nothing.
"""
CHECK = """\
Write nothing; exit with 1 if tangled/ or tests/book/ is not what the chapters
say, or if a result of the book is not proved, implemented, verified and refuted.
"""
SYNC = """\
Carry what was edited by hand in tangled/ or tests/book/ into the cells of the
chapters. If a chapter changed as well, both changes are merged. An edit that
cannot be carried is named, and then nothing is written.
"""
WHERE = """\
Tell the chapter line of a line of a module, or the lines of the modules that are
made from a line of a chapter: loom where tangled/part/name.py:22
"""
RUN = """\
Run the chapters whose results are not in the cache, two at a time, longest
first. An interrupted run goes on where it stopped.
"""

MAKE = """\
Do several of these, one after another, until one fails: loom make tangle run html.
The chapters are read once.
"""
SERVE = """\
Build the site, serve it on this machine, and rebuild what is saved.
"""


# A verb imports what it needs when it is asked for, so that none waits for another's imports.


def _artifacts(root: Path) -> int:
    from loom.run.shared_weights import main

    return main(root)


def _html(root: Path) -> int:
    from loom.publish.build import html

    return html(root)


def _pdf(root: Path) -> int:
    from loom.publish.build import pdf

    return pdf(root)


def _seconds(root: Path) -> int:
    from loom.run.timings import main

    return main(root)


# What works in the book's folder alone; the other verbs are given the book.
BUILDS = {
    "artifacts": ("make the weights that chapters share", _artifacts),
    "html": ("weave the site", _html),
    "pdf": ("weave the print edition", _pdf),
    "seconds": ("show how long the chapters took", _seconds),
}


def _positive(text: str) -> int:
    """A number of lanes."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of chapters from 1 on")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The command line of loom."""
    main = argparse.ArgumentParser(prog="loom", description=DESCRIPTION)
    main.add_argument(
        "-C", dest="root", metavar="DIR", type=Path, default=Path(), help="the book's folder"
    )
    verbs = main.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("tangle", help="make the package from the chapters", description=TANGLE)
    verbs.add_parser("check", help="compare the package with the chapters", description=CHECK)
    verbs.add_parser("sync", help="carry edits of the package to the chapters", description=SYNC)
    where = verbs.add_parser("where", help="find a line on the other side", description=WHERE)
    where.add_argument("place", metavar="FILE:LINE", help="of a module or of a chapter")
    run = verbs.add_parser("run", help="execute the chapters", description=RUN)
    run.add_argument("chapters", nargs="*", metavar="CHAPTER", help="only these, book/part/name.md")
    run.add_argument(
        "--lanes", type=_positive, default=2, metavar="N", help="chapters at a time (2)"
    )
    run.add_argument("--force", action="store_true", help="run even what is in the cache")
    for verb, (text, _) in BUILDS.items():
        verbs.add_parser(verb, help=text, description=text)
    make = verbs.add_parser("make", help="do several of these", description=MAKE)
    steps = ("tangle", "check", "run", *BUILDS)
    make.add_argument("steps", nargs="+", metavar="VERB", choices=steps, help=", ".join(steps))
    serve = verbs.add_parser("serve", help="show the site while one writes", description=SERVE)
    serve.add_argument("--port", type=int, default=8000, metavar="N", help="on this port (8000)")
    return main


def command() -> int:
    """What the shell calls."""
    try:
        try:
            status = main()
        finally:
            sys.stdout.flush()  # here, where a reader that has gone is no mistake
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = INTERRUPTED
    except BrokenPipeError:
        status = _unread()
    # What is left is not worth collecting when all of it goes.
    gc.freeze()
    return status


def _unread() -> int:
    """The exit status when nobody reads on, as after `loom seconds | head`.

    Where it was another pipe that broke, the error is raised again.
    """
    try:
        print(flush=True)
    except BrokenPipeError:
        # What is left has somewhere to go, so that Python is silent when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD
    raise


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = parser().parse_args(arguments)
    root = options.root.resolve()
    if options.verb == "make":
        statuses = (main(["-C", str(root), step]) for step in options.steps)
        return next(filter(None, statuses), 0)
    try:
        if options.verb in BUILDS:
            return BUILDS[options.verb][1](root)
        if options.verb == "serve":
            return _serve(root, options.port)
        if options.verb == "run":
            return _run(root, options)
        # These are over before collecting what they leave behind would pay.
        gc.disable()
        return _package(root, options)
    except Problems as problems:
        print(problems, file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        path = os.path.relpath(str(error.filename), root) if error.filename else "_build"
        print(
            Problem(path, 1, "L31", f"this cannot be read or written: {error.strerror}"),
            file=sys.stderr,
        )
        return 1
    finally:
        gc.enable()


def _run(root: Path, options: argparse.Namespace) -> int:
    from loom.read.book import read
    from loom.run.run import main

    return main(read(root), options.chapters, lanes=options.lanes, force=options.force)


def _serve(root: Path, port: int) -> int:
    from loom.publish.serve import serve

    return serve(root, port, lambda: main(["-C", str(root), "make", "tangle", "run", "html"]))


def _package(root: Path, options: argparse.Namespace) -> int:
    """The verbs between the chapters and the package."""
    from loom.read.book import read
    from loom.tangle.package import tangle

    book = read(root)
    if options.verb == "sync":
        from loom.sync import sync

        return sync.main(book)
    tangled = tangle(book)
    if options.verb == "where":
        from loom.sync import where

        return where.main(book, tangled, options.place)
    if options.verb == "tangle":
        from loom.tangle import files

        return files.main(book, tangled)
    from loom.prove import check

    return check.main(book, tangled)


if __name__ == "__main__":
    sys.exit(command())
