"""Checkpoints: safetensors files, an atomic save, strict key maps.

Tangled from book/workshop/checkpoint.md.
"""

import json
import os
import re
import secrets
import shutil
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils import swap_tensors

__all__ = [
    "PICKLES",
    "STEMS",
    "CheckpointError",
    "KeyMap",
    "Route",
    "load_checkpoint",
    "locked",
    "match_keys",
    "model_tensors",
    "new_folder",
    "read_config",
    "read_shapes",
    "read_tensors",
    "save_checkpoint",
]


class CheckpointError(Exception):
    """A checkpoint that cannot be written, or must not be read."""


@contextmanager
def _explained(doing: str) -> Iterator[None]:
    """Turn what the system or the format refuses into one sentence."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"cannot {doing}: {reason}") from error


def _mapped(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file; their numbers are read when used.

    Implements def-tensor-file (book/workshop/checkpoint.md).
    """
    with _explained(f"read {file}"):
        with file.open("rb") as opened:
            first = opened.read(4)
        try:
            with safe_open(file, framework="pt") as tensors:
                return {n: tensors.get_tensor(n) for n in (*tensors.keys(),)}
        except SafetensorError:
            if first.startswith((b"PK\x03\x04", b"\x80")):
                raise CheckpointError(
                    f"{file} is refused: it is a pickle, and reading one can "
                    "run any code"
                ) from None
            raise


