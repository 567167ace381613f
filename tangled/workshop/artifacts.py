"""Trained weights that chapters share, made once and kept under a key.

Tangled from book/workshop/checkpoint.md.
"""

import ast
import hashlib
import importlib
import json
import os
import pkgutil
import shutil
import sys
import time
from collections.abc import Callable, Mapping
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
    "recipe",
    "recipes",
    "sources",
]


class ArtifactError(Exception):
    """A recipe that cannot be found, or of which there are two."""


@dataclass(frozen=True)
class Recipe:
    """A function that trains a model, and the configuration it is given."""

    name: str
    module: str
    make: Callable[..., tuple[nn.Module, list[dict[str, Any]]]]
    config: Mapping[str, Any]


def recipe(**config: Any) -> Callable[[Callable[..., Any]], Recipe]:
    """Decorate a function `make(folder, **config)` that trains a model.

    It returns the model and its log, a list of rows. In `folder` it may keep
    checkpoints of its own: an interrupted making finds them there again. JSON
    must be able to hold the configuration.
    """
    return lambda f: Recipe(f.__name__, f.__module__, f, config)


def sources(module: str) -> dict[str, str]:
    """Return the code of a module and of all it imports from its package.

    Comments and docstrings are left out, and so is this module.
    """
    documented = ast.FunctionDef | ast.ClassDef | ast.Module
    found: dict[str, str] = {}
    waiting = [module]
    for name in waiting:  # which grows meanwhile
        file = getattr(sys.modules.get(name), "__file__", None)
        ours = name.partition(".")[0] == module.partition(".")[0]
        if name in found or not (file and ours) or name == recipe.__module__:
            continue
        tree = ast.parse(Path(file).read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                waiting += [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom):
                origin = "." * node.level + (node.module or "")
                origin = resolve_name(origin, sys.modules[name].__package__)
                waiting += [f"{origin}.{a.name}" for a in node.names]
                waiting.append(origin)
            elif isinstance(node, documented) and ast.get_docstring(node):
                node.body = node.body[1:] or [ast.Pass()]
        found[name] = ast.unparse(tree)
    return found


def artifacts_folder() -> Path:
    """Return the folder of all artefacts: $TANGLED_ARTIFACTS, or a cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TANGLED_ARTIFACTS") or Path(cache, "tangled"))


def _place(recipe: Recipe) -> Path:
    """Return the folder of a recipe: its key digests what makes the model."""
    code = sources(recipe.module)
    parts = [recipe.name, dict(recipe.config), torch.__version__, code]
    text = json.dumps(parts, sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    return artifacts_folder() / f"{recipe.name}-{key}"


def recipes(package: str = "tangled") -> dict[str, Recipe]:
    """Return the recipes of a package's modules by name, each name once."""
    path = importlib.import_module(package).__path__
    found: dict[str, Recipe] = {}
    for info in pkgutil.walk_packages(path, f"{package}."):
        for value in vars(importlib.import_module(info.name)).values():
            if isinstance(value, Recipe) and value.module == info.name:
                twin = found.setdefault(value.name, value)
                if twin is not value:
                    both = f"{twin.module} and {value.module} both have"
                    raise ArtifactError(f"{both} a recipe '{value.name}'")
    return found


def artifact(recipe: Recipe) -> Path:
    """Return the folder of a recipe's checkpoint; make it if there is none.

    Of several processes that ask at once, one makes it and the others wait.
    A recipe of a notebook stands for the one of its name in the package; if
    there is none, that is an ArtifactError.

    Implements alg-made-once (book/workshop/checkpoint.md).
    """
    if recipe.module == "__main__":
        if recipe.name not in (known := recipes()):
            raise ArtifactError(f"no module has a recipe '{recipe.name}'")
        recipe = known[recipe.name]
    folder = _place(recipe)
    if not folder.exists():
        with FileLock(f"{folder}.lock"):  # makes the folder around it
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
        model, log = recipe.make(scratch, **recipe.config)
    config = {"recipe": recipe.name, "module": recipe.module}
    config |= {"config": dict(recipe.config), "log": log}
    config["seconds"] = round(time.monotonic() - began, 3)
    for left in folder.parent.glob(f".{folder.name}.*.partial"):
        shutil.rmtree(left)  # of a process that was killed: the lock is ours
    save_checkpoint(folder, model_tensors(model), config)
    shutil.rmtree(scratch)


def command(package: str = "tangled") -> int:
    """Make all artefacts of a package, list them, return the exit status."""
    try:
        for name, wanted in sorted(recipes(package).items()):
            if not _place(wanted).exists():
                print(f"{name}: in the making", file=sys.stderr, flush=True)
            folder = artifact(wanted)
            took = read_config(folder)["seconds"]
            size = sum(file.stat().st_size for file in folder.iterdir())
            print(folder.name, f"{size:,} bytes", wanted.module, took, "s")
    except KeyboardInterrupt:
        print("interrupted: what was trained is kept", file=sys.stderr)
        return 130
    except (ArtifactError, CheckpointError, ImportError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    # Under its own name, so that there is one class Recipe and not two.
    module = importlib.import_module("tangled.workshop.artifacts")
    sys.exit(module.command(*sys.argv[1:2]))
