"""Checks of the chapter “A complete training run”.

Tangled from book/foundations/training.md.
"""

import math
import tempfile
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tangled.foundations.training import (
    Run,
    Training,
    accumulate,
    epoch_batches,
    moving_average,
    train,
    warmup_cosine,
)
from tangled.workshop.checkpoint import model_tensors
from tangled.workshop.statistics import standard_score


def check_batches(batches: Callable[[int, int, int, int], Tensor]) -> None:
    """Check mean and variance of the pairs above over 4,000 epochs."""
    g = torch.tensor([-1.0, -2.0, -3.0, -6.0]).double()
    pairs = g[torch.combinations(torch.arange(4))].mean(1)
    drawn = torch.stack(
        [g[batches(4, 2, epoch, 0)[0]].mean() for epoch in range(4000)]
    )
    for found, exact in (
        (drawn, pairs),
        ((drawn + 3) ** 2, (pairs + 3) ** 2),  # the mean of these is 7/6
    ):
        spread = exact.std(correction=0).item()
        score = standard_score(found, exact.mean().item(), spread)
        assert abs(score) < 5, f"{score:.0f} standard errors off"


def test_batches_have_the_mean_and_the_variance_of_all_pairs():
    check_batches(epoch_batches)


def test_batches_in_file_order_are_no_draw():
    def in_file_order(n, size, epoch, seed):  # WRONG: sorted again
        return epoch_batches(n, n, epoch, seed).sort().values[:, :size]

    with pytest.raises(AssertionError, match="standard errors off"):
        check_batches(in_file_order)


def test_batches_with_replacement_have_more_variance():
    def with_replacement(n, size, epoch, seed):  # WRONG: one example twice
        first = (epoch_batches(n, 1, epoch, s)[0] for s in range(size))
        return torch.stack(list(first), 1)

    with pytest.raises(AssertionError, match="standard errors off"):
        check_batches(with_replacement)


def squared_error(model, batch, generator):
    return (model(batch[0]) - batch[1]).square().sum(1)


def seven() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a model and seven examples of unequal gradients, in float64."""
    generator = torch.Generator().manual_seed(1)
    draw = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    torch.manual_seed(1)
    return nn.Linear(3, 2).double(), draw[:, :3], draw[:, 3:].exp()


def summed(model, x, y, parts) -> Tensor:
    """Return the gradient of the mean loss, added up over parts."""
    model.zero_grad()
    cut = [((x[list(part)], y[list(part)]), 0) for part in parts]
    _, items = accumulate(model, squared_error, cut)
    return torch.cat([p.grad.flatten() for p in model.parameters()]) / items


def check_parts(gradient: Callable) -> None:
    model, x, y = seven()
    whole = summed(model, x, y, [range(7)])
    for a, b in combinations(range(8), 2):  # parts may be empty, too
        cut = [range(a), range(a, b), range(b, 7)]
        found = gradient(model, x, y, cut)
        torch.testing.assert_close(found, whole, atol=1e-12, rtol=0)


def test_every_way_to_cut_a_batch_gives_one_gradient():
    check_parts(summed)


def mean_of_means(model, x, y, parts) -> Tensor:
    means = [summed(model, x, y, [part]) for part in parts if len(part)]
    return torch.stack(means).mean(0)  # WRONG: forgets how many items


def test_the_mean_of_means_is_another_gradient():
    with pytest.raises(AssertionError, match="not close"):
        check_parts(mean_of_means)


class Number(nn.Module):
    """A model that is one vector."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.full((size,), 1e9).double())


def averages(rows: Tensor, decay: float, make=moving_average) -> Tensor:
    """Return the average after each row, [steps, size]."""
    model, found = Number(rows.shape[1]), []
    average = make(model, decay)  # the first weights, 1e9, must not count
    for row in rows:
        model.value.data.copy_(row)
        average.update_parameters(model)
        found.append(average.module.value.detach().clone())
    return torch.stack(found)


