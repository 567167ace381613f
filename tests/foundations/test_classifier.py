"""The classifier: what it is, how it answers, and how its program ends."""

import pytest
import torch
import torch.nn.functional as F

from tangled.foundations import classifier
from tangled.foundations.classifier import (
    Classifier,
    classification_losses,
    digits_classifier,
    learn,
    predictions,
    shapes_classifier,
)
from tangled.foundations.training import checkpoints, warmup_cosine
from tangled.workshop.artifacts import recipes
from tangled.workshop.checkpoint import (
    load_checkpoint,
    read_config,
)
from tangled.workshop.data import SHAPE_NAMES, digits, shapes


def made(build=digits_classifier) -> Classifier:
    torch.manual_seed(0)
    return build().eval()


@pytest.mark.parametrize(
    ("build", "shape", "classes"),
    [
        (digits_classifier, (1, 8, 8), 10),
        (shapes_classifier, (3, 32, 32), len(SHAPE_NAMES)),
        (lambda: Classifier(2, 5, width=24, levels=1), (2, 6, 10), 5),
    ],
)
def test_shapes(build, shape, classes):
    model = made(build)
    for count in (0, 1, 3):
        x0 = torch.zeros(count, *shape)
        assert model(x0).shape == (count, classes)


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
        made()(x0)


def test_the_head_reads_the_mean_and_dropout_is_for_training():
    model, x0 = (
        made(),
        torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
    )
    mean = model.body(x0).mean((2, 3))
    assert torch.equal(model(x0), model.head(mean))
    assert not torch.equal(model.train()(x0), model(x0))
    assert torch.equal(model.body(x0), model.eval().body(x0))


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
        assert log == read_config(checkpoints(folder)[-1] / "model")["log"]
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
