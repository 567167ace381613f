"""The training loop: no accident changes a bit of a run, what is wrong is said in a sentence."""

import copy
import hashlib
import io
import itertools
import json
import math
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from tangled.foundations.training import (
    Run,
    Training,
    TrainingError,
    checkpoints,
    train,
    warmup_cosine,
)
from tangled.workshop.checkpoint import (
    CheckpointError,
    model_tensors,
    read_config,
    read_tensors,
    save_checkpoint,
)
from tests.foundations import runs as helpers
from tests.foundations.runs import Points, fussy, network, noisy_losses

RUNS = helpers.__file__


def read_log(folder: Path) -> list[dict[str, float]]:
    """The whole rows of a run's log."""
    lines = Path(folder, "log.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def contents(folder: Path) -> dict[str, str]:
    """What a folder holds: a digest of each file, and the name of each folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        if path.is_file()
        else "a folder"
        for path in folder.rglob("*")
    }


def state(checkpoint: Path) -> dict[str, object]:
    """All bits of the state of a run in its checkpoint."""
    found: dict[str, object] = dict(read_config(checkpoint / "model"))
    found["log"] = [{**row, "seconds": 0} for row in found["log"]]
    for part in ("model", "optimizer", "average"):
        for name, tensor in read_tensors(checkpoint / part).items():
            content = tensor.contiguous().view(-1).view(torch.uint8).tolist()
            found[f"{part}/{name}"] = (tensor.dtype, tensor.shape, content)
    return found


def outcome(folder: Path) -> tuple[dict[str, object], list[dict[str, float]]]:
    """The bits of a run's newest checkpoint, and its log without the times."""
    rows = [{**row, "seconds": 0} for row in read_log(folder)]
    return state(checkpoints(folder)[-1]), rows


def ended(folder: Path) -> tuple[object, ...]:
    """What a run came to, and the names of all that it left."""
    return *outcome(folder), set(contents(folder))


@pytest.fixture(scope="module")
def straight(runs, tmp_path_factory) -> tuple[object, ...]:
    """What a run came to that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("straight")
    assert runs.do("train", folder=str(folder)).error is None
    names = {path.name for path in folder.iterdir()} - {".lock"}
    assert names == {"log.jsonl", "step-00000006"}
    return ended(folder)


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
def test_killed_at_every_call_to_the_file_system(
    runs, tmp_path, straight, halfway, phase
):
    """The save of step 4 includes the removal of step 2."""
    for at in range(1, 1000):
        folder = tmp_path / str(at)
        shutil.copytree(halfway, folder)
        accident = {"how": "kill", "at": at, "phase": phase}
        end = runs.do("train", folder=str(folder), accident=accident)
        found = checkpoints(folder)
        assert 1 <= len(found) <= 2
        for path in found:  # what has the name of a checkpoint is all of one
            assert state(path)["step"] == int(path.name.removeprefix("step-"))
        if end.status == 0:
            break
        assert end.status == -signal.SIGKILL
        assert runs.do("train", folder=str(folder)).error is None
        # Nor is anything left of what was half written or half removed.
        assert ended(folder) == straight
        shutil.rmtree(folder)
    assert at > (40 if phase == "save" else 5)


@pytest.mark.parametrize("step", range(1, 7))
def test_killed_between_two_steps(runs, tmp_path, straight, step):
    end = runs.do(
        "train", folder=str(tmp_path), signals={step: signal.SIGKILL}
    )
    assert end.status == -signal.SIGKILL
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 5, "lr"')  # a row that was torn
    assert runs.do("train", folder=str(tmp_path)).error is None
    assert ended(tmp_path) == straight


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("log_every", [1, 4])
def test_a_signal_ends_the_run_after_a_step(
    runs, tmp_path, number, log_every
):
    ask = {"log_every": log_every, "evaluate_every": None}
    whole, other = str(tmp_path / "whole"), tmp_path / "other"
    assert runs.do("train", folder=whole, **ask).error is None
    ask["accident"] = {"how": "list"}
    end = runs.do(
        "train",
        folder=str(other),
        signals={1: number},
        **ask | {"evaluate_every": 1},
    )
    assert end.error == "KeyboardInterrupt"
    newest = other / "step-00000002"
    assert end.message == f"stopped after step 2; kept: {newest}"
    shutil.rmtree(other)
    end = runs.do("train", folder=str(other), stops=[3], **ask)
    assert end.error == "KeyboardInterrupt"
    assert [path.name for path in checkpoints(other)] == ["step-00000003"]
    assert runs.do("train", folder=str(other), **ask).error is None
    assert outcome(other) == outcome(Path(whole))


def test_a_second_signal_acts_at_once(runs, tmp_path):
    ask = {"folder": str(tmp_path), "twice": True}
    end = runs.do("train", signals={3: signal.SIGINT}, **ask)
    assert (end.error, end.message) == ("KeyboardInterrupt", "")
    assert [row["step"] for row in read_log(tmp_path)] == [1, 2]
    end = runs.do("train", signals={3: signal.SIGTERM}, **ask)
    assert end.status == -signal.SIGTERM
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000002"]


def test_a_signal_in_the_last_step_is_not_lost(runs, tmp_path):
    end = runs.do("train", folder=str(tmp_path), signals={6: signal.SIGTERM})
    assert end.error == "KeyboardInterrupt"
    assert (
        end.message == f"stopped after step 6; kept: {tmp_path}/step-00000006"
    )


def test_handlers_of_the_caller_come_back_and_threads_are_left_alone():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    done = []
    thread = threading.Thread(target=lambda: done.append(fussy(steps=4).step))
    thread.start()
    thread.join()
    assert done == [4]
    fussy(steps=4)
    assert before == [
        signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)
    ]


def test_a_mask_with_infinities_is_saved(tmp_path):
    class Masked(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.register_buffer("mask", torch.full((2,), -math.inf))

    run = fussy(tmp_path, 4, model=Masked)
    found = read_tensors(checkpoints(tmp_path)[-1] / "model")
    assert torch.equal(found["mask"], run.model.mask)


# ---- no space


@pytest.mark.verifies("thm-resume")
@pytest.mark.parametrize(
    ("how", "phase"),
    [("full", "save"), ("small", "save"), ("small", "start")],
)
def test_a_full_disk_at_every_write(
    runs, tmp_path, straight, halfway, how, phase
):
    for at in (
        range(1, 1000) if how == "full" else (*range(0, 1600, 200), 5000)
    ):
        folder = tmp_path / str(at)
        shutil.copytree(halfway, folder)
        accident = {"how": how, "at": at, "phase": phase}
        end = runs.do("train", folder=str(folder), accident=accident)
        if end.error is None:
            break
        assert end.error in ("CheckpointError", "OSError")
        assert "\n" not in end.message
        assert (
            "No space left" if how == "full" else "File too large"
        ) in end.message
        assert state(checkpoints(folder)[0]) == state(
            checkpoints(halfway)[0]
        ) or (len(checkpoints(folder)) == 1)
        assert runs.do("train", folder=str(folder)).error is None
        assert ended(folder) == straight
        shutil.rmtree(folder)
    assert at > 10


# ---- numbers that are not finite


def poisoned(value: float, where: str, step: int = 4):
    """Losses that are not finite, or whose gradients are not, in one step."""
    calls = itertools.count()

    def losses(model, batch, generator):
        each = noisy_losses(model, batch, generator)
        if next(calls) // 2 == step - 1:
            if where == "loss":
                return each * value
            if where == "loss alone":
                return each + value
            each.register_hook(lambda g: g * value)
        return each

    return losses


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["loss", "loss alone", "gradient"])
def test_the_first_number_that_is_not_finite_ends_the_run(
    tmp_path, monkeypatch, value, where
):
    good = fussy(steps=6, save_every=None, evaluate_every=None, evaluate=None)
    assert good.step == 6
    monkeypatch.setitem(helpers.LOSSES, "bad", poisoned(value, where))
    kept, seen = {}, []

    def evaluate(run):
        kept.update({n: p.clone() for n, p in run.model.named_parameters()})
        seen.append(run)
        return {}

    with pytest.raises(TrainingError) as error:
        fussy(tmp_path, losses="bad", evaluate=evaluate)
    assert str(error.value).startswith("step 4: loss or norm is not finite")
    assert [path.name[-1] for path in checkpoints(tmp_path)] == ["2"]
    for name, parameter in seen[-1].model.named_parameters():
        assert torch.equal(parameter, kept[name])
    assert seen[-1].step == seen[-1].average.n_averaged == 3
    assert fussy(tmp_path, evaluate=lambda run: {}).step == 6


def test_a_step_without_items():
    with pytest.raises(
        TrainingError,
        match=r"step 1: loss or norm is not finite: .*'items': 0",
    ):
        train(
            model := nn.Linear(2, 2),
            lambda m, b, g: F.cross_entropy(m(b[0]), b[1], reduction="none")[
                :0
            ],
            Points(),
            torch.optim.SGD(model.parameters(), 1.0),
            Training(2, batch_size=4),
        )


def test_a_weight_that_is_not_finite_is_not_saved(tmp_path):
    def evaluate(run):
        if run.step == 4:
            run.model[0].bias.data[1] = math.inf
        return {}

    with pytest.raises(
        TrainingError,
        match=r"step 4: \['0.bias'\] have entries that are not finite",
    ):
        fussy(tmp_path, evaluate=evaluate)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000002"]


def test_extra_state_is_refused_before_the_first_step(tmp_path):
    """What a checkpoint could not hold is told while nothing is lost."""

    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"seen": 1}

        def set_extra_state(self, state):
            """Take over nothing."""

    model = nn.Sequential(Extra(2, 2))
    before = model[0].weight.detach().clone()
    with pytest.raises(CheckpointError, match=r"0\._extra_state"):
        train(
            model,
            noisy_losses,
            Points(),
            torch.optim.SGD(model.parameters(), 1.0),
            Training(2, batch_size=4),
            folder=tmp_path,
        )
    assert torch.equal(model[0].weight, before)
    assert checkpoints(tmp_path) == []


# ---- another set-up


@pytest.fixture(scope="module")
def five(tmp_path_factory) -> Path:
    """A run of five steps with a constant schedule."""
    folder = tmp_path_factory.mktemp("five")
    fussy(folder, 5, schedule="constant")
    return folder


def half() -> nn.Module:
    model = network()
    model[0].requires_grad_(False)
    return model


@pytest.mark.refutes("thm-resume")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 4}, "batch_size 8, this one has 4"),
        ({"seed": 6}, "seed 5, this one has 6"),
        ({"precision": "bfloat16"}, "precision float32, this one has bfloat16"),
        ({"max_norm": None}, "max_norm 0.5, this one has None"),
        ({"ema_decay": None}, "ema_decay 0.5, this one has None"),
        ({"micro_batches": 1}, "micro_batches 2, this one has 1"),
        ({"options": {"lr": 0.2}}, "lr of parameter group 0 0.1, this one has 0.2"),
        ({"options": {"weight_decay": 0.5}}, "weight_decay of parameter group 0 0.01"),
        ({"options": {"betas": (0.5, 0.9)}}, "betas of parameter group 0 (0.9, 0.999)"),
        ({"optimizer": "Adam"}, "optimizer AdamW, this one has Adam"),
        ({"schedule": "cosine"}, "factor of the rates 1.0, this one has"),
        ({"steps": 3}, "has done 5 steps, this one ends at 3"),
        ({"model": half}, "trained parameters"),
    ],
)  # fmt: skip
def test_another_setup_is_refused(five, changes, words):
    before = contents(five)
    with pytest.raises(TrainingError) as error:
        fussy(five, **{"steps": 9, "schedule": "constant", **changes})
    assert words in str(error.value)
    assert str(error.value).startswith(f"{five}/step-00000005: ")
    assert "\n" not in str(error.value)
    assert contents(five) == before


def test_another_number_of_examples_is_refused(five, monkeypatch):
    before = contents(five)
    monkeypatch.setattr(Points, "__len__", lambda points: 21)
    with pytest.raises(TrainingError, match="examples 22, this one has 21"):
        fussy(five, 9, schedule="constant")
    assert contents(five) == before


def test_other_trained_parameters_are_refused(tmp_path):
    fussy(tmp_path, 4, model=half, schedule="constant")

    def other() -> nn.Module:
        model = network()
        model[1].requires_grad_(False)
        return model

    with pytest.raises(TrainingError, match="trained parameters"):
        fussy(tmp_path, 9, model=other, schedule="constant")


def test_another_architecture_is_refused(five):
    before = contents(five)

    def wider() -> nn.Module:
        torch.manual_seed(0)
        layers = (
            nn.Linear(2, 9),
            nn.BatchNorm1d(9),
            nn.SiLU(),
            nn.Dropout(),
            nn.Linear(9, 2),
        )
        return nn.Sequential(*layers)

    with pytest.raises(CheckpointError, match="do not match"):
        fussy(five, 9, schedule="constant", model=wider)
    assert contents(five) == before


def test_a_run_can_be_made_longer(five, tmp_path):
    shutil.copytree(five, tmp_path / "a")
    fussy(tmp_path / "a", 6, schedule="constant")
    fussy(tmp_path / "b", 6, schedule="constant")
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")


def test_the_number_of_checkpoints(tmp_path):
    for keep in (1, 2, 3, 9, 0):
        fussy(tmp_path / f"{keep}", 6, keep=keep)
        names = [path.name[-1] for path in checkpoints(tmp_path / f"{keep}")]
        assert names == ["0", "2", "4", "6"][-keep:]
    fussy(tmp_path / "end", 5, save_every=None, keep=9)
    names = [path.name[-1] for path in checkpoints(tmp_path / "end")]
    assert names == ["0", "5"]


@pytest.mark.parametrize(
    "spoilt", [b"", b"no row\n", b'{"step": 1, "\xff', None]
)
def test_the_log_is_written_again_from_the_checkpoint(tmp_path, spoilt):
    run, log = fussy(tmp_path), tmp_path / "log.jsonl"
    whole = log.read_bytes()
    log.unlink() if spoilt is None else log.write_bytes(spoilt)
    assert fussy(tmp_path).log == run.log == read_log(tmp_path)
    assert log.read_bytes() == whole


# ---- bad input


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 24}, r"must lie in 1\.\.22"),
        ({"batch_size": 9}, "cannot be cut into 2 equal parts"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"micro_batches": 0}, "micro_batches must be a whole number"),
        (
            {"precision": "float16"},
            "must be float32 or bfloat16, got float16",
        ),
        ({"precision": "float64"}, "must be float32 or bfloat16"),
        ({"max_norm": 0.0}, "max_norm must be positive"),
        ({"max_norm": math.nan}, "max_norm must be positive"),
        ({"ema_decay": 1.0}, "ema_decay must lie in"),
    ],
)
def test_arguments_out_of_range(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        fussy(tmp_path / "a", **changes)
    assert not (tmp_path / "a").exists()


def test_steps_and_warmup_out_of_range(plain_errors):
    with pytest.raises(ValueError, match="steps must be a whole number"):
        Training(0)
    for wrong in (2.5, 0, -1, True, "many"):
        with pytest.raises(ValueError, match="batch_size must be a whole"):
            Training(1, batch_size=wrong)
    for warmup in (-1, 5, 6):
        with pytest.raises(ValueError, match="warmup must lie in"):
            warmup_cosine(5, warmup)


def test_the_optimizer_holds_what_is_trained():
    model, foreign = network(), nn.Linear(2, 2)
    names = ["0.bias", "0.weight"]

    def build(parameters) -> None:
        optimizer = torch.optim.SGD(parameters, 1.0)
        Run(model, noisy_losses, Points(), optimizer, Training(1, 8))

    build(model.parameters())
    with pytest.raises(
        ValueError, match=r"lacks \['0.bias', '0.weight'\] of"
    ) as error:
        build(p for n, p in model.named_parameters() if n not in names)
    with pytest.raises(
        ValueError, match=r"lacks \[\] of what the model trains, and has 8"
    ):
        build([*model.parameters(), *foreign.parameters()])
    model[0].requires_grad_(False)
    with pytest.raises(ValueError, match="has 6 parameters for 4"):
        build(model.parameters())
    assert "\n" not in str(error.value)


def test_folders_that_are_none_of_a_run(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="file"):
        fussy(tmp_path / "file")
    (tmp_path / "step-00000003").mkdir()
    save_checkpoint(
        tmp_path / "step-00000003" / "model",
        model_tensors(network()),
        {"step": 3},
    )
    (tmp_path / "empty" / "step-00000001").mkdir(parents=True)
    before = contents(tmp_path / "step-00000003")
    with pytest.raises(TrainingError, match="its run has batch_size None"):
        fussy(tmp_path)
    with pytest.raises(CheckpointError, match="cannot read"):
        fussy(tmp_path / "empty")
    assert contents(tmp_path / "step-00000003") == before


def test_two_runs_do_not_share_a_folder(tmp_path):
    """The second is refused before it touches anything; the first goes on."""

    def evaluate(run: Run) -> dict[str, float]:
        before = contents(tmp_path)
        with pytest.raises(TimeoutError, match=r"\.lock' could not be acq"):
            fussy(tmp_path, evaluate_every=None)
        assert contents(tmp_path) == before
        return {}

    run = fussy(tmp_path, evaluate=evaluate, evaluate_every=3)
    assert run.step == 6
    with pytest.raises(TrainingError, match="its run has seed 5"):
        fussy(tmp_path, seed=6)
    assert fussy(tmp_path).log == run.log  # a refused run frees the folder


def test_runs_beside_each_other_and_below(tmp_path):
    def evaluate(run: Run) -> dict[str, float]:
        with torch.enable_grad():
            for other in (tmp_path / "b", tmp_path / "a" / "below" / "it"):
                assert fussy(other, evaluate_every=None).step == 6
        return {}

    fussy(tmp_path / "a", evaluate=evaluate, evaluate_every=6)


def test_two_processes_have_one_lock_and_remove_once(runs, tmp_path):
    ask = {"processes": 2, "folder": str(tmp_path)}
    assert [end.error for end in runs.all("train", **ask)] == [None, None]
    (tmp_path / ".step-00000001.old").mkdir()
    ends = runs.all("train", accident={"how": "list"}, **ask)
    assert [end.error for end in ends] == [None, None]
    first, second = (
        [path for path in end.written if str(tmp_path) in path]
        for end in ends
    )
    assert any(".step-00000001.old" in path for path in first)
    assert second == []


def test_a_refused_run_has_removed_nothing(tmp_path):
    fussy(tmp_path, keep=3)
    before = contents(tmp_path)
    with pytest.raises(TrainingError, match="its run has seed"):
        fussy(tmp_path, keep=1, seed=6)
    assert contents(tmp_path) == before


def test_a_finished_run_keeps_what_it_is_asked_to(tmp_path):
    for keep in (3, 3, 2, 1):
        fussy(tmp_path, keep=keep)
        assert len(checkpoints(tmp_path)) == keep


def test_what_killed_runs_left_is_removed(tmp_path):
    fussy(tmp_path, keep=3)
    for name in (
        ".step-00000005.0123abcd.partial",
        ".step-00000001.old",
        "mine",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("half")
    fussy(tmp_path, keep=1)
    names = {path.name for path in tmp_path.iterdir()} - {".lock"}
    assert names == {"log.jsonl", "mine", "step-00000006"}


@pytest.mark.parametrize(
    "name", ["step", "lr", "loss", "norm", "items", "seconds"]
)
def test_an_evaluation_has_names_of_its_own(name):
    with pytest.raises(ValueError, match=f"other names than .*'{name}'"):
        fussy(evaluate=lambda run: {name: 1.0, "mine": 2.0})


def test_a_model_in_evaluation_mode_is_trained_all_the_same():
    logs = [
        [
            {**row, "seconds": 0}
            for row in fussy(model=made, evaluate_every=None).log
        ]
        for made in (network, lambda: network().eval())
    ]
    assert logs[0] == logs[1]


# ---- gradients


def gradient(run: Run) -> tuple[dict[str, float], torch.Tensor]:
    """The row of a step, and the gradient that it went by."""
    run.model.train()
    told, _ = run.update()
    flat = [
        p.grad.flatten() for p in run.model.parameters() if p.grad is not None
    ]
    return told, torch.cat(flat)


def exact_run(micro_batches=1, max_norm=None) -> Run:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(2, 5), nn.SiLU(), nn.Linear(5, 2)
    ).double()

    def quiet(model, batch, generator):
        x, y, i = batch
        each = F.cross_entropy(model(x), y, reduction="none")
        return each.repeat_interleave(i % 4)

    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    config = Training(9, 12, micro_batches, max_norm)
    return Run(model, quiet, Points(torch.float64), optimizer, config)


@pytest.mark.verifies("prop-weighted-parts")
@pytest.mark.parametrize("micro_batches", [2, 3, 4, 6, 12])
def test_any_number_of_micro_batches_has_one_gradient(micro_batches):
    (told, whole), (same, parts) = (
        gradient(exact_run()),
        gradient(exact_run(micro_batches)),
    )
    torch.testing.assert_close(parts, whole, atol=1e-13, rtol=0)
    assert same == pytest.approx(told, rel=1e-6)
    assert told["norm"] == pytest.approx(whole.norm().item(), rel=1e-6)


@pytest.mark.parametrize(
    "share", [1e-12, 1e-6, 0.3, 0.999999, 1.0, 1.000001, 7.0, math.inf]
)
def test_clipping_shortens_to_the_norm_and_no_further(share):
    told, whole = gradient(exact_run())
    norm = whole.norm().item()
    for micro_batches in (1, 3):
        same, clipped = gradient(exact_run(micro_batches, share * norm))
        assert same["norm"] == pytest.approx(told["norm"], rel=1e-6)
        # The library adds 1e-6 to the norm, so as not to divide by 0.
        expected = whole * min(1.0, share * norm / (norm + 1e-6))
        torch.testing.assert_close(
            clipped, expected, atol=1e-13 * min(1, share), rtol=1e-11
        )


def tied() -> nn.Module:
    """A network in which two layers are one, and one is frozen."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(2, 2),
        nn.SiLU(),
        nn.Linear(2, 2),
        nn.Dropout(0.3),
        nn.Linear(2, 2),
    )
    model[2].weight = model[0].weight
    model[4].requires_grad_(False)
    return model


