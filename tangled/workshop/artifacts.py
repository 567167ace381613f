"""Trained weights that chapters share, made once and kept under a key.

Tangled from book/workshop/checkpoint.md.
"""

import argparse
import ast
import hashlib
import importlib
import json
import os
import pkgutil
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn

from tangled.workshop.checkpoint import (
    CheckpointError,
    model_tensors,
    read_config,
    save_checkpoint,
)

__all__ = [
    "ArtifactError",
    "Recipe",
    "Row",
    "artifact",
    "artifacts_folder",
    "command",
    "key",
    "make_all",
    "recipe",
    "recipes",
    "sources",
    "stale",
]


class ArtifactError(Exception):
    """Weights that cannot be made, or a recipe that cannot be found."""


@dataclass(frozen=True)
class Recipe:
    """A function that trains a model, and the configuration it is given."""

    make: Callable[..., tuple[nn.Module, list[dict[str, Any]]]]
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of the function."""
        return self.make.__name__

    @property
    def module(self) -> str:
        """The module of the function."""
        return self.make.__module__


def recipe(**config: Any) -> Callable[[Callable[..., Any]], Recipe]:
    """Decorate a function `make(folder, **config)` that trains a model.

    It returns the model and its log, a list of rows. In `folder` it may keep
    checkpoints of its own: an interrupted making finds them there again.

    Args:
        config: what the function is called with; JSON must be able to hold it.
    """
    return lambda make: Recipe(make, config)


def _source(module: str, base: Path) -> Path | None:
    """Return the file of a module below `base`, if there is one."""
    stem = base.joinpath(*module.split("."))
    files = (stem.with_suffix(".py"), stem / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def _imported(tree: ast.Module, package: str) -> Iterator[str]:
    """Yield all names in a module's imports that may be modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            origin = resolve_name(name, package)
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)


# CPython 3.11 counts the depth of syntax trees for all threads together: if two
# parse at once, it may take the count for wrong and raise a SystemError.
_parsing = threading.Lock()


def sources(module: str) -> dict[str, str]:
    """Return the code of a module and of all it imports from its package.

    Comments, docstrings and layout are left out, and this module here: how
    weights are kept does not change them. Nothing is imported.
    """
    file = Path(str(sys.modules[module].__file__))
    base = file.parents[module.count(".") + (file.stem == "__init__")]
    found: dict[str, str] = {}
    waiting = {module}
    while waiting:
        name = waiting.pop()
        path = _source(name, base)
        if path is None or name in found or name == recipe.__module__:
            continue
        with _parsing:
            tree = ast.parse(path.read_bytes())
        inside = path.stem == "__init__"
        package = name if inside else name.rpartition(".")[0]
        top = module.partition(".")[0]
        waiting |= {
            other
            for other in _imported(tree, package)
            if other.partition(".")[0] == top
        }
        found[name] = _code(tree)
    return found