def check_average(make: Callable[[nn.Module, float], AveragedModel]) -> None:
    """Check the weights of 300 steps, and how waves pass."""
    for decay, early in ((0.0, 1), (0.5, 2), (0.9, 10)):
        weights = averages(torch.eye(300).double(), decay, make)  # W_{K,k}
        mean = weights[early - 1, :early]
        assert mean.allclose(torch.tensor(1 / early).double()), "not a mean"
        age = torch.arange(299, -1, -1).double()
        recent = (1 - decay) * decay**age
        torch.testing.assert_close(weights[-1, early:], recent[early:])
        torch.testing.assert_close(weights.sum(1), torch.ones(300).double())
    k = torch.arange(300).double()
    for kappa in (0.0, 0.3, math.pi):
        wave = torch.stack([(kappa * k).cos(), (kappa * k).sin()], 1)
        gain = averages(wave, 0.9, make)[-1].norm().item()
        square = 1 - 2 * 0.9 * math.cos(kappa) + 0.9**2
        assert abs(gain - (1 - 0.9) / math.sqrt(square)) < 1e-12


def test_what_an_average_keeps():
    check_average(moving_average)


def test_an_average_that_sticks_to_the_first_weights():
    def exponential(model, decay):  # WRONG: the first weights stick
        return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))

    with pytest.raises(AssertionError, match="not a mean"):
        check_average(exponential)


def noisy(model, batch, generator):
    """Return one loss for each point, seen through noise."""
    x, y = batch
    x = x + 0.1 * torch.randn(x.shape, generator=generator)
    return F.cross_entropy(model(x), y, reduction="none")


class Blobs:
    """22 points in the plane, in two classes."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.y = torch.arange(22) % 2
        self.x = torch.randn(22, 2, generator=generator) + self.y[:, None]

    def __len__(self) -> int:
        return 22

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.x[indices], self.y[indices]


def fussy_run(folder=None, evaluate=None, losses=noisy) -> Run:
    torch.manual_seed(4)
    norm, drop = nn.BatchNorm1d(8), nn.Dropout(0.5)
    model = nn.Sequential(nn.Linear(2, 8), norm, drop, nn.Linear(8, 2))
    config = Training(9, 8, 2, max_norm=0.5, ema_decay=0.5, seed=5)
    return train(
        model,
        losses,
        Blobs(),
        AdamW(model.parameters(), lr=0.1),
        config,
        lr_factor=warmup_cosine(9, warmup=3),
        folder=folder,
        save_every=3,
        evaluate=evaluate,
        evaluate_every=1,
    )


def bits(run: Run) -> list[object]:
    """Return all of a run's state, and its log without the seconds."""
    average = model_tensors(run.averaged)
    kept = {f"average.{name}": x for name, x in average.items()}
    kept |= model_tensors(run.core)
    for i, entries in run.optimizer.state_dict()["state"].items():
        kept |= {f"optimizer.{i}.{name}": x for name, x in entries.items()}
    found = {n: x.detach().numpy().tobytes() for n, x in kept.items()}
    rows = [{**row, "seconds": 0} for row in run.log]
    return [run.step, rows, found]


def check_resume(losses_of_a_start=lambda: noisy) -> None:
    straight = bits(fussy_run(losses=losses_of_a_start()))
    for step in range(1, 10):

        def crash(run, step=step):
            return {} if run.step < step else 1 / 0

        with tempfile.TemporaryDirectory() as folder:
            with pytest.raises(ZeroDivisionError):
                fussy_run(folder, crash, losses_of_a_start())
            with Path(folder, "log.jsonl").open("a") as file:
                file.write('{"step": 1')  # half a row
            resumed = fussy_run(folder, losses=losses_of_a_start())
        assert bits(resumed) == straight, f"another run after step {step}"


def test_an_interrupted_run_is_the_same_run():
    check_resume()


def test_moments_that_are_forgotten():
    with (  # WRONG: the optimiser begins anew
        patch.object(AdamW, "load_state_dict", lambda optimizer, state: None),
        pytest.raises(AssertionError, match="another run after step 4"),
    ):
        check_resume()


def test_noise_from_a_generator_that_moves_on():
    def started():
        moves_on = torch.Generator().manual_seed(0)  # WRONG: hidden state
        return lambda model, batch, generator: noisy(model, batch, moves_on)

    with pytest.raises(AssertionError, match="another run after step 4"):
        check_resume(started)