OPTIMIZERS = [
    ("SGD", {}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("Adam", {"amsgrad": True}),
    ("AdamW", {"foreach": False}),
    ("RMSprop", {"momentum": 0.5, "centered": True}),
    ("Adagrad", {}),
    ("NAdam", {}),
    ("RAdam", {}),
]


class Crash(Exception):
    pass


def dies(step: int):
    def evaluate(run):
        if run.step == step:
            raise Crash
        return {}

    return evaluate


@pytest.mark.verifies("thm-resume")
@pytest.mark.parametrize(("optimizer", "options"), OPTIMIZERS)
@pytest.mark.parametrize("model", [network, tied])
def test_every_optimizer_goes_on(tmp_path, optimizer, options, model):
    ask = {
        "model": model,
        "optimizer": optimizer,
        "options": options | {"lr": 0.01},
    }
    fussy(tmp_path / "a", evaluate=dies(-1), **ask)
    with pytest.raises(Crash):
        fussy(tmp_path / "b", evaluate=dies(5), **ask)
    run = fussy(tmp_path / "b", evaluate=dies(-1), **ask)
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")
    if model is tied:
        assert run.model[2].weight is run.model[0].weight
        assert run.averaged[2].weight is run.averaged[0].weight
        assert torch.equal(run.model[4].weight, tied()[4].weight)
        assert not torch.equal(run.model[0].weight, tied()[0].weight)


def test_the_optimizer_can_be_used_again():
    """Its rate is its own after the run, whatever the schedule ended with."""
    run = fussy()
    assert run.optimizer.param_groups[0]["lr"] == 0.1


def test_the_average_has_the_buffers_of_the_model():
    run = fussy()
    for name, buffer in run.model.named_buffers():
        assert torch.equal(run.averaged.get_buffer(name), buffer)
    assert run.averaged[1].num_batches_tracked > 0
    assert not torch.equal(run.averaged[0].weight, run.model[0].weight)


# ---- schedules


@pytest.mark.verifies("eq-warmup-cosine")
@pytest.mark.parametrize(
    ("steps", "warmup"), [(10, 0), (10, 1), (40, 7), (300, 30), (5, 4)]
)
@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_warmup_cosine_has_the_ends_it_says(steps, warmup, final):
    factor = warmup_cosine(steps, warmup, final)
    if warmup:
        assert factor(0) == 1 / warmup
        assert factor(warmup - 1) == 1
    assert factor(warmup) == pytest.approx(1)
    assert factor(steps) == factor(steps + 99) == pytest.approx(final)
    for k in range(warmup):
        assert factor(k) == pytest.approx((k + 1) / warmup)
    for k in range(warmup, steps + 1):
        mirrored = factor(steps + warmup - k)
        assert factor(k) + mirrored == pytest.approx(1 + final)
        assert k == steps or factor(k + 1) <= factor(k)


@pytest.mark.parametrize(
    ("steps", "warmup", "final"), [(40, 8, 0.0), (30, 3, 0.2)]
)
def test_the_library_has_the_same_schedule(steps, warmup, final):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
    rise = LinearLR(optimizer, 1 / warmup, 1.0, warmup - 1)
    fall = CosineAnnealingLR(optimizer, steps - warmup, final)
    theirs = SequentialLR(optimizer, [rise, fall], [warmup])
    ours = warmup_cosine(steps, warmup, final)
    for k in range(steps):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(
            ours(k), abs=1e-12
        )
        optimizer.step()
        theirs.step()


def test_the_rate_of_a_step_is_set_before_it():
    """SGD without clipping moves by exactly rate times gradient."""
    model = nn.Linear(1, 1, bias=False).double()
    start = model.weight.item()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    factors = [1.0, 0.25, 0.0, 2.0]
    run = train(
        model,
        lambda m, b, g: m(torch.ones(len(b[0]), 1).double()).sum(1),
        Points(),
        optimizer,
        Training(4, 4, max_norm=None, ema_decay=0.999),
        lr_factor=factors.__getitem__,
    )
    assert [row["lr"] for row in run.log] == [0.5 * f for f in factors]
    assert model.weight.item() == pytest.approx(start - 0.5 * sum(factors))
    places = start - 0.5 * torch.tensor(factors).cumsum(0).double()
    assert run.averaged.weight.item() == pytest.approx(places.mean().item())


# ---- bfloat16


def test_bfloat16_lowers_the_products_alone():
    """Rounding is 2^-8 of a factor: of the inputs, and of the product."""
    torch.manual_seed(0)
    model, dtypes = nn.Linear(2, 3), []
    start = model.weight.detach().clone()
    model.register_forward_hook(lambda m, i, out: dtypes.append(out.dtype))
    found = {}
    for precision in ("float32", "bfloat16"):
        optimizer = torch.optim.AdamW(model.parameters())
        config = Training(1, 16, 1, None, 0.5, precision)
        run = Run(
            model, lambda m, b, g: m(b[0]).sum(1), Points(), optimizer, config
        )
        ((_, _, indices), _) = next(run._parts())
        run.update()
        found[precision] = model.weight.grad.clone()
        with torch.no_grad():
            model.weight.copy_(start)
        tensors = [
            *model.parameters(),
            *run.averaged.parameters(),
            *run.optimizer.state[run.model.weight].values(),
        ]
        assert {t.dtype for t in tensors} == {torch.float32}
        assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    assert dtypes == [torch.float32, torch.bfloat16]
    gap = (found["bfloat16"] - found["float32"]).abs()
    bound = 2.01 * 2.0**-8 * Points().x[indices].abs().mean(0)
    assert (gap <= bound).all()
    assert gap.max() > 0


def test_a_run_in_bfloat16_stays_near():
    wide, narrow = fussy(), fussy(precision="bfloat16")
    gaps = [
        abs(a["loss"] - b["loss"])
        for a, b in zip(wide.log, narrow.log, strict=True)
    ]
    assert 0 < max(gaps) < 20 * 2.0**-8


# ---- what is drawn


def test_the_generator_of_the_caller_is_left_alone():
    torch.manual_seed(9)
    before = torch.get_rng_state()
    fussy_model = copy.deepcopy(network())
    torch.manual_seed(9)

    def again(seed: int, losses=noisy_losses) -> Run:
        model = copy.deepcopy(fussy_model)
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        optimizer = torch.optim.AdamW(model.parameters())
        try:
            return train(model, losses, Points(), optimizer, Training(4, 8))
        finally:
            assert torch.equal(torch.get_rng_state(), state)

    first, second = again(9), again(10)
    torch.manual_seed(9)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(
        map(torch.equal, first.model.parameters(), second.model.parameters())
    )
    with pytest.raises(ZeroDivisionError):
        again(9, lambda m, b, g: 1 / 0)


def test_every_part_of_every_step_draws_its_own():
    """And what the layers draw is not what the loss draws."""
    drawn = []

    def losses(model, batch, generator):
        drawn.append(
            (
                torch.rand(()).item(),
                torch.rand((), generator=generator).item(),
            )
        )
        return noisy_losses(model, batch, generator)

    for seed in (0, 1):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        train(
            model, losses, Points(), optimizer, Training(3, 8, 4, seed=seed)
        )
    assert len(drawn) == 24
    assert len({number for pair in drawn for number in pair}) == 48


def test_evaluation_mode_and_training_mode():
    modes = []

    def evaluate(run):
        modes.append(
            (
                run.model.training,
                torch.is_grad_enabled(),
                run.averaged.training,
            )
        )
        return {"k": run.step}

    run = fussy(evaluate=evaluate, evaluate_every=4)
    assert modes == [(False, False, False)] * 2
    assert run.model.training
    assert [row.get("k") for row in run.log] == [None, None, None, 4, None, 6]


# ---- the log and the bar


def test_rows_of_the_log(tmp_path):
    run = fussy(
        tmp_path,
        7,
        evaluate=lambda run: {"k": run.step},
        evaluate_every=5,
        log_every=3,
    )
    assert [row["step"] for row in run.log] == [3, 5, 6, 7]
    assert read_log(tmp_path) == run.log
    for row in run.log:
        known = {"step", "loss", "lr", "norm", "items", "seconds"}
        assert row.keys() == known | (
            {"k"} if row["step"] in (5, 7) else set()
        )
        assert row["items"] == 8
        assert row["seconds"] > 0
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 8')
    assert read_log(tmp_path) == run.log


@pytest.mark.parametrize("never", [None, 0])
def test_what_is_asked_for_at_no_step_is_done_at_the_last(tmp_path, never):
    asked = []
    run = fussy(
        tmp_path,
        evaluate=lambda run: asked.append(run.step) or {},
        evaluate_every=never,
        log_every=never,
        save_every=never,
        keep=9,
    )
    assert asked == [row["step"] for row in run.log] == [6]
    assert [path.name[-1] for path in checkpoints(tmp_path)] == ["0", "6"]


def test_a_finished_run_does_nothing_more(tmp_path):
    fussy(tmp_path)
    before = contents(tmp_path)
    run = fussy(tmp_path, evaluate=dies(6))
    assert (run.step, len(run.log), run.model.training) == (6, 6, True)
    assert contents(tmp_path) == before


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal_alone(monkeypatch, capsys):
    fussy()
    assert capsys.readouterr().err == ""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    fussy()
    monkeypatch.undo()
    assert "6/6" in terminal.getvalue()
    assert "loss 0." in terminal.getvalue()


# ---- several processes


@pytest.fixture(scope="module")
def torchrun(runs, tmp_path_factory) -> tuple[list[dict], Path, str]:
    """What two processes under torchrun say of their shares; their run after SIGTERM."""
    folder = tmp_path_factory.mktemp("torchrun") / "run"
    shares = {"losses": "masked", "micro_batches": 2}
    told = folder.with_name("told")
    arguments = {"folder": str(folder), "shares": shares, "told": str(told)}
    job = {"what": "both", "arguments": arguments}
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    process = subprocess.Popen(
        [*words, "--nproc-per-node=2", RUNS, json.dumps(job)],
        env=runs.environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    log, until = folder / "log.jsonl", time.monotonic() + 120
    while process.poll() is None and not (
        log.exists() and log.read_text().count("\n") > 2
    ):
        time.sleep(0.02)
        if time.monotonic() > until:
            process.kill()
            pytest.fail("two processes did not begin to train")
    process.terminate()
    _, err = process.communicate(timeout=60)
    files = sorted(told.parent.glob("told.*"))
    return [json.loads(file.read_text()) for file in files], folder, err


@pytest.mark.verifies("eq-shared-gradient")
def test_two_processes_have_the_gradient_of_one(runs, torchrun):
    shares, _, err = torchrun
    assert len(shares) == 2, err
    for losses, pair in (("masked", shares), ("noisy", None)):
        pair = pair or [
            end.result
            for end in runs.all(
                "share", processes=2, losses=losses, micro_batches=2
            )
        ]
        alone = runs.do("share", losses=losses, micro_batches=4).result
        for each in pair:
            for name in ("gradient", "weights"):
                assert each[name] == pytest.approx(
                    alone[name], abs=1e-12, rel=0
                )
            for name in ("loss", "norm"):
                assert each[name] == pytest.approx(alone[name], rel=1e-6)
            assert each["items"] == alone["items"]
        assert len(set(alone["items"])) > 1 or losses == "noisy"


def test_torchrun_hands_on_a_signal(runs, torchrun, tmp_path):
    _, folder, err = torchrun
    (newest,) = checkpoints(folder)
    step = read_config(newest / "model")["step"]
    assert err.count(f"stopped after step {step}; kept: {newest}") == 2
    ask = {
        "processes": 2,
        "steps": step + 3,
        "schedule": "constant",
        "save_every": None,
    }
    for where in (folder, tmp_path / "whole"):
        assert all(
            end.error is None
            for end in runs.all("train", folder=str(where), **ask)
        )
    assert outcome(folder) == outcome(tmp_path / "whole")


@pytest.mark.verifies("thm-resume")
def test_one_process_is_told_to_stop_and_both_do(runs, tmp_path):
    """Also the one that writes nothing waits for the checkpoint, however slow the disk is."""
    ask = {"processes": 2, "save_every": None}
    end, other = runs.all(
        "train",
        folder=str(tmp_path / "a"),
        signals={3: signal.SIGTERM},
        rank=1,
        accident={"how": "slow"},
        **ask,
    )
    newest = tmp_path / "a" / "step-00000004"
    assert (
        end.message
        == other.message
        == f"stopped after step 4; kept: {newest}"
    )
    for name in ("a", "b"):
        ends = runs.all(
            "train",
            folder=str(tmp_path / name),
            accident={"how": "list"},
            **ask,
        )
        assert [end.error for end in ends] == [None, None]
        assert any(str(tmp_path) in path for path in ends[0].written)
        assert not any(str(tmp_path) in path for path in ends[1].written)
        assert ends[0].result == ends[1].result
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")


def test_another_number_of_processes_is_refused(runs, tmp_path):
    for first, second in ((1, 2), (2, 1)):
        folder = tmp_path / f"{first}"
        ask = {"folder": str(folder), "schedule": "constant"}
        assert all(
            e.error is None
            for e in runs.all("train", processes=first, steps=4, **ask)
        )
        before = contents(folder)
        for end in runs.all("train", processes=second, steps=6, **ask):
            assert end.error == "TrainingError"
            assert f"processes {first}, this one has {second}" in end.message
        assert contents(folder) == before


# ---- an accelerator


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_accelerator_trains_the_same(precision, monkeypatch):
    def quiet(model, batch, generator):
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    def plain() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 2))

    monkeypatch.setitem(helpers.LOSSES, "quiet", quiet)
    ask = {"losses": "quiet", "model": plain, "options": {"lr": 0.01}}
    here, there = (
        fussy(**ask),
        fussy(device="cuda", precision=precision, **ask),
    )
    close = 1e-4 if precision == "float32" else 20 * 2.0**-8
    for a, b in zip(here.log, there.log, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=close)
    assert all(p.is_cuda for p in there.averaged.parameters())


@pytest.mark.gpu
@pytest.mark.verifies("thm-resume")
def test_an_accelerator_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    state = torch.cuda.get_rng_state()
    try:
        fussy(tmp_path / "a", evaluate=dies(-1), device="cuda")
        with pytest.raises(Crash):
            fussy(tmp_path / "b", evaluate=dies(5), device="cuda")
        fussy(tmp_path / "b", evaluate=dies(-1), device="cuda")
    finally:
        torch.use_deterministic_algorithms(False)
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")
    assert torch.equal(torch.cuda.get_rng_state(), state)
