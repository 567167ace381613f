"""Checks of the chapter “Weights that last”.

Tangled from book/workshop/checkpoint.md.
"""

import json
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tangled.workshop.artifacts import artifact, recipe
from tangled.workshop.checkpoint import (
    CheckpointError,
    KeyMap,
    _mapped,
    load_checkpoint,
    match_keys,
    read_tensors,
    save_checkpoint,
)


def check_every_cut_is_noticed(read: Callable[[Path], object]) -> None:
    """Check that no part of a file, and no more than it, can be read."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "layer.safetensors")
        save_file({"a": torch.ones(2), "b": torch.ones(2, 2)}, path)
        raw = path.read_bytes()
        for content in (*(raw[:n] for n in range(len(raw))), raw + b"0"):
            path.write_bytes(content)
            try:
                read(path)
            except CheckpointError:
                continue
            raise AssertionError(f"{len(content)} bytes were accepted")


def test_every_cut_is_noticed():
    check_every_cut_is_noticed(_mapped)


def header_only(path: Path) -> dict[str, Any]:
    """Read the header, and trust it."""
    try:
        content = path.read_bytes()
        stop = 8 + int.from_bytes(content[:8], "little")
        return json.loads(content[8:stop])  # WRONG: nobody counts the bytes
    except ValueError as error:
        raise CheckpointError("no header") from error


def test_a_reader_that_counts_no_bytes_is_caught():
    with pytest.raises(AssertionError, match="bytes were accepted"):
        check_every_cut_is_noticed(header_only)


def test_a_pickle_is_refused_under_any_name():
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        torch.save({"weight": torch.ones(2)}, path)  # WRONG: a zip archive
        with pytest.raises(CheckpointError, match="refused: it is a pickle"):
            _mapped(path)
        path.write_bytes(pickle.dumps({"weight": [1.0, 2.0]}))  # WRONG
        with pytest.raises(CheckpointError, match="refused: it is a pickle"):
            _mapped(path)


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


TENSORS = {"a": torch.ones(5), "b": torch.ones(2)}


def check_kills(save: Callable) -> None:
    """Check that at every line the name is absent or holds everything."""
    with TemporaryDirectory() as top:
        target = Path(top, "step-5")

        def look() -> None:
            try:
                found = read_tensors(target) if target.exists() else TENSORS
            except CheckpointError:
                found = {}
            assert found.keys() == TENSORS.keys(), "half a model"

        at_every_line(lambda: save(target, TENSORS, {}, shard_bytes=20), look)
        assert target.exists()


def check_power_failures(save: Callable) -> None:
    """Check that all is flushed before it has its name, and then the name."""
    flushed, fsync = [], os.fsync

    def flush(handle: int) -> None:
        fsync(handle)
        flushed.append(os.fstat(handle).st_ino)

    def rename(path: Path, target: Path) -> None:
        for held in (path, *path.rglob("*")):
            assert held.stat().st_ino in flushed, "not flushed"
        flushed.clear()
        os.rename(path, target)

    with (
        TemporaryDirectory() as top,
        mock.patch("os.fsync", flush),
        mock.patch.object(Path, "rename", rename),
    ):
        save(Path(top, "step-5"), TENSORS, {}, shard_bytes=20)
        assert flushed == [os.stat(top).st_ino], "the name is not flushed"


def test_the_save_survives_kills_and_power_failures():
    check_kills(save_checkpoint)
    check_power_failures(save_checkpoint)


def in_place(
    folder: Path, tensors: dict, config: dict, shard_bytes: int
) -> None:
    """Write under the name itself."""
    folder.mkdir()  # WRONG: from here on the name is there
    save_file(tensors, folder / "model.safetensors")


def test_saves_that_leave_out_a_step_are_caught():
    with pytest.raises(AssertionError, match="half a model"):
        check_kills(in_place)
    where = sys.modules[save_checkpoint.__module__]
    flush = where._flush

    def lazy(*paths: Path) -> None:
        if len(paths) == 1:  # WRONG: only step 5, without step 3
            flush(*paths)

    with mock.patch.object(where, "_flush", lazy):
        check_kills(save_checkpoint)
        with pytest.raises(AssertionError, match="not flushed"):
            check_power_failures(save_checkpoint)


def check_all_arrive_once(load: Callable) -> None:
    """Check that a load uses every number of the file exactly once."""
    numbers = torch.arange(80.0)
    held = {"qkv": numbers[:48].view(4, 12), "b": numbers[48:60]}
    held |= {"h.0.w": numbers[60:76].view(4, 4), "h.0.b": numbers[76:]}
    names = {"qkv.T": ("q.weight", "k.weight", "v.weight")}
    names |= {"b": ("q.bias", "k.bias", "v.bias")}
    names |= {"h.#.w": "layers.#.weight", "h.#.b": "layers.#.bias"}
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in "qkv"})
    model["layers"] = nn.ModuleList([nn.Linear(4, 4)])
    with TemporaryDirectory() as top:
        save_checkpoint(
            f"{top}/a", {n: t.clone() for n, t in held.items()}, {}
        )
        load(model, f"{top}/a", names)
    arrived = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.equal(arrived.sort().values, numbers), "numbers are lost"
    assert torch.equal(model["k"].weight, held["qkv"][:, 4:8].t()), "place"


def test_every_number_arrives_once():
    check_all_arrive_once(load_checkpoint)


def load_first_rows(model: nn.Module, folder: str, keys: KeyMap) -> None:
    """Copy one row of each tensor, and let it be repeated."""
    slots = model.state_dict()
    for name, value in match_keys(model, read_tensors(folder), keys).items():
        slots[name].copy_(value[0])  # WRONG: copy_ broadcasts


def test_a_loader_that_broadcasts_is_caught():
    with pytest.raises(AssertionError, match="numbers are lost"):
        check_all_arrive_once(load_first_rows)


def check_one_trains() -> None:
    """Check that of four that ask at once one trains."""
    trained, answers = [], []

    def slow(folder: Path) -> tuple[nn.Module, list]:
        trained.append(folder)
        time.sleep(0.3)
        return nn.Linear(1, 1), []

    slow.__module__ = "tangled.workshop.artifacts"
    with (
        TemporaryDirectory() as home,
        mock.patch.dict(os.environ, TANGLED_ARTIFACTS=home),
    ):
        asked = recipe()(slow)
        threads = [
            threading.Thread(target=lambda: answers.append(artifact(asked)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(trained) == 1, "trained more than once"
        assert len(answers) == 4
        assert len(set(answers)) == 1


def test_four_ask_and_one_trains():
    check_one_trains()


class NoLock:
    """A lock that lets everybody in."""

    def __init__(self, path: str) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def test_without_a_lock_more_than_one_trains():
    where = sys.modules[artifact.__module__]
    hook, threading.excepthook = threading.excepthook, lambda _: None
    try:
        with (
            mock.patch.object(where, "FileLock", NoLock),
            pytest.raises(AssertionError, match="more than once"),
        ):
            check_one_trains()
    finally:
        threading.excepthook = hook
