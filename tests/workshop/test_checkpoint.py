"""Checkpoints: what goes in comes out, what is bad is refused, and no accident loses anything."""

import errno
import json
import os
import pickle
import re
import resource
import signal
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from tangled.workshop import checkpoint
from tangled.workshop.checkpoint import (
    CheckpointError,
    load_checkpoint,
    match_keys,
    model_tensors,
    new_folder,
    read_config,
    read_tensors,
    save_checkpoint,
)

ROOT = Path(__file__).parents[2]
DTYPES = [
    torch.bool,
    *(torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32),
    *(torch.int32, torch.uint64, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
    torch.float4_e2m1fn_x2,  # two numbers a byte; the shape counts bytes
]


def example() -> dict[str, Tensor]:
    return {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}


def same(found: dict[str, Tensor], tensors: dict[str, Tensor]) -> bool:
    return found.keys() == tensors.keys() and all(
        found[name].dtype == tensor.dtype
        and found[name].shape == tensor.shape
        and torch.equal(
            found[name].contiguous().view(-1).view(torch.uint8),
            tensor.contiguous().view(-1).view(torch.uint8),
        )
        for name, tensor in tensors.items()
    )


def refused(action: Callable[[], object]) -> str:
    """The one sentence with which something is refused."""
    with pytest.raises(CheckpointError) as error:
        action()
    sentence = str(error.value)
    assert sentence
    assert "\n" not in sentence
    return sentence


# ---- the format


@st.composite
def tensors(draw) -> dict[str, Tensor]:
    """Tensors of all dtypes and of shapes with none, one or some numbers."""
    found = {}
    for name in draw(st.sets(st.text(max_size=5), max_size=6)):
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        dtype = draw(st.sampled_from(DTYPES))
        size = torch.Size(shape).numel() * dtype.itemsize
        content = draw(st.binary(min_size=size, max_size=size))
        if dtype == torch.bool:
            content = bytes(byte % 2 for byte in content)
        flat = torch.empty(size, dtype=torch.uint8)
        flat[:] = torch.tensor(list(content), dtype=torch.uint8)
        found[name] = flat.view(dtype).reshape(shape)
    found.pop("__metadata__", None)
    return found


@pytest.mark.verifies("def-tensor-file")
@settings(deadline=None, max_examples=40)
@given(tensors(), st.integers(1, 40))
def test_what_goes_in_comes_out_and_the_library_reads_it(
    tmp_path_factory, tensors, limit
):
    """In one file or in shards, of every dtype that the library reads."""
    home = tmp_path_factory.mktemp("a")
    save_checkpoint(home / "one", tensors, {})
    save_checkpoint(home / "many", tensors, {}, shard_bytes=limit)
    assert same(load_file(home / "one" / "model.safetensors"), tensors)
    for name in ("one", "many"):
        assert same(read_tensors(home / name), tensors)
        held = read_tensors(home / name, device="meta")
        assert all(tensor.is_meta for tensor in held.values())
        assert {n: (t.shape, t.dtype) for n, t in held.items()} == {
            n: (t.shape, t.dtype) for n, t in tensors.items()
        }
    for file in (home / "many").glob("*.safetensors"):
        held = load_file(file)
        size = sum(tensor.nbytes for tensor in held.values())
        assert size <= limit or sum(t.nbytes > 0 for t in held.values()) == 1


@pytest.mark.verifies("def-tensor-file")
def test_numbers_of_four_bits_come_back_two_by_two(tmp_path):
    """The header counts numbers; torch counts bytes, with two in each."""
    bits = torch.arange(6, dtype=torch.uint8).reshape(2, 3)
    tensors = {"a": bits.view(torch.float4_e2m1fn_x2)}
    save_checkpoint(tmp_path / "a", tensors, {})
    with safe_open(tmp_path / "a" / "model.safetensors", "pt") as file:
        assert file.get_slice("a").get_shape() == [2, 6]
    found = read_tensors(tmp_path / "a")
    assert found["a"].shape == (2, 3)
    assert torch.equal(found["a"].view(torch.uint8), bits)
    model = nn.Module()
    model.register_buffer("a", torch.zeros_like(bits).view(found["a"].dtype))
    load_checkpoint(model, tmp_path / "a")
    assert torch.equal(model.a.view(torch.uint8), bits)


@pytest.mark.parametrize("name", ["F6_E2M3", "U4"])
def test_a_dtype_that_torch_does_not_have_is_refused(tmp_path, name):
    head = f'{{"a":{{"dtype":"{name}","shape":[4],"data_offsets":[0,3]}}}}'
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(head)) + head.encode() + bytes(3))
    sentence = refused(lambda: read_tensors(file))
    assert sentence.startswith(f"cannot read {file}: ")
    assert name in sentence


def test_a_header_whose_length_begins_like_a_pickle(tmp_path):
    """The byte 0x80 opens a pickle, and the length of some headers."""
    for size in range(1, 200):
        save_file({"n" * size: torch.ones(1)}, tmp_path / "a.safetensors")
        content = (tmp_path / "a.safetensors").read_bytes()
        assert len(read_tensors(tmp_path / "a.safetensors")) == 1
        if content[0] == 0x80:
            return
    raise AssertionError("no such header")


@pytest.mark.parametrize(
    "name", ["model.fp16.safetensors", "lora.safetensors"]
)
def test_a_variant_is_listed_and_opened_by_name(tmp_path, name):
    save_file(example(), tmp_path / name)
    sentence = refused(lambda: read_tensors(tmp_path))
    assert "holds no model.safetensors" in sentence
    assert sentence.endswith(name)
    assert same(read_tensors(tmp_path / name), example())
    model = nn.ParameterDict({"a": torch.zeros(2, 3)})
    load_checkpoint(model, tmp_path / name, {"b": ()})
    assert torch.equal(model["a"], example()["a"])


