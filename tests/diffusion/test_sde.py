"""Laws of the processes, the ways back, the flow and its likelihood."""

import math
from itertools import pairwise

import pytest
import torch
from scipy.integrate import solve_ivp
from torch.testing import assert_close

from tangled.diffusion.gaussian import log_normal
from tangled.diffusion.mixture import GaussianMixture
from tangled.diffusion.schedule import Schedule
from tangled.diffusion.sde import (
    VE,
    VP,
    Process,
    backward,
    flow,
    log_likelihood,
    velocity,
)
from tangled.workshop.statistics import standard_score

PROCESSES = [VP(), VP(0.5, 5.0), VE(3.0)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def blobs():
    return GaussianMixture(
        torch.tensor([0.3, 0.7], dtype=torch.float64),
        torch.tensor([[-1.5, 0.2], [1.0, -0.4]], dtype=torch.float64),
        torch.tensor([0.3, 0.5], dtype=torch.float64),
    )


def score_of(process, data=None):
    data = data or blobs()

    def score(x, u):
        a, s = process.signal(u), process.noise_std(u)
        return data.diffused(a, s).score(x)

    return score


def grid(first, last, n):
    return torch.linspace(first, last, n + 1, dtype=torch.float64).tolist()


@pytest.mark.verifies("def-sde")
@pytest.mark.parametrize("process", PROCESSES)
def test_amplitude_and_deviation_solve_the_moments(process):
    """a' = rate a, and (s^2)' = 2 rate s^2 + power."""
    assert isinstance(process, Process)
    assert process.signal(0.0) == 1
    assert process.noise_std(0.0) == 0
    h = 1e-6
    for u in (0.05, 0.4, 0.95):
        a, s = process.signal(u), process.noise_std(u)
        slope = (process.signal(u + h) - process.signal(u - h)) / (2 * h)
        assert slope == pytest.approx(process.rate(u) * a, abs=1e-7)
        up, down = process.noise_std(u + h), process.noise_std(u - h)
        growth = (up**2 - down**2) / (2 * h)
        wanted = 2 * process.rate(u) * s**2 + process.power(u)
        assert growth == pytest.approx(wanted, rel=1e-6, abs=1e-7)


def test_the_default_is_the_usual_schedule_in_continuous_time():
    q, process = Schedule.linear(1000), VP()
    for t in (1, 100, 500, 1000):
        beta = process.beta((t - 1) / 999) / 1000
        assert beta == pytest.approx(q.beta[t].item(), rel=1e-12)
        assert process.signal(t / 1000) == pytest.approx(
            q.signal[t].item(), rel=0.05
        )


def test_a_little_noise_keeps_its_digits():
    assert VP().noise_std(1e-12) == pytest.approx(1e-13**0.5, rel=1e-6)


@pytest.mark.verifies("prop-ve-vp")
def test_in_units_of_the_signal_vp_is_ve():
    process, h = VP(), 1e-6

    def rho(u):
        return process.noise_std(u) / process.signal(u)

    for u in (0.1, 0.5, 0.9):
        growth = (rho(u + h) ** 2 - rho(u - h) ** 2) / (2 * h)
        power = process.power(u) / process.signal(u) ** 2
        assert growth == pytest.approx(power, rel=1e-6)


@pytest.mark.verifies("thm-probability-flow")
@pytest.mark.parametrize("process", PROCESSES)
def test_the_velocity_is_drift_minus_half_the_noise(process):
    x = torch.randn(6, 2, generator=seeded(), dtype=torch.float64)
    score = score_of(process)
    for u in (0.2, 0.9):
        exact = process.rate(u) * x - process.power(u) / 2 * score(x, u)
        assert_close(velocity(score, x, process, u), exact)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_flow_of_a_gaussian_is_exact_to_fourth_order(process):
    def variance(u):
        return (process.signal(u) * 0.4) ** 2 + process.noise_std(u) ** 2

    def score(x, u):
        return -x / variance(u)

    x = torch.tensor([[-1.0], [0.3]], dtype=torch.float64)
    exact = x * (variance(0.2) / variance(1.0)) ** 0.5
    errors = [
        (flow(score, x, process, grid(1.0, 0.2, n)) - exact).abs().max()
        for n in (10, 20, 40)
    ]
    for large, small in pairwise(errors):
        order = math.log2(large / small)
        assert 3.6 < order < 4.6, errors


def test_the_flow_agrees_with_scipy():
    process, score = VP(), score_of(VP())
    x = torch.randn(4, 2, generator=seeded(), dtype=torch.float64)
    found = flow(score, x, process, grid(1.0, 0.1, 200))

    def field(u, state):
        now = torch.tensor(state).reshape(4, 2)
        return velocity(score, now, process, u).flatten().numpy()

    solved = solve_ivp(
        field, (1.0, 0.1), x.flatten().numpy(), rtol=1e-10, atol=1e-10
    )
    exact = torch.tensor(solved.y[:, -1]).reshape(4, 2)
    assert_close(found, exact, rtol=0, atol=1e-6)


def test_up_and_down_is_nothing():
    process, score = VP(), score_of(VP())
    x = torch.randn(4, 2, generator=seeded(), dtype=torch.float64)
    there = flow(score, x, process, grid(0.1, 1.0, 200))
    back = flow(score, there, process, grid(1.0, 0.1, 200))
    assert_close(back, x, rtol=0, atol=1e-6)


def test_an_euler_step_on_replayed_noise():
    process, score = VP(), score_of(VP())
    x = torch.randn(4, 2, generator=seeded(), dtype=torch.float64)
    for noise in (0.0, 0.5, 1.0):
        found = backward(score, x, process, (0.6, 0.5), noise, seeded(1))
        xi = torch.randn(4, 2, generator=seeded(1), dtype=torch.float64)
        beta = process.beta(0.6)
        drift = beta / 2 * x + (1 + noise) / 2 * beta * score(x, 0.6)
        exact = x + 0.1 * drift + (noise * beta * 0.1) ** 0.5 * xi
        assert_close(found, exact)


@pytest.mark.verifies("thm-reverse-sde")
@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0, 2.0])
def test_every_amount_of_noise_brings_the_mixture_back(noise):
    """Shares, mean and quantiles of the parts, at a time shortly before 0."""
    process, data = VP(), blobs()
    start = data.diffused(process.signal(1.0), process.noise_std(1.0))
    x = start.sample(8000, seeded())
    times = [u**2 for u in grid(1.0, 0.1, 400)]
    found = backward(score_of(process), x, process, times, noise, seeded(1))
    end = data.diffused(
        process.signal(times[-1]), process.noise_std(times[-1])
    )
    left = end.responsibilities(found)[:, 0]
    assert abs(standard_score(left, 0.3)) < 5
    for axis in range(2):
        mean = (end.weights @ end.means)[axis].item()
        assert abs(standard_score(found[:, axis], mean)) < 5
    one = found[left > 0.999] - end.means[0]
    inside = (
        one.square().sum(1) < 2 * math.log(2) * end.stds[0] ** 2
    ).double()
    assert abs(standard_score(inside, 0.5, 0.5)) < 5


