"""Checks of the chapter “Weights that last”.

Tangled from book/workshop/checkpoint.md.
"""

import importlib
import itertools
import math
import os
import pickle
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any
from unittest import mock

import pytest
import torch
from filelock import FileLock
from safetensors.torch import save_file
from torch import Tensor, nn

from tangled.workshop.artifacts import Recipe, artifact, key
from tangled.workshop.checkpoint import (
    CheckpointError,
    Entry,
    KeyMap,
    _flush,
    load_checkpoint,
    match_keys,
    model_tensors,
    new_folder,
    read_config,
    read_header,
    read_tensor,
    read_tensors,
    save_checkpoint,
    write_checkpoint,
    write_file,
)


def odd_tensors() -> dict[str, Tensor]:
    """Return tensors of many dtypes and shapes, some not contiguous."""
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(3, 3, generator=generator)
    return {
        "transposed": square.t(),
        "double": square.double(),
        "brain": square.bfloat16(),
        "step": torch.tensor(7),
        "mask": square > 0,
        "nothing": torch.empty(0, 3),
        "repeated": square[0, 0].expand(5),
    }


def same(found: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether two dictionaries hold equal tensors."""
    return found.keys() == tensors.keys() and all(
        found[name].dtype == tensors[name].dtype
        and torch.equal(found[name], tensors[name])
        for name in tensors
    )


def test_our_file_is_that_of_the_library():
    tensors = odd_tensors()
    dense = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with TemporaryDirectory() as folder:
        ours, theirs = Path(folder, "ours"), Path(folder, "theirs")
        write_file(ours, tensors)
        save_file(dense, theirs, metadata={"format": "pt"})
        assert ours.read_bytes() == theirs.read_bytes()
        entries = read_header(theirs)
        found = {name: read_tensor(entries[name]) for name in entries}
        assert same(found, tensors)


def test_no_beginning_of_a_file_passes_for_the_file():
    with TemporaryDirectory() as folder:
        path = Path(folder, "file")
        write_file(path, odd_tensors())
        whole = path.read_bytes()
        for size in range(len(whole)):
            path.write_bytes(whole[:size])
            expected = rf"truncated: it has {size} bytes of at least \d+$"
            with pytest.raises(CheckpointError, match=expected):
                read_header(path)


def packed(header: str, data: bytes = bytes(8)) -> dict[str, Entry]:
    """Write a file of this header and these data, and read it back."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "file")
        path.write_bytes(len(header).to_bytes(8, "little"))
        with path.open("ab") as file:
            file.write(header.encode() + data)
        return read_header(path)


def one_number(name: str, start: int, stop: int, dtype: str = "F32") -> str:
    """Return the JSON of an entry for a tensor with one number."""
    fields = f'"dtype":"{dtype}","shape":[1],"data_offsets":[{start},{stop}]'
    return f'"{name}":{{{fields}}}'


def test_damaged_headers_are_refused():
    a, b = one_number("a", 0, 4), one_number("b", 4, 8)
    assert list(packed(f"{{{b},{a}}}")) == ["a", "b"]  # CORRECT
    for wrong, reason in {
        f"{{{a},{a}}}": "'a' stands there twice",
        f"{{{a},{one_number('b', 0, 4)}}}": "'b' begins at byte",  # overlap
        f"{{{a},{one_number('b', 5, 9)}}}": "'b' begins at byte",  # gap
        f"{{{a}}}": "has 4 bytes of no tensor",
        f"{{{a},{b},{one_number('c', 8, 12)}}}": "is truncated",
        f"{{{a},{one_number('b', 4, 7)}}}": "shape and offsets of 'b'",
        f"{{{a},{one_number('b', 4, 8, 'F31')}}}": "of a dtype unknown here",
        f"{{{a},{b}": "holds broken JSON",
        '{"a":1}': "the entry 1 of 'a' is broken",
        f"[{a}]": "does not begin with a header",
    }.items():
        with pytest.raises(CheckpointError, match=reason):
            packed(wrong)


def test_a_pickle_is_refused_under_any_name():
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        torch.save({"weight": torch.ones(2)}, path)  # WRONG: a zip archive
        with pytest.raises(CheckpointError, match="a zip archive of torch"):
            read_header(path)
        path.write_bytes(pickle.dumps({"weight": [1.0, 2.0]}))  # WRONG
        with pytest.raises(CheckpointError, match="refused: it is a pickle"):
            read_header(path)


class Disk:
    """A disk that keeps what was flushed, and of the rest the worst."""

    def __init__(self) -> None:
        self.kept: dict[int, bytes | dict[str, int]] = {}  # by inode
        self.flushes = 0

    def flush(self, handle: int) -> None:
        """Take the place of os.fsync."""
        info = os.fstat(handle)
        if stat.S_ISDIR(info.st_mode):
            self.kept[info.st_ino] = listing(handle)
        else:
            self.kept[info.st_ino] = os.pread(handle, info.st_size, 0)
        self.flushes += 1

    def power_cut(self, home: Path, left: Path, early: tuple[bool, bool]):
        """Write to `left` what is left of `home`.

        `early` says for it, and for the folders in it, whether their names
        got to the disk ahead of the flush.
        """
        now = {os.stat(f).st_ino: listing(f) for f, _, _ in os.walk(home)}

        def restore(inode: int, path: Path, early: Sequence[bool]) -> None:
            kept = self.kept.get(inode)
            if inode not in now and not isinstance(kept, dict):
                path.write_bytes(kept or b"")
                return
            path.mkdir()
            names = now.get(inode, {}) if early[0] else kept or {}
            for name, child in names.items():
                restore(child, path / name, early[1:] or early)

        restore(os.stat(home).st_ino, left, early)


def listing(folder: int | str) -> dict[str, int]:
    """Return the names in a folder, each with the inode it stands for."""
    with os.scandir(folder) as entries:
        return {entry.name: entry.inode() for entry in entries}


def test_the_disk_forgets_what_was_not_flushed():
    disk, home = Disk(), Path(mkdtemp())
    try:
        for name in ("flushed", "forgotten"):
            (home / name).write_text(name)
        with mock.patch("os.fsync", disk.flush):
            _flush(home / "flushed")
        for early, names in ((True, ["flushed", "forgotten"]), (False, [])):
            left = home.with_name(f"{home.name}-{early}")
            disk.power_cut(home, left, (early, early))
            found = {path.name: path.read_text() for path in left.iterdir()}
            shutil.rmtree(left)
            assert sorted(found) == names
            assert found.get("flushed", "flushed") == "flushed"
            assert found.get("forgotten", "") == ""
    finally:
        shutil.rmtree(home)


def reader_finds(home: Path, old: Mapping, new: Mapping) -> str:
    """Return what a reader finds under the name new; old must be there."""
    if not same(read_tensors(home / "old"), old):
        return "old lost"
    if not (home / "new").exists():
        return "absent"
    parts = [path for path in (home / "new").iterdir() if path.is_dir()]
    try:
        for folder in (home / "new", *parts):
            read_config(folder)
            if not same(read_tensors(folder), new):
                return "broken"
    except CheckpointError:
        return "broken"
    return "complete"


def at_every_line(action: Callable[[], None], look: Callable[[], None]):
    """Run an action, and look between any two lines of Python in it."""

    def trace(*_: object) -> Callable:
        look()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)


