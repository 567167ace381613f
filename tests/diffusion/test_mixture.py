"""Laws of Gaussian mixtures and of the energy distance, and what they refuse."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from tangled.diffusion.gaussian import log_normal
from tangled.diffusion.mixture import GaussianMixture, energy_distance
from tangled.workshop.statistics import standard_score


def noise(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def mixture(K=3, dim=2, seed=0, dtype=torch.float64):
    weights = noise(K, seed=seed).softmax(0)
    means, stds = 2 * noise(K, dim, seed=seed + 1), noise(K, seed=seed + 2)
    return GaussianMixture(
        weights.to(dtype), means.to(dtype), (stds / 2).exp().to(dtype)
    )


def test_one_part_is_a_gaussian():
    law = GaussianMixture(
        torch.ones(1), torch.tensor([[0.5, -1.0]]), torch.tensor([1.5])
    )
    x = noise(5, 2, dtype=torch.float32)
    assert_close(law.log_prob(x), log_normal(x, law.means[0], 1.5**2).sum(1))
    assert_close(law.score(x), (law.means[0] - x) / 1.5**2)
    assert torch.equal(law.responsibilities(x), torch.ones(5, 1))


@pytest.mark.verifies("prop-noisy-mixture")
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_score_is_the_gradient_of_the_log_density(dim):
    law, x = mixture(dim=dim), noise(7, dim, seed=9).requires_grad_()
    (gradient,) = torch.autograd.grad(law.log_prob(x).sum(), x)
    assert_close(law.score(x.detach()), gradient, rtol=0, atol=1e-12)


@pytest.mark.verifies("prop-noisy-mixture")
@given(st.floats(0.05, 1.0), st.floats(0.05, 2.0))
def test_the_denoiser_follows_from_the_score(signal, noise_std):
    """Two routes to E[x_0 | x_t]: part by part, and by the score of the noisy law."""
    law, x = mixture(), 2 * noise(6, 2, seed=9)
    score = law.diffused(signal, noise_std).score(x)
    by_score = (x + noise_std**2 * score) / signal
    assert_close(
        law.denoised(x, signal, noise_std), by_score, rtol=1e-8, atol=1e-8
    )


@given(st.floats(0.1, 1.0), st.floats(0, 1.0), st.floats(0.1, 1.0))
def test_two_noises_are_one(first, std, second):
    once = mixture().diffused(first, std).diffused(second, 0.5)
    total = math.sqrt((second * std) ** 2 + 0.25)
    direct = mixture().diffused(first * second, total)
    assert_close(once.means, direct.means)
    assert_close(once.stds, direct.stds)


@pytest.mark.verifies("prop-noisy-mixture")
def test_samples_after_noise_follow_the_diffused_law():
    law = mixture()
    x = law.sample(20_000, torch.Generator().manual_seed(1))
    noisy = 0.6 * x + 0.8 * noise(20_000, 2, seed=5)
    other = law.diffused(0.6, 0.8)
    mean = other.weights @ other.means
    second = other.weights @ (other.means**2 + other.stds[:, None] ** 2)
    for i in range(2):
        assert abs(standard_score(noisy[:, i], mean[i].item())) < 5
        assert abs(standard_score(noisy[:, i] ** 2, second[i].item())) < 5


def test_points_can_be_diffused_and_denoised_but_have_no_density():
    points = torch.tensor([[-2.0], [2.0]], dtype=torch.float64)
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    law = GaussianMixture(half, points, torch.zeros(2, dtype=torch.float64))
    x = torch.tensor([[0.0], [0.3]], dtype=torch.float64)
    # E[x_0 | x_t] of two points +-m is m tanh(a m x / variance).
    expected = 2 * torch.tanh(0.6 * 2 * x / 0.64)
    assert_close(law.denoised(x, 0.6, 0.8), expected)
    assert set(law.sample(50).flatten().tolist()) == {-2.0, 2.0}
    for method in (law.log_prob, law.score, law.responsibilities):
        with pytest.raises(ValueError, match=r"^stds must be positive for a"):
            method(x)


def test_far_away_the_density_does_not_underflow():
    x = torch.tensor([[1e4, -1e4]], dtype=torch.float64)
    assert mixture().log_prob(x).isfinite().all()
    assert_close(mixture().responsibilities(x).sum(1), torch.ones(1).double())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_results_follow_the_dtype_of_the_points(dtype):
    law, x = mixture(), noise(4, 2, dtype=dtype)
    assert law.log_prob(x).dtype == law.score(x).dtype == dtype
    assert law.denoised(x, 0.6, 0.8).dtype == dtype
    level = torch.tensor(0.6, dtype=torch.float64)
    assert law.denoised(x, level, level).dtype == dtype
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
    law, x = mixture(), noise(4, 2).cuda()
    assert_close(law.score(x).cpu(), law.score(x.cpu()))
    assert law.denoised(x, 0.6, 0.8).is_cuda
    on_gpu = GaussianMixture(
        law.weights.cuda(), law.means.cuda(), law.stds.cuda()
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
        ({"means": torch.zeros(3, 3)}, r"means must have shape \[2, D\]"),
        ({"means": torch.zeros(2)}, r"means must have shape \[2, D\]"),
        ({"stds": torch.ones(3)}, r"stds must have shape \[2\], got \[3\]"),
        ({"stds": -torch.ones(2)}, "stds must not be negative"),
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
