"""Put tangled modules on disk without ever losing what a person wrote there.

A file that is neither what loom last wrote, nor as committed, nor as the chapters now make it, was
edited by hand: loom refuses to overwrite it, and `loom sync` carries into the chapters what differs
from the nearer of the two that loom knows.
"""

import difflib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from loom.errors import Problem, Problems
from loom.read.book import Book
from loom.tangle.last_written import (
    LAST,
    NEXT,
    OWNED,
    STAGED,
    UNKNOWN,
    base,
    edited,
    files_below,
    settle,
    store,
)
from loom.tangle.modules import Module
from loom.tangle.package import Tangled

__all__ = ["drift", "main", "owned", "write"]

# The chapters that a module's docstring names.
SOURCE = re.compile(r"\bbook/\S+\.md\b")


def main(book: Book, tangled: Tangled) -> int:
    """The command `loom tangle`: name the files that were written."""
    for path in write(book, tangled):
        print(path)
    return 0


def write(
    book: Book,
    tangled: Tangled,
    carried: Mapping[str, bytes] = MappingProxyType({}),
    chapters: Mapping[str, bytes] = MappingProxyType({}),
) -> list[str]:
    """Write what changed and remove what no chapter makes any more; return the paths concerned.

    `carried` are edits by hand that the chapters contain by now, as they stand on disk, and
    `chapters` the chapters that contain them, to be written first.

    Raises:
        Problems: if a file was edited by hand, or is not loom's; then nothing was written.
    """
    root = book.root
    settle(root)
    wanted = {path: module.text.encode() for path, module in tangled.modules.items()}
    on_disk = owned(root)
    problems: list[Problem] = []
    changed: list[str] = []
    for path in sorted({*wanted, *on_disk}):
        disk = on_disk.get(path)
        if disk == wanted.get(path):
            continue
        changed.append(path)
        if (obstacle := _obstacle(root, path)) is not None:
            problems.append(_in_the_way(path, obstacle))
        elif disk is not None and disk != carried.get(path) and edited(root, path, disk):
            problems.append(_hand_made(root, tangled, path, disk))
    for path in chapters:
        if (obstacle := _obstacle(root, path)) is not None:
            problems.append(_in_the_way(path, obstacle))
    if problems:
        raise Problems(problems)
    new = {path: wanted[path] for path in changed if path in wanted}
    gone = [path for path in changed if path not in wanted]
    try:
        store(root, on_disk)
        settle(root)
        store(root, new)
    except OSError as error:
        raise Problems([_unwritable(NEXT.as_posix(), error)]) from None
    for path in gone:
        for sentence in _farewell(book, path, on_disk[path]):
            print(sentence)
    _replace(root, {**chapters, **new}, gone)
    settle(root)
    for path in gone:
        _prune((root / path).parent)
    for path in set(files_below(root / LAST)) - set(wanted):
        (root / LAST / path).unlink()
    return [*chapters, *changed]


def _farewell(book: Book, path: str, disk: bytes) -> Iterator[str]:
    """What is said before a file is deleted: which, and what prose still links to its chapter."""
    yield f"{path} is deleted: no chapter makes it any more"
    listed = {chapter.path for chapter in book.chapters}
    for source in SOURCE.findall(disk.decode(errors="replace").partition("__all__")[0]):
        name = PurePosixPath(source).name
        for chapter in book.chapters if source not in listed else ():
            for number, line in enumerate(chapter.text.split("\n"), 1):
                if re.search(rf"\]\([^)\s]*\b{re.escape(name)}\b", line):
                    yield f"{chapter.path}:{number}: this links to {source}, which is not listed"


def drift(book: Book, tangled: Tangled) -> tuple[list[Problem], str]:
    """Return where the files on disk differ from the chapters, and the differences as a diff."""
    on_disk = owned(book.root)
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
        verb = "sync" if edited(book.root, path, disk) else "tangle"
        sentence = f"this differs from {place}: run 'loom {verb}'"
        problems.append(Problem(path, line, "L18", sentence))
        diffs += difflib.unified_diff(
            module.text.splitlines(keepends=True),
            disk.decode(errors="replace").splitlines(keepends=True),
            f"{path} (as the chapters say)",
            f"{path} (on disk)",
        )
    return problems, "".join(diffs)