def test_an_index_is_opened_by_name(folder):
    index = folder / "model.safetensors.index.json"
    assert same(read_tensors(index), read_tensors(folder))


def test_overlapping_tensors_are_refused_and_disjoint_ones_are_not(tmp_path):
    w = torch.ones(3, 3)
    for other in (w.t(), w.view(-1), w[0], w[1:]):
        for pair in ({"a": w, "b": other}, {"b": other, "a": w}):
            sentence = refused(
                lambda pair=pair: save_checkpoint(tmp_path / "a", pair, {})
            )
            assert "overlap in memory" in sentence
            model = nn.Module()
            for name, tensor in pair.items():
                model.register_parameter(name, nn.Parameter(tensor))
            assert "overlap" in refused(
                lambda model=model, pair=pair: match_keys(model, pair)
            )
    tied = {"a": w, "b": w[:]}
    sentence = refused(lambda: save_checkpoint(tmp_path / "a", tied, {}))
    assert "other names of tensors: ('b')" in sentence
    assert not list(tmp_path.iterdir())
    flat = torch.arange(10.0)
    one = {"a": flat[:5], "b": flat[4:]}  # a single number in both
    assert "overlap" in refused(
        lambda: save_checkpoint(tmp_path / "a", one, {})
    )
    parts = {"a": flat[:4], "b": flat[4:], "none": flat[:0]}
    save_checkpoint(tmp_path / "a", parts, {})
    assert same(read_tensors(tmp_path / "a"), parts)


@pytest.mark.parametrize("mmap", [False, True])
def test_ties_are_recognised_by_memory(tmp_path, mmap):
    model = nn.ModuleList([nn.Linear(2, 2, bias=False) for _ in range(2)])
    model[1].weight.data = model[0].weight.data
    assert list(model_tensors(model)) == ["0.weight"]
    save_checkpoint(tmp_path / "a", model_tensors(model), {})
    with torch.no_grad():
        expected = model[0].weight.clone()
        model[0].weight.zero_()
    load_checkpoint(model, tmp_path / "a", mmap=mmap)
    assert torch.equal(model[0].weight, expected)
    assert torch.equal(model[1].weight, expected)
    assert list(model_tensors(model)) == ["0.weight"]


def test_wrappers_add_nothing_to_the_names():
    # What torch.compile wraps is called `_orig_mod`.
    model = nn.Sequential(nn.Linear(2, 2))
    names = list(model_tensors(model))
    assert list(model_tensors(nn.ModuleDict({"_orig_mod": model}))) == names
    assert list(model_tensors(nn.DataParallel(model))) == names
    compiled = torch.compile(nn.DataParallel(model), backend="eager")
    assert list(model_tensors(compiled)) == names
    inner = nn.Sequential(nn.ModuleDict({"_orig_mod": nn.Linear(2, 2)}))
    assert list(model_tensors(inner)) == names


def test_extra_state_is_refused_by_name():
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"a": 1}

    model = nn.Sequential(Extra(2, 2))
    assert refused(lambda: model_tensors(model)) == (
        "the model keeps no tensor in ('0._extra_state')"
    )


def test_a_mismatch_changes_nothing(tmp_path):
    model = nn.Linear(2, 2)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    bad = [
        {"weight": torch.zeros(2, 2)},
        {"weight": torch.zeros(2, 2), "bias": torch.zeros(1)},
        {"weight": torch.zeros(2, 2), "bias": torch.zeros(2).double()},
        {
            "weight": torch.zeros(2, 2),
            "bias": torch.zeros(2),
            "c": torch.ones(1),
        },
    ]
    for number, tensors in enumerate(bad):
        folder = tmp_path / str(number)
        save_checkpoint(folder, tensors, {})
        refused(lambda folder=folder: load_checkpoint(model, folder))
        assert same(model.state_dict(), before)


