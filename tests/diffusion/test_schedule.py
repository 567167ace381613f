"""Laws of the schedule tables, and what they refuse."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from tangled.diffusion.schedule import (
    Schedule,
    per_sample,
    schedule_named,
    to_index,
)

NAMES = ["linear", "scaled_linear", "cosine", "sigmoid"]

# Steps from almost nothing to almost everything, short enough that alpha_bar stays above zero.
betas = st.lists(st.floats(1e-6, 0.99), min_size=1, max_size=40).map(
    lambda steps: torch.tensor(steps, dtype=torch.float64)
)


@given(betas)
def test_the_data_end_is_entry_zero(beta):
    schedule = Schedule.from_betas(beta)
    assert len(schedule.beta) == len(beta) + 1
    assert torch.equal(schedule.beta[1:], beta)
    for table, at_data in [
        ("beta", 0),
        ("alpha", 1),
        ("alpha_bar", 1),
        ("signal", 1),
    ]:
        assert len(getattr(schedule, table)) == schedule.T + 1
        assert getattr(schedule, table)[0] == at_data
    assert schedule.noise_std[0] == schedule.rho[0] == schedule.phi[0] == 0
    assert schedule.snr[0] == schedule.half_log_snr[0] == math.inf


@given(betas)
def test_alpha_bar_is_the_product_of_its_steps(beta):
    schedule = Schedule.from_betas(beta)
    product = 1.0
    for t in range(1, schedule.T + 1):
        product *= 1 - beta[t - 1].item()
        assert schedule.alpha_bar[t].item() == pytest.approx(
            product, rel=1e-13
        )


@given(betas)
def test_signal_and_noise_are_the_sides_of_a_right_triangle(beta):
    schedule = Schedule.from_betas(beta)
    one, exact = torch.ones_like(schedule.beta), {"rtol": 0, "atol": 1e-15}
    assert_close(schedule.signal**2 + schedule.noise_std**2, one, **exact)
    assert_close(schedule.phi.cos(), schedule.signal, **exact)
    assert_close(schedule.phi.sin(), schedule.noise_std, **exact)
    snr, rho = schedule.snr[1:], schedule.rho[1:]
    assert_close(rho**-2, snr, rtol=1e-14, atol=0)
    assert_close(schedule.half_log_snr[1:], -rho.log(), rtol=0, atol=1e-13)


@pytest.mark.verifies("prop-snr-decreasing")
@given(betas)
def test_the_signal_to_noise_ratio_falls_strictly(beta):
    schedule = Schedule.from_betas(beta)
    assert (schedule.snr[1:] < schedule.snr[:-1]).all()
    assert schedule.snr[-1] > 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("T", [1, 2, 10, 1000, 4000])
def test_every_named_schedule_is_valid_for_every_length(name, T):
    schedule = schedule_named(name, T)
    assert schedule.T == T
    assert schedule.alpha_bar.dtype == torch.float64
    assert (schedule.alpha_bar.diff() < 0).all()


@pytest.mark.parametrize(
    ("name", "alpha_bar_T", "crossing"),
    [
        ("linear", 4.03583e-5, 260),
        ("scaled_linear", 4.66010e-3, 355),
        ("cosine", 2.42877e-9, 497),
        ("sigmoid", 3.96818e-5, 440),
    ],
)
def test_known_values_at_a_thousand_steps(name, alpha_bar_T, crossing):
    schedule = schedule_named(name, 1000)
    assert schedule.alpha_bar[-1].item() == pytest.approx(
        alpha_bar_T, rel=1e-5
    )
    assert int((schedule.snr >= 1).sum()) == crossing


def test_known_values_of_the_linear_schedule():
    schedule = Schedule.linear(1000)
    expected = [1, 0.9999, 0.5240853738, 0.0785872429, 0.0033505504]
    found = schedule.alpha_bar[[0, 1, 250, 500, 750]]
    assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-10
    )
    assert schedule.snr[1].item() == pytest.approx(9999, rel=1e-10)


def test_the_cosine_follows_its_formula_up_to_its_last_step():
    schedule = Schedule.cosine(1000)
    u = torch.arange(1001, dtype=torch.float64) / 1000
    f = ((u + 0.008) / 1.008 * math.pi / 2).cos() ** 2
    assert_close(schedule.alpha_bar[:-1], (f / f[0])[:-1], rtol=1e-10, atol=0)
    assert (schedule.beta == 0.999).sum() == 1
    assert schedule.alpha_bar[-1] > 1e20 * f[-1]


def test_a_schedule_does_not_change():
    beta = torch.tensor([0.1, 0.2], dtype=torch.float64)
    schedule = Schedule.from_betas(beta)
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.beta = beta
    beta[0] = 0.9
    assert schedule.beta[1] == 0.1
    assert schedule.alpha_bar is schedule.alpha_bar


def test_single_precision_steps_become_double_precision_tables():
    schedule = Schedule.from_betas(torch.tensor([0.25, 0.5]))
    assert schedule.beta.dtype == schedule.snr.dtype == torch.float64


def test_moving_to_a_device_keeps_the_tables():
    schedule = Schedule.linear(10)
    assert torch.equal(schedule.to("cpu").beta, schedule.beta)


@pytest.mark.gpu
def test_tables_follow_the_schedule_to_the_gpu():
    schedule = Schedule.cosine(50)
    moved = schedule.to("cuda")
    assert moved.alpha_bar.device.type == "cuda"
    assert_close(moved.alpha_bar.cpu(), schedule.alpha_bar)


@pytest.mark.usefixtures("plain_errors")
@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, 1.5, math.nan, math.inf])
def test_beta_outside_the_unit_interval_is_refused(bad):
    beta = torch.tensor([0.1, bad, 0.2], dtype=torch.float64)
    with pytest.raises(
        ValueError,
        match=r"^beta must lie strictly between 0 and 1, but beta\[2\]",
    ):
        Schedule.from_betas(beta)


STEPS, TABLES = Schedule.from_betas, Schedule


@pytest.mark.usefixtures("plain_errors")
@pytest.mark.parametrize(
    ("make", "beta", "kind", "sentence"),
    [
        (
            STEPS,
            torch.tensor([1, 2]),
            TypeError,
            "beta must be a floating tensor, got torch.int64",
        ),
        (
            STEPS,
            [0.1, 0.2],
            TypeError,
            "beta must be a floating tensor, got list",
        ),
        (
            STEPS,
            torch.empty(0),
            ValueError,
            r"beta must have shape \[T\] with T at least 1, got \[0\]",
        ),
        (
            STEPS,
            torch.full((2, 2), 0.1),
            ValueError,
            r"beta must have shape \[T\] .*, got \[2, 2\]",
        ),
        (
            TABLES,
            torch.tensor([0.0, 0.1]),
            TypeError,
            "beta must be a float64 tensor, got torch.float32",
        ),
        (
            TABLES,
            None,
            TypeError,
            "beta must be a float64 tensor, got NoneType",
        ),
        (
            TABLES,
            torch.tensor([0.0]).double(),
            ValueError,
            r"beta must be a table \[T\+1\] with T at least 1, got shape \[1\]",
        ),
        (
            TABLES,
            torch.tensor([0.1, 0.1]).double(),
            ValueError,
            r"beta\[0\] belongs to the data and must be 0, got 0.1.*",
        ),
    ],
)
def test_tables_of_the_wrong_kind_are_refused(make, beta, kind, sentence):
    with pytest.raises(kind, match=f"^{sentence}$"):
        make(beta)


@pytest.mark.usefixtures("plain_errors")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("T", [0, -3, 10.0])
def test_fewer_than_one_step_is_refused(name, T):
    with pytest.raises(
        ValueError, match=f"^T must be a whole number, at least 1, got {T}$"
    ):
        schedule_named(name, T)


def test_an_unknown_schedule_is_refused_with_the_known_names():
    with pytest.raises(
        ValueError,
        match=r"^name must be one of linear, .*sigmoid, got 'cosin'$",
    ):
        schedule_named("cosin", 10)


def test_index_of_a_step():
    assert to_index(1) == 0
    assert to_index(torch.tensor([1, 1000])).tolist() == [0, 999]
    assert to_index(torch.empty(0, dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize("t", [0, -1, torch.tensor([3, 0])])
def test_the_data_end_has_no_index(t):
    with pytest.raises(ValueError, match=r"^t must be at least 1, got "):
        to_index(t)


@given(st.integers(1, 5), st.sampled_from([(), (3,), (2, 4), (1, 2, 2, 2)]))
def test_entries_broadcast_over_samples(batch, dims):
    schedule = Schedule.linear(10)
    t = torch.arange(batch)
    like = torch.zeros(batch, *dims)
    entries = per_sample(schedule.signal, t, like)
    assert entries.shape == (batch,) + (1,) * len(dims)
    assert entries.dtype == torch.float32
    assert_close(
        entries.flatten(), schedule.signal[:batch].float(), rtol=0, atol=0
    )