def _unwritable(path: str, error: OSError) -> Problem:
    return Problem(path, 1, "L31", f"this file cannot be written: {error.strerror or error}")


def _replace(root: Path, new: dict[str, bytes], gone: list[str]) -> None:
    """Replace files, each in one step, once there was room for all of them; then remove others.

    Raises:
        Problems: if a file cannot be written; where the disk is full, none was replaced.
    """
    staged: dict[str, str] = {}
    path = ""
    try:
        for path, data in new.items():
            staged[path] = _staged(root / path, data)
        for path, temporary in staged.items():
            os.replace(temporary, root / path)
        for path in gone:
            (root / path).unlink()
    except OSError as error:
        raise Problems([_unwritable(path, error)]) from None
    finally:
        for temporary in staged.values():
            Path(temporary).unlink(missing_ok=True)


def _staged(path: Path, data: bytes) -> str:
    """Write a file beside its place, from where one step will put it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = path.stat().st_mode if path.exists() else 0o644
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=STAGED)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, mode)
    except BaseException:
        os.unlink(temporary)
        raise
    return temporary


def _obstacle(root: Path, path: str) -> str | None:
    """What stands where a file or one of its folders belongs, and is neither."""
    *folders, _ = PurePosixPath(path).parents
    for folder in reversed(folders):
        place = root / folder
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            return folder.as_posix()
    place = root / path
    return path if place.is_symlink() or place.is_dir() else None


def _in_the_way(path: str, obstacle: str) -> Problem:
    sentence = f"{obstacle} is a link or has the wrong kind: move it out of the way"
    return Problem(path, 1, "L17", sentence)


def _hand_made(root: Path, tangled: Tangled, path: str, disk: bytes) -> Problem:
    if path not in tangled.modules:
        return Problem(path, 1, "L17", "loom did not write this file: move it out of the way")
    if base(root, path, disk) is None:
        return Problem(path, 1, "L18", UNKNOWN)
    line, place = _first_difference(tangled.modules[path], disk)
    sentence = (
        "edited by hand, so not overwritten: "
        f"'loom sync' carries the edit to {place}; or delete the file"
    )
    return Problem(path, line, "L18", sentence)


def _first_difference(module: Module, disk: bytes) -> tuple[int, str]:
    """The first line on which a file differs from its module, and the chapter line it came from."""
    ours = [own.text for own in module.lines]
    theirs = disk.decode(errors="replace").split("\n")
    pairs = enumerate(zip(ours, theirs, strict=False), 1)
    line = next((n for n, (a, b) in pairs if a != b), min(len(ours), len(theirs)) + 1)
    near = [own for own in module.lines[:line] if own.number]
    place = f"{near[-1].path}:{near[-1].number}" if near else "its chapter"
    return line, place


def owned(root: Path) -> dict[str, bytes]:
    """What stands in the folders in which every file is loom's."""
    found: dict[str, bytes] = {}
    for folder in OWNED:
        for name in files_below(root / folder):
            path = f"{folder}/{name}"
            if name.rsplit("/", 1)[-1].startswith(STAGED):
                continue
            try:
                found[path] = (root / path).read_bytes()
            except OSError as error:
                sentence = f"this file cannot be read: {error.strerror}"
                raise Problems([Problem(path, 1, "L31", sentence)]) from None
    return found


def _prune(folder: Path) -> None:
    """Remove folders that held nothing but the file just removed."""
    while folder.is_dir() and not any(p.name != "__pycache__" for p in folder.iterdir()):
        for cache in folder.iterdir():
            for file in cache.iterdir():
                file.unlink()
            cache.rmdir()
        folder.rmdir()
        folder = folder.parent