def _code(tree: ast.Module) -> str:
    """Return a module's code in one layout, without its docstrings."""
    for node in ast.walk(tree):
        told = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if told and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def key(recipe: Recipe) -> str:
    """Return 12 hexadecimal digits that change with whatever made a model.

    That is the recipe's name and configuration, the code of its module and of
    what that imports from its package, and the version of torch.
    """
    parts = [
        recipe.name,
        json.dumps(recipe.config, sort_keys=True),
        torch.__version__,
        *(
            part
            for item in sorted(sources(recipe.module).items())
            for part in item
        ),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def artifacts_folder() -> Path:
    """Return the folder of all artefacts: $TANGLED_ARTIFACTS, or a cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TANGLED_ARTIFACTS") or Path(cache, "tangled"))


def recipes(package: str = "tangled") -> dict[str, Recipe]:
    """Return the recipes that the modules of a package define, by name.

    Raises:
        ArtifactError: if two of them have one name.
    """
    path = importlib.import_module(package).__path__
    found: dict[str, Recipe] = {}
    for info in pkgutil.walk_packages(path, f"{package}."):
        for value in vars(importlib.import_module(info.name)).values():
            if isinstance(value, Recipe) and value.module == info.name:
                twin = found.setdefault(value.name, value)
                if twin is not value:
                    raise ArtifactError(
                        f"{twin.module} and {value.module} both have a "
                        f"recipe '{value.name}'"
                    )
    return found


def _place(recipe: Recipe) -> Path:
    """Return where the checkpoint of a recipe is, or will be."""
    return artifacts_folder() / f"{recipe.name}-{key(recipe)}"


def artifact(recipe: Recipe) -> Path:
    """Return the folder of a recipe's checkpoint; make it if there is none.

    Of several processes that ask at once, one makes it and the others wait.
    A recipe of a notebook stands for the one of its name in the package.

    Raises:
        ArtifactError: if the recipe fails, or the package has none like it.
        CheckpointError: if what it trained cannot be saved.

    Implements alg-made-once (book/workshop/checkpoint.md).
    """
    if recipe.module == "__main__":
        known = recipes()
        if recipe.name not in known:
            raise ArtifactError(
                f"no module of the package has a recipe '{recipe.name}'"
            )
        recipe = known[recipe.name]
    folder = _place(recipe)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.exists():  # or another process was faster
                _make(recipe, folder)
    return folder


def _make(recipe: Recipe, folder: Path) -> None:
    """Train what the recipe says and save it; resume if there is a start."""
    scratch = folder.with_name(f"{folder.name}.scratch")
    scratch.mkdir(exist_ok=True)
    began = time.monotonic()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        try:
            model, log = recipe.make(scratch, **recipe.config)
        except Exception as error:
            raise ArtifactError(
                f"recipe '{recipe.name}' of {recipe.module} failed: "
                f"{type(error).__name__}: {error}"
            ) from error
    config = {
        "recipe": recipe.name,
        "module": recipe.module,
        "key": folder.name.rpartition("-")[2],
        "config": dict(recipe.config),
        "seconds": round(time.monotonic() - began, 3),
        "log": log,
    }
    save_checkpoint(folder, model_tensors(model), config)
    shutil.rmtree(scratch)


@dataclass(frozen=True)
class Row:
    """A line of the table of artefacts."""

    name: str
    module: str
    key: str
    seconds: float
    size: int
    made: bool  # just now; otherwise it was there


def _row(folder: Path, made: bool) -> Row:
    """Return the row of an artefact from what its folder says."""
    told = read_config(folder)
    size = sum(file.stat().st_size for file in folder.iterdir())
    fields = [told[name] for name in ("recipe", "module", "key", "seconds")]
    return Row(*fields, size, made)


def make_all(package: str = "tangled") -> list[Row]:
    """Make what is missing of a package's artefacts; return all their rows.

    Progress goes to standard error.

    Raises:
        ArtifactError: if a recipe fails, or two have one name.
    """
    rows = []
    for name, wanted in sorted(recipes(package).items()):
        missing = not _place(wanted).exists()
        if missing:
            print(f"{name}: in the making", file=sys.stderr, flush=True)
        rows.append(_row(artifact(wanted), missing))
        if missing:
            print(f"{name}: {rows[-1].seconds:.1f} s", file=sys.stderr)
    return rows


def stale(rows: Sequence[Row]) -> list[Path]:
    """Return what is kept under keys that none of the rows has."""
    keys = {row.key for row in rows}
    return [
        path
        for path in sorted(artifacts_folder().iterdir())
        if (found := re.fullmatch(r".+-([0-9a-f]{12})(\.\w+)?", path.name))
        and found[1] not in keys
    ]


def _told(rows: Sequence[Row]) -> str:
    """Return the table of artefacts as text."""
    lines = ["artefact                  key           seconds       bytes"]
    for row in rows:
        start = (
            f"{row.name:24}  {row.key}  {row.seconds:7.1f}  {row.size:10,}"
        )
        state = "made" if row.made else "found"
        lines.append(f"{start}  {state}, by {row.module}")
    return "\n".join(lines)


def _report(rows: Sequence[Row], prune: bool) -> None:
    """Write the table for programs and print it for people."""
    folder = artifacts_folder()
    draft = folder / f"table.{os.getpid()}.json"
    draft.write_text(json.dumps([asdict(row) for row in rows], indent=2))
    draft.replace(folder / "table.json")
    print(_told(rows))
    for path in stale(rows):
        print(f"{'removed' if prune else 'stale'}: {path.name}")
        if prune and path.is_dir():
            shutil.rmtree(path)
        elif prune:
            path.unlink()


def command(arguments: Sequence[str] | None = None) -> int:
    """Make all artefacts of a package and list them; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tangled.workshop.artifacts",
        description="Make the weights that chapters share, and list them.",
    )
    parser.add_argument("package", nargs="?", default="tangled")
    parser.add_argument(
        "--prune", action="store_true", help="remove what no recipe makes now"
    )
    options = parser.parse_args(arguments)
    try:
        artifacts_folder().mkdir(parents=True, exist_ok=True)
        _report(make_all(options.package), options.prune)
    except KeyboardInterrupt:
        print("interrupted: what was trained is kept", file=sys.stderr)
        return 130
    except (ArtifactError, CheckpointError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    # Under its own name, so that there is one class Recipe and not two.
    module = importlib.import_module("tangled.workshop.artifacts")
    sys.exit(module.command())