def test_a_view_is_written_as_what_it_shows(tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    views = {
        "turned": whole.clone().t(),
        "steps": whole[::2, 1::3],
        "repeated": torch.ones(1).expand(5),
        "needs gradient": whole.clone().requires_grad_(),
    }
    save_checkpoint(tmp_path / "a", views, {})
    assert same(read_tensors(tmp_path / "a"), views)
    for tensor in read_tensors(tmp_path / "a").values():
        assert tensor.is_contiguous()
        assert not tensor.requires_grad


@pytest.mark.parametrize("umask", [0o022, 0o007])
def test_the_files_are_readable_by_whoever_may_read_new_files(
    tmp_path, umask
):
    before = os.umask(umask)
    try:
        save_checkpoint(tmp_path / "a", example(), {}, shard_bytes=1)
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").touch()
    finally:
        os.umask(before)

    def modes(*paths: Path) -> set[int]:
        return {stat.S_IMODE(path.stat().st_mode) for path in paths}

    files = list((tmp_path / "a").iterdir())
    assert len(files) == 4
    assert modes(*files) == modes(tmp_path / "file")
    assert modes(tmp_path / "a") == modes(tmp_path / "folder")


def test_the_tensors_of_a_checkpoint_do_not_hang_on_its_files(tmp_path):
    save_checkpoint(tmp_path / "a", example(), {})
    found = read_tensors(tmp_path / "a")
    file = tmp_path / "a" / "model.safetensors"
    file.write_bytes(bytes(file.stat().st_size))
    assert same(found, example())


@pytest.mark.gpu
def test_tensors_of_an_accelerator(tmp_path):
    tensors = {name: tensor.cuda() for name, tensor in example().items()}
    save_checkpoint(tmp_path / "a", tensors, {})
    assert same(read_tensors(tmp_path / "a"), example())
    found = read_tensors(tmp_path / "a", device="cuda")
    assert all(tensor.is_cuda for tensor in found.values())
    model = nn.Linear(3, 2).cuda()
    save_checkpoint(tmp_path / "b", model_tensors(model), {})
    other = nn.Linear(3, 2).cuda()
    load_checkpoint(other, tmp_path / "b")
    assert other.weight.is_cuda
    assert torch.equal(other.weight, model.weight)


# ---- bad files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint in three files."""
    folder = tmp_path / "checkpoint"
    tensors = {f"layer.{i}": torch.full((4,), float(i)) for i in range(6)}
    save_checkpoint(folder, tensors, {}, shard_bytes=32)
    assert len(list(folder.glob("*.safetensors"))) == 3
    return folder


def shard(folder: Path, number: int) -> Path:
    return folder / f"model-{number:05}-of-00003.safetensors"


def test_missing_folder(tmp_path):
    sentence = refused(lambda: read_tensors(tmp_path / "none"))
    assert sentence == (
        f"cannot read {tmp_path}/none: No such file or directory"
    )


def test_missing_config(folder):
    (folder / "config.json").unlink()
    assert refused(lambda: read_config(folder)) == (
        f"cannot read {folder}/config.json: No such file or directory"
    )


def test_missing_shard(folder):
    shard(folder, 2).unlink()
    assert refused(lambda: read_tensors(folder)) == (
        f"cannot read {shard(folder, 2)}: No such file or directory"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "Expecting property name"),
        ("[]", "holds JSON, but not an object"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_broken_config(folder, content, reason):
    (folder / "config.json").write_text(content)
    sentence = refused(lambda: read_config(folder))
    assert f"{folder}/config.json" in sentence
    assert reason in sentence


def test_config_that_is_no_text(folder):
    (folder / "config.json").write_bytes(b'{"a": "\xff\xfe"}')
    assert refused(lambda: read_config(folder)).startswith(
        f"cannot read {folder}/config.json: "
    )


@pytest.mark.parametrize(
    "place", ["model.bin", "../other.safetensors", "/etc/passwd", "", 7]
)
def test_what_an_index_must_not_name(folder, place):
    (folder / "model.bin").write_bytes(pickle.dumps(1))
    index = folder / "model.safetensors.index.json"
    told = json.loads(index.read_text())
    told["weight_map"]["layer.0"] = place
    index.write_text(json.dumps(told))
    assert refused(lambda: read_tensors(folder)) == (
        f"{index} names '{place}', which is refused"
    )


def test_truncated_shard(folder):
    size = shard(folder, 2).stat().st_size
    os.truncate(shard(folder, 2), size - 5)
    sentence = refused(lambda: read_tensors(folder))
    assert sentence.startswith(f"cannot read {shard(folder, 2)}: ")


def test_key_in_two_shards(folder):
    held = load_file(shard(folder, 2))
    held["layer.0"] = torch.zeros(4)
    save_file(held, shard(folder, 2))
    assert refused(lambda: read_tensors(folder)) == (
        f"{folder}/model.safetensors.index.json and "
        "model-00002-of-00003.safetensors disagree about ('layer.0')"
    )


def test_key_of_the_index_that_no_shard_holds(folder):
    held = load_file(shard(folder, 2))
    del held["layer.2"]
    save_file(held, shard(folder, 2))
    assert refused(lambda: read_tensors(folder)) == (
        f"{folder}/model.safetensors.index.json and "
        "model-00002-of-00003.safetensors disagree about ('layer.2')"
    )


@pytest.mark.parametrize("content", ["{}", '{"weight_map": 3}', "{", "[]"])
def test_broken_index(folder, content):
    index = folder / "model.safetensors.index.json"
    index.write_text(content)
    assert str(index) in refused(lambda: read_tensors(folder))


def test_a_pickle_is_refused_under_its_own_name(tmp_path):
    file = tmp_path / "pytorch_model.bin"
    torch.save(example(), file)
    assert refused(lambda: read_tensors(tmp_path)) == (
        f"{tmp_path} holds no model.safetensors; name a file: {file.name}"
    )
    assert refused(lambda: read_tensors(file)) == (
        f"{file} is refused: it is a pickle, and reading one can run any code"
    )


def test_a_pickle_beside_a_checkpoint_is_left_alone(folder):
    (folder / "optimizer.pt").touch()
    assert len(read_tensors(folder)) == 6


@pytest.mark.parametrize("zipped", [True, False])
def test_a_disguised_pickle_does_not_run(tmp_path, zipped):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trap"),)

    file = tmp_path / "model.safetensors"
    if zipped:
        torch.save({"a": Trap()}, file)
    else:
        file.write_bytes(pickle.dumps({"a": Trap()}))
    assert "pickle" in refused(lambda: read_tensors(tmp_path))
    assert not (tmp_path / "trap").exists()
    if not zipped:
        pickle.loads(file.read_bytes())  # it would have
        assert (tmp_path / "trap").exists()


@pytest.mark.refutes("def-tensor-file")
@given(st.integers(0, 10**6), st.integers(0, 255))
def test_a_changed_byte_raises_nothing_else(tmp_path_factory, place, byte):
    """Whatever happens to one byte, no error comes but a CheckpointError."""
    tensors = example()
    content = bytearray(save(tensors, metadata={"format": "pt"}))
    changed = content[place % len(content)] != byte
    content[place % len(content)] = byte
    folder = tmp_path_factory.mktemp("a")
    (folder / "model.safetensors").write_bytes(content)
    (folder / "config.json").write_text("{}")
    try:
        found = read_tensors(folder)
    except CheckpointError:
        assert changed
    else:
        assert len(found) == 2
        assert changed or same(found, tensors)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"a": torch.empty(2, device="meta")}, "can hold 'a'"),
        ({"__metadata__": torch.ones(2)}, "can hold '__metadata__'"),
        ({"a": torch.ones(2).cdouble()}, "can hold torch.complex128"),
    ],
)
def test_tensors_that_cannot_be_written(tmp_path, tensors, reason):
    assert reason in refused(
        lambda: save_checkpoint(tmp_path / "a", tensors, {})
    )
    assert not list(tmp_path.iterdir())