@pytest.mark.verifies("prop-flow-likelihood")
@pytest.mark.parametrize("process", PROCESSES)
def test_the_likelihood_is_the_formula_but_for_the_last_density(process):
    data, x = blobs(), blobs().sample(5, seeded())
    times = [u**2 for u in grid(0.2, 1.0, 200)]
    found = log_likelihood(score_of(process), x, process, times)
    first, last = (
        data.diffused(process.signal(u), process.noise_std(u))
        for u in (times[0], 1.0)
    )
    end = flow(score_of(process), x, process, times)
    normal = log_normal(end, 0.0, process.noise_std(1.0) ** 2).sum(1)
    exact = first.log_prob(x) - last.log_prob(end) + normal
    assert_close(found, exact, rtol=0, atol=1e-5)
    assert not found.requires_grad


def test_dtypes_follow_the_sample():
    process = VP()

    def score(x, u):
        return -x

    x = torch.zeros(2, 3, dtype=torch.float32)
    assert backward(score, x, process, (1.0, 0.5)).dtype == torch.float32
    assert flow(score, x, process, (1.0, 0.5)).dtype == torch.float32
    picture = torch.zeros(2, 3, 4, 4)
    assert (
        backward(score, picture, process, (1.0, 0.5)).shape == picture.shape
    )


@pytest.mark.parametrize(
    "times",
    [
        (),
        (1.0,),
        (0.2, 0.5),
        (1.0, 0.5, 0.7),
        (0.5, 0.5),
        (1.2, 0.5),
        (1.0, -1.0),
    ],
)
def test_times_that_do_not_fall_are_refused(times):
    with pytest.raises(ValueError, match="times must fall"):
        backward(lambda x, u: x, torch.zeros(1, 1), VP(), times)
    if times != (0.2, 0.5):
        with pytest.raises(ValueError, match="times must rise or fall"):
            flow(lambda x, u: x, torch.zeros(1, 1), VP(), times)


def test_a_likelihood_needs_rising_times_and_noise_is_not_negative():
    x = torch.zeros(1, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="times must"):
        log_likelihood(lambda x, u: x, x, VP(), (1.0, 0.5))
    with pytest.raises(ValueError, match="noise must not be negative"):
        backward(lambda x, u: x, x, VP(), (1.0, 0.5), -0.1)
