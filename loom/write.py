"""Put tangled modules on disk without ever losing what a person wrote there.

loom keeps the bytes it last wrote in `_build/loom/last/`. A file that equals neither those bytes
nor its new text was edited by hand, and loom refuses to overwrite it. Where that folder does not
exist, as in a fresh clone, git's HEAD takes its place.
"""

import difflib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from loom.book import Book
from loom.errors import Problem, Problems
from loom.tangle import Module, Tangled

__all__ = ["LAST", "drift", "write", "write_atomically"]

LAST = Path("_build/loom/last")
# The folders in which every file is loom's.
OWNED = ("tangled", "tests/book")


def write(book: Book, tangled: Tangled) -> list[str]:
    """Write what changed and remove what no chapter makes any more; return the paths concerned.

    Raises:
        Problems: if a file was edited by hand, or is not loom's; then nothing was written.
    """
    root = book.root
    on_disk = _owned(root)
    wanted = {path: module.text.encode() for path, module in tangled.modules.items()}
    last = _last(root, sorted({*wanted, *on_disk}))
    problems: list[Problem] = []
    changed: list[str] = []
    for path in sorted({*wanted, *on_disk}):
        disk, new, base = on_disk.get(path), wanted.get(path), last.get(path)
        if disk == new:
            continue
        if disk is not None and disk != base:
            problems.append(_hand_made(tangled, path, disk, new))
        changed.append(path)
    if problems:
        raise Problems(problems)
    for path in changed:
        if path in wanted:
            write_atomically(root / path, wanted[path])
        else:
            (root / path).unlink()
            _prune(root, (root / path).parent)
    for path in {*wanted, *_files(root / LAST)}:
        if path not in wanted:
            (root / LAST / path).unlink()
        elif _read(root / LAST / path) != wanted[path]:
            write_atomically(root / LAST / path, wanted[path])
    return changed


def drift(book: Book, tangled: Tangled) -> tuple[list[Problem], str]:
    """Return where the files on disk differ from the chapters, and the differences as a diff."""
    on_disk = _owned(book.root)
    problems: list[Problem] = []
    diffs: list[str] = []
    for path in sorted({*tangled.modules, *on_disk}):
        module, disk = tangled.modules.get(path), on_disk.get(path)
        if module is None:
            problems.append(Problem(path, 1, "L17", "no chapter makes this file"))
            continue
        if disk == module.text.encode():
            continue
        if disk is None:
            problems.append(Problem(path, 1, "L18", "this file is missing: run 'loom tangle'"))
            continue
        line, place = _first_difference(module, disk)
        sentence = f"this differs from {place}: run 'loom tangle', or move the edit there"
        problems.append(Problem(path, line, "L18", sentence))
        diffs += difflib.unified_diff(
            module.text.splitlines(keepends=True),
            disk.decode(errors="replace").splitlines(keepends=True),
            f"{path} (as the chapters say)",
            f"{path} (on disk)",
        )
    return problems, "".join(diffs)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file in one step: whoever reads it sees the old bytes or the new ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".loom-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _hand_made(tangled: Tangled, path: str, disk: bytes, new: bytes | None) -> Problem:
    if new is None:
        return Problem(path, 1, "L17", "loom did not write this file: move it out of the way")
    line, place = _first_difference(tangled.modules[path], disk)
    sentence = f"edited by hand, so not overwritten: move the edit to {place}, or delete the file"
    return Problem(path, line, "L18", sentence)


def _first_difference(module: Module, disk: bytes) -> tuple[int, str]:
    """The first line on which a file differs from its module, and the chapter line it came from."""
    ours, theirs = (module.text.splitlines(), disk.decode(errors="replace").splitlines())
    pairs = enumerate(zip(ours, theirs, strict=False), 1)
    line = next((n for n, (a, b) in pairs if a != b), min(len(ours), len(theirs)) + 1)
    near = [placed for placed in module.lines[:line] if placed.chapter]
    place = f"{near[-1].chapter}:{near[-1].number}" if near else "its chapter"
    return line, place


def _files(folder: Path) -> Iterator[str]:
    """The files below a folder, as relative paths; caches of Python left out."""
    for path in folder.rglob("*") if folder.is_dir() else ():
        if path.is_file() and "__pycache__" not in path.parts:
            yield path.relative_to(folder).as_posix()


def _owned(root: Path) -> dict[str, bytes]:
    return {
        f"{folder}/{name}": (root / folder / name).read_bytes()
        for folder in OWNED
        for name in _files(root / folder)
        if not name.rsplit("/", 1)[-1].startswith(".loom-")
    }


def _last(root: Path, paths: list[str]) -> dict[str, bytes]:
    """What loom last wrote: its own copy, else the committed files."""
    if (root / LAST).is_dir():
        return {path: (root / LAST / path).read_bytes() for path in _files(root / LAST)}
    committed: dict[str, bytes] = {}
    for path in paths:
        shown = subprocess.run(
            ["git", "show", f"HEAD:./{path}"], cwd=root, capture_output=True, check=False
        )
        if shown.returncode == 0:
            committed[path] = shown.stdout
    return committed


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _prune(root: Path, folder: Path) -> None:
    """Remove folders that held nothing but the file just removed."""
    while folder != root and not any(p.name != "__pycache__" for p in folder.iterdir()):
        for cache in folder.iterdir():
            for file in cache.iterdir():
                file.unlink()
            cache.rmdir()
        folder.rmdir()
        folder = folder.parent
