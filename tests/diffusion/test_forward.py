"""Laws of the forward process, and what it refuses."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from tangled.diffusion.forward import (
    diffuse,
    forward_chain,
    forward_step,
    prior_term,
    transition,
)
from tangled.diffusion.schedule import Schedule
from tangled.workshop.statistics import standard_score

SHAPES = [(), (5,), (3, 8, 8), (3, 2, 4, 4)]

betas = st.lists(st.floats(1e-6, 0.99), min_size=1, max_size=30).map(
    lambda steps: torch.tensor(steps, dtype=torch.float64)
)


def noise(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize("dims", SHAPES)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16]
)
def test_each_sample_is_diffused_at_its_own_step(dims, dtype):
    schedule = Schedule.linear(1000)
    t = torch.tensor([0, 1, 500, 1000])
    x0, eps = (
        noise(4, *dims, dtype=dtype),
        noise(4, *dims, seed=1, dtype=dtype),
    )
    xt = diffuse(x0, t, eps, schedule)
    assert (xt.dtype, xt.shape) == (dtype, x0.shape)
    assert torch.equal(xt[0], x0[0])
    for i, step in enumerate(t.tolist()):
        signal, std = (
            schedule.signal[step].to(dtype),
            schedule.noise_std[step].to(dtype),
        )
        assert_close(xt[i], signal * x0[i] + std * eps[i])


@given(betas, st.data())
def test_diffuse_is_linear_and_keeps_energy_on_average(beta, data):
    schedule = Schedule.from_betas(beta)
    t = torch.tensor([data.draw(st.integers(0, schedule.T))])
    x0, eps = noise(1, 6), noise(1, 6, seed=1)
    xt = diffuse(x0, t, eps, schedule)
    assert torch.equal(diffuse(2 * x0, t, 2 * eps, schedule), 2 * xt)
    # Rotating the pair (x_0, eps) by the angle phi keeps the sum of squares.
    other = diffuse(eps, t, -x0, schedule)
    assert_close(xt**2 + other**2, x0**2 + eps**2, rtol=1e-13, atol=1e-14)


@given(betas)
def test_an_empty_batch_stays_empty(beta):
    schedule = Schedule.from_betas(beta)
    x0, t = torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)
    assert diffuse(x0, t, x0, schedule).shape == (0, 3)
    assert prior_term(x0, schedule).shape == (0,)


def test_gradients_reach_the_data_and_the_noise():
    schedule = Schedule.linear(1000)
    x0, eps = (
        noise(2, 3).requires_grad_(),
        noise(2, 3, seed=1).requires_grad_(),
    )
    t = torch.tensor([100, 900])
    diffuse(x0, t, eps, schedule).sum().backward()
    assert torch.equal(x0.grad[:, 0], schedule.signal[t])
    assert torch.equal(eps.grad[:, 0], schedule.noise_std[t])


@pytest.mark.verifies("thm-forward-marginal")
@given(betas)
def test_steps_and_jump_have_equal_mean_and_variance(beta):
    schedule = Schedule.from_betas(beta)
    mean, variance = torch.ones(1, dtype=torch.float64), 0.0
    for t in range(1, schedule.T + 1):
        mean = forward_step(mean, t, torch.zeros_like(mean), schedule)
        variance = schedule.alpha[t] * variance + schedule.beta[t]
    assert_close(mean[0], schedule.signal[-1], rtol=1e-12, atol=1e-14)
    assert_close(variance, 1 - schedule.alpha_bar[-1], rtol=1e-12, atol=1e-14)


@pytest.mark.verifies("cor-forward-transition")
@given(betas, st.data())
def test_transitions_compose(beta, data):
    schedule = Schedule.from_betas(beta)
    r, s, t = sorted(data.draw(st.tuples(*[st.integers(0, schedule.T)] * 3)))
    first, second, direct = (
        transition(schedule, *pair) for pair in ((r, s), (s, t), (r, t))
    )
    assert_close(first[0] * second[0], direct[0], rtol=1e-12, atol=0)
    assert_close(
        second[0] ** 2 * first[1] + second[1],
        direct[1],
        rtol=1e-12,
        atol=1e-14,
    )


@given(betas)
def test_one_step_is_a_transition(beta):
    schedule = Schedule.from_betas(beta)
    for t in range(1, schedule.T + 1):
        scale, variance = transition(schedule, t - 1, t)
        assert_close(scale, schedule.alpha[t].sqrt(), rtol=1e-12, atol=0)
        assert_close(variance, schedule.beta[t], rtol=1e-9, atol=1e-15)


@pytest.mark.verifies("prop-forward-joint")
def test_transition_after_jump_has_the_covariance_of_the_chain():
    schedule = Schedule.cosine(100)
    x0, eps = torch.zeros(50_000, dtype=torch.float64), noise(2, 50_000)
    xs = diffuse(x0, torch.full((50_000,), 30), eps[0], schedule)
    scale, variance = transition(schedule, 30, 60)
    xt = scale * xs + variance.sqrt() * eps[1]
    assert abs(standard_score(xt**2, schedule.noise_std[60].item() ** 2)) < 5
    assert (
        abs(
            standard_score(
                xs * xt, (scale * schedule.noise_std[30] ** 2).item()
            )
        )
        < 5
    )


def test_the_chain_yields_every_state_and_starts_at_the_data():
    schedule, x0 = Schedule.linear(5), noise(2, 3)
    states = list(
        forward_chain(x0, schedule, torch.Generator().manual_seed(1))
    )
    assert len(states) == 6
    assert torch.equal(states[0], x0)
    again = list(
        forward_chain(x0, schedule, torch.Generator().manual_seed(1))
    )
    assert torch.equal(states[-1], again[-1])


def test_the_chain_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    list(
        forward_chain(
            noise(2, 3), Schedule.linear(5), torch.Generator().manual_seed(1)
        )
    )
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.verifies("prop-prior-gap")
@given(betas, st.integers(1, 6))
def test_prior_term_is_a_sum_over_dimensions_and_not_negative(beta, dim):
    schedule = Schedule.from_betas(beta)
    x0 = noise(4, dim)
    each = torch.stack(
        [prior_term(x0[:, i], schedule) for i in range(dim)]
    ).sum(0)
    assert_close(prior_term(x0, schedule), each, rtol=1e-9, atol=1e-12)
    assert (prior_term(x0, schedule) >= 0).all()


def test_prior_term_of_a_long_chain_is_small_and_exact():
    x0 = torch.ones(1, 1)
    assert prior_term(x0, Schedule.linear(1000)).item() == pytest.approx(
        2.01796e-5, rel=1e-5
    )
    assert prior_term(
        x0, Schedule.scaled_linear(1000)
    ).item() == pytest.approx(2.33550e-3, rel=1e-5)
    # (alpha_bar - alpha_bar - ln(1 - alpha_bar)) / 2 = alpha_bar / 2 + alpha_bar^2 / 4 + ...
    power = Schedule.cosine(1000).alpha_bar[-1].item()
    assert prior_term(x0, Schedule.cosine(1000)).item() == pytest.approx(
        power / 2, rel=1e-6
    )


@pytest.mark.gpu
def test_results_stay_on_the_device_of_the_data():
    schedule = Schedule.linear(1000)
    x0, eps = (
        noise(4, 3, 8, 8, dtype=torch.float32),
        noise(4, 3, 8, 8, seed=1, dtype=torch.float32),
    )
    t = torch.tensor([0, 1, 500, 1000])
    on_gpu = diffuse(x0.cuda(), t.cuda(), eps.cuda(), schedule)
    assert on_gpu.device.type == "cuda"
    assert_close(on_gpu.cpu(), diffuse(x0, t, eps, schedule))
    *_, last = forward_chain(
        x0.cuda(), Schedule.linear(5), torch.Generator("cuda").manual_seed(0)
    )
    assert last.device.type == "cuda"
    assert_close(
        prior_term(x0.cuda(), schedule).cpu(), prior_term(x0, schedule)
    )


GOOD = {
    "x0": torch.zeros(2, 3),
    "t": torch.tensor([1, 2]),
    "eps": torch.zeros(2, 3),
}


@pytest.mark.usefixtures("plain_errors")
@pytest.mark.parametrize(
    ("bad", "kind", "sentence"),
    [
        (
            {"x0": torch.zeros(2, 3).long()},
            TypeError,
            "x0 must be a floating tensor, got torch.int64",
        ),
        (
            {"eps": torch.zeros(2, 4)},
            ValueError,
            "eps must have the shape of x0, got",
        ),
        (
            {"eps": torch.zeros(2, 3).double()},
            ValueError,
            "eps must have the dtype of x0, got torch.float64",
        ),
        (
            {"eps": torch.zeros(2, 3, device="meta")},
            ValueError,
            "eps must have the device of x0, got meta",
        ),
        (
            {"t": torch.tensor([1.0, 2.0])},
            TypeError,
            "t must be an int64 tensor, got torch.float32",
        ),
        ({"t": 1}, TypeError, "t must be an int64 tensor, got int"),
        (
            {"t": torch.tensor([1])},
            ValueError,
            r"t must have shape \[2\], one step for each sample, got \[1\]",
        ),
        (
            {"t": torch.tensor([[1, 2]])},
            ValueError,
            r"t must have shape \[2\]",
        ),
        (
            {"t": torch.tensor([0, 11])},
            ValueError,
            r"t must lie in 0\.\.10, got 0\.\.11",
        ),
        (
            {"t": torch.tensor([-1, 3])},
            ValueError,
            r"t must lie in 0\.\.10, got -1\.\.3",
        ),
        (
            {"t": torch.tensor([1, 2], device="meta")},
            ValueError,
            "t is on meta, the samples on cpu",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(bad, kind, sentence):
    with pytest.raises(kind, match=f"^{sentence}") as caught:
        diffuse(**(GOOD | bad), schedule=Schedule.linear(10))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("t", [0, -1, 11])
def test_a_step_outside_the_chain_is_refused(t):
    x = torch.zeros(3)
    with pytest.raises(
        ValueError, match=rf"^t must lie in 1\.\.10, got {t}$"
    ):
        forward_step(x, t, x, Schedule.linear(10))


@pytest.mark.parametrize(("s", "t"), [(-1, 3), (4, 3), (0, 11)])
def test_a_transition_must_go_forward(s, t):
    with pytest.raises(
        ValueError,
        match=rf"^s and t must satisfy 0 <= s <= t <= 10, got s = {s}",
    ):
        transition(Schedule.linear(10), s, t)


@pytest.mark.usefixtures("plain_errors")
def test_prior_term_refuses_whole_numbers():
    with pytest.raises(
        TypeError, match=r"^x0 must be a floating tensor, got torch\.uint8$"
    ):
        prior_term(torch.zeros(2, 3, dtype=torch.uint8), Schedule.linear(10))


@given(st.floats(0.1, 3.0))
def test_known_divergence_at_the_origin(beta_sum):
    """With x_0 = 0 only the variance differs from 1: L_T = -(p + ln(1 - p)) / 2 per dimension."""
    power = math.exp(-beta_sum)
    schedule = Schedule.from_betas(
        torch.tensor([1 - power], dtype=torch.float64)
    )
    expected = -(power + math.log1p(-power)) / 2
    found = prior_term(
        torch.zeros(1, 1, dtype=torch.float64), schedule
    ).item()
    assert found == pytest.approx(expected, rel=1e-9)
