"""The cache of what ran: whole, half-written, locked."""

import sqlite3

import nbformat
import pytest

from loom.run.cache import Cache, heal


def damage_half_a_notebook(cache):
    (file,) = cache.glob("executed/*/base.ipynb")
    file.write_text(file.read_text()[:100])


def damage_no_notebook(cache):
    (file,) = cache.glob("executed/*/base.ipynb")
    file.unlink()


def damage_no_record(cache):
    with sqlite3.connect(cache / "global.db") as connection:
        connection.execute("DELETE FROM nbcache")


def damage_empty_database(cache):
    (cache / "global.db").write_bytes(b"")


def damage_garbled_database(cache):
    (cache / "global.db").write_bytes(b"x" * 5000)


def damage_no_database(cache):
    (cache / "global.db").unlink()


DAMAGES = [
    f for name, f in sorted(globals().items()) if name[:7] == "damage_"
]


@pytest.fixture
def cache(tmp_path):
    """A cache with one result; its notebook."""
    v4 = nbformat.v4
    notebook = v4.new_notebook(cells=[v4.new_code_cell("print(1)")])
    cache = Cache(tmp_path)
    cache.store(notebook, tmp_path / "a.md", 1.5)
    return cache, notebook


def test_a_whole_cache_stays_as_it_is(cache, tmp_path):
    cache, notebook = cache
    assert Cache(tmp_path).seconds(notebook) == 1.5
    assert Cache(tmp_path).last_seconds(tmp_path / "a.md") == 1.5
    assert cache.has(cache.key(notebook))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_half_written_cache_is_healed(cache, tmp_path, damage):
    cache, notebook = cache
    damage(cache.folder)
    healed = Cache(tmp_path)
    assert healed.seconds(notebook) is None
    assert not healed.has(healed.key(notebook))
    healed.store(notebook, tmp_path / "a.md", 2.5)
    assert Cache(tmp_path).seconds(notebook) == 2.5


def test_a_locked_cache_is_left_alone(cache):
    cache, notebook = cache
    with sqlite3.connect(cache.folder / "global.db") as connection:
        connection.execute("BEGIN EXCLUSIVE")
        heal(cache.folder)
    assert cache.seconds(notebook) == 1.5
