"""What loom last wrote in each of its files, and so which of them a person edited.

It is kept in `_build/loom/last/`, with the time of the file that was written. What is about to be
written stands in `_build/loom/next/` before, so that after an interruption loom still knows its own
files.
"""

import difflib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

__all__ = [
    "LAST",
    "NEXT",
    "OWNED",
    "STAGED",
    "UNKNOWN",
    "base",
    "bytes_of",
    "edited",
    "files_below",
    "settle",
    "store",
]

LAST = Path("_build/loom/last")
NEXT = Path("_build/loom/next")
# The folders in which every file is loom's.
OWNED = ("tangled", "tests/book")
UNKNOWN = "neither git nor _build/ tells what loom wrote here: delete the file to have it made anew"
# How the names of files begin that wait beside their places.
STAGED = ".loom-"


def settle(root: Path) -> None:
    """Take what stands at its place as last written; forget the rest of what was to come."""
    for path in list(files_below(root / NEXT)):
        if bytes_of(root / path) == bytes_of(root / NEXT / path):
            (root / LAST / path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(root / NEXT / path, root / LAST / path)
            status = (root / path).stat()
            os.utime(root / LAST / path, ns=(status.st_atime_ns, status.st_mtime_ns))
    shutil.rmtree(root / NEXT, ignore_errors=True)
    for folder in ("book", *OWNED):
        for temporary in (root / folder).rglob(f"{STAGED}*"):
            temporary.unlink(missing_ok=True)


def store(root: Path, new: dict[str, bytes]) -> None:
    """Keep what is about to stand at its place, where that is not known already."""
    (root / LAST).parent.mkdir(parents=True, exist_ok=True)
    for path, data in new.items():
        if bytes_of(root / LAST / path) != data or not _same_time(root, path):
            (root / NEXT / path).parent.mkdir(parents=True, exist_ok=True)
            (root / NEXT / path).write_bytes(data)


def edited(root: Path, path: str, disk: bytes) -> bool:
    """Tell whether a file was edited by hand: it is neither as committed nor what loom wrote.

    The bytes that loom last wrote in another file, a newer one, may have been typed: git can take a
    file back, and a person can write again what loom had written.
    """
    committed = _committed(root, path)
    if disk != bytes_of(root / LAST / path):
        return disk != committed
    return not _same_time(root, path) and committed not in (None, disk)


def base(root: Path, path: str, disk: bytes) -> bytes | None:
    """What a file was before it was edited: what loom last wrote or what is committed.

    Either may be older than the other, for git changes files too. So it is the one from which the
    file differs in fewer lines.
    """
    known = (bytes_of(root / LAST / path), _committed(root, path))
    others = [text for text in known if text not in (None, disk)]
    return min(others, key=lambda text: _distance(text, disk), default=None)


def _distance(one: bytes, other: bytes) -> int:
    """The number of lines that only one of two texts has."""
    a, b = one.split(b"\n"), other.split(b"\n")
    blocks = difflib.SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
    return len(a) + len(b) - 2 * sum(block.size for block in blocks)


def _same_time(root: Path, path: str) -> bool:
    """Tell whether a file has the time of the one that loom last wrote there."""
    files = root / path, root / LAST / path
    times = [file.stat().st_mtime_ns for file in files if file.is_file()]
    return len(times) == 2 and times[0] == times[1]


def _committed(root: Path, path: str) -> bytes | None:
    try:
        shown = subprocess.run(
            # To read a blob of a clone that another user owns is safe: it runs nothing.
            ["git", "-c", "safe.directory=*", "cat-file", "blob", f"HEAD:./{path}"],
            cwd=root,
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        return None
    return shown.stdout if shown.returncode == 0 else None


def bytes_of(path: Path) -> bytes | None:
    """What stands in a file; None where there is none."""
    return path.read_bytes() if path.is_file() else None


def files_below(folder: Path) -> Iterator[str]:
    """The files below a folder, as relative paths; caches of Python left out."""
    for path in folder.rglob("*") if folder.is_dir() else ():
        if path.is_file() and "__pycache__" not in path.parts:
            yield path.relative_to(folder).as_posix()