@cache  # the figure below asks again
def instants(save: Callable) -> list[tuple[str, set[str]]]:
    """Return what is found at each instant: after a kill, a power cut."""
    old, new = (
        {"a": torch.arange(3)},
        {"a": torch.ones(5), "b": torch.ones(2)},
    )
    disk, seen, last = Disk(), [], None
    with TemporaryDirectory() as top, mock.patch("os.fsync", disk.flush):
        home = Path(top, "home")
        home.mkdir()
        save_checkpoint(home / "old", old, {})

        def look() -> None:
            nonlocal last
            files = [(p, p.stat().st_size) for p in sorted(home.rglob("*"))]
            if last != (disk.flushes, files):
                last = disk.flushes, files
                cuts = set()
                for early in itertools.product((True, False), repeat=2):
                    left = Path(top, "left")
                    disk.power_cut(home, left, early)
                    cuts.add(reader_finds(left, old, new))
                    shutil.rmtree(left)
                seen.append((reader_finds(home, old, new), cuts))

        at_every_line(lambda: save(home / "new", new, {}), look)
        look()
    return seen


def in_parts(folder: Path, tensors: Mapping, config: Mapping) -> None:
    """Save a checkpoint that has another one inside."""
    with new_folder(folder) as partial:
        write_checkpoint(partial, tensors, config)
        write_checkpoint(partial / "average", tensors, config)


