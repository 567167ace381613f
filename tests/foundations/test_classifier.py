"""The classifier: what it is, how it answers, and how its program ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tangled.foundations import classifier
from tangled.foundations.classifier import (
    Classifier,
    classification_losses,
    command,
    digits_classifier,
    learn,
    predictions,
    shapes_classifier,
)
from tangled.foundations.training import checkpoints, read_log, warmup_cosine
from tangled.workshop.artifacts import recipes
from tangled.workshop.checkpoint import (
    load_checkpoint,
    read_tensors,
    save_checkpoint,
)
from tangled.workshop.data import SHAPE_NAMES, digits, shapes


def made(build=digits_classifier) -> Classifier:
    torch.manual_seed(0)
    return build().eval()


@pytest.mark.parametrize(
    ("build", "shape", "classes", "features"),
    [
        (digits_classifier, (1, 8, 8), 10, 32),
        (shapes_classifier, (3, 32, 32), len(SHAPE_NAMES), 32),
        (lambda: Classifier(2, 5, width=24, levels=1), (2, 6, 10), 5, 24),
    ],
)
def test_shapes(build, shape, classes, features):
    model = made(build)
    for count in (0, 1, 3):
        x0 = torch.zeros(count, *shape)
        assert model(x0).shape == (count, classes)
        assert model.features(x0).shape == (count, features)


def test_other_shapes_are_refused(plain_errors):
    model = made()
    for shape in ((1, 8, 8), (2, 3, 8, 8), (2, 1, 3, 3)):
        with pytest.raises((RuntimeError, ValueError)):
            model(torch.zeros(shape))
    with pytest.raises((RuntimeError, ValueError)):
        Classifier(1, 10, width=12)


@pytest.mark.parametrize(
    "x0",
    [
        torch.zeros(8, 8),
        torch.zeros(2, 1, 8, 8, dtype=torch.int64),
        "pictures",
    ],
)
def test_the_shape_hook_refuses(x0):
    with pytest.raises(Exception, match="Type-check error"):
        made().features(x0)


def test_the_head_reads_the_features_and_dropout_is_for_training():
    model, x0 = (
        made(),
        torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
    )
    assert torch.equal(model(x0), model.head(model.features(x0)))
    assert torch.equal(model.features(x0), model.body(x0).mean((2, 3)))
    assert not torch.equal(model.train()(x0), model(x0))
    assert torch.equal(model.features(x0), model.eval().features(x0))


def test_one_loss_for_each_picture():
    model, (x0, labels) = made(), digits().train[torch.arange(7)]
    found = classification_losses(model, (x0, labels), torch.Generator())
    expected = -model(x0).log_softmax(1)[torch.arange(7), labels]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        found.mean(), F.cross_entropy(model(x0), labels)
    )


@pytest.mark.parametrize("batch_size", [1, 7, 30, 31, 500])
def test_predictions_in_batches_of_any_size(batch_size):
    model, few = made(), digits().test.take(torch.arange(30))
    best = model(few[torch.arange(30)][0]).argmax(1)
    found = predictions(model, few, batch_size)
    assert torch.equal(found, best)
    assert not found.requires_grad
    assert len(best.unique()) > 1


def test_the_first_weights_follow_from_the_seed_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    found = [
        learn(digits_classifier, digits().train, 3, seed).model
        for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    found.append(learn(digits_classifier, digits().train, 3, 0).model)
    first, again, other, moved = (model.head.weight for model in found)
    assert torch.equal(first, again)
    assert torch.equal(first, moved)
    assert not torch.equal(first, other)


def test_the_classifier_learns():
    run = learn(digits_classifier, digits().train, 60, 0)
    answers = predictions(run.model.eval(), digits().test)
    assert (answers == digits().test.labels).double().mean() > 0.8
    assert [row["step"] for row in run.log] == [10, 20, 30, 40, 50, 60]
    factor = warmup_cosine(60, warmup=6)
    for row in run.log:
        assert row["lr"] == pytest.approx(3e-3 * factor(row["step"] - 1))


def test_the_recipes_of_the_judges():
    modules = {name: found.module for name, found in recipes().items()}
    assert modules["digits_judge"] == classifier.__name__
    assert modules["shapes_judge"] == classifier.__name__


def test_recipes_save_what_they_train(tmp_path):
    for name, settings, build in (
        ("digits_judge", {"steps": 4, "seed": 1}, digits_classifier),
        (
            "shapes_judge",
            {"steps": 3, "seed": 1, "pictures": 70},
            shapes_classifier,
        ),
    ):
        folder = tmp_path / name
        model, log = recipes()[name].make(folder, **settings)
        again = build()
        load_checkpoint(again, checkpoints(folder)[-1] / "model")
        assert all(map(torch.equal, again.parameters(), model.parameters()))
        assert log == read_log(folder)
        other, _ = recipes()[name].make(
            tmp_path / f"{name} 2", **settings | {"seed": 2}
        )
        assert not torch.equal(other.head.weight, model.head.weight)


def test_the_judge_of_shapes_has_not_seen_the_tests(tmp_path, monkeypatch):
    asked = []

    def drawn(count, seed, *, first=0):
        asked.append(range(first, first + count))
        return shapes(70, seed, first=first)

    monkeypatch.setattr(classifier, "shapes", drawn)
    settings = dict(recipes()["shapes_judge"].config) | {"steps": 1}
    recipes()["shapes_judge"].make(tmp_path, **settings)
    assert asked == [range(1000, 5000)]


# ---- the program


def test_the_program_says_how_it_went(tmp_path, capsys):
    words = [str(tmp_path / "a"), "--steps=3", "--save-every=2"]
    for _ in range(2):  # the second time, all is done already
        assert command(words) == 0
        out, err = capsys.readouterr()
        assert out.startswith("3 steps: ")
        assert " of 500 right (95% interval " in out
        assert err == ""
    assert [path.name[-1] for path in checkpoints(tmp_path / "a")] == [
        "2",
        "3",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--steps=0"], "steps must be a whole number from 1 on, got 0"),
        (["--seed=-1"], "seed must be a whole number from 0 on, got -1"),
        (["--save-every=0"], "save_every must be at least 1, got 0"),
        (["--micro-batches=3"], "batch_size 64 cannot be cut"),
        (["--micro-batches=2"], "is not the checkpoint of a run"),
    ],
)
def test_the_program_ends_with_a_sentence(tmp_path, capsys, words, said):
    (tmp_path / "step-00000001").mkdir()
    save_checkpoint(
        tmp_path / "step-00000001" / "model", {"a": torch.ones(1)}, {}
    )
    assert command([str(tmp_path), *words]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


def test_a_folder_that_is_a_file(tmp_path, capsys):
    (tmp_path / "a").touch()
    assert command([str(tmp_path / "a"), "--steps=1"]) == 1
    assert f"{tmp_path}/a" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [[], ["a", "--data=faces"], ["a", "--steps=many"]]
)
def test_words_that_the_program_does_not_know(words, capsys):
    with pytest.raises(SystemExit) as end:
        command(words)
    assert end.value.code == 2
    assert (
        "usage: python -m tangled.foundations.classifier"
        in capsys.readouterr().err
    )


def test_the_second_ctrl_c_is_told_too(tmp_path, capsys, monkeypatch):
    def stops(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(classifier, "learn", stops)
    assert command([str(tmp_path)]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.verifies("thm-resume")
def test_a_program_that_is_stopped_goes_on_to_the_same_bits(runs, tmp_path):
    """Wherever the signals find it; the reference is never stopped before the end."""
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    for number, before in ((signal.SIGTERM, 1), (signal.SIGINT, 4)):
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tangled.foundations.classifier",
                stopped,
                "--steps=100000",
            ],
            env=runs.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        log = stopped / "log.jsonl"
        while process.poll() is None and not (
            log.exists() and log.read_text().count("\n") >= before
        ):
            time.sleep(0.005)
        os.kill(process.pid, number)
        out, err = process.communicate(timeout=60)
        newest = checkpoints(stopped)[-1]
        step = int(newest.name.removeprefix("step-"))
        assert (process.returncode, out) == (130, "")
        assert err == f"stopped after step {step}; kept: {newest}\n"
    words = [str(whole), "--steps=100000"]
    end = runs.do("command", arguments=words, stop_at=step).result
    assert end["status"] == 130
    for part in ("model", "optimizer"):
        ours = read_tensors(newest / part)
        theirs = read_tensors(Path(whole, newest.name, part))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    rows = [
        [{**row, "seconds": 0} for row in read_log(f)]
        for f in (stopped, whole)
    ]
    assert rows[0] == rows[1]
