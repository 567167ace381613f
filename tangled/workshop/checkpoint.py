"""Checkpoints: safetensors files, an atomic save, strict key maps.

Tangled from book/workshop/checkpoint.md.
"""

import fcntl
import glob
import json
import math
import operator
import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import swap_tensors

__all__ = [
    "DTYPES",
    "LONGEST_HEADER",
    "NAMES",
    "PICKLES",
    "STEMS",
    "CheckpointError",
    "Entry",
    "KeyMap",
    "Route",
    "explained",
    "load_checkpoint",
    "locked",
    "match_keys",
    "model_tensors",
    "new_folder",
    "read_config",
    "read_entries",
    "read_header",
    "read_shapes",
    "read_tensor",
    "read_tensors",
    "remove_leftovers",
    "save_checkpoint",
    "write_checkpoint",
    "write_file",
]


class CheckpointError(Exception):
    """A checkpoint that cannot be written, or must not be read."""


# The dtypes that a file can hold, under the format's names for them and in
# the order in which the library writes them: the wide ones first.
DTYPES = {
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# A longer header is taken for no header: 100 MB, the bound of the format.
LONGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: what it is, and where its bytes begin."""

    path: Path
    dtype: torch.dtype
    shape: torch.Size
    start: int

    @property
    def nbytes(self) -> int:
        """The number of its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn what the operating system refuses into a CheckpointError.

    Args:
        doing: what was tried, as in "cannot <write runs/step-5>: ...".
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"cannot {doing}: {reason}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs of a JSON object as a dictionary, if no key repeats."""
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise ValueError(f"the key '{key}' stands there twice")
    return dict(pairs)


def _parsed(text: bytes, path: Path) -> dict[str, Any]:
    """Return the JSON object that `text`, a part of `path`, spells out."""
    try:
        found = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} holds broken JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds JSON, but not an object")
    return found


def _header(path: Path) -> tuple[dict[str, Any], int, int]:
    """Return a file's header, where its data begin, and its size."""
    with explained(f"read {path}"), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        first = file.read(9)
        length = int.from_bytes(first[:8], "little")
        if size < 10:
            raise _truncated(path, 10, size)
        if not 2 <= length <= LONGEST_HEADER or first[8:] != b"{":
            raise CheckpointError(f"{path} {_disguise(first)}")
        if size < 8 + length:
            raise _truncated(path, 8 + length, size)
        text = first[8:] + file.read(length - 1)
    return _parsed(text, path), 8 + length, size


def _truncated(path: Path, expected: int, found: int) -> CheckpointError:
    """Say that a file ends too early."""
    return CheckpointError(
        f"{path} is truncated: it has {found} bytes of at least {expected}"
    )


def _disguise(first: bytes) -> str:
    """Say what a file is that begins with no header."""
    if first.startswith(b"PK\x03\x04"):
        return "is refused: it is a zip archive of torch.save, with a pickle"
    if first.startswith(b"\x80"):
        return "is refused: it is a pickle, and reading one can run any code"
    return "is not a safetensors file: it does not begin with a header"


def _read_entry(path: Path, name: str, info: Any, base: int) -> Entry:
    """Return one entry of a header; offsets count from `base`."""
    try:
        dtype, shape = DTYPES[info["dtype"]], torch.Size(info["shape"])
        start, stop = map(operator.index, info["data_offsets"])
        torch.empty(shape, dtype=dtype, device="meta")  # can it exist?
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: the entry {info} of '{name}' is broken, or of a dtype "
            "unknown here"
        ) from error
    entry = Entry(path, dtype, shape, base + start)
    if stop - start != entry.nbytes:
        raise CheckpointError(
            f"{path}: shape and offsets of '{name}' contradict each other"
        )
    return entry


def read_header(path: str | Path) -> dict[str, Entry]:
    """Return what a safetensors file holds, in its order; no tensor is read.

    Raises:
        CheckpointError: if the file is missing, truncated, or not well-formed
            as the chapter defines it. A pickle is refused.

    Source: the description of the safetensors format.

    Implements def-tensor-file (book/workshop/checkpoint.md).
    """
    path = Path(path)
    header, at, size = _header(path)
    header.pop("__metadata__", None)
    entries = [
        (name, _read_entry(path, name, header[name], at)) for name in header
    ]
    entries.sort(key=lambda item: (item[1].start, item[1].nbytes))
    for name, entry in entries:
        if entry.start != at:
            raise CheckpointError(
                f"{path}: '{name}' begins at byte {entry.start}, where byte "
                f"{at} was expected"
            )
        at += entry.nbytes
    if size < at:
        raise _truncated(path, at, size)
    if size > at:
        raise CheckpointError(f"{path} has {size - at} bytes of no tensor")
    return dict(entries)


