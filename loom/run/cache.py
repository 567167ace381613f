"""The results of chapters, kept by jupyter-cache where myst-nb looks for them.

jupyter-cache writes its database first and the notebook after it, and does not expect to be
killed in between: the next build would stop at the half-written entry. `heal` removes such
entries, so that an interrupted build costs only what it had not finished.
"""

import os
import shutil
import sqlite3
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from loom.errors import Problem, Problems

if TYPE_CHECKING:
    from jupyter_cache.cache.main import JupyterCacheBase
    from nbformat import NotebookNode

__all__ = ["Cache", "heal", "place"]


def place(root: Path) -> Path:
    """The folder that `jupyter-book build .` keeps its cache in.

    Raises:
        Problems: if jupyter-cache, which takes its path for a part of a URL, would miss it.
    """
    folder = root.absolute() / "_build" / ".jupyter_cache"
    if "?" in str(folder) or unquote(str(folder)) != str(folder):
        sentence = "jupyter-cache opens no folder with ? or % in its path: move the book"
        raise Problems([Problem("_build", 1, "L31", sentence)])
    return folder


def heal(folder: Path) -> None:
    """Remove whatever a killed build left half-written; everything complete stays."""
    database = folder / "global.db"
    if not folder.is_dir():
        return
    whole = {entry.name for entry in (folder / "executed").glob("*") if _is_whole(entry)}
    try:
        with closing(sqlite3.connect(database, timeout=1)) as connection, connection:
            rows = connection.execute("SELECT hashkey FROM nbcache").fetchall()
            connection.execute("SELECT * FROM nbproject, settings LIMIT 0")
            recorded = {key for (key,) in rows}
            lost = [(key,) for key in recorded - whole]
            connection.executemany("DELETE FROM nbcache WHERE hashkey = ?", lost)
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_BUSY:
            shutil.rmtree(folder)  # without its tables the database is of no use
        return
    for entry in (folder / "executed").glob("*"):
        if entry.name not in whole & recorded:
            shutil.rmtree(entry)


def _is_whole(entry: Path) -> bool:
    """Whether a notebook was written to its end: only there a brace stands in the first column."""
    try:
        with (entry / "base.ipynb").open("rb") as file:
            file.seek(-2, os.SEEK_END)
            return file.read() == b"\n}"
    except OSError:
        return False


class Cache:
    """The cache of the book in `root`: what ran, and how long it took."""

    def __init__(self, root: Path) -> None:
        self.folder = place(root)
        heal(self.folder)

    @cached_property
    def cache(self) -> "JupyterCacheBase":
        """jupyter-cache itself, whose import takes longer than a run with nothing to do."""
        from jupyter_cache import get_cache

        return get_cache(self.folder)

    def has(self, key: str) -> bool:
        """Whether there is a result under this key."""
        return _is_whole(self.folder / "executed" / key)

    def key(self, notebook: "NotebookNode") -> str:
        """The name of the notebook's entry, which digests its code cells and its kernelspec."""
        key: str = self.cache.create_hashed_notebook(notebook)[1]
        return key

    def seconds(self, notebook: "NotebookNode") -> float | None:
        """How long the notebook took when its stored result was made; None where there is none."""
        try:
            record = self.cache.match_cache_notebook(notebook)
        except KeyError:
            return None
        return float(record.data.get("execution_seconds") or 0.0)

    def executed(self, notebook: "NotebookNode") -> "NotebookNode | None":
        """The notebook with its outputs; None where it has not been run as it is."""
        try:
            record = self.cache.match_cache_notebook(notebook)
        except KeyError:
            return None
        return self.cache.get_cache_bundle(record.pk).nb

    def file(self, key: str) -> Path:
        """Where the executed notebook with this key is kept."""
        return self.folder / "executed" / key / "base.ipynb"

    def last_seconds(self, chapter: Path) -> float | None:
        """How long an earlier version of the chapter took."""
        records = [r for r in self.cache.list_cache_records() if r.uri == str(chapter)]
        last = max(records, key=lambda record: record.created, default=None)
        return float(last.data.get("execution_seconds") or 0.0) if last else None

    def store(self, notebook: "NotebookNode", chapter: Path, seconds: float) -> None:
        """Keep an executed notebook, as myst-nb would have done."""
        from jupyter_cache.base import CacheBundleIn  # as above

        data = {"execution_seconds": seconds}
        bundle = CacheBundleIn(notebook, str(chapter), data=data)
        self.cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