def test_a_configuration_that_json_cannot_hold_leaves_nothing(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_checkpoint(tmp_path / "a", example(), {"model": nn.Linear})
    assert not list(tmp_path.iterdir())


# ---- all of it or nothing


def test_an_existing_folder_is_never_touched(tmp_path):
    save_checkpoint(tmp_path / "a", example(), {})
    for name in ("a", "file", "link"):
        (tmp_path / "file").touch()
        if not (tmp_path / "link").is_symlink():
            (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        before = sorted(tmp_path.rglob("*"))
        sentence = refused(
            lambda name=name: save_checkpoint(tmp_path / name, {}, {})
        )
        assert sentence == (
            f"{tmp_path}/{name} exists: nothing is overwritten"
        )
        assert sorted(tmp_path.rglob("*")) == before
    assert same(read_tensors(tmp_path / "a"), example())


def test_an_existing_folder_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "a").mkdir()

    def save() -> None:
        with new_folder(tmp_path / "a"):
            raise AssertionError("this is a week too late")

    assert "exists" in refused(save)


def test_a_name_that_is_taken_meanwhile(tmp_path):
    def save() -> None:
        with new_folder(tmp_path / "a") as partial:
            (partial / "log.csv").touch()
            (tmp_path / "a").mkdir()
            (tmp_path / "a" / "mine").touch()

    assert refused(save) == f"cannot write {tmp_path}/a: Directory not empty"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "mine"]


def test_a_folder_of_several_parts(tmp_path):
    with new_folder(tmp_path / "step-5") as partial:
        save_checkpoint(partial / "model", example(), {"step": 5})
        save_checkpoint(partial / "ema", example(), {})
        (partial / "log.csv").write_text("step,loss\n")
        assert not (tmp_path / "step-5").exists()
        assert partial.parent == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["step-5"]
    assert same(read_tensors(tmp_path / "step-5" / "ema"), example())


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_error_inside_leaves_nothing(tmp_path, error):
    def save() -> None:
        with new_folder(tmp_path / "a") as partial:
            save_checkpoint(partial / "model", example(), {})
            raise error

    with pytest.raises(error):
        save()
    assert not list(tmp_path.iterdir())


def test_missing_parent(tmp_path):
    target = tmp_path / "none" / "a"
    assert refused(lambda: save_checkpoint(target, example(), {})) == (
        f"cannot write {target}: No such file or directory"
    )


@pytest.fixture
def as_nobody() -> Iterator[None]:
    """Give up the powers of root for a while: it may write everywhere."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        yield
        os.seteuid(0)
    else:
        yield


def test_read_only_folder(tmp_path_factory, as_nobody):
    with TemporaryDirectory(dir="/tmp") as name:
        home = Path(name)
        save_checkpoint(home / "old", example(), {})
        home.chmod(0o500)
        try:
            sentence = refused(
                lambda: save_checkpoint(home / "a", example(), {})
            )
            assert sentence == f"cannot write {home}/a: Permission denied"
            assert same(read_tensors(home / "old"), example())
        finally:
            home.chmod(0o700)


def test_unreadable_folder(tmp_path_factory, as_nobody):
    with TemporaryDirectory(dir="/tmp") as name:
        home = Path(name)
        save_checkpoint(home / "a", example(), {})
        (home / "a").chmod(0)
        try:
            assert refused(lambda: read_tensors(home / "a")) == (
                f"cannot read {home}/a: Permission denied"
            )
        finally:
            (home / "a").chmod(0o700)


def test_unreadable_file(tmp_path_factory, as_nobody):
    with TemporaryDirectory(dir="/tmp") as name:
        home = Path(name)
        save_checkpoint(home / "a", example(), {})
        for file in (home / "a").iterdir():
            file.chmod(0)
        for read, file in (
            (read_tensors, "model.safetensors"),
            (read_config, "config.json"),
        ):
            assert refused(lambda read=read: read(home / "a")) == (
                f"cannot read {home}/a/{file}: Permission denied"
            )


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("call", ["write", "fsync", "rename", "mkdir"])
def test_a_full_disk_at_any_call(tmp_path, monkeypatch, call, inside):
    save_checkpoint(tmp_path / "old", example(), {})

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    where, name = {
        "write": (checkpoint, "save_file"),
        "fsync": (os, "fsync"),
    }.get(call, (Path, call))

    def save() -> None:
        with new_folder(tmp_path / "a") as partial:
            monkeypatch.setattr(where, name, full)
            save_checkpoint(partial / "model", example(), {})

    target = tmp_path / ("a/model" if inside else "a")
    if not inside:
        monkeypatch.setattr(where, name, full)
    # The hidden name, under which it is written, is of no use to anybody.
    assert (
        refused(
            save if inside else lambda: save_checkpoint(target, example(), {})
        )
        == f"cannot write {tmp_path}/a: "
        + f"cannot write {target}: " * inside
        + "No space left on device"
    )
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert same(read_tensors(tmp_path / "old"), example())


@pytest.mark.parametrize("limit", [4096, 50_000])
def test_a_file_that_may_not_grow_any_more(tmp_path, limit):
    """A real error of a real system call, in the middle of a tensor."""
    save_checkpoint(tmp_path / "old", example(), {})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        big = {"a": torch.ones(10_000), "b": torch.ones(10_000)}
        sentence = refused(lambda: save_checkpoint(tmp_path / "a", big, {}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert sentence.startswith(f"cannot write {tmp_path}/")
    assert "File too large" in sentence
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert same(read_tensors(tmp_path / "old"), example())


# The child saves a checkpoint and is killed at the n-th call that touches the file system. Python
# tells of most of them by itself (audit events); the others are wrapped.
CHILD = """
import os, signal, sys
import torch
from tangled.workshop.checkpoint import new_folder, save_checkpoint

