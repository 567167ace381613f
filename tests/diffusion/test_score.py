"""Laws of the score and of the Langevin walk, and what it refuses."""

import math

import pytest
import torch
from torch.testing import assert_close

from tangled.diffusion.mixture import GaussianMixture
from tangled.diffusion.prediction import convert
from tangled.diffusion.schedule import Schedule
from tangled.diffusion.score import langevin
from tangled.workshop.statistics import standard_score


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.verifies("thm-tweedie")
def test_tweedie_needs_no_mean_of_the_data():
    """For Cauchy data: where one cuts them off does not matter."""
    q, step = Schedule.linear(1000), 400
    a, s = q.signal[step], q.noise_std[step]
    x = torch.tensor([-40.0, -3.0, 0.5, 20.0], dtype=torch.float64)
    x, t, guesses = x.requires_grad_(), torch.full((4,), step), []
    for reach in (500, 4000):
        points = torch.linspace(-reach, reach, 8 * reach + 1).double()
        fit = -(((x[:, None] - a * points) / s) ** 2) / 2
        parts = fit - torch.log1p(points**2)
        exact = torch.autograd.grad(parts.logsumexp(1).sum(), x)[0]
        guesses.append(parts.detach().softmax(1) @ points)
        found = convert(guesses[-1], x.detach(), t, q, "x0", "score")
        assert_close(found, exact, rtol=1e-8, atol=1e-10)
    assert_close(guesses[0], guesses[1], rtol=1e-10, atol=1e-10)


@pytest.mark.verifies("alg-langevin")
def test_a_step_is_the_formula_on_replayed_noise():
    x = torch.randn(5, 3, generator=seeded(), dtype=torch.float64)
    found = langevin(torch.sin, x, 0.3, 2, seeded(1))
    generator, by_hand = seeded(1), x
    for _ in range(2):
        xi = torch.randn(5, 3, generator=generator, dtype=torch.float64)
        by_hand = by_hand + 0.3 * torch.sin(by_hand) + 0.6**0.5 * xi
    assert_close(found, by_hand)
    assert torch.equal(langevin(torch.sin, x, 0.3, 0), x)
    assert langevin(torch.sin, x.float(), 0.3, 1).dtype == torch.float32


def test_a_density_stays_what_it_is():
    """Up to the error of the step, which for N(0, 1) is h / 2."""
    h, n = 0.01, 40_000
    x = torch.randn(n, 1, generator=seeded(), dtype=torch.float64)
    rest = 1 / (1 - h / 2)
    found = langevin(lambda x: -x, x * rest**0.5, h, 200, seeded(1))[:, 0]
    assert abs(standard_score(found, 0.0, rest**0.5)) < 5
    square = found.square() / rest
    assert abs(standard_score(square, 1.0, 2**0.5)) < 5
    inside = (found.abs() < rest**0.5).double()
    share = math.erf(0.5**0.5)
    assert abs(standard_score(inside, share, (share - share**2) ** 0.5)) < 5


def test_a_walk_finds_both_blobs_if_they_are_near():
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    means = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    blobs = GaussianMixture(weights, means, torch.full((2,), 0.7).double())
    start = torch.full((4000, 1), -1.0, dtype=torch.float64)
    x = langevin(blobs.score, start, 0.05, 400, seeded())
    drawn = blobs.sample(200_000, seeded(1))
    share = (drawn > 0).double().mean().item()
    right = (x[:, 0] > 0).double()
    assert abs(right.mean().item() - share) < 0.05


@pytest.mark.parametrize("step_size", [0.0, -1.0, math.nan])
def test_steps_that_go_nowhere_are_refused(step_size):
    with pytest.raises(ValueError, match="step_size must be positive"):
        langevin(torch.sin, torch.zeros(1, 1), step_size, 1)
