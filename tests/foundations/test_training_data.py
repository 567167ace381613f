"""What a run can be trained on: tensors, data sets, loaders; each resumed to the same bits."""

import itertools

import pytest
import torch
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
)

from tangled.foundations.training import (
    Training,
    TrainingError,
    accumulate,
    train,
)


class Noisy(Dataset):
    """24 points that are seen through noise, as dictionaries."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"x": torch.full((2,), i / 24) + torch.randn(2)}


def losses(model, batch, generator):
    x = batch["x"] if isinstance(batch, dict) else batch
    return model(x).square().sum(1)


def trained(data, folder=None, steps=8, **changes):
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    config = Training(steps, **({"batch_size": 8} | changes))
    return train(model, losses, data, optimizer, config, folder=folder)


class Stream(IterableDataset):
    """Batches of a length that is not known."""

    def __iter__(self):
        return iter(torch.arange(48.0).reshape(3, 8, 2))


class Short(list):
    """Batches of which the last is lost."""

    def __iter__(self):
        return itertools.islice(super().__iter__(), len(self) - 1)


KINDS = {
    "tensor": lambda: torch.arange(48.0).reshape(24, 2),
    "items": Noisy,
    "loader": lambda: DataLoader(Noisy(), 8, shuffle=True),
    "workers": lambda: DataLoader(Noisy(), 8, shuffle=True, num_workers=2),
    "generator": lambda: DataLoader(
        Noisy(), 8, shuffle=True, generator=torch.Generator()
    ),
    "sampler": lambda: DataLoader(
        Noisy(),
        8,
        sampler=RandomSampler(Noisy(), generator=torch.Generator()),
    ),
    "stream": Stream,
    "list": lambda: list(torch.arange(48.0).reshape(3, 8, 2)),
}


@pytest.mark.verifies("thm-resume")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_goes_on(tmp_path, kind):
    straight = trained(KINDS[kind]())
    for steps in (2, 4, 6, 8):  # also at the end of an epoch
        run = trained(KINDS[kind](), tmp_path, steps)
    assert torch.equal(run.model.weight, straight.model.weight)
    losses = [[row["loss"] for row in r.log] for r in (run, straight)]
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 8


def test_a_loader_gives_the_parts_of_a_step():
    whole = trained(DataLoader(KINDS["tensor"](), 8), steps=3)
    parts = trained(
        DataLoader(KINDS["tensor"](), 4), steps=3, micro_batches=2
    )
    torch.testing.assert_close(whole.model.weight, parts.model.weight)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"x": torch.ones(24, 2)}, r"batch_size must lie in 1\.\.1"),
        (3, "'int' object is not iterable"),
        (Short(torch.ones(3, 8, 2)), "epoch 0 of the data had 2 batches"),
        ([object()] * 0, "epoch 0 of the data had 0 batches"),
        (iter([torch.ones(8, 2)]), "epoch 1 of the data had 0 batches"),
        (
            DataLoader(Noisy(), 8, num_workers=1, persistent_workers=True),
            "persistent_workers keep state",
        ),
    ],
)
def test_what_gives_no_batch_is_refused(data, words):
    with pytest.raises((TypeError, ValueError, TrainingError), match=words):
        trained(data)


def test_a_loader_has_a_batch_size_of_its_own():
    """The mean is over the items that came, however many they are."""
    run = trained(DataLoader(KINDS["tensor"](), 6), steps=4, batch_size=1)
    assert [row["items"] for row in run.log] == [6, 6, 6, 6]


def test_a_data_set_draws_anew_in_every_epoch_for_every_part():
    """Neither the noise of an item nor a loader's order comes back."""
    for kind in ("items", "loader", "workers", "generator"):
        seen = []

        def losses(model, batch, generator, seen=seen):
            seen.append(batch["x"].clone())
            return model(batch["x"]).square().sum(1)

        model = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        train(model, losses, KINDS[kind](), optimizer, Training(9, 8))
        noise = torch.cat(seen)[:, 0] * 24 % 1
        assert len(noise.unique()) == len(noise) == 72


def test_a_nested_batch_is_moved_to_the_device():
    class Moved:
        """Something that can be moved, and tells where it is."""

        def to(self, device, **how):
            self.device = device
            return self

    model, here = nn.Linear(1, 1), [Moved() for _ in range(4)]
    batch = {"a": here[0], "b": [here[1], (here[2], {"c": here[3]})], "d": 5}

    def losses(model, batch, generator):
        found = [batch["a"], batch["b"][0], batch["b"][1][0]]
        assert [*found, batch["b"][1][1]["c"]] == here
        assert batch["d"] == 5
        return model(torch.ones(1, 1)).sum(1)

    accumulate(model, losses, [(batch, 0)])
    assert [x.device for x in here] == [torch.device("cpu")] * 4


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_parameter_that_no_loss_reaches_stays(micro_batches):
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    before = model[1].weight.detach().clone()
    run = train(
        model,
        lambda model, x, generator: model[0](x).square().sum(1),
        KINDS["tensor"](),
        torch.optim.SGD(model.parameters(), 0.1),
        Training(3, 8, micro_batches),
    )
    assert torch.equal(run.model[1].weight, before)
    assert torch.equal(model[1].weight.grad, torch.zeros(2, 2))


def test_items_that_are_no_tensors():
    class Pictures(Noisy):
        def __getitem__(self, i):
            return object()

    with pytest.raises(TypeError, match="batch must contain tensors"):
        trained(Pictures())


def test_what_is_refused_before_the_first_step():
    with pytest.raises(
        TypeError, match=r"one number for each item.*shape \[\]"
    ):
        train(
            m := nn.Linear(2, 2),
            lambda model, batch, generator: model(batch).mean(),
            KINDS["tensor"](),
            torch.optim.SGD(m.parameters(), 0.1),
            Training(1, 8),
        )


def test_a_compiled_model_is_saved_under_its_own_names(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    compiled = torch.compile(model, backend="eager")
    data, config = KINDS["tensor"](), Training(1, 8)
    run = train(compiled, losses, data, optimizer, config, folder=tmp_path)
    assert list(run.trained) == ["weight", "bias"]
    assert trained(KINDS["tensor"]()).step == 8


def test_numbers_that_an_optimizer_keeps(tmp_path):
    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for group in self.param_groups:
                group["count"] = group.get("count", 0) + 1
                for p in group["params"]:
                    self.state[p]["k"] = self.state[p].get("k", 0) + 2

    def go(steps):
        torch.manual_seed(0)
        model = nn.Linear(2, 2)
        optimizer = Counting(model.parameters(), 0.1)
        train(
            model,
            losses,
            KINDS["tensor"](),
            optimizer,
            Training(steps, 8),
            folder=tmp_path,
        )
        return optimizer

    go(2)
    optimizer = go(5)
    assert optimizer.param_groups[0]["count"] == 5
    assert {s["k"] for s in optimizer.state.values()} == {10}


def test_an_average_of_bfloat16_weights_moves():
    torch.manual_seed(0)
    model = nn.Linear(2, 2).bfloat16()
    run = train(
        model,
        lambda m, b, g: m(b.bfloat16()).square().sum(1),
        KINDS["tensor"]() / 48,
        torch.optim.SGD(model.parameters(), 0.05),
        Training(200, 8, ema_decay=0.999),
    )
    assert run.averaged.weight.dtype == torch.float32
    assert not torch.equal(run.averaged.weight, model.weight.float())