home = sys.argv[1]
count = 0

def call(event, arguments=()):
    global count
    names = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "fcntl.flock")
    if event not in names or not watching:
        return
    count += 1
    if count == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)

def wrapped(name):
    original = getattr(os, name)
    def wrapper(*arguments):
        call("open")
        return original(*arguments)
    setattr(os, name, wrapper)

for name in ("fsync", "close"):
    wrapped(name)
watching = False
kill_at = 0
sys.addaudithook(call)
tensors = {f"t{i}": torch.full((5000,), float(i)) for i in range(4)}
for number in range(1, 1000):
    child = os.fork()
    if child == 0:
        kill_at, watching = number, True
        with new_folder(home + "/new") as partial:
            save_checkpoint(
                partial / "model", tensors, {"n": 4}, shard_bytes=40_000
            )
            save_checkpoint(partial / "ema", tensors, {"n": 4})
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(number, os.WIFSIGNALED(status), flush=True)
    if sys.stdin.readline().strip() == "stop":
        break
"""


@pytest.mark.verifies("thm-atomic-save")
def test_killed_at_every_call_of_a_save(tmp_path):
    tensors = {f"t{i}": torch.full((5000,), float(i)) for i in range(4)}
    save_checkpoint(tmp_path / "old", example(), {})
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    found, leftovers = [], []
    while True:
        _, killed = process.stdout.readline().split()
        assert same(read_tensors(tmp_path / "old"), example())
        new = tmp_path / "new"
        leftovers.append(len(list(tmp_path.glob(".new.*"))))
        found.append(new.exists())
        if new.exists():
            assert same(read_tensors(new / "model"), tensors)
            assert same(read_tensors(new / "ema"), tensors)
            assert read_config(new / "model") == {"n": 4}
            for file in sorted(new.rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink()
            new.rmdir()
        done = killed == "False"
        process.stdin.write("stop\n" if done else "go\n")
        process.stdin.flush()
        if done:
            break
    process.communicate(timeout=30)
    assert len(found) > 25  # so many calls, and a kill at each
    assert found[0] is False
    assert found[-1] is True
    assert found == sorted(found)  # absent up to the rename, there from it on
    assert leftovers == sorted(leftovers)


def test_the_path_of_a_save_is_that_of_its_beginning(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with new_folder("a"):
        monkeypatch.chdir("other")
    assert (tmp_path / "a").is_dir()


def test_a_name_with_the_signs_of_a_pattern(tmp_path):
    (tmp_path / ".x.0123abcd.partial").mkdir()
    save_checkpoint(tmp_path / "[x]*", example(), {})
    save_checkpoint(tmp_path / "?", example(), {})
    assert (tmp_path / ".x.0123abcd.partial").exists()
    assert same(read_tensors(tmp_path / "[x]*"), example())


def test_several_threads_save_side_by_side(tmp_path):
    def save(number: int) -> None:
        save_checkpoint(
            tmp_path / f"{number}", {"a": torch.tensor(number)}, {}
        )

    threads = [threading.Thread(target=save, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(8):
        assert read_tensors(tmp_path / f"{number}")["a"] == number
    assert len(list(tmp_path.iterdir())) == 8


def test_relative_names_and_strings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint("a", example(), {})
    assert same(read_tensors("a"), example())
    assert read_config("a") == {}
    model = nn.Linear(3, 2)
    save_checkpoint("b", model_tensors(model), {})
    load_checkpoint(model, "b")


# ---- names


def held(**sizes: list[int]) -> dict[str, Tensor]:
    """Tensors without numbers, as a file might hold them."""
    return {
        name.replace("_", "."): torch.empty(size, device="meta")
        for name, size in sizes.items()
    }


def built(**sizes: list[int]) -> nn.Module:
    """A model with such tensors."""
    model = nn.Module()
    for name, tensor in held(**sizes).items():
        *path, last = name.split(".")
        place = model
        for part in path:
            if part not in dict(place.named_children()):
                place.add_module(part, nn.Module())
            place = getattr(place, part)
        place.register_parameter(last, nn.Parameter(tensor))
    return model


@pytest.mark.refutes("prop-strict-match")
def test_one_sentence_names_everything():
    wanted = built(a=[1], b=[2], c=[3], d=[4], e=[5], f=[6], g=[7], h=[8])
    found = held(a=[1], b=[9], x=[1], y=[1], z=[1], w=[1], v=[1], i=[8])
    found["g"] = torch.empty(7, dtype=torch.half, device="meta")
    found["h"] = torch.empty(8, dtype=torch.int64, device="meta")
    told = (
        "checkpoint and model do not match: 1 misshaped ('b'), 5 extra ('x', "
        "'y', 'z', ...), {}1 in torch.int64, not torch.float32 ('h'), "
        "4 missing ('c', 'd', 'e', ...), 1 set twice ('h')"
    )
    half = "1 in torch.float16, not torch.float32 ('g'), "
    for cast, more in ((False, half), (True, "")):
        assert refused(
            lambda cast=cast: match_keys(wanted, found, {"i": "h"}, cast=cast)
        ) == told.format(more)


def test_a_load_names_the_folder(tmp_path):
    save_checkpoint(tmp_path / "a", example(), {})
    sentence = refused(
        lambda: load_checkpoint(nn.Linear(3, 2), tmp_path / "a")
    )
    assert sentence.startswith(f"{tmp_path}/a: checkpoint and model do not")


@pytest.mark.refutes("prop-strict-match")
def test_two_names_for_one_place():
    assert "1 set twice ('a')" in refused(
        lambda: match_keys(built(a=[1]), held(a=[1], x=[1]), {"x": "a"})
    )


@pytest.mark.refutes("prop-strict-match")
def test_two_names_for_two_names_of_one_tensor():
    model = nn.ModuleList([nn.Linear(2, 2, bias=False) for _ in range(2)])
    model[1].weight = model[0].weight
    tensors = {f"{i}.weight": torch.ones(2, 2) for i in range(2)}
    assert "1 set twice ('0.weight')" in refused(
        lambda: match_keys(model, tensors)
    )
    for i in range(2):
        found = match_keys(model, tensors, {f"{1 - i}.weight": ()})
        assert list(found) == ["0.weight", "1.weight"]
        assert all(
            value is tensors[f"{i}.weight"] for value in found.values()
        )
        model.load_state_dict(found)


def goes(keys: dict, name: str, *targets: str) -> None:
    """Check that a map sends the numbers of a vector to these names."""
    model = built(**{target.replace(".", "_"): [1] for target in targets})
    tensor = torch.arange(float(len(targets)))
    found = match_keys(model, {name: tensor}, keys)
    assert [found[target].item() for target in targets] == tensor.tolist()


def test_the_first_row_that_fits_counts():
    keys = {"h.0.w": "first", "h.#.w": "rest.#"}
    goes(keys, "h.0.w", "first")
    goes(keys, "h.1.w", "rest.1")
    goes(keys, "h.x.w", "h.x.w")


def test_numbers_are_handed_on_in_their_order():
    keys = {"h.#.e.#.w": ("b.#.x.#.u", "b.#.x.#.v")}
    goes(keys, "h.3.e.10.w", "b.3.x.10.u", "b.3.x.10.v")
    goes(keys, "h.3.e.10.w.1", "h.3.e.10.w.1")
    goes(keys, "h.-3.e.1.w", "h.-3.e.1.w")


def test_a_pattern_is_no_regular_expression():
    keys = {"a.b+c": "x"}
    goes(keys, "a.b+c", "x")
    goes(keys, "aXbbc", "aXbbc")


@pytest.mark.parametrize("target", ["b.w", "b.#.c.#.w"])
def test_unequal_numbers_of_signs_are_caught_by_the_match(target):
    wanted = built(b_0_w=[2], b_1_w=[2])
    found = held(h_0_w=[2], h_1_w=[2])
    sentence = refused(lambda: match_keys(wanted, found, {"h.#.w": target}))
    assert "2 missing" in sentence
    assert "2 extra" in sentence


def test_a_name_that_ends_like_the_transposed():
    """A row fits such a name as it is, too; then the order of rows counts."""
    wanted = built(a=[3, 2], b=[2, 3])
    found = held(x_T=[3, 2], x=[3, 2])
    assert "1 misshaped ('x')" in refused(
        lambda: match_keys(wanted, found, {"x.T": "a"})
    )
    assert "1 set twice ('a')" in refused(
        lambda: match_keys(wanted, found, {"x.T": "a", "x": "b"})
    )
    wanted = built(a=[3, 2], b=[3, 2])
    views = match_keys(wanted, found, {"x": "b", "x.T": "a"})
    assert views["a"] is found["x.T"]
    assert views["b"] is found["x"]


@pytest.mark.parametrize(
    ("shape", "parts", "transposed", "fits"),
    [
        ([6, 4], [[2, 4], [4, 4]], False, True),
        ([4, 6], [[2, 4], [4, 4]], True, True),
        ([6, 4], [[2, 4], [4, 4]], True, False),
        ([6, 4], [[2, 4], [3, 4]], False, False),
        ([6, 4], [[2, 4], [4, 5]], False, False),
        ([6], [[2], [4]], False, True),
        ([], [[]], False, True),
        ([2], [[], []], False, False),
        ([], [[0], [1]], False, False),
        ([1], [[0], [1]], False, True),
        ([1], [[]], False, False),
        ([3, 4, 5], [[5, 4, 3]], True, False),
        ([3], [[3]], True, False),
        ([3], [[1, 3]], True, False),
        ([], [[]], True, False),
    ],
)
def test_which_shapes_fit(shape, parts, transposed, fits):
    wanted = {f"p{i}": part for i, part in enumerate(parts)}
    keys = {"x.T" if transposed else "x": tuple(wanted)}
    found = held(x=shape)
    if fits:
        views = match_keys(built(**wanted), found, keys)
        assert {n: list(view.shape) for n, view in views.items()} == wanted
    else:
        assert "misshaped ('x')" in refused(
            lambda: match_keys(built(**wanted), found, keys)
        )


def test_what_is_ignored_need_not_be_there():
    keys = {"h.#.bias": ()}
    assert match_keys(built(a=[1]), held(a=[1]), keys)
    assert match_keys(built(a=[1]), held(a=[1], h_3_bias=[7]), keys)


def test_a_match_gives_views_and_a_state_dict():
    """What is written into them is in the tensors: the way back."""
    model = nn.ModuleDict(
        {name: nn.Linear(2, 2, bias=False) for name in "ab"}
    )
    tensors = {"x": torch.zeros(2, 4)}
    keys = {"x.T": ("a.weight", "b.weight")}
    views = match_keys(model, tensors, keys)
    for name, view in views.items():
        view.copy_(model.state_dict()[name])
    both = torch.cat([model["a"].weight, model["b"].weight])
    assert torch.equal(tensors["x"], both.t())
    model.load_state_dict(views)


@pytest.mark.verifies("prop-strict-match")
@given(st.randoms(use_true_random=False), st.integers(1, 6))
def test_random_maps_are_bijections(tmp_path_factory, random, count):
    """Random cuts and transposes of random matrices move every number once."""
    model, tensors, names, turned = nn.ParameterDict(), {}, {}, []
    number = 0
    for i in range(count):
        width = random.randint(1, 4)
        heights = [random.randint(1, 3) for _ in range(random.randint(1, 3))]
        size = width * sum(heights)
        block = torch.arange(number, number + size, dtype=torch.float64)
        number += size
        block = block.reshape(sum(heights), width)
        if random.random() < 0.5:
            block = block.reshape(width, -1)
            turned.append(i)
        tensors[f"c{i}"] = block
        for j, height in enumerate(heights):
            model[f"m{i}{j}"] = torch.zeros(
                height, width, dtype=torch.float64
            )
        row = f"c{i}" + ".T" * (i in turned)
        names[row] = tuple(f"m{i}{j}" for j in range(len(heights)))
    folder = tmp_path_factory.mktemp("a") / "c"
    shuffled = dict(random.sample(list(tensors.items()), len(tensors)))
    save_checkpoint(folder, shuffled, {}, shard_bytes=64)
    load_checkpoint(model, folder, names)
    held = torch.cat([p.detach().flatten() for p in model.values()])
    assert torch.equal(
        held.sort().values, torch.arange(float(number)).double()
    )
    for i, targets in enumerate(names.values()):
        whole = torch.cat([model[name] for name in targets])
        expected = tensors[f"c{i}"]
        assert torch.equal(whole, expected.t() if i in turned else expected)


# ---- models


class Odd(nn.Module):
    """Tied weights, buffers of both kinds, a scalar, a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(5, 3)
        self.norm = nn.BatchNorm1d(3)
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.wte.weight
        self.register_buffer("mask", torch.ones(2, 2), persistent=False)


