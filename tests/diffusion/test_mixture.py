"""Gaussian mixtures and the energy distance: what holds, and what is refused."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from tangled.diffusion.gaussian import log_normal
from tangled.diffusion.mixture import GaussianMixture, energy_distance
from tangled.workshop.statistics import standard_score

# Signal amplitudes of both signs: the proposition holds for every one of them.
levels = st.floats(0.05, 1.0) | st.floats(-1.0, -0.05)


def noise(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def mixture(J=3, dim=2, seed=0, dtype=torch.float64):
    weights = noise(J, seed=seed).softmax(0)
    means, stds = 2 * noise(J, dim, seed=seed + 1), noise(J, seed=seed + 2)
    return GaussianMixture(
        weights.to(dtype), means.to(dtype), (stds / 2).exp().to(dtype)
    )


def test_one_part_is_a_gaussian():
    data = GaussianMixture(
        torch.ones(1), torch.tensor([[0.5, -1.0]]), torch.tensor([1.5])
    )
    x = noise(5, 2, dtype=torch.float32)
    assert_close(
        data.log_prob(x), log_normal(x, data.means[0], 1.5**2).sum(1)
    )
    assert_close(data.score(x), (data.means[0] - x) / 1.5**2)
    assert torch.equal(data.responsibilities(x), torch.ones(5, 1))


@pytest.mark.verifies("prop-noisy-mixture")
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_score_is_the_gradient_of_the_log_density(dim):
    data, x = mixture(dim=dim), noise(7, dim, seed=9).requires_grad_()
    (gradient,) = torch.autograd.grad(data.log_prob(x).sum(), x)
    assert_close(data.score(x.detach()), gradient, rtol=0, atol=1e-12)


@pytest.mark.verifies("prop-noisy-mixture")
@given(levels, st.floats(0.05, 2.0))
def test_the_denoiser_follows_from_the_score(signal, noise_std):
    """Two routes to E[x_0 | x_t]: part by part, and by the score of the noisy mixture."""
    data, x = mixture(), 2 * noise(6, 2, seed=9)
    score = data.diffused(signal, noise_std).score(x)
    by_score = (x + noise_std**2 * score) / signal
    assert_close(
        data.denoised(x, signal, noise_std), by_score, rtol=1e-8, atol=1e-8
    )


@given(levels, st.floats(0, 1.0), levels)
def test_two_noises_are_one(first, std, second):
    once = mixture().diffused(first, std).diffused(second, 0.5)
    total = math.sqrt((second * std) ** 2 + 0.25)
    direct = mixture().diffused(first * second, total)
    assert_close(once.means, direct.means)
    assert_close(once.stds, direct.stds)


@pytest.mark.verifies("prop-noisy-mixture")
@pytest.mark.parametrize("signal", [0.6, -0.6])
def test_samples_after_noise_follow_the_diffused_mixture(signal):
    """Along a line, the share below each quantile is that of the mixture."""
    x = mixture().sample(20_000, torch.Generator().manual_seed(1))
    noisy = signal * x + 0.8 * noise(20_000, 2, seed=5)
    other = mixture().diffused(signal, 0.8)
    for i in range(2):
        for edge in (-2.0, -0.5, 0.0, 1.0, 2.5):
            below = (edge - other.means[:, i]) / other.stds
            p = (other.weights * torch.special.ndtr(below)).sum().item()
            share = (noisy[:, i] < edge).double()
            z = standard_score(share, p, (p * (1 - p)) ** 0.5)
            assert abs(z) < 5


@pytest.mark.verifies("def-gaussian-mixture")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_draw_is_a_part_plus_its_deviation_times_noise(dtype):
    parts = mixture(dtype=dtype)
    n = 100_000  # so many that some noise is beyond 4 deviations
    x = parts.sample(n, torch.Generator().manual_seed(1))
    again = torch.Generator().manual_seed(1)
    j = torch.multinomial(parts.weights, n, True, generator=again)
    xi = torch.randn(n, 2, generator=again, dtype=dtype)
    assert (xi.abs() > 4).any()
    assert x.dtype == dtype
    assert_close(x, parts.means[j] + parts.stds[j, None] * xi, rtol=0, atol=0)


@pytest.mark.verifies("def-gaussian-mixture")
def test_parts_are_drawn_as_often_as_their_weights_say():
    eye = torch.eye(3, dtype=torch.float64)
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    points = GaussianMixture(weights, eye, torch.zeros_like(weights))
    x = points.sample(20_000, torch.Generator().manual_seed(1))
    for j, weight in enumerate(weights.tolist()):
        deviation = (weight * (1 - weight)) ** 0.5
        assert abs(standard_score(x[:, j], weight, deviation)) < 5


@pytest.mark.refutes("prop-maximum-likelihood-kl")
def test_a_narrow_part_on_a_point_wins_and_is_no_better():
    """Points have no density: their likelihood has no maximum."""
    points, fresh = mixture().sample(10), mixture().sample(2000)
    seen, unseen = [], []
    for narrow in (1e-1, 1e-10, 1e-100):
        model = GaussianMixture(
            torch.tensor([0.5, 0.5], dtype=torch.float64),
            torch.stack([points[0], points.mean(0)]),
            torch.tensor([narrow, 1.5], dtype=torch.float64),
        )
        seen.append(model.log_prob(points).mean())
        unseen.append(model.log_prob(fresh).mean())
    assert seen[2] > seen[1] + 10 > seen[0] + 10
    assert unseen[2] <= unseen[0]


def test_points_can_be_diffused_and_denoised_but_have_no_density():
    points = torch.tensor([[-2.0], [2.0]], dtype=torch.float64)
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    data = GaussianMixture(half, points, torch.zeros(2, dtype=torch.float64))
    x = torch.tensor([[0.0], [0.3]], dtype=torch.float64)
    # E[x_0 | x_t] of two points +-m is m tanh(a m x / variance).
    expected = 2 * torch.tanh(0.6 * 2 * x / 0.64)
    assert_close(data.denoised(x, 0.6, 0.8), expected)
    assert set(data.sample(50).flatten().tolist()) == {-2.0, 2.0}
    for method in (data.log_prob, data.score, data.responsibilities):
        with pytest.raises(ValueError, match=r"^stds must be positive for a"):
            method(x)


def test_far_away_the_density_does_not_underflow():
    x = torch.tensor([[1e4, -1e4]], dtype=torch.float64)
    assert mixture().log_prob(x).isfinite().all()
    assert_close(mixture().responsibilities(x).sum(1), torch.ones(1).double())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_results_follow_the_dtype_of_the_points(dtype):
    data, x = mixture(), noise(4, 2, dtype=dtype)
    assert data.log_prob(x).dtype == data.score(x).dtype == dtype
    assert data.denoised(x, 0.6, 0.8).dtype == dtype
    level = torch.tensor(0.6, dtype=torch.float64)
    assert data.denoised(x, level, level).dtype == dtype
    assert mixture(dtype=dtype).sample(3).dtype == dtype


def test_sampling_repeats_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    one, two = (
        mixture().sample(10, torch.Generator().manual_seed(1))
        for _ in range(2)
    )
    assert torch.equal(one, two)
    assert torch.equal(torch.get_rng_state(), before)
    assert mixture(dim=5).sample(3).shape == (3, 5)


@pytest.mark.gpu
def test_results_stay_on_the_device():
    data, x = mixture(), noise(4, 2).cuda()
    assert_close(data.score(x).cpu(), data.score(x.cpu()))
    assert data.denoised(x, 0.6, 0.8).is_cuda
    on_gpu = GaussianMixture(
        data.weights.cuda(), data.means.cuda(), data.stds.cuda()
    )
    generator = torch.Generator("cuda").manual_seed(0)
    assert on_gpu.sample(3, generator).is_cuda
    assert energy_distance(x, x) == pytest.approx(0, abs=1e-12)


GOOD = {
    "weights": torch.tensor([0.5, 0.5]),
    "means": torch.zeros(2, 3),
    "stds": torch.ones(2),
}


@pytest.mark.usefixtures("plain_errors")
@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"means": torch.zeros(3, 3)}, "weights, means, stds must be"),
        ({"means": torch.zeros(2)}, "weights, means, stds must be"),
        ({"stds": torch.ones(3)}, "weights, means, stds must be"),
        ({"stds": torch.ones(2, 1)}, "weights, means, stds must be"),
        ({"weights": torch.ones(())}, "weights, means, stds must be"),
        ({"stds": torch.tensor([1.0, -1e-12])}, "stds must not be negative"),
        (
            {"weights": torch.tensor([0.5, 0.6])},
            "weights must be positive with sum 1",
        ),
        (
            {"weights": torch.tensor([1.5, -0.5])},
            "weights must be positive with sum 1",
        ),
    ],
)
def test_other_mixtures_are_refused(bad, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}") as caught:
        GaussianMixture(**(GOOD | bad))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [1e-2, 2e-6, -2e-6])
def test_weights_that_nearly_sum_to_one_are_refused(error):
    weights = torch.tensor([0.5, 0.5 + error], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"^weights must be positive with"):
        GaussianMixture(weights, torch.zeros(2, 1).double(), weights)


def test_weights_rounded_to_float32_are_accepted():
    third = torch.full((3,), 1 / 3)
    assert GaussianMixture(third, torch.zeros(3, 1), third).weights is third


@pytest.mark.parametrize("method", ["log_prob", "score", "responsibilities"])
def test_one_point_among_the_parts_takes_the_density_away(method):
    parts = mixture()
    parts = GaussianMixture(
        parts.weights, parts.means, parts.stds * torch.tensor([1, 1, 0])
    )
    with pytest.raises(ValueError, match=r"^stds must be positive for a"):
        getattr(parts, method)(noise(3, 2))


@pytest.mark.verifies("eq-energy-distance")
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 3))
def test_energy_distance_is_symmetric_and_not_negative(n, m, dim):
    x, y = noise(n, dim), noise(m, dim, seed=1)
    there, back = energy_distance(x, y), energy_distance(y, x)
    assert there == pytest.approx(back, abs=1e-12)
    assert there >= -1e-12


@given(st.floats(0.1, 10), st.floats(-100, 100))
def test_energy_distance_scales_and_does_not_feel_shifts(scale, shift):
    x, y = noise(20, 2), noise(30, 2, seed=1) + 1
    here = energy_distance(x, y)
    there = energy_distance(scale * x + shift, scale * y + shift)
    assert there == pytest.approx(scale * here, rel=1e-9)


def test_energy_distance_of_two_points_is_twice_their_distance():
    x, y = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    assert energy_distance(x, y) == 10


def test_energy_distance_in_parts_is_the_whole():
    x, y = noise(2500, 2), noise(1100, 2, seed=1)

    def mean(a, b):
        return (a[:, None] - b).norm(dim=-1).mean().item()

    expected = 2 * mean(x, y) - mean(x, x) - mean(y, y)
    assert energy_distance(x, y) == pytest.approx(expected, abs=1e-12)


@pytest.mark.usefixtures("plain_errors")
@pytest.mark.parametrize(
    ("x", "y"),
    [
        (torch.zeros(0, 2), torch.zeros(3, 2)),
        (torch.zeros(3, 2), torch.zeros(0, 2)),
        (torch.zeros(3, 2), torch.zeros(3, 1)),
    ],
)
def test_energy_distance_refuses_other_samples(x, y):
    with pytest.raises(
        ValueError, match=r"^x and y must be samples \[N, D\]"
    ):
        energy_distance(x, y)
