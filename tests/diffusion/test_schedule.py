"""Laws of the schedule tables, and what they refuse."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from tangled.diffusion.schedule import (
    Schedule,
    per_sample,
    schedule_named,
    to_index,
    zero_terminal_snr,
)
from tangled.workshop.statistics import standard_score

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


def formulas(T):
    """The four tables of beta_1..beta_T, in plain Python."""
    share = [(t - 1) / (T - 1) for t in range(1, T + 1)]
    low, high = 0.00085**0.5, 0.012**0.5

    def f(t):
        return math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2

    return {
        "linear": [1e-4 + (0.02 - 1e-4) * u for u in share],
        "scaled_linear": [(low + (high - low) * u) ** 2 for u in share],
        "cosine": [min(1 - f(t) / f(t - 1), 0.999) for t in range(1, T + 1)],
        "sigmoid": [
            1e-4 + (0.02 - 1e-4) / (1 + math.exp(6 - 12 * u)) for u in share
        ],
    }


@pytest.mark.verifies(
    "eq-linear-schedule", "eq-cosine-schedule", "eq-sigmoid-schedule"
)
@pytest.mark.parametrize("T", [2, 37, 1000])
@pytest.mark.parametrize("name", NAMES)
def test_every_table_is_its_formula_in_double_precision(name, T):
    schedule, beta = schedule_named(name, T), formulas(T)[name]
    expected = torch.tensor([0.0, *beta], dtype=torch.float64)
    assert_close(schedule.beta, expected, rtol=1e-12, atol=1e-15)
    powers = [
        math.exp(math.fsum(math.log1p(-b) for b in beta[:t]))
        for t in range(0, T + 1, max(T // 10, 1))
    ]
    found = schedule.alpha_bar[:: max(T // 10, 1)]
    exact = torch.tensor(powers, dtype=torch.float64)
    assert_close(found, exact, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("make", "beta"),
    [
        (Schedule.linear, 1e-4),
        (Schedule.scaled_linear, 0.00085),
        (Schedule.cosine, 0.999),
        (Schedule.sigmoid, 1e-4 + (0.02 - 1e-4) / (1 + math.exp(6))),
    ],
)
def test_a_single_step_starts_at_the_lower_end(make, beta):
    assert make(1).beta.tolist() == pytest.approx([0.0, beta], rel=1e-12)


def test_the_ranges_are_arguments():
    linear = Schedule.linear(3, 0.1, 0.3)
    assert linear.beta.tolist() == pytest.approx([0, 0.1, 0.2, 0.3])
    scaled = Schedule.scaled_linear(3, 0.01, 0.09)
    assert scaled.beta.tolist() == pytest.approx([0, 0.01, 0.04, 0.09])
    sigmoid = Schedule.sigmoid(3, 0.1, 0.3)
    assert sigmoid.beta[2].item() == pytest.approx(0.2)
    assert Schedule.cosine(3, max_beta=0.9).beta[-1] == 0.9
    bare = Schedule.cosine(4, offset=0.0).alpha_bar[2].item()
    assert bare == pytest.approx(0.5)  # cos^2 of 45 degrees


@pytest.mark.parametrize(
    ("name", "crossing"),
    [
        ("linear", 260),
        ("scaled_linear", 355),
        ("cosine", 497),
        ("sigmoid", 440),
    ],
)
def test_first_step_with_more_noise_than_signal(name, crossing):
    assert int((schedule_named(name, 1000).snr >= 1).sum()) == crossing


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


def test_the_cosine_without_its_cap_ends_at_zero():
    bare, capped = Schedule.cosine(1000, max_beta=1.0), Schedule.cosine(1000)
    assert bare.beta[-1] == 1
    assert torch.equal(bare.alpha_bar[:-1], capped.alpha_bar[:-1])
    assert not bare.keeps_signal
    assert capped.keeps_signal


# Every way to a schedule that ends without signal, up to a single step.
ENDED = {
    "linear": zero_terminal_snr(Schedule.linear(1000)),
    "scaled": zero_terminal_snr(Schedule.scaled_linear(1000)),
    "cosine": Schedule.cosine(20, max_beta=1.0),
    "two": zero_terminal_snr(Schedule.from_betas([0.3, 0.4])),
    "one": Schedule.from_betas([1.0]),
}


@pytest.mark.parametrize("q", ENDED.values(), ids=ENDED)
def test_without_signal_every_table_has_its_limit_at_the_end(q):
    ends = {
        "beta": 1,
        "alpha": 0,
        "alpha_bar": 0,
        "signal": 0,
        "noise_std": 1,
        "snr": 0,
        "rho": math.inf,
        "half_log_snr": -math.inf,
        "phi": math.pi / 2,
    }
    for name, end in ends.items():
        assert getattr(q, name)[-1] == end, name
        assert getattr(q, name)[:-1].isfinite().sum() >= q.T - 1
        assert not getattr(q, name).isnan().any()
    assert not q.to("cpu").keeps_signal
    assert not q.shifted(0.5).keeps_signal


def test_a_last_trace_of_signal_is_signal():
    q = Schedule.from_betas([0.3, 1 - 2**-53])
    assert q.keeps_signal
    assert q.snr[-1] > 0


@pytest.mark.verifies("eq-zero-terminal-snr")
@given(betas)
def test_rescaling_is_a_straight_map_that_keeps_the_first_step(beta):
    q = Schedule.from_betas(F.pad(beta.clamp(1e-4, 0.9), (0, 1), value=0.1))
    new = zero_terminal_snr(q)
    assert new.signal[-1] == 0
    assert_close(new.signal[1], q.signal[1], rtol=1e-12, atol=0)
    share = (q.signal[1:] - q.signal[-1]) / (q.signal[1] - q.signal[-1])
    assert_close(new.signal[1:], q.signal[1] * share, rtol=1e-9, atol=1e-15)
    assert zero_terminal_snr(new) is new


@pytest.mark.usefixtures("plain_errors")
def test_one_step_cannot_keep_its_place_and_end_without_signal():
    with pytest.raises(ValueError, match=r"2 <= T, got T = 1"):
        zero_terminal_snr(Schedule.from_betas([0.3]))


@pytest.mark.usefixtures("plain_errors")
def test_signal_that_is_lost_by_rounding_is_refused():
    with pytest.raises(ValueError, match="unless the last beta is 1, but at"):
        Schedule.from_betas([0.99] * 200)


def test_steps_may_be_a_list_an_array_or_a_tensor():
    expected = [0.0, 0.1, 0.2]
    values = expected[1:]
    for beta in (
        values,
        tuple(values),
        np.array(values),
        torch.tensor(values),
    ):
        schedule = Schedule.from_betas(beta)
        assert schedule.beta.dtype == torch.float64
        assert schedule.beta.tolist() == pytest.approx(expected)
    exact = np.linspace(1e-4, 0.02, 1000)
    assert_close(
        Schedule.from_betas(exact).beta,
        Schedule.linear(1000).beta,
        rtol=1e-14,
        atol=0,
    )


@pytest.mark.usefixtures("plain_errors")
def test_the_number_of_steps_may_be_any_whole_number():
    for name in NAMES:
        made = schedule_named(name, np.int64(7))
        assert torch.equal(made.beta, schedule_named(name, 7).beta)


def test_every_table_is_there_before_it_is_asked_for():
    tables = {"alpha", "alpha_bar", "signal", "noise_std", "snr", "rho"}
    tables |= {"half_log_snr", "phi"}
    assert tables <= vars(Schedule.linear(10)).keys()


@pytest.mark.verifies("eq-resolution-shift")
@given(betas, st.floats(0.1, 10))
def test_a_shift_multiplies_the_ratio_and_can_be_undone(beta, b):
    schedule = Schedule.from_betas(beta.clamp(1e-4, 0.5))
    moved = schedule.shifted(b)
    assert_close(
        moved.half_log_snr[1:] - schedule.half_log_snr[1:],
        torch.full_like(beta, math.log(b)),
        rtol=0,
        atol=1e-9,
    )
    back = moved.shifted(1 / b)
    assert_close(back.alpha_bar, schedule.alpha_bar, rtol=1e-9, atol=0)


@pytest.mark.verifies("eq-resolution-shift")
@pytest.mark.parametrize("s", [2, 3])
def test_averaged_noise_is_white_with_a_variance_of_one_over_s_squared(s):
    draw = torch.Generator().manual_seed(0)
    eps = torch.randn(1, 90, 90, generator=draw, dtype=torch.float64)
    small = F.avg_pool2d(eps, s).flatten()
    assert abs(standard_score(small**2, s**-2, 2**0.5 / s**2)) < 5
    assert abs(standard_score(small[1:] * small[:-1], 0.0, s**-2)) < 5


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
@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, 1.5, math.nan, 1e-17])
def test_a_bad_step_is_refused_by_its_number(bad):
    with pytest.raises(ValueError, match=r"^beta must be .* at t = 2 beta"):
        Schedule.from_betas([0.1, bad, 0.2])


@pytest.mark.usefixtures("plain_errors")
@pytest.mark.parametrize(
    ("make", "beta"),
    [
        (Schedule.from_betas, []),
        (Schedule.from_betas, [[0.1, 0.2]]),
        (Schedule, torch.tensor([0.0, 0.1])),
        (Schedule, None),
    ],
)
def test_tables_of_the_wrong_kind_are_refused(make, beta):
    with pytest.raises(TypeError, match=r"^beta must be a float64 table"):
        make(beta)


@pytest.mark.usefixtures("plain_errors")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("T", [0, -3, 10.0])
def test_fewer_than_one_step_is_refused(name, T):
    kind = TypeError if T == 10.0 else ValueError
    with pytest.raises(kind, match=f"^steps must .*got T = {T}$"):
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
    assert to_index(torch.tensor(4)).item() == 3
    assert to_index(torch.tensor([[1, 2], [3, 4]])).tolist() == [
        [0, 1],
        [2, 3],
    ]
    assert to_index(torch.empty(0, dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize(
    "t",
    [0, -1, *map(torch.tensor, (0, [3, 0], [0, 3], [[1, 2], [0, 4]]))],
)
def test_the_data_end_has_no_index(t):
    with pytest.raises(ValueError, match=r"^t must be at least 1, got "):
        to_index(t)


@pytest.mark.usefixtures("plain_errors")
@pytest.mark.parametrize("t", [1.5, True, torch.tensor([1.0, 2.0])])
def test_what_is_not_whole_has_no_index(t):
    with pytest.raises(TypeError, match=r"^t must be an int or an int64 "):
        to_index(t)


@pytest.mark.usefixtures("plain_errors")
@pytest.mark.parametrize(
    ("t", "kind", "sentence"),
    [
        ([1, 2], TypeError, "^t must be an int64 tensor, got list"),
        (torch.tensor([1.0, 2.0]), TypeError, "^t must be an int64 tensor"),
        (torch.tensor([1]), ValueError, r"^t must have shape \[2\]"),
        (torch.tensor([1, 11]), RuntimeError, "index 11 is out of bounds"),
        (torch.tensor([-1, 1]), RuntimeError, "index -1 is out of bounds"),
    ],
)
def test_entries_of_wrong_steps_are_refused(t, kind, sentence):
    with pytest.raises(kind, match=sentence):
        per_sample(Schedule.linear(10).signal, t, torch.zeros(2, 3))


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