def test_tensors_of_a_model_each_once():
    assert list(model_tensors(Odd())) == [
        "scale",
        "wte.weight",
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
    ]


def test_an_odd_model_comes_back(tmp_path):
    torch.manual_seed(0)
    model, other = Odd(), Odd()
    model.mask.fill_(7)
    model.norm(torch.randn(8, 3))
    save_checkpoint(tmp_path / "a", model_tensors(model), {})
    objects = {id(tensor) for tensor in model_tensors(other).values()}
    places = [tensor.data_ptr() for tensor in model_tensors(other).values()]
    other.mask.fill_(9)
    load_checkpoint(other, tmp_path / "a")
    assert same(model_tensors(other), model_tensors(model))
    assert {id(tensor) for tensor in model_tensors(other).values()} == objects
    assert places == [t.data_ptr() for t in model_tensors(other).values()]
    assert other.head.weight is other.wte.weight
    assert not other.scale.requires_grad
    assert other.mask[0, 0] == 9  # no part of a checkpoint


def test_an_optimizer_goes_on_with_the_loaded_parameters(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    save_checkpoint(
        tmp_path / "a",
        {"weight": torch.ones(1, 2), "bias": torch.zeros(1)},
        {},
    )
    load_checkpoint(model, tmp_path / "a")
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    assert torch.equal(model.weight, torch.zeros(1, 2))


def test_a_buffer_without_values_on_meta_is_refused(tmp_path):
    save_checkpoint(tmp_path / "a", model_tensors(Odd()), {})
    with torch.device("meta"):
        model = Odd()
    sentence = refused(lambda: load_checkpoint(model, tmp_path / "a"))
    assert "the buffer 'mask' is not persistent" in sentence
    assert all(tensor.is_meta for tensor in model_tensors(model).values())
    model.mask = torch.ones(2, 2)
    load_checkpoint(model, tmp_path / "a")
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    assert model.head.weight is model.wte.weight
    assert not model.scale.requires_grad
    assert model.norm.weight.requires_grad


@pytest.mark.parametrize(
    ("held", "wanted", "cast", "fine"),
    [
        (torch.float32, torch.float32, False, True),
        (torch.bfloat16, torch.float32, False, False),
        (torch.bfloat16, torch.float32, True, True),
        (torch.float64, torch.float16, True, True),
        (torch.int64, torch.float32, True, False),
        (torch.float32, torch.int64, True, False),
    ],
)
def test_dtypes(tmp_path, held, wanted, cast, fine):
    model = nn.Module()
    model.register_buffer("a", torch.zeros(3, dtype=wanted))
    save_checkpoint(tmp_path / "a", {"a": torch.arange(3).to(held)}, {})

    def load() -> None:
        load_checkpoint(model, tmp_path / "a", cast=cast)

    if fine:
        load()
        assert model.a.dtype == wanted
        assert model.a.tolist() == [0, 1, 2]
    else:
        assert refused(load) == (
            f"{tmp_path}/a: checkpoint and model do not match: "
            f"1 in {held}, not {wanted} ('a')"
        )
        assert not model.a.any()


def test_a_model_on_meta_keeps_its_dtypes(tmp_path):
    with torch.device("meta"):
        model = nn.Linear(3, 2)
    halves = {n: t.half() for n, t in model_tensors(nn.Linear(3, 2)).items()}
    save_checkpoint(tmp_path / "a", halves, {})
    load_checkpoint(model, tmp_path / "a", cast=True)
    assert model.weight.dtype == model.bias.dtype == torch.float32
    assert torch.equal(model.weight, halves["weight"].float())


def test_parts_of_a_cut_do_not_share_memory(tmp_path):
    with torch.device("meta"):
        model = nn.ParameterDict({"a": torch.empty(2), "b": torch.empty(2)})
    save_checkpoint(tmp_path / "c", {"x": torch.arange(4.0)}, {})
    load_checkpoint(model, tmp_path / "c", {"x": ("a", "b")})
    storages = {p.untyped_storage().data_ptr() for p in model.values()}
    assert len(storages) == 2
    assert all(p.untyped_storage().nbytes() == 8 for p in model.values())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_mapped_load_copies_nothing_and_keeps_the_objects(tmp_path, device):
    """Written numbers stay in the process, and what is converted is copied."""
    torch.manual_seed(0)
    tied = nn.Embedding(7, 3)
    odd = torch.randn(3, 2)
    tensors = {"e.weight": tied.weight, "b": torch.ones(4), "t": odd}
    tensors |= {"qk": torch.randn(4, 3), "n": torch.tensor(3)}
    tensors |= {"low": torch.ones(2).bfloat16()}
    tensors = {n: t.detach().clone() for n, t in tensors.items()}
    save_checkpoint(tmp_path / "a", tensors, {}, shard_bytes=40)
    with torch.device(device):
        model = nn.Module()
        model.e, model.head = nn.Embedding(7, 3), nn.Linear(3, 7, bias=False)
        model.head.weight = model.e.weight
        model.b = nn.Parameter(torch.zeros(4), requires_grad=False)
        model.t = nn.Parameter(torch.zeros(2, 3))
        model.q = nn.Parameter(torch.zeros(1, 3))
        model.k = nn.Parameter(torch.zeros(3, 3))
        model.low = nn.Parameter(torch.zeros(2))
        model.register_buffer("n", torch.tensor(0))
    before = dict(model.named_parameters())
    keys = {"qk": ("q", "k"), "t.T": "t"}
    files = {f: f.read_bytes() for f in (tmp_path / "a").iterdir()}
    load_checkpoint(model, tmp_path / "a", keys, cast=True, mmap=True)
    assert {n: id(p) for n, p in model.named_parameters()} == {
        n: id(p) for n, p in before.items()
    }
    assert model.head.weight is model.e.weight
    assert all(tensor.is_contiguous() for tensor in model.parameters())
    assert not model.b.requires_grad
    assert model.e.weight.requires_grad
    assert model.low.dtype == torch.float32
    held = model_tensors(model)
    joined = torch.cat([held.pop("q"), held.pop("k")])
    assert torch.equal(joined, tensors["qk"])
    assert torch.equal(held.pop("t").t(), tensors["t"])
    for name, tensor in held.items():
        assert torch.equal(tensor.to(tensors[name].dtype), tensors[name])
    maps = Path("/proc/self/smaps").read_text()
    assert str(tmp_path / "a") in maps  # and nothing was copied out of it
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model.head(model.e(torch.tensor([1]))).sum().backward()
    optimizer.step()
    assert not torch.equal(model.e.weight, tensors["e.weight"])
    assert {f: f.read_bytes() for f in files} == files
    save_checkpoint(tmp_path / "b", model_tensors(model), {})
    assert same(read_tensors(tmp_path / "b"), model_tensors(model))


def test_the_library_sees_the_format_of_torch(tmp_path):
    save_checkpoint(tmp_path / "a", example(), {})
    with safe_open(tmp_path / "a" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == {"a", "b"}


def test_a_load_costs_no_more_than_the_libraries():
    text = (ROOT / "benchmarks/results.md").read_text()
    rows = re.findall(
        r"(?m)^\| (.*?) \| (\d+\.\d\d) \| (\d+\.\d\d) \|$", text
    )
    memory = {name: float(size) for name, size, _ in rows}
    seconds = {name: float(time) for name, _, time in rows}
    for ours, theirs in (
        ("tangled, CPU", "load_file, load_state_dict, CPU"),
        ("tangled, mmap=True, CPU", "load_file, assign=True, CPU"),
        ("tangled, mmap=True, meta", "load_file, assign=True, meta"),
    ):
        assert seconds[ours] <= 1.2 * seconds[theirs]
        assert memory[ours] <= 1.1 * memory[theirs]


def test_two_checkpoints_in_a_folder(folder):
    save_file(example(), folder / "model.safetensors")
    assert "holds several checkpoints" in refused(
        lambda: read_tensors(folder)
    )
