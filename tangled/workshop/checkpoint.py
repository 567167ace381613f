"""Checkpoints: safetensors files, an atomic save, strict key maps.

Tangled from book/workshop/checkpoint.md.
"""

import json
import os
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from secrets import token_hex
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils import swap_tensors

__all__ = [
    "CheckpointError",
    "KeyMap",
    "load_checkpoint",
    "match_keys",
    "model_tensors",
    "new_folder",
    "read_config",
    "read_tensors",
    "save_checkpoint",
]


class CheckpointError(Exception):
    """A checkpoint that cannot be written, or must not be read."""


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what the system or a format refuses into one sentence."""
    try:
        yield
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"cannot read {path}: {reason}") from error


def _mapped(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file; their numbers are read when used.

    Implements def-tensor-file (book/workshop/checkpoint.md).
    """
    with _reading(file), file.open("rb") as opened:
        try:
            with safe_open(file, framework="pt") as tensors:
                return {n: tensors.get_tensor(n) for n in (*tensors.keys(),)}
        except SafetensorError:
            if not opened.read(4).startswith((b"PK\x03\x04", b"\x80")):
                raise
    raise CheckpointError(
        f"{file} is refused: it is a pickle, and reading one can run any code"
    )


def _first_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return, for each name, the first name of the same tensor."""
    seen: dict[object, str] = {}
    first: dict[str, str] = {}
    spans = []
    for name, t in tensors.items():
        real = not t.is_meta and t.nbytes > 0
        view = (t.device, t.data_ptr(), t.dtype, t.shape, t.stride())
        first[name] = seen.setdefault(view if real else id(t), name)
        if real and first[name] == name:
            last = t.detach()[(-1,) * t.ndim]
            stop = last.data_ptr() + t.itemsize
            spans.append((str(t.device), t.data_ptr(), stop, name))
    for (place, _, stop, a), (other, start, _, b) in pairwise(sorted(spans)):
        if place == other and start < stop:
            raise CheckpointError(f"'{a}' and '{b}' overlap in memory")
    return first


def _listed(names: Sequence[str]) -> str:
    """Return the first few of the names, and whether there are more."""
    return f"({', '.join(map(repr, names[:3]))}{', ...' * (len(names) > 3)})"


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Return all that a model keeps, without the names of its wrappers."""
    model = getattr(model, "_orig_mod", model)
    while isinstance(model, DataParallel | DistributedDataParallel):
        model = model.module
    state = model.state_dict(keep_vars=True)
    if odd := [n for n, t in state.items() if not isinstance(t, Tensor)]:
        raise CheckpointError(f"the model keeps no tensor in {_listed(odd)}")
    return {n.replace("_orig_mod.", ""): t for n, t in state.items()}


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers, each under its first name.

    They are the model's own, no copies. Wrappers (`torch.compile`, DDP) add
    nothing to the names. Overlapping tensors, and extra state that is no
    tensor, raise a CheckpointError.
    """
    state = _state(model)
    return {name: state[name] for name in _first_names(state).values()}


# How the libraries call their files.
_STEMS = ("model.safetensors", "diffusion_pytorch_model.safetensors")


def _write(
    folder: Path, tensors: Mapping[str, Tensor], limit: int, stem: str
) -> None:
    """Write tensors beside config.json, with an index of several files."""
    for name, tensor in tensors.items():
        real = isinstance(tensor, Tensor) and not tensor.is_meta
        if not real or name == "__metadata__":  # the format's own name
            raise CheckpointError(f"no file can hold '{name}'")
    first = _first_names(tensors)
    if twice := [name for name in tensors if first[name] != name]:
        raise CheckpointError(f"other names of tensors: {_listed(twice)}")
    shards: list[dict[str, Tensor]] = [{}]
    room = limit
    for name, tensor in tensors.items():
        if shards[-1] and tensor.nbytes > room:
            shards.append({})
            room = limit
        shards[-1][name] = tensor.detach()
        room -= tensor.nbytes
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        path = folder / (file if len(shards) > 1 else f"{stem}.safetensors")
        plain = {n: t.cpu().contiguous() for n, t in shard.items()}
        try:
            save_file(plain, path, metadata={"format": "pt"})
        except KeyError as dtype:
            raise CheckpointError(f"no file can hold {dtype}") from None
        # The library hides its files from other users.
        shutil.copymode(folder / "config.json", path)
        places |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        size = {"total_size": sum(t.nbytes for t in tensors.values())}
        index = {"metadata": size, "weight_map": places}
        path = folder / f"{stem}.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2) + "\n")


def _find(place: Path) -> Path:
    """Return the file, or the index of the files, that holds the tensors."""
    with _reading(place):
        held = sorted(place.iterdir()) if place.is_dir() else [place]
    names = [stem + end for stem in _STEMS for end in ("", ".index.json")]
    found = [file for file in held if file == place or file.name in names]
    if len(found) == 1:
        return found[0]
    count = "several checkpoints" if found else f"no {_STEMS[0]}"
    listed = ", ".join(file.name for file in held)
    raise CheckpointError(f"{place} holds {count}; name a file: {listed}")


def _read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file."""
    with _reading(path):
        content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds JSON, but not an object")
    return content


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
        if odd := sorted(said ^ part.keys()):
            told = f"{index} and {file} disagree about {_listed(odd)}"
            raise CheckpointError(told)
        found |= part
    return found


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return the contents of config.json, or raise a CheckpointError."""
    return _read_json(Path(folder) / "config.json")


def read_tensors(
    place: str | Path, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, each in its own memory.

    The place is a folder, a safetensors file, or an index of several. On the
    device "meta" there are shapes and dtypes, and no number is read. What is
    missing, not well-formed or a pickle raises a CheckpointError.
    """
    return {n: t.to(device, copy=True) for n, t in _tensors(place).items()}


