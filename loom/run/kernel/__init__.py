"""What every kernel of the book runs under, whoever starts it.

`loom run` and a plain `jupyter-book build .` start kernels by the same environment, so that both
give the same results: one thread, fixed hashing and dates, no network, no settings of the user's,
and one place for the weights that chapters share.
"""

import os
from pathlib import Path

__all__ = ["artifacts", "environment", "files"]

HERE = Path(__file__).parent
PROFILE = "profile_default/ipython_kernel_config.py"

# 1 January 2026: the date that figures carry in their metadata, whenever they are drawn.
EPOCH = "1767225600"


def files() -> tuple[Path, ...]:
    """The files that decide how a cell runs and how a figure looks."""
    return (HERE / "__init__.py", HERE / "checks.py", HERE / "matplotlibrc", HERE / PROFILE)


def artifacts(root: Path) -> Path:
    """The folder of the weights that chapters share, in the book in `root`."""
    return root.absolute() / "_build" / "artifacts"


def environment(root: Path) -> dict[str, str]:
    """The variables that kernels of the book in `root` are started with.

    IPython keeps state beside its configuration, so the profile is copied to
    `_build/loom/ipython` first, where that state does no harm.
    """
    ipython = root.absolute() / "_build" / "loom" / "ipython"
    _copy(HERE / PROFILE, ipython / PROFILE)
    path = [str(root.absolute()), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        "IPYTHONDIR": str(ipython),
        "MATPLOTLIBRC": str(HERE / "matplotlibrc"),
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(path)),
        "PYTHONHASHSEED": "0",
        "SOURCE_DATE_EPOCH": EPOCH,
        # Two kernels run side by side; more threads than cores make both many times slower.
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TANGLED_ARTIFACTS": str(artifacts(root)),
        # A progress bar goes to standard error, which a chapter must keep clean.
        "TQDM_DISABLE": "1",
        # Libraries that could draw a bar complain in a notebook where ipywidgets is missing.
        "PYTHONWARNINGS": "ignore:IProgress not found",
    }


def _copy(source: Path, target: Path) -> None:
    """Copy a small file where it differs, so that no reader ever sees half of it."""
    content = source.read_bytes()
    if target.is_file() and target.read_bytes() == content:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f"{target.name}.{os.getpid()}")
    new.write_bytes(content)
    new.replace(target)
