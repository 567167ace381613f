"""Checks of the chapter “A complete training run”.

Tangled from book/foundations/training.md.
"""

import math
import os
import tempfile
from itertools import combinations, product
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tangled.foundations.training import (
    MovingAverage,
    Run,
    Training,
    TrainingError,
    _Journal,
    accumulate,
    batch_indices,
    checkpoints,
    derived_seed,
    read_log,
    through,
    train,
    warmup_cosine,
)
from tangled.workshop.checkpoint import model_tensors
from tangled.workshop.statistics import standard_score


def flat_gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def squared_error(model, batch, generator):
    inputs, targets = batch
    return (model(inputs) - targets).square().sum(1)


def regression(n: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a model and n examples with unequal gradients, in float64."""
    generator = torch.Generator().manual_seed(1)
    draw = torch.randn(n, 5, generator=generator, dtype=torch.float64)
    torch.manual_seed(1)
    return nn.Linear(3, 2).double(), draw[:, :3], draw[:, 3:].exp()


def batch_gradient(model, x, y, parts=None) -> Tensor:
    """Return the gradient of the mean loss, computed in parts."""
    model.zero_grad()
    parts = parts or [range(len(x))]
    cut = [((x[list(p)], y[list(p)]), 0) for p in parts]
    _, items = accumulate(model, squared_error, cut)
    return flat_gradient(model) / items


def test_mean_and_covariance_over_all_batches():
    model, x, y = regression(6)
    each = torch.stack([batch_gradient(model, x, y, [[i]]) for i in range(6)])
    sigma = torch.cov(each.T, correction=0)
    for size in range(1, 7):
        found = torch.stack(
            [
                batch_gradient(model, x, y, [subset])
                for subset in combinations(range(6), size)
            ]
        )
        covariance = torch.cov(found.T, correction=0).reshape(sigma.shape)
        expected = sigma * (6 - size) / (6 - 1) / size
        torch.testing.assert_close(found.mean(0), each.mean(0))
        torch.testing.assert_close(covariance, expected, atol=1e-12, rtol=0)


def test_batches_are_uniform_subsets():
    first = torch.stack([batch_indices(7, 3, 2 * e, 5) for e in range(4000)])
    second = torch.stack(
        [batch_indices(7, 3, 2 * e + 1, 5) for e in range(4000)]
    )
    for batches in (first, second):
        holds = F.one_hot(batches, 7).sum(1).double()  # [epochs, 7]
        for i, j in combinations(range(7), 2):
            both = holds[:, i] * holds[:, j]
            assert abs(standard_score(both, 3 * 2 / (7 * 6))) < 5
    assert (F.one_hot(torch.cat([first, second], 1), 7).sum(1) <= 1).all()


def test_batches_in_file_order_are_no_draw():
    model, x, y = regression(3)
    x, y = x.repeat_interleave(2, 0), y.repeat_interleave(2, 0)  # sorted
    each = torch.stack([batch_gradient(model, x, y, [[i]]) for i in range(6)])
    sigma = torch.cov(each.T, correction=0)
    cuts = [[0, 1], [2, 3], [4, 5]]  # WRONG: neighbours in a sorted file
    found = torch.stack([batch_gradient(model, x, y, [cut]) for cut in cuts])
    covariance = torch.cov(found.T, correction=0)
    torch.testing.assert_close(covariance, sigma)  # not (6-2)/(6-1)/2 of it


def test_seeds_that_are_added_repeat_themselves():
    def added(seed, epoch):  # WRONG: seed + epoch is the same for many pairs
        generator = torch.Generator().manual_seed(seed + epoch)
        return torch.randperm(50, generator=generator)

    assert torch.equal(added(0, 1), added(1, 0))
    orders = {
        tuple(batch_indices(50, 50, epoch, seed).tolist())
        for seed in range(10)
        for epoch in range(10)
    }
    assert len(orders) == 100


def test_every_way_to_cut_a_batch_gives_one_gradient():
    model, x, y = regression(7)
    whole = batch_gradient(model, x, y)
    for first in range(1, 6):
        for second in range(first + 1, 7):
            cuts = [range(first), range(first, second), range(second, 7)]
            found = batch_gradient(model, x, y, cuts)
            torch.testing.assert_close(found, whole, atol=1e-12, rtol=0)


def test_a_part_without_items_adds_nothing():
    model, x, y = regression(5)
    found = batch_gradient(model, x, y, [range(5), []])
    assert torch.equal(found, batch_gradient(model, x, y))


def mean_of_means(model, x, y, parts) -> Tensor:
    means = [batch_gradient(model, x, y, [part]) for part in parts]
    return torch.stack(means).mean(0)  # WRONG: forgets how many items


def test_the_mean_of_means_is_another_gradient():
    model, x, y = regression(7)
    whole, unequal = batch_gradient(model, x, y), [[0], range(1, 7)]
    wrong = mean_of_means(model, x, y, unequal)
    assert (wrong - whole).norm() > 0.1 * whole.norm()
    x, y = x[:6], y[:6]
    equal = mean_of_means(model, x, y, [range(3), range(3, 6)])
    torch.testing.assert_close(equal, batch_gradient(model, x, y))


def test_what_float16_turns_to_zero():
    edge = torch.tensor(2.0**-25)
    above = edge * (1 + 2.0**-23)  # the next number of float32
    assert through(edge, torch.float16) == 0
    assert through(above, torch.float16) == 2.0**-24


def relative_error(x: Tensor, dtype: torch.dtype, scale: float) -> float:
    return ((through(x, dtype, scale) - x) / x).abs().max().item()


def test_relative_errors_in_range():
    mantissa = torch.linspace(1, 2, 4097).double()[:-1]
    for e, scale in product(range(-14, 16), (1.0, 2.0**14)):
        x = (mantissa * 2.0**e).clamp(max=65504) / scale
        assert relative_error(x, torch.float16, scale) <= 2.0**-11
    for e in range(-126, 127):
        assert (
            relative_error(mantissa * 2.0**e, torch.bfloat16, 1.0) <= 2.0**-8
        )


def test_the_library_recovers_the_same_gradient():
    x, layer = torch.full((1, 1), 1e-4), nn.Linear(1, 1, bias=False)
    for scale, expected in ((1.0, 0.0), (2.0**14, 1e-8)):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        optimizer = torch.optim.SGD(layer.parameters())
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = layer(x)
        scaler.scale(1e-4 * loss.float().sum()).backward()
        scaler.unscale_(optimizer)
        assert layer.weight.grad.item() == pytest.approx(expected, rel=1e-3)


def test_autocast_lowers_what_is_multiplied():
    def losses(model, batch, generator):
        logits = model(batch[0])
        each = F.cross_entropy(logits, batch[1], reduction="none")
        seen.append((logits.dtype, each.dtype))
        return each

    layer, seen = nn.Linear(2, 3), []
    batch = torch.ones(4, 2), torch.zeros(4, dtype=torch.int64)
    for precision in ("float32", "bfloat16"):
        accumulate(layer, losses, [(batch, 0)], precision)
        assert layer.weight.dtype == layer.weight.grad.dtype == torch.float32
    wide, narrow = torch.float32, torch.bfloat16
    assert seen == [(wide, wide), (narrow, wide)]


def test_without_scaling_small_gradients_vanish():
    x = torch.logspace(-12, -8, 50).double()
    assert (through(x, torch.float16, 1.0) == 0).all()  # WRONG: no scale
    assert relative_error(x, torch.float16, 2.0**30) <= 2.0**-11
    assert relative_error(x, torch.bfloat16, 1.0) < 2.0**-8


def test_below_the_range_bits_are_lost():
    x = torch.linspace(1, 2, 4097).double()[:-1] * 2.0**-15
    assert relative_error(x, torch.float16, 1.0) > 2.0**-11


def test_a_scale_can_be_too_large():
    assert through(torch.tensor(5.0), torch.float16, 2.0**14).isinf()
    assert through(torch.tensor(65519.0), torch.float16) == 65504
    assert through(torch.tensor(65520.0), torch.float16).isinf()


def test_two_roundings_are_not_one():
    x = torch.tensor(2.0**-25).double() * (1 + 2.0**-40)
    assert through(x, torch.float16) == 0  # WRONG: float32 in between
    assert np.float16(x.item()) == 2.0**-24


class Number(nn.Module):
    """A model that is one vector."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(size, dtype=torch.float64))


def averages(rows: Tensor, decay: float) -> Tensor:
    """Return the moving average after each row, [steps, size]."""
    model, found = Number(rows.shape[1]), []
    with torch.no_grad():
        model.value.fill_(1e9)  # the first weights must not count
        average = MovingAverage(model, decay)
        for row in rows:
            model.value.copy_(row)
            average.update(model)
            found.append(average.model.value.clone())
    return torch.stack(found)


def test_weights_of_the_average():
    for decay in (0.0, 0.5, 0.9, 0.97):
        n, mean_until = 400, int(1 / (1 - decay) + 1e-9)
        weights = averages(torch.eye(n).double(), decay)  # row K-1: w_{K,k}
        totals = weights.sum(1)
        torch.testing.assert_close(totals, torch.ones_like(totals))
        early = weights[mean_until - 1, :mean_until]
        torch.testing.assert_close(
            early, torch.full_like(early, 1 / mean_until)
        )
        age = torch.arange(n - 1, -1, -1).double()
        recent = age < n - mean_until
        expected = (1 - decay) * decay ** age[recent]
        torch.testing.assert_close(weights[-1, recent], expected)
        assert abs((weights[-1] * age).sum() - decay / (1 - decay)) < 0.01
        power = (weights[-1] ** 2).sum()
        assert abs(power - (1 - decay) / (1 + decay)) < 1e-6


def test_the_average_is_a_low_pass_filter():
    decay, k = 0.9, torch.arange(400).double()
    for omega in (0.0, 0.05, 0.3, 1.0, math.pi):
        wave = torch.stack([(omega * k).cos(), (omega * k).sin()], 1)
        found = averages(wave, decay)[-1].norm().item()
        square = 1 - 2 * decay * math.cos(omega) + decay**2
        assert abs(found - (1 - decay) / math.sqrt(square)) < 1e-12


def test_the_library_agrees_where_it_has_the_same_rule():
    rows = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    rows, model = rows.double(), Number(3)
    exponential = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    plain = AveragedModel(model)
    with torch.no_grad():
        for row in rows:
            model.value.copy_(row)
            exponential.update_parameters(model)
            plain.update_parameters(model)
    for theirs, decay in ((exponential, 0.5), (plain, 0.999)):
        ours = averages(rows, decay)[-1]
        torch.testing.assert_close(ours, theirs.module.value.data)


def test_an_average_that_starts_at_the_first_weights_keeps_them():
    model, decay = Number(1), 0.999
    with torch.no_grad():
        model.value.fill_(100.0)
        average = MovingAverage(model, decay)
        average.steps = 10**6  # WRONG: as if the plain mean were over
        model.value.fill_(0.0)
        for _ in range(1000):
            average.update(model)
    assert average.model.value > 30  # should be 0: all weights seen were 0


def test_a_drifting_run_is_followed_late():
    ramp = torch.arange(2000.0).double()[:, None]
    lag = ramp[-1] - averages(ramp, 0.99)[-1]
    assert abs(lag - 0.99 / 0.01) < 1e-5  # not 0


class Blobs:
    """22 points in the plane, in two classes: a data set."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(3)
        self.y = torch.arange(22) % 2
        x = torch.randn(22, 2, generator=generator, dtype=torch.float64)
        self.x = (x + self.y[:, None]).to(dtype)

    def __len__(self) -> int:
        return 22

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.x[indices], self.y[indices]


def noisy_losses(model, batch, generator):
    """Return one loss for each point, seen through noise."""
    x, y = batch
    noise = torch.randn(x.shape, generator=generator, device=x.device)
    return F.cross_entropy(model(x + 0.1 * noise), y, reduction="none")


def fussy_run(folder=None, evaluate=None, losses=noisy_losses, **changes):
    """Train nine steps of a model with everything that draws or remembers."""
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)
    )
    settings = {"batch_size": 8, "micro_batches": 2, "ema_decay": 0.5}
    config = Training(9, max_norm=0.5, seed=5, **{**settings, **changes})
    return train(
        model,
        losses,
        Blobs(),
        AdamW(model.parameters(), lr=0.1),
        config,
        schedule=warmup_cosine(9, warmup=3),
        folder=folder,
        save_every=3,
        evaluate=evaluate,
        evaluate_every=1,
    )


class Crash(Exception):
    """The power is gone."""


def crash_after(step: int):
    def evaluate(run):
        if run.step == step:
            raise Crash
        return {}

    return evaluate


def bits(run: Run) -> dict[str, Tensor]:
    """Return all tensors of the state."""
    found = model_tensors(run.model) | run._remembered()
    if run.average is not None:
        average = model_tensors(run.average.model)
        found |= {f"average.{name}": value for name, value in average.items()}
    return found


def same(a: Run, b: Run) -> bool:
    """Return whether two runs agree in state and log, bit for bit."""
    ours, theirs = bits(a), bits(b)
    logs = [[{**row, "seconds": 0} for row in run.log] for run in (a, b)]
    return (
        a.step == b.step
        and logs[0] == logs[1]
        and ours.keys() == theirs.keys()
        and all(torch.equal(ours[name], theirs[name]) for name in ours)
    )


def interrupted(step: int, started=lambda: noisy_losses, **changes) -> Run:
    """Return a run that died after a step and was started again."""
    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(Crash):
            fussy_run(folder, crash_after(step), started(), **changes)
        with Path(folder, "log.jsonl").open("a") as file:
            file.write('{"step": 1')  # half a row
        run = fussy_run(folder, crash_after(-1), started(), **changes)
        assert read_log(folder) == run.log
        assert [int(path.name[-8:]) for path in checkpoints(folder)] == [6, 9]
        return run


def test_an_interrupted_run_is_the_same_run():
    straight = fussy_run()
    assert len(straight.log) == 9
    for step in range(1, 10):
        assert same(interrupted(step), straight)


def test_evaluation_leaves_no_trace():
    def evaluate(run):
        assert not run.model.training
        assert not torch.is_grad_enabled()
        torch.rand(3)
        return {}

    assert same(fussy_run(evaluate=evaluate), fussy_run())


def small_plane() -> nn.Module:
    torch.manual_seed(4)
    return nn.Linear(2, 2).double()


def plain_losses(model, batch, generator):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def test_each_part_of_each_step_draws_anew():
    run = fussy_run(micro_batches=4)
    for run.step in range(3):
        seeds = [seed for _, seed in run.parts()]
        assert seeds == [derived_seed(5, 1, run.step, j) for j in range(4)]
    model, batch = nn.Linear(2, 2), Blobs()[torch.arange(8)]
    for losses in (noisy_losses, dropout_losses):
        drawn = [accumulate(model, losses, [(batch, s)]) for s in (6, 6, 7)]
        assert drawn[0] == drawn[1] != drawn[2]


def dropout_losses(model, batch, generator):
    """Return what dropout leaves of some numbers: it draws for itself."""
    return F.dropout(torch.rand(64, requires_grad=True), 0.5)


def test_buffers_are_copied_to_the_average():
    run = fussy_run()
    assert not run.averaged.training
    for mine, theirs in zip(
        run.averaged.buffers(), run.model.buffers(), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_a_loss_that_is_no_number_ends_the_run():
    def broken(model, batch, generator):
        each = noisy_losses(model, batch, generator)
        seen.append((model, [p.clone() for p in model.parameters()]))
        return each * (math.nan if len(seen) == 11 else 1)

    seen: list[tuple[nn.Module, list[Tensor]]] = []
    with pytest.raises(TrainingError, match="step 6: the loss is nan"):
        fussy_run(losses=broken)
    assert len(seen) == 12  # two parts of six steps
    model, before = seen[-1]
    for now, then in zip(model.parameters(), before, strict=True):
        assert torch.equal(now, then)


def test_weights_that_are_no_numbers_are_not_saved():
    run = fussy_run()
    run.model[0].weight.data[0, 0] = math.nan
    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(TrainingError, match="weight has an entry"):
            run.save(Path(folder))
        assert not os.listdir(folder)


def test_another_set_up_is_refused():
    with tempfile.TemporaryDirectory() as folder:
        fussy_run(folder)
        for name, value in (
            ("batch_size", 16),
            ("micro_batches", 1),
            ("ema_decay", 0.6),
            ("precision", "bfloat16"),
        ):
            with pytest.raises(TrainingError, match=name):
                fussy_run(folder, **{name: value})


def test_two_runs_do_not_share_a_folder():
    def intrude(run):
        with pytest.raises(TrainingError, match="another run writes in"):
            fussy_run(folder)
        return {}

    with tempfile.TemporaryDirectory() as folder:
        assert same(fussy_run(folder, intrude), fussy_run())


def test_a_run_can_be_made_longer():
    def plain_run(steps, folder=None):
        model = small_plane()
        optimizer = AdamW(model.parameters())
        data, config = Blobs(torch.float64), Training(steps, 8)
        return train(
            model,
            plain_losses,
            data,
            optimizer,
            config,
            schedule=lambda step: float(step < steps),  # 1 up to the end
            folder=folder,
        )

    with tempfile.TemporaryDirectory() as folder:
        plain_run(4, folder)
        assert same(plain_run(9, folder), plain_run(9))
        with pytest.raises(TrainingError, match="this one ends at 5"):
            plain_run(5, folder)


def test_moments_that_are_forgotten():
    straight = fussy_run()
    forgets = patch.object(Run, "_remember", lambda run, tensors: None)
    with forgets:  # WRONG: the optimiser begins anew
        assert not same(interrupted(5), straight)
    assert same(interrupted(5), straight)


def test_noise_from_a_generator_that_moves_on():
    def started():
        moves_on = torch.Generator().manual_seed(0)  # WRONG: hidden state
        return lambda model, batch, generator: noisy_losses(
            model, batch, moves_on
        )

    assert same(fussy_run(losses=started()), fussy_run(losses=started()))
    assert not same(
        interrupted(5, started=started), fussy_run(losses=started())
    )


def test_weights_that_lose_bits_on_the_disk():
    exact = Run.restore

    def rounded(run, checkpoint):
        exact(run, checkpoint)
        with torch.no_grad():
            for parameter in run.model.parameters():  # WRONG: 8 bits
                parameter.copy_(parameter.bfloat16())

    straight = fussy_run()
    with patch.object(Run, "restore", rounded):
        assert not same(interrupted(5), straight)


def test_a_log_that_is_not_cut_back():
    exact = _Journal._cut

    def keep_all(log, step):  # WRONG: rows after the checkpoint stay
        return exact(log, 9)

    straight = fussy_run()
    with patch.object(_Journal, "_cut", staticmethod(keep_all)):
        again = interrupted(5)
    assert [row["step"] for row in again.log] == [1, 2, 3, 4, *range(4, 10)]
    assert not same(again, straight)


def counted_losses(model, batch, generator):
    """Return the loss of each point on the right; the others do not count."""
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="none")[x[:, 0] > 0]


def usual_loop(model: nn.Module) -> tuple[list[dict], nn.Module]:
    """Train nine steps as scripts do; return the log and the average."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    schedule = SequentialLR(
        optimizer,
        [
            LinearLR(optimizer, 1 / 3, total_iters=2),
            CosineAnnealingLR(optimizer, T_max=6, eta_min=0.05),
        ],
        milestones=[3],
    )
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    data, log = Blobs(torch.float64), []
    for step in range(9):
        x, y = data[batch_indices(22, 12, step, 5)]
        x, y = x[x[:, 0] > 0], y[x[:, 0] > 0]
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        row = {"step": step + 1, "lr": optimizer.param_groups[0]["lr"]}
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
        log.append(
            row | {"loss": loss.item(), "norm": norm.item(), "items": len(x)}
        )
    return log, average.module


def test_the_loop_is_the_usual_one():
    usual, ours = small_plane(), small_plane()
    log, average = usual_loop(usual)
    run = train(
        ours,
        counted_losses,
        Blobs(torch.float64),
        torch.optim.SGD(ours.parameters(), lr=0.5),  # feels every factor
        Training(9, 12, 4, max_norm=0.5, ema_decay=0.5, seed=5),
        schedule=warmup_cosine(9, warmup=3, final=0.1),
    )
    for mine, theirs in zip(run.log, log, strict=True):
        del mine["seconds"]
        assert mine == pytest.approx(theirs, rel=1e-5)
    for mine, theirs in ((ours, usual), (run.averaged, average)):
        for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    norms = [row["norm"] for row in log]
    assert min(norms) < 0.5 < max(norms)  # clipped, and not
