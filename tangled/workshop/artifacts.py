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
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
    "artifact",
    "artifacts_folder",
    "command",
    "key",
    "make_all",
    "recipe",
    "recipes",
    "sources",
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


# CPython 3.11 counts the depth of syntax trees for all threads together: if two
# parse at once, it may take the count for wrong and raise a SystemError.
_parsing = threading.Lock()


def sources(module: str) -> dict[str, str]:
    """Return the code of a module and of all it imports from its package.

    Comments and docstrings are left out, and so is this module.
    """
    found: dict[str, str] = {}
    waiting = {module}
    while waiting:
        name = waiting.pop()
        file = getattr(sys.modules.get(name), "__file__", None)
        ours = name.partition(".")[0] == module.partition(".")[0]
        if name in found or not (file and ours) or name == recipe.__module__:
            continue
        with _parsing:
            tree = ast.parse(Path(file).read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                waiting |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                origin = "." * node.level + (node.module or "")
                origin = resolve_name(origin, sys.modules[name].__package__)
                waiting |= {origin}
                waiting |= {f"{origin}.{alias.name}" for alias in node.names}
            elif (
                isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module)
                and ast.get_docstring(node) is not None
            ):
                node.body = node.body[1:] or [ast.Pass()]
        found[name] = ast.unparse(tree)
    return found


def key(recipe: Recipe) -> str:
    """Return 12 hexadecimal digits for what made a model."""
    code = sources(recipe.module)
    parts = [recipe.name, dict(recipe.config), torch.__version__, code]
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def artifacts_folder() -> Path:
    """Return the folder of all artefacts: $TANGLED_ARTIFACTS, or a cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TANGLED_ARTIFACTS") or Path(cache, "tangled"))


def recipes(package: str = "tangled") -> dict[str, Recipe]:
    """Return the recipes of a package's modules by name, each name once."""
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
        known = recipes().get(recipe.name)
        if known is None:
            raise ArtifactError(
                f"no module of the package has a recipe '{recipe.name}'"
            )
        recipe = known
    folder = _place(recipe)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.exists():  # or another process was faster
                _make(recipe, folder)
    return folder


def _make(recipe: Recipe, folder: Path) -> None:
    """Train what the recipe says and save it; go on if there is a start."""
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
    for left in folder.parent.glob(f".{folder.name}.*.partial"):
        shutil.rmtree(left)  # of a process that was killed: the lock is ours
    save_checkpoint(folder, model_tensors(model), config)
    shutil.rmtree(scratch)


def make_all(package: str = "tangled") -> list[dict[str, Any]]:
    """Make what is missing of a package's artefacts; return a row for each."""
    rows = []
    for name, wanted in sorted(recipes(package).items()):
        made = not _place(wanted).exists()
        if made:
            print(f"{name}: in the making", file=sys.stderr, flush=True)
        folder = artifact(wanted)
        told = read_config(folder)
        row = {n: told[n] for n in ("module", "key", "seconds")}
        size = sum(file.stat().st_size for file in folder.iterdir())
        rows.append({"name": name, **row, "size": size, "made": made})
    return rows


def command(arguments: Sequence[str] | None = None) -> int:
    """Make all artefacts of a package and list them; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tangled.workshop.artifacts",
        description="Make the weights that chapters share, and list them.",
    )
    parser.add_argument("package", nargs="?", default="tangled")
    folder = artifacts_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        rows = make_all(parser.parse_args(arguments).package)
        draft = folder / f"table.{os.getpid()}.json"
        draft.write_text(json.dumps(rows, indent=2))
        draft.replace(folder / "table.json")
        for row in rows:
            state = "made" if row["made"] else "found"
            print(
                f"{row['name']:24}  {row['key']}  {row['seconds']:7.1f} s  "
                f"{row['size']:10,} bytes  {state}, by {row['module']}"
            )
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