def test_every_instant_is_safe():
    for save in (save_checkpoint, in_parts):
        seen = instants(save)
        cuts = set().union(*(cuts for _, cuts in seen))
        assert {kill for kill, _ in seen} == {"absent", "complete"} == cuts
        assert seen[0] == ("absent", {"absent"})
        assert seen[-1] == ("complete", {"complete"})


def test_nothing_is_left_behind():
    with TemporaryDirectory() as top:
        Path(top, ".new.00000000.partial").mkdir()  # by one who was killed
        with pytest.raises(KeyboardInterrupt), new_folder(f"{top}/new"):
            raise KeyboardInterrupt
        assert os.listdir(top) == []


def in_place(folder: Path, tensors: Mapping, config: Mapping) -> None:
    """Save as most scripts do."""
    write_checkpoint(folder, tensors, config)  # WRONG: no other name first


@cache
def careless(forgotten: str) -> Callable:
    """Return an atomic save that forgets to flush something."""

    def save(folder: Path, tensors: Mapping, config: Mapping) -> None:
        partial = folder.with_name(".partial")
        write_checkpoint(partial, tensors, config)
        flushed = {"files": [*partial.iterdir()], "their folder": [partial]}
        for what, paths in flushed.items():
            for path in paths if what != forgotten else []:  # WRONG
                _flush(path)
        partial.rename(folder)
        if forgotten != "the name":  # WRONG
            _flush(folder.parent)

    return save


def test_each_step_of_the_save_is_needed():
    assert "broken" in {kill for kill, _ in instants(in_place)}
    for forgotten in ("files", "their folder"):
        seen = instants(careless(forgotten))
        assert {kill for kill, _ in seen} == {"absent", "complete"}
        assert "broken" in set().union(*(cuts for _, cuts in seen))
    kill, cuts = instants(careless("the name"))[-1]
    assert kill == "complete"
    assert cuts == {"absent", "complete"}  # it had returned, and is gone


def blocks(layers: int) -> nn.ModuleDict:
    """Return a model of many parts, in which queries and keys stand alone."""
    return nn.ModuleDict(
        {
            "embed": nn.Embedding(7, 4),
            "blocks": nn.ModuleList(
                nn.ModuleDict(
                    {
                        "q": nn.Linear(4, 4),
                        "k": nn.Linear(4, 2),
                        "out": nn.Linear(4, 4),
                    }
                )
                for _ in range(layers)
            ),
            "norm": nn.BatchNorm1d(4),
        }
    )


def fused(layers: int) -> dict[str, Tensor]:
    """Return a checkpoint for it with other names, numbered from 0 on."""
    shapes = {"wte": [7, 4], "trash": [3]}
    for i in range(layers):
        shapes |= {f"h.{i}.qk.w": [4, 6], f"h.{i}.qk.b": [6]}
        shapes |= {f"h.{i}.out.w": [4, 4], f"h.{i}.out.b": [4]}
    for name in ("weight", "bias", "running_mean", "running_var"):
        shapes[f"ln.{name}"] = [4]
    sizes = [math.prod(shape) for shape in shapes.values()]
    numbers = torch.arange(float(sum(sizes))).split(sizes)
    pairs = zip(shapes.items(), numbers, strict=True)
    tensors = {name: part.reshape(shape) for (name, shape), part in pairs}
    return tensors | {"ln.num_batches_tracked": torch.tensor(-1)}


FUSED = KeyMap(
    names={
        "wte": "embed.weight",
        "h.#.qk.w": ("blocks.#.q.weight", "blocks.#.k.weight"),
        "h.#.qk.b": ("blocks.#.q.bias", "blocks.#.k.bias"),
        "h.#.out.w": "blocks.#.out.weight",
        "h.#.out.b": "blocks.#.out.bias",
        **{
            f"ln.{name}": f"norm.{name}"
            for name in ("weight", "bias", "running_mean", "running_var")
        },
        "ln.num_batches_tracked": "norm.num_batches_tracked",
    },
    transposed=("h.#.qk.w", "h.#.out.w"),
    ignored=("trash",),
)