def _bytes(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous tensor on the CPU, as bytes."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def read_tensor(entry: Entry) -> Tensor:
    """Return one tensor of a file, on the CPU, in the dtype of the file.

    The bytes go straight from the file into the tensor's own memory.

    Raises:
        CheckpointError: if the file cannot be read, or ends too early.
    """
    tensor = torch.empty(entry.shape, dtype=entry.dtype)
    with explained(f"read {entry.path}"), open(entry.path, "rb") as file:
        file.seek(entry.start)
        found = file.readinto(_bytes(tensor))
    if found < entry.nbytes:
        raise _truncated(
            entry.path, entry.start + entry.nbytes, entry.start + found
        )
    return tensor


NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_file(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors of any shape and device to a new safetensors file.

    Raises:
        FileExistsError: if the file exists.
        OSError: if the disk is full, or does not let you write.
        ValueError: if a dtype is none of `DTYPES`.
    """
    # Wide dtypes first: so each tensor begins at a multiple of its width.
    ranks = list(NAMES)
    order = sorted(tensors, key=lambda n: (ranks.index(tensors[n].dtype), n))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    stop = 0
    for name in order:
        tensor, start = tensors[name], stop
        stop += tensor.nbytes
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, stop],
        }
    line = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
    text = line.encode()
    text += b" " * (-len(text) % 8)
    with open(path, "xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(_bytes(tensors[name].detach().cpu().contiguous()))


def _check_writable(tensors: Mapping[str, Tensor]) -> None:
    """Raise if the files cannot hold a name or a tensor, or not just once."""
    seen: dict[object, str] = {}
    for name, tensor in tensors.items():
        if name == "__metadata__":
            raise CheckpointError(f"the name '{name}' is the format's own")
        if tensor.is_meta:
            raise CheckpointError(f"'{name}' is on meta and has no values")
        if tensor.dtype not in NAMES:
            raise CheckpointError(
                f"'{name}' is {tensor.dtype}, which the file cannot hold"
            )
        memory = (tensor.data_ptr(), tensor.shape, tensor.stride())
        twin = seen.setdefault(memory, name) if tensor.nbytes else name
        if twin != name:
            raise CheckpointError(
                f"'{twin}' and '{name}' share their memory: write it once, "
                "as model_tensors does"
            )


def _shards(
    tensors: Mapping[str, Tensor], limit: int
) -> list[dict[str, Tensor]]:
    """Cut the tensors into runs of at most `limit` bytes, if one fits."""
    runs: list[dict[str, Tensor]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        if runs[-1] and used + tensor.nbytes > limit:
            runs.append({})
            used = 0
        runs[-1][name] = tensor
        used += tensor.nbytes
    return runs


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a new file of JSON, indented."""
    with open(path, "x", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2) + "\n")


def write_checkpoint(
    folder: str | Path,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    *,
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Write config.json and tensors into a folder, as the libraries do.

    Nothing here is atomic: `save_checkpoint` is, and `new_folder` is for
    checkpoints of several parts.

    Args:
        folder: an existing folder without a checkpoint, created if missing.
        tensors: of any shape and device, each with memory of its own; a
            tensor that is not contiguous is written row by row.
        config: what JSON can hold.
        shard_bytes: above this size there are several files and an index.

    Raises:
        CheckpointError: if a tensor cannot be stored.
        OSError: if a file exists, or the disk refuses; `new_folder` makes a
            CheckpointError of it.
        TypeError: if JSON cannot hold the configuration.
    """
    folder = Path(folder)
    _check_writable(tensors)
    shards = _shards(tensors, shard_bytes)
    folder.mkdir(exist_ok=True)
    _write_json(folder / "config.json", config)
    if len(shards) == 1:
        write_file(folder / "model.safetensors", tensors)
        return
    places = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_file(folder / file, shard)
        places.update(dict.fromkeys(shard, file))
    size = sum(tensor.nbytes for tensor in tensors.values())
    content = {"metadata": {"total_size": size}, "weight_map": places}
    _write_json(folder / "model.safetensors.index.json", content)


# How the libraries call their files, and what a pickle may be called.
STEMS = ("model", "diffusion_pytorch_model")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def _read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file."""
    with explained(f"read {path}"):
        return _parsed(path.read_bytes(), path)


def _refuse(folder: Path) -> CheckpointError:
    """Say why there is no checkpoint to be read here."""
    if not folder.exists():
        return CheckpointError(f"{folder} does not exist")
    files = sorted(folder.iterdir()) if folder.is_dir() else [folder]
    for file in files:
        if file.suffix in PICKLES:
            return CheckpointError(
                f"{file} is refused: by its name it is a pickle, and reading "
                "one can run any code"
            )
    if not folder.is_dir():
        return CheckpointError(f"{folder} is a file: name its folder")
    return CheckpointError(f"{folder} holds no safetensors file")


def _read_index(index: Path) -> dict[str, Entry]:
    """Return what the files of a sharded checkpoint hold, as it says."""
    places = _read_json(index).get("weight_map")
    if not isinstance(places, dict):
        raise CheckpointError(f"{index} has no weight_map")
    entries: dict[str, Entry] = {}
    files = sorted(set(map(str, places.values())))
    for file in files:
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise CheckpointError(f"{index} names '{file}', which is refused")
    for file in files:
        for name, entry in read_header(index.with_name(file)).items():
            if places.get(name) != file:
                raise CheckpointError(
                    f"{entry.path} holds '{name}', which {index.name} places "
                    f"in {places.get(name)}"
                )
            entries[name] = entry
    for name, file in places.items():
        if name not in entries:
            raise CheckpointError(
                f"{index} places '{name}' in {file}, which does not hold it"
            )
    return entries


def read_entries(folder: str | Path) -> dict[str, Entry]:
    """Return what the checkpoint in a folder holds; no tensor is read.

    Raises:
        CheckpointError: if the folder or one of its files is missing, not
            well-formed, or a pickle, or if the index and the files disagree.
    """
    folder = Path(folder)
    with explained(f"read {folder}"):
        for stem in STEMS:
            single = folder / f"{stem}.safetensors"
            index = folder / f"{stem}.safetensors.index.json"
            if single.exists() and index.exists():
                raise CheckpointError(
                    f"{folder} holds {single.name} and an index"
                )
            if index.exists():
                return _read_index(index)
            if single.exists():
                return read_header(single)
        raise _refuse(folder)


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return the contents of config.json.

    Raises:
        CheckpointError: if it is missing, or no JSON object.
    """
    return _read_json(Path(folder) / "config.json")


def read_shapes(folder: str | Path) -> dict[str, torch.Size]:
    """Return the shapes in a checkpoint by name; only headers are read.

    Raises:
        CheckpointError: as `read_entries`.
    """
    entries = read_entries(folder)
    return {name: entry.shape for name, entry in entries.items()}


def read_tensors(
    folder: str | Path, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, each in its own memory.

    Raises:
        CheckpointError: as `read_entries` and `read_tensor`.
    """
    entries = read_entries(folder)
    return {name: read_tensor(e).to(device) for name, e in entries.items()}


def _flush(path: str | Path) -> None:
    """Return once the disk has the contents of a file or folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_tree(folder: Path) -> None:
    """Flush all files below a folder, the folders, and itself."""
    for where, _, files in os.walk(folder):
        for name in (*files, ""):
            _flush(os.path.join(where, name))


def _taken(handle: int) -> bool:
    """Lock an open folder; False if the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


@contextmanager
def locked(folder: str | Path) -> Iterator[bool]:
    """Lock a folder; the system frees it even if the process is killed.

    (Then not before the processes have ended that it forked.)

    Yields:
        Whether it is locked: False on a file system without locks.

    Raises:
        BlockingIOError: if somebody else has locked it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield _taken(handle)
    finally:
        with suppress(OSError):  # without locks
            fcntl.flock(handle, fcntl.LOCK_UN)  # also for forked processes
        os.close(handle)


def remove_leftovers(home: Path, name: str) -> None:
    """Remove what killed writers of folders left; live ones hold a lock.

    Args:
        home: the folder in which they were to be.
        name: their names, as a pattern of `glob`.
    """
    for partial in home.glob(f".{name}.*.partial"):
        with suppress(OSError), locked(partial) as held:  # or gone already
            if held:
                shutil.rmtree(partial, ignore_errors=True)


def _refuse_existing(target: Path) -> None:
    """Raise if there is something under this name already."""
    if os.path.lexists(target):
        raise CheckpointError(
            f"{target} exists, and a checkpoint is never overwritten"
        )


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """Give a hidden folder to fill, which becomes `folder` if all goes well.

    At every instant there is either no `folder`, or a complete one, even if
    the process is killed or the power fails. After an error nothing is left;
    what a killed process leaves is removed by the next call for `folder`.

    Args:
        folder: a name that does not exist yet, in a folder that does.

    Raises:
        CheckpointError: if `folder` exists, or cannot be written. If only the
            last flush fails, `folder` is there and complete, but not certain
            to outlive a power failure.

    Implements alg-atomic-save (book/workshop/checkpoint.md).
    """
    target = Path(folder).absolute()
    with explained(f"write {target}"):
        _refuse_existing(target)
        remove_leftovers(target.parent, glob.escape(target.name))
        unique = f".{target.name}.{secrets.token_hex(4)}.partial"
        partial = target.with_name(unique)
        partial.mkdir()
        with locked(partial):
            try:
                yield partial
                _flush_tree(partial)
                _refuse_existing(target)
                partial.rename(target)
                _flush(target.parent)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise


def save_checkpoint(
    folder: str | Path,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    *,
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Write a checkpoint to a new folder, all of it or nothing.

    Arguments and errors are those of `write_checkpoint` and `new_folder`.
    """
    with new_folder(folder) as partial:
        write_checkpoint(partial, tensors, config, shard_bytes=shard_bytes)


def _numbers(pattern: str, name: str) -> tuple[str, ...] | None:
    """Return what stands in `name` for each # of a pattern that fits it."""
    expression = re.escape(pattern).replace(r"\#", "([0-9]+)")
    found = re.fullmatch(expression, name)
    return found and found.groups()


def _numbered(pattern: str, numbers: tuple[str, ...]) -> str:
    """Return the pattern with its #s replaced, one after the other."""
    for number in numbers:
        pattern = pattern.replace("#", number, 1)
    return pattern


@dataclass(frozen=True)
class KeyMap:
    """How the names of a checkpoint become the names of a model.

    In a pattern, # stands for a number: that of a layer, mostly. The first
    pattern that fits counts, and a name that none fits stays as it is.

    Args:
        names: from a pattern of the checkpoint to one of the model, or to
            several: then the tensor is cut into them along its first axis.
        transposed: patterns of matrices that the checkpoint holds transposed.
        ignored: patterns of what the model has no use for.

    Implements def-key-map (book/workshop/checkpoint.md).
    """

    names: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    transposed: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def targets(self, name: str) -> tuple[str, ...]:
        """Return the names in the model that a checkpoint's name becomes."""
        for pattern, targets in self.names.items():
            numbers = _numbers(pattern, name)
            if numbers is not None:
                several = (targets,) if isinstance(targets, str) else targets
                return tuple(_numbered(t, numbers) for t in several)
        return (name,)


def _fits(patterns: tuple[str, ...], name: str) -> bool:
    """Tell whether one of the patterns fits the name."""
    return any(_numbers(pattern, name) is not None for pattern in patterns)


@dataclass(frozen=True)
class Route:
    """Where a tensor of a checkpoint goes: transposed or not, whole or cut."""

    targets: tuple[str, ...]
    transposed: bool

    def fits(
        self, shape: torch.Size, wanted: Mapping[str, torch.Size]
    ) -> bool:
        """Tell whether a tensor of this shape fills its targets exactly."""
        parts = [wanted[target] for target in self.targets]
        if self.transposed:
            if len(shape) != 2:
                return False
            shape = shape[::-1]
        if len(parts) == 1:
            return parts[0] == shape
        # Laid end to end: the first axes add up, the others agree.
        return (
            parts != []
            and all(part and part[1:] == shape[1:] for part in parts)
            and (sum(part[0] for part in parts),) == shape[:1]
        )


def _first_names(model: nn.Module) -> dict[str, str]:
    """Return, for each name of the state, the first name of its tensor."""
    first: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {
        name: first.setdefault(id(tensor), name)
        for name, tensor in state.items()
    }


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers, each once.

    A tensor with several names, as tied weights have, stands there under the
    first of them. These are the model's own tensors, no copies.
    """
    state = model.state_dict(keep_vars=True)
    return {name: state[name] for name in _first_names(model).values()}


def match_keys(
    model: nn.Module | Mapping[str, torch.Size],
    shapes: Mapping[str, torch.Size],
    keys: KeyMap | None = None,
) -> dict[str, Route]:
    """Return the route of each tensor of a checkpoint, if they fit exactly.

    Args:
        model: a model, on any device, meta included, or its shapes by name.
        shapes: those of the checkpoint, as `read_shapes` returns them.
        keys: how names change; without it, they do not.

    Raises:
        CheckpointError: if a tensor of the model is not set exactly once, or a
            tensor of the checkpoint is not used, or a shape does not fit. One
            sentence names them all.

    Implements prop-strict-match (book/workshop/checkpoint.md).
    """
    keys = keys or KeyMap()
    if isinstance(model, nn.Module):
        first = _first_names(model)
        wanted = {n: t.shape for n, t in model_tensors(model).items()}
    else:
        first, wanted = {}, dict(model)
    routes = {
        name: Route(
            tuple(first.get(t, t) for t in keys.targets(name)),
            _fits(keys.transposed, name),
        )
        for name in shapes
        if not _fits(keys.ignored, name)
    }
    _check_routes(routes, shapes, wanted)
    return routes


def _listed(names: list[str]) -> str:
    """Return the number of names, and the first few of them."""
    shown = ", ".join(f"'{name}'" for name in names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"({shown}{more})"


def _check_routes(
    routes: Mapping[str, Route],
    shapes: Mapping[str, torch.Size],
    wanted: Mapping[str, torch.Size],
) -> None:
    """Raise unless the routes set all that is wanted, once, in its shape."""
    uses = Counter(t for route in routes.values() for t in route.targets)
    extra = [
        name
        for name, route in routes.items()
        if not all(target in wanted for target in route.targets)
    ]
    misshaped = [
        name
        for name, route in routes.items()
        if name not in extra and not route.fits(shapes[name], wanted)
    ]
    trouble = {
        "missing": [name for name in wanted if name not in uses],
        "extra": extra,
        "misshaped": misshaped,
        "set twice": [n for n in wanted if uses[n] > 1],
    }
    if any(trouble.values()):
        parts = [
            f"{len(names)} {what} {_listed(names)}"
            for what, names in trouble.items()
            if names
        ]
        raise CheckpointError(
            "checkpoint and model do not match: " + ", ".join(parts)
        )


def _check_dtypes(
    routes: Mapping[str, Route],
    entries: Mapping[str, Entry],
    slots: Mapping[str, Tensor],
    cast: bool,
) -> None:
    """Raise if a dtype differs and must not be cast."""
    for name, route in routes.items():
        found = entries[name].dtype
        for target in route.targets:
            wanted = slots[target].dtype
            both = found.is_floating_point and wanted.is_floating_point
            if found != wanted and not (cast and both):
                raise CheckpointError(
                    f"'{name}' is {found} and the model's '{target}' is "
                    f"{wanted}; cast=True converts floating dtypes"
                )


def _check_buffers(model: nn.Module) -> None:
    """Raise if a buffer on meta is one that no checkpoint holds."""
    kept = model.state_dict(keep_vars=True)
    for name, buffer in model.named_buffers():
        if buffer.is_meta and name not in kept:
            raise CheckpointError(
                f"the buffer '{name}' is not persistent, so on meta it never "
                "gets values: build the model on a real device"
            )


def _parts(
    tensor: Tensor, route: Route, slots: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return what a tensor gives to each of its targets, in its own memory."""
    if route.transposed:
        tensor = tensor.t().contiguous()
    if len(route.targets) == 1:
        return {route.targets[0]: tensor}
    pieces = tensor.split([len(slots[target]) for target in route.targets])
    clones = [piece.clone() for piece in pieces]
    return dict(zip(route.targets, clones, strict=True))


def _fill(slot: Tensor, value: Tensor) -> None:
    """Give the values to a tensor of a model; it stays the same object."""
    if not slot.is_meta:
        slot.copy_(value)
    elif isinstance(slot, nn.Parameter):
        swap_tensors(slot, nn.Parameter(value, slot.requires_grad))
    else:
        swap_tensors(slot, value)


def load_checkpoint(
    model: nn.Module,
    folder: str | Path,
    keys: KeyMap | None = None,
    *,
    cast: bool = False,
) -> None:
    """Give a model the tensors of a checkpoint: all of them, or none.

    The model may be on meta, and is on the CPU then: so built, it takes no
    memory but what it is filled with. Else it stays where it is, and until all
    is read, old and new values are in memory. Parameters stay the same
    objects, tied ones stay tied, and a checkpoint may hold them under any one
    of their names. Buffers that are not persistent are left alone.

    Raises:
        CheckpointError: if the checkpoint cannot be read, does not match the
            model (`match_keys`), or has another dtype and `cast` is not
            set. The model is unchanged then.
    """
    entries, slots = read_entries(folder), model_tensors(model)
    shapes = {name: entry.shape for name, entry in entries.items()}
    try:
        routes = match_keys(model, shapes, keys)
        _check_dtypes(routes, entries, slots, cast)
        _check_buffers(model)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    values = {}
    for name, route in routes.items():
        for target, value in _parts(
            read_tensor(entries[name]), route, slots
        ).items():
            values[target] = value.to(slots[target].dtype)
    with torch.no_grad():
        for target, value in values.items():
            _fill(slots[target], value)
