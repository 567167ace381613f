"""The training loop: no accident changes a bit of a run, and what is wrong is said in a sentence."""

import hashlib
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tangled.foundations.checkpoint import read_config, read_tensors
from tangled.foundations.training import checkpoints, read_log

ROOT = Path(__file__).parents[2]


def contents(folder: Path) -> dict[str, str]:
    """What a folder holds: a digest of each file, and the name of each folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "a folder"
        for path in folder.rglob("*")
    }


def state(checkpoint: Path) -> dict[str, object]:
    """All bits of the state of a run in its checkpoint."""
    found: dict[str, object] = dict(read_config(checkpoint))
    for part in ("", "optimizer", "average"):
        for name, tensor in read_tensors(checkpoint / part).items():
            content = tensor.contiguous().view(-1).view(torch.uint8).tolist()
            found[f"{part}/{name}"] = (tensor.dtype, tensor.shape, content)
    return found


def outcome(folder: Path) -> tuple[dict[str, object], list[dict[str, float]]]:
    """The bits of a run's newest checkpoint, and its log without the times."""
    rows = [{**row, "seconds": 0} for row in read_log(folder)]
    return state(checkpoints(folder)[-1]), rows


@pytest.fixture(scope="module")
def straight(runs, tmp_path_factory) -> Path:
    """A run that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("straight")
    assert runs.do("train", folder=str(folder)).error is None
    return folder


@pytest.fixture(scope="module")
def halfway(runs, tmp_path_factory) -> Path:
    """The same run, killed after step 3: there is a checkpoint of step 2."""
    folder = tmp_path_factory.mktemp("halfway")
    end = runs.do("train", folder=str(folder), signals={3: signal.SIGKILL})
    assert end.status == -signal.SIGKILL
    assert [path.name for path in checkpoints(folder)] == ["step-00000002"]
    return folder


# ---- killed


@pytest.mark.verifies("thm-resume")
@pytest.mark.parametrize("phase", ["start", "save"])
def test_killed_at_every_call_to_the_file_system(runs, tmp_path, straight, halfway, phase):
    """The save of step 4 includes the removal of step 2."""
    for at in range(1, 1000):
        folder = tmp_path / str(at)
        shutil.copytree(halfway, folder)
        accident = {"how": "kill", "at": at, "phase": phase}
        end = runs.do("train", folder=str(folder), accident=accident)
        found = checkpoints(folder)
        assert 1 <= len(found) <= 2
        if end.status == 0:
            break
        assert end.status == -signal.SIGKILL
        assert runs.do("train", folder=str(folder)).error is None
        assert outcome(folder) == outcome(straight)
        # Nor is anything left of what was half written or half removed.
        assert contents(folder).keys() == contents(straight).keys()
        shutil.rmtree(folder)
    assert at > (40 if phase == "save" else 5)