def test_the_sizes_agree():
    for layers in (1, 3, 12):
        model, tensors = blocks(layers), fused(layers)
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        routes = match_keys(model, shapes, FUSED)
        assert routes.keys() == tensors.keys() - {"trash"}
        slots = model_tensors(model)
        targets = [t for route in routes.values() for t in route.targets]
        assert sorted(targets) == sorted(slots)
        used = sum(shapes[name].numel() for name in routes)
        assert used == sum(tensor.numel() for tensor in slots.values())


def complaint(keys: KeyMap, *gone: str, **more: Tensor) -> str:
    """Return what is said of a changed map or checkpoint."""
    tensors = fused(2) | more
    shapes = {n: t.shape for n, t in tensors.items() if n not in gone}
    with pytest.raises(CheckpointError) as error:
        match_keys(blocks(2), shapes, keys)
    return str(error.value)


def test_whatever_is_not_strict_is_named():
    names = dict(FUSED.names)
    missing = complaint(FUSED, "wte", "h.1.out.b")
    assert "2 missing ('embed.weight', 'blocks.1.out.bias')" in missing
    assert "1 extra ('more')" in complaint(FUSED, more=torch.ones(1))
    short = complaint(FUSED, wte=torch.ones(6, 4))
    assert "1 misshaped ('wte')" in short
    plain = complaint(KeyMap(names, (), FUSED.ignored))  # no transposes
    assert "2 misshaped ('h.0.qk.w', 'h.1.qk.w')" in plain
    doubled = names | {"h.#.out.b": "blocks.#.q.bias"}
    doubled = complaint(KeyMap(doubled, FUSED.transposed, FUSED.ignored))
    assert "2 missing" in doubled
    assert "2 set twice ('blocks.0.q.bias', 'blocks.1.q.bias')" in doubled
    dropped = names | {"h.#.out.b": ()}
    dropped = complaint(KeyMap(dropped, FUSED.transposed, FUSED.ignored))
    assert "2 misshaped ('h.0.out.b', 'h.1.out.b')" in dropped


def test_a_loose_match_loses_numbers():
    model, tensors = blocks(1), fused(1)
    model.load_state_dict(tensors, strict=False)  # WRONG: loads nothing
    held = torch.cat([t.flatten() for t in model.state_dict().values()])
    sent = torch.cat([t.flatten() for t in tensors.values()])
    assert not torch.isin(sent[sent > 3], held).any()


def test_every_number_arrives_once():
    for layers in (1, 3, 12):
        model, tensors = blocks(layers), fused(layers)
        with TemporaryDirectory() as folder:
            save_checkpoint(f"{folder}/a", tensors, {}, shard_bytes=200)
            load_checkpoint(model, f"{folder}/a", FUSED)
        sent = [t.flatten() for n, t in tensors.items() if n != "trash"]
        held = [tensor.flatten() for tensor in model_tensors(model).values()]
        sent, held = torch.cat(sent), torch.cat(held)
        assert sent.sort().values.equal(held.sort().values)
        # And a few of them at their places.
        first = tensors["h.0.qk.w"].t()
        assert model["blocks"][0]["q"].weight.equal(first[:4])
        assert model["blocks"][0]["k"].weight.equal(first[4:])
        last = tensors[f"h.{layers - 1}.out.b"]
        assert model["blocks"][-1]["out"].bias.equal(last)


def test_a_failed_load_changes_nothing():
    model, empty = blocks(2), torch.empty
    before = {n: t.clone() for n, t in model_tensors(model).items()}

    def room_for(count: int) -> Callable:
        steps = itertools.count()

        def make(*shape: Any, **kind: Any) -> Tensor:
            if kind.get("device") != "meta" and next(steps) == count:
                raise MemoryError
            return empty(*shape, **kind)

        return mock.patch("torch.empty", make)

    with TemporaryDirectory() as folder:
        save_checkpoint(f"{folder}/a", fused(2), {}, shard_bytes=200)
        for count in range(14):  # the checkpoint holds so many for the model
            with room_for(count), pytest.raises(MemoryError):
                load_checkpoint(model, f"{folder}/a", FUSED)
            assert same(model_tensors(model), before)
        with room_for(14):
            load_checkpoint(model, f"{folder}/a", FUSED)
    assert not same(model_tensors(model), before)