def _flush(*paths: Path) -> None:
    """Return once the disk has the contents of these files and folders."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """Give a hidden folder to fill, which becomes `folder` if all goes well.

    At every instant there is no `folder`, or a complete one, even if the
    process is killed or the power fails. After an error nothing is left; a
    killed process leaves its hidden folder, `.NAME.*.partial`. A `folder`
    that exists or cannot be written is a CheckpointError.

    Implements alg-atomic-save (book/workshop/checkpoint.md).
    """
    target = Path(folder).absolute()
    partial = target.with_name(f".{target.name}.{token_hex(8)}.partial")
    if os.path.lexists(target):
        raise CheckpointError(f"{target} exists: nothing is overwritten")
    try:
        partial.mkdir()  # step 1
        yield partial  # step 2
        _flush(*partial.rglob("*"), partial)  # step 3
        partial.rename(target)  # step 4
        _flush(target.parent)  # step 5
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not isinstance(error, OSError | SafetensorError | CheckpointError):
            raise
        reason = str(getattr(error, "strerror", None) or error)
        reason = reason.replace(str(partial), str(target))
        raise CheckpointError(f"cannot write {target}: {reason}") from error


def save_checkpoint(
    folder: str | Path,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    *,
    shard_bytes: int = 5_000_000_000,
    stem: str = "model",
) -> None:
    """Write a checkpoint to a new folder, all of it or nothing.

    The tensors may lie on any device, each under one name (`model_tensors`).
    Above `shard_bytes` there are several files and an index; their names begin
    with `stem`, which is "diffusion_pytorch_model" in the library diffusers.
    A tensor that no file can hold is a CheckpointError, a configuration that
    JSON cannot hold a TypeError.
    """
    text = json.dumps(dict(config), indent=2)
    with new_folder(folder) as partial:
        (partial / "config.json").write_text(text + "\n")
        _write(partial, tensors, shard_bytes, stem)


# From patterns of the checkpoint's names to one name of the model or several.
KeyMap = Mapping[str, str | tuple[str, ...]]


def _targets(
    name: str, rows: list[tuple[re.Pattern[str], Any]]
) -> tuple[tuple[str, ...], bool]:
    """Return where a tensor goes, and whether it is transposed on the way.

    Implements def-key-map (book/workshop/checkpoint.md).
    """
    for pattern, target in rows:
        for turned in (False, True):
            if found := pattern.fullmatch(name + ".T" * turned):
                names = (target,) if isinstance(target, str) else target
                for number in found.groups():
                    names = tuple(n.replace("#", number, 1) for n in names)
                return names, turned
    return (name,), False


def _parts(
    tensor: Tensor, turned: bool, shapes: list[torch.Size]
) -> Sequence[Tensor]:
    """Return a tensor cut into these shapes, or nothing if it does not fit."""
    if turned and tensor.ndim != 2:
        return []
    whole = tensor.t() if turned else tensor
    parts: Sequence[Tensor] = [whole]
    if len(shapes) > 1 and whole.ndim > 0:
        heights = [shape[:1].numel() for shape in shapes]
        parts = whole.split(heights) if sum(heights) == len(whole) else []
    return parts if [part.shape for part in parts] == shapes else []


def match_keys(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    keys: KeyMap | None = None,
    *,
    cast: bool = False,
) -> dict[str, Tensor]:
    """Return what each tensor of a model gets from a checkpoint, as views.

    A row of `keys` takes a name of the checkpoint to one of the model, or to
    several: then the tensor is cut along its first axis. In a pattern, #
    stands for a number, and `.T` after a name for the transposed matrix. No
    names, (), means that the tensor is ignored. The first row that fits
    counts, and a name that none fits stays as it is. Model and tensors may be
    on meta, and `cast` allows floating dtypes to differ. If the match is not
    strict, one CheckpointError names all that is wrong.

    Implements prop-strict-match (book/workshop/checkpoint.md).
    """
    state = _state(model)
    first = _first_names(state)
    rows = [
        (re.compile(re.escape(row).replace(r"\#", "([0-9]+)")), target)
        for row, target in (keys or {}).items()
    ]
    found: dict[str, Tensor] = {}
    uses: Counter[str] = Counter()
    trouble: defaultdict[str, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        targets, turned = _targets(name, rows)
        known = [first[target] for target in targets if target in first]
        uses.update(known)
        parts = _parts(tensor, turned, [state[n].shape for n in known])
        if len(known) < len(targets):
            trouble["extra"].append(name)
        elif targets and not parts:
            trouble["misshaped"].append(name)
        for target, part in zip(known, parts, strict=False):
            found[target] = part
            kinds = part.dtype, state[target].dtype
            floating = all(kind.is_floating_point for kind in kinds)
            if kinds[0] != kinds[1] and not (cast and floating):
                trouble["in {}, not {}".format(*kinds)].append(target)
    for name in dict.fromkeys(first.values()):
        if uses[name] != 1:
            trouble["set twice" if uses[name] else "missing"].append(name)
    if trouble:
        told = (f"{len(n)} {how} {_listed(n)}" for how, n in trouble.items())
        raise CheckpointError(
            f"checkpoint and model do not match: {', '.join(told)}"
        )
    return {name: found[first[name]] for name in state}


def _fill(slot: Tensor, value: Tensor, mmap: bool) -> None:
    """Give the values to a tensor of a model; it stays the same object."""
    if not slot.is_meta and not (mmap and slot.is_cpu):
        slot.copy_(value)
        return
    value = value.to(slot.dtype, copy=not mmap).contiguous()
    if slot.is_cpu:
        slot.data = value
    elif isinstance(slot, nn.Parameter):
        swap_tensors(slot, nn.Parameter(value, slot.requires_grad))
    else:
        swap_tensors(slot, value)


def load_checkpoint(
    model: nn.Module,
    place: str | Path,
    keys: KeyMap | None = None,
    *,
    cast: bool = False,
    mmap: bool = False,
) -> None:
    """Give a model the tensors of a checkpoint, if all of them fit.

    The place is as in `read_tensors`, `keys` and `cast` as in `match_keys`.
    Parameters stay the same objects, tied ones stay tied, and what was on
    meta is on the CPU. Buffers that are not persistent are left alone. With
    `mmap`, tensors on the CPU are the mapped file itself: nothing is copied,
    but nobody may write to it from then on.

    What cannot be opened or does not match is a CheckpointError, and changes
    nothing. Should the disk fail while numbers are read, load again.
    """
    found = _tensors(place)
    try:
        found = match_keys(model, found, keys, cast=cast)
    except CheckpointError as error:
        raise CheckpointError(f"{place}: {error}") from None
    state = _state(model)
    once = {id(slot): name for name, slot in state.items()}
    for name, buffer in model.named_buffers():
        if buffer.is_meta and id(buffer) not in once:
            raise CheckpointError(
                f"{place}: the buffer '{name}' is not persistent, so on meta "
                "it never gets values: build the model on a real device"
            )
    with torch.no_grad():
        for name in once.values():
            _fill(state[name], found.pop(name), mmap)  # lets go of the file