def _first_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return, for each name, the first name of the same tensor."""
    seen: dict[object, str] = {}
    first: dict[str, str] = {}
    spans = []
    for name, t in tensors.items():
        real = not t.is_meta and t.nbytes > 0
        start, view = t.data_ptr(), (t.dtype, t.shape, t.stride())
        memory = (t.device, start, *view) if real else id(t)
        first[name] = seen.setdefault(memory, name)
        if real and first[name] == name:
            steps = zip(t.shape, t.stride(), strict=True)
            reach = 1 + sum((size - 1) * step for size, step in steps)
            stop = start + reach * t.itemsize
            spans.append((str(t.device), start, stop, name))
    for (place, _, stop, a), (other, start, _, b) in pairwise(sorted(spans)):
        if place == other and start < stop:
            raise CheckpointError(
                f"'{a}' and '{b}' overlap in memory, but are not one tensor"
            )
    return first


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Return all that a model keeps, without the names of its wrappers."""
    model = getattr(model, "_orig_mod", model)
    while isinstance(model, DataParallel | DistributedDataParallel):
        model = model.module
    state = model.state_dict(keep_vars=True)
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"'{name}' is {type(value).__name__}, not a tensor: a file "
                "of tensors cannot hold it"
            )
    return {n.replace("_orig_mod.", ""): t for n, t in state.items()}


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers, each under its first name.

    They are the model's own, no copies. The wrappers of `torch.compile` and
    DistributedDataParallel add nothing to the names.

    Raises:
        CheckpointError: if two tensors overlap without being one, or if the
            model keeps extra state that is no tensor.
    """
    state = _state(model)
    return {name: state[name] for name in _first_names(state).values()}


def _check_writable(tensors: Mapping[str, Tensor]) -> None:
    """Raise if a file cannot hold a name or a tensor, or not just once."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.is_meta:
            raise CheckpointError(f"'{name}' is no tensor with values")
    if "__metadata__" in tensors:
        raise CheckpointError("the name '__metadata__' is the format's own")
    for name, first in _first_names(tensors).items():
        if name != first:
            raise CheckpointError(
                f"'{first}' and '{name}' share their memory: write it once, "
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
        runs[-1][name] = tensor.detach()
        used += tensor.nbytes
    return runs


# How the libraries call their files, and what a pickle may be called.
STEMS = ("model.safetensors", "diffusion_pytorch_model.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def _write(
    folder: Path,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    shard_bytes: int,
) -> None:
    """Write config.json and tensors into an empty folder."""
    _check_writable(tensors)
    shards = _shards(tensors, shard_bytes)
    texts = {"config.json": dict(config)}
    places = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        path = folder / (file if len(shards) > 1 else STEMS[0])
        path.touch()
        mode = path.stat().st_mode
        plain = {n: t.cpu().contiguous() for n, t in shard.items()}
        save_file(plain, path, metadata={"format": "pt"})
        path.chmod(mode)  # the library hides its files from other users
        places.update(dict.fromkeys(shard, file))
    if len(shards) > 1:
        size = sum(tensor.nbytes for tensor in tensors.values())
        texts[f"{STEMS[0]}.index.json"] = {
            "metadata": {"total_size": size},
            "weight_map": places,
        }
    for name, content in texts.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def _find(place: Path) -> Path:
    """Return the file, or the index of the files, that holds the tensors."""
    with _explained(f"read {place}"):
        held = sorted(place.iterdir()) if place.is_dir() else [place]
        if not place.exists():
            raise CheckpointError(f"{place} does not exist")
    names = [stem + end for stem in STEMS for end in ("", ".index.json")]
    found = [f for f in held if f == place or f.name in names]
    pickles = [file for file in held if file.suffix in PICKLES]
    if pickles and not set(found) - set(pickles):
        raise CheckpointError(
            f"{pickles[0]} is refused: by its name it is a pickle, and "
            "reading one can run any code"
        )
    if len(found) != 1:
        listed = ", ".join(file.name for file in held) or "nothing"
        count = "several checkpoints" if found else f"no {STEMS[0]}"
        raise CheckpointError(
            f"{place} holds {count}; name one file of what is there: {listed}"
        )
    return found[0]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON, in which no key may be there twice."""
    counts = Counter(key for key, _ in pairs)
    if twice := [key for key, count in counts.items() if count > 1]:
        raise ValueError(f"the key '{twice[0]}' is there twice")
    return dict(pairs)


def _read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file."""
    with _explained(f"read {path}"):
        text = path.read_bytes()
    try:
        content = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds JSON, but not an object")
    return content


def _listed(names: Sequence[str]) -> str:
    """Return the first few of the names, and how many more there are."""
    shown = ", ".join(f"'{name}'" for name in names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"({shown}{more})"


def _tensors(place: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, file by file, still unread."""
    index = _find(Path(place))
    if index.suffix != ".json":
        return _mapped(index)
    places = _read_json(index).get("weight_map")
    if not isinstance(places, dict):
        raise CheckpointError(f"{index} has no weight_map")
    found: dict[str, Tensor] = {}
    files = sorted(set(map(str, places.values())))
    for file in files:  # all of them, before one is opened
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise CheckpointError(f"{index} names '{file}', which is refused")
    for file in files:
        part = _mapped(index.with_name(file))
        said = {name for name, where in places.items() if where == file}
        if part.keys() != said:
            raise CheckpointError(
                f"{index} and {file} disagree about "
                f"{_listed(sorted(said ^ part.keys()))}"
            )
        found |= part
    return found


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return the contents of config.json, or raise a CheckpointError."""
    return _read_json(Path(folder) / "config.json")


def read_shapes(place: str | Path) -> dict[str, torch.Size]:
    """Return the shapes in a checkpoint by name; no number is read."""
    return {name: tensor.shape for name, tensor in _tensors(place).items()}


def read_tensors(
    place: str | Path, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, each in its own memory.

    Args:
        place: a folder, a single safetensors file, or an index of several.
        device: where they are to be.

    Raises:
        CheckpointError: if a file is missing, not well-formed or a pickle,
            or if the index and the files disagree.
    """
    found = _tensors(place)
    return {name: t.to(device, copy=True) for name, t in found.items()}


def _flush(path: Path) -> None:
    """Return once the disk has the contents of a file or folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_tree(folder: Path) -> None:
    """Flush all that is below a folder, and the folder."""
    for path in (*folder.rglob("*"), folder):
        _flush(path)


def _refuse_existing(target: Path) -> None:
    """Raise if there is something under this name already."""
    if os.path.lexists(target):
        raise CheckpointError(
            f"{target} exists, and a checkpoint is never overwritten"
        )


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """Give a hidden folder to fill, which becomes `folder` if all goes well.

    At every instant there is no `folder`, or a complete one, even if the
    process is killed or the power fails. After an error nothing is left; a
    killed process leaves its hidden folder, `.NAME.*.partial`.

    Args:
        folder: a name that does not exist yet, in a folder that does.

    Raises:
        CheckpointError: if `folder` exists, or cannot be written. If only the
            last flush fails, `folder` is there and complete, but not certain
            to outlive a power failure.

    Implements alg-atomic-save (book/workshop/checkpoint.md).
    """
    target = Path(folder).absolute()
    hidden = f".{target.name}.{secrets.token_hex(4)}.partial"
    partial = target.with_name(hidden)
    with _explained(f"write {target}"):
        _refuse_existing(target)
        partial.mkdir()  # step 1
        try:
            yield partial  # step 2
            _flush_tree(partial)  # step 3
            _refuse_existing(target)
            partial.rename(target)  # step 4
            _flush(target.parent)  # step 5
        except CheckpointError as error:  # of a checkpoint inside
            shutil.rmtree(partial, ignore_errors=True)
            told = str(error).replace(str(partial), str(target))
            raise CheckpointError(told) from error.__cause__
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

    Args:
        folder: a name that does not exist yet, in a folder that does.
        tensors: of any shape and device, each with memory of its own.
        config: what JSON can hold.
        shard_bytes: above this size there are several files and an index.

    Raises:
        CheckpointError: if a tensor cannot be stored, or as `new_folder`.
        TypeError: if JSON cannot hold the configuration.
    """
    with new_folder(folder) as partial:
        _write(partial, tensors, config, shard_bytes)


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Hold the lock of a folder, or raise BlockingIOError if another does."""
    lock = FileLock(Path(folder) / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BlockingIOError(f"{folder} is locked by another") from None
    try:
        yield
    finally:
        lock.release()


def _numbers(pattern: str, name: str) -> tuple[str, ...] | None:
    """Return what `name` has for each # of a pattern that fits it."""
    expression = re.escape(pattern).replace(r"\#", "([0-9]+)")
    found = re.fullmatch(expression, name)
    return found and found.groups()


def _fits(patterns: tuple[str, ...], name: str) -> bool:
    """Tell whether one of the patterns fits the name."""
    return any(_numbers(pattern, name) is not None for pattern in patterns)


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
        for pattern, found in self.names.items():
            numbers = _numbers(pattern, name)
            if numbers is not None:
                targets = [found] if isinstance(found, str) else list(found)
                for number in numbers:
                    targets = [t.replace("#", number, 1) for t in targets]
                return tuple(targets)
        return (name,)


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
        CheckpointError: if the match is not strict, in one sentence that
            names all that is wrong; or if tensors of the model overlap.

    Implements prop-strict-match (book/workshop/checkpoint.md).
    """
    keys = keys or KeyMap()
    first, wanted = {}, model
    if isinstance(model, nn.Module):
        first = _first_names(_state(model))
        wanted = {n: t.shape for n, t in model_tensors(model).items()}
    routes = {
        name: Route(
            tuple(first.get(t, t) for t in keys.targets(name)),
            _fits(keys.transposed, name),
        )
        for name in shapes
        if not _fits(keys.ignored, name)
    }
    uses = Counter(t for route in routes.values() for t in route.targets)
    known = {n for n, r in routes.items() if wanted.keys() >= {*r.targets}}
    trouble = {
        "missing": [name for name in wanted if name not in uses],
        "extra": [name for name in routes if name not in known],
        "misshaped": [
            name
            for name, route in routes.items()
            if name in known and not route.fits(shapes[name], wanted)
        ],
        "set twice": [name for name in wanted if uses[name] > 1],
    }
    if any(trouble.values()):
        raise CheckpointError(
            "checkpoint and model do not match: "
            + ", ".join(
                f"{len(names)} {what} {_listed(names)}"
                for what, names in trouble.items()
                if names
            )
        )
    return routes


def _check_values(
    slots: Mapping[str, Tensor],
    routes: Mapping[str, Route],
    found: Mapping[str, Tensor],
    cast: bool,
) -> None:
    """Raise if a dtype must not be cast, or a tensor cannot be filled."""
    for name, route in routes.items():
        given = found[name].dtype
        for target in route.targets:
            wanted = slots[target].dtype
            both = given.is_floating_point and wanted.is_floating_point
            if given != wanted and not (cast and both):
                raise CheckpointError(
                    f"'{name}' is {given} and the model's '{target}' is "
                    f"{wanted}; cast=True converts floating dtypes"
                )
    for name, slot in slots.items():
        if slot.is_meta and weakref.getweakrefcount(slot):
            raise CheckpointError(
                f"'{name}' is on meta and something holds a weak reference "
                "to it, so it cannot be given values"
            )


def _check_buffers(model: nn.Module) -> None:
    """Raise if a buffer on meta would never get values."""
    kept = {id(tensor) for tensor in _state(model).values()}
    for name, buffer in model.named_buffers():
        if buffer.is_meta and id(buffer) not in kept:
            raise CheckpointError(
                f"the buffer '{name}' is not persistent, so on meta it never "
                "gets values: build the model on a real device"
            )


def _fill(slot: Tensor, value: Tensor, mmap: bool) -> None:
    """Give the values to a tensor of a model; it stays the same object."""
    ready = mmap and value.dtype == slot.dtype and value.is_contiguous()
    if not slot.is_meta and not (ready and slot.is_cpu):
        slot.copy_(value)
        return
    if not ready:
        own = torch.empty(slot.shape, dtype=slot.dtype, device="cpu")
        value = own.copy_(value)
    if slot.is_cpu:
        slot.data = value
    elif isinstance(slot, nn.Parameter):
        swap_tensors(slot, nn.Parameter(value, slot.requires_grad))
    else:
        swap_tensors(slot, value.detach())


def load_checkpoint(
    model: nn.Module,
    place: str | Path,
    keys: KeyMap | None = None,
    *,
    cast: bool = False,
    mmap: bool = False,
) -> None:
    """Give a model the tensors of a checkpoint, if all of them fit.

    A model on meta is on the CPU then. Parameters stay the same objects, and
    tied ones stay tied. Buffers that are not persistent are left alone.

    Args:
        model: what is filled.
        place: a folder, a single safetensors file, or an index of several.
        keys: how names change; without it, they do not.
        cast: whether floating dtypes may be converted.
        mmap: whether tensors on the CPU may be the mapped file itself. That
            copies nothing; but nobody may write to the file from then on.

    Raises:
        CheckpointError: if the checkpoint cannot be opened, or does not match
            the model in names, shapes (`match_keys`) or dtypes. The model is
            unchanged then. Should the disk fail while numbers are read, some
            tensors are filled and others are not: load again.
    """
    found = _tensors(place)
    shapes = {name: tensor.shape for name, tensor in found.items()}
    try:
        routes = match_keys(model, shapes, keys)
        slots = model_tensors(model)
        _check_values(slots, routes, found, cast)
        _check_buffers(model)
    except CheckpointError as error:
        raise CheckpointError(f"{place}: {error}") from None
    with torch.no_grad():
        for name in list(found):
            tensor = found.pop(name)  # the last of a file lets go of it
            if name not in routes:
                continue
            targets = routes[name].targets
            if routes[name].transposed:
                tensor = tensor.t()
            parts = [tensor]
            if len(targets) > 1:
                parts = tensor.split([len(slots[t]) for t in targets])
            for target, part in zip(targets, parts, strict=True):
                _fill(slots[target], part, mmap)