def test_tied_weights_and_other_objects_stay_what_they_are():
    for where in ("cpu", "meta"):
        with torch.device(where):
            model = nn.ModuleDict(
                {"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)}
            )
            model["b"].weight = model["a"].weight
        model["b"].bias.requires_grad_(False)
        matrix = model["a"].weight
        tensors = {"b.weight": torch.eye(3), "a.bias": torch.ones(3)}
        with TemporaryDirectory() as folder:
            save_checkpoint(
                f"{folder}/a", tensors | {"b.bias": torch.ones(3)}, {}
            )
            load_checkpoint(model, f"{folder}/a")
        assert model["a"].weight is model["b"].weight is matrix
        assert matrix.requires_grad
        assert not model["b"].bias.requires_grad
        assert torch.equal(matrix, torch.eye(3))


MODULE = '''
"""A recipe that takes its time."""

import time
from toys import parts

STEPS = []

def judge(folder, *, width):
    STEPS.append(width)
    for _ in range(30):  # give another the time to train as well
        if len(STEPS) == 1:
            time.sleep(0.01)
    return parts.layer(width), [{"loss": 0.5}]
'''
PARTS_OF_IT = '''
"""What the recipe is made of."""

from torch import nn

def layer(width):
    """Return a layer."""
    return nn.Linear(width, width)
'''


@contextmanager
def toys() -> Iterator[Path]:
    """Give a package `toys` for a while, and artefacts a temporary folder."""
    with TemporaryDirectory() as top:
        package = Path(top, "toys")
        package.mkdir()
        (package / "__init__.py").write_text('"""Toys."""')
        (package / "models.py").write_text(MODULE)
        (package / "parts.py").write_text(PARTS_OF_IT)
        environment = {"TANGLED_ARTIFACTS": f"{top}/artefacts"}
        paths = mock.patch.object(sys, "path", [top, *sys.path])
        with mock.patch.dict(os.environ, environment), paths:
            yield package
        for name in [name for name in sys.modules if name.startswith("toys")]:
            del sys.modules[name]


def judge(width: int = 3) -> Recipe:
    """Return the recipe of that package."""
    models = importlib.import_module("toys.models")
    return Recipe(models.judge, {"width": width})


def trainings() -> int:
    """Return how often the recipe trained when four threads asked at once."""
    with toys(), ThreadPoolExecutor(4) as pool:
        asked = judge()
        folders = set(pool.map(artifact, [asked] * 4))
        assert len(folders) == 1
        assert read_config(folders.pop())["log"] == [{"loss": 0.5}]
        return len(sys.modules["toys.models"].STEPS)


def test_four_ask_and_one_trains():
    assert trainings() == 1


def test_the_key_changes_with_what_made_the_weights_only():
    with toys() as package:
        before = key(judge())
        assert key(judge(width=4)) != before
        with mock.patch.object(Recipe, "name", "jury"):
            assert key(judge()) != before
        with mock.patch.object(torch, "__version__", "0.1"):
            assert key(judge()) != before
        parts = package / "parts.py"
        parts.write_text(
            PARTS_OF_IT.replace("a layer", "one layer") + "# ?\n"
        )
        assert key(judge()) == before
        parts.write_text(PARTS_OF_IT.replace("width, width", "width, 9"))
        assert key(judge()) != before
        (package / "unused.py").write_text("x = 1")
        parts.write_text(PARTS_OF_IT)
        assert key(judge()) == before


def test_without_the_lock_several_train_and_collide():
    unlocked = mock.patch.object(FileLock, "acquire", nullcontext)
    freed = mock.patch.object(FileLock, "release")
    with unlocked, freed, pytest.raises(CheckpointError):
        trainings()  # WRONG: several train, and all saves but one fail
