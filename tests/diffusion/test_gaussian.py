"""Laws of densities, posteriors and divergences, and what they refuse."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from tangled.diffusion.gaussian import (
    LinearGaussianChain,
    gaussian_kl,
    linear_gaussian_posterior,
    log_normal,
    multivariate_kl,
)
from tangled.workshop.statistics import standard_score

numbers = st.floats(-5, 5)
variances = st.floats(0.01, 20)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def noise(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype)


def tables(T, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand(3, T + 1, generator=generator, dtype=torch.float64)
    return rows[0], rows[1] - 0.5, rows[2] + 0.1


@given(numbers, variances)
def test_density_integrates_to_one(mean, variance):
    width = 12 * variance**0.5
    x = torch.linspace(mean - width, mean + width, 4001, dtype=torch.float64)
    mass = torch.trapezoid(log_normal(x, mean, variance).exp(), x)
    assert mass.item() == pytest.approx(1, abs=1e-12)


@given(numbers, numbers, variances, st.floats(0.1, 5))
def test_density_scales_like_a_density(x, mean, variance, scale):
    here = log_normal(tensor(x), mean, variance)
    there = log_normal(tensor(scale * x), scale * mean, scale**2 * variance)
    assert_close(there, here - math.log(scale), rtol=1e-10, atol=1e-10)


@pytest.mark.verifies("prop-gaussian-kl")
@given(numbers, variances, numbers, variances)
def test_divergence_is_not_negative_and_zero_for_equal_laws(m1, v1, m2, v2):
    assert gaussian_kl(m1, v1, m2, v2) >= -1e-12
    assert gaussian_kl(m1, v1, m1, v1) == 0


@given(numbers, variances, numbers, variances, st.floats(0.1, 5), numbers)
def test_divergence_does_not_feel_units(m1, v1, m2, v2, scale, shift):
    here = gaussian_kl(m1, v1, m2, v2)
    there = gaussian_kl(
        scale * m1 + shift, scale**2 * v1, scale * m2 + shift, scale**2 * v2
    )
    assert_close(there, here, rtol=1e-9, atol=1e-10)


@pytest.mark.verifies("prop-gaussian-kl")
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_full_and_diagonal_divergence_agree(batch):
    means = noise(2, *batch, 4)
    first, second = noise(2, *batch, 4, seed=1).exp()
    each = gaussian_kl(means[0], first, means[1], second)
    full = multivariate_kl(
        means[0], first.diag_embed(), means[1], second.diag_embed()
    )
    assert full.shape == batch
    assert_close(full, each.sum(-1), rtol=1e-12, atol=1e-12)


@pytest.mark.verifies("lem-linear-gaussian-bayes")
@given(numbers, variances, numbers, numbers, variances)
def test_posterior_precision_is_a_sum(m, v, y, c, r):
    mean, variance = linear_gaussian_posterior(m, v, tensor(y), c, r)
    precision = 1 / v + c**2 / r
    assert variance.item() == pytest.approx(1 / precision, rel=1e-10)
    expected = (m / v + c * y / r) / precision
    assert mean.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.verifies("lem-linear-gaussian-bayes")
@given(numbers, variances, numbers, numbers, numbers, variances)
def test_prior_times_likelihood_is_evidence_times_posterior(u, v, y, m, c, r):
    u, y = tensor(u), tensor(y)
    joint = log_normal(u, m, v) + log_normal(y, c * u, r)
    posterior = linear_gaussian_posterior(m, v, y, c, r)
    evidence = log_normal(y, c * m, c**2 * v + r)
    assert_close(
        evidence + log_normal(u, *posterior), joint, rtol=1e-8, atol=1e-8
    )


def test_an_exact_prior_stays_and_an_exact_reading_decides():
    y = tensor(3.0, 4.0)
    mean, variance = linear_gaussian_posterior(1.5, 0.0, y, 2.0, 0.7)
    assert_close(mean, tensor(1.5, 1.5))
    assert variance == 0
    mean, variance = linear_gaussian_posterior(1.5, 0.7, y, 2.0, 0.0)
    assert_close(mean, y / 2)
    assert variance == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_results_have_the_dtype_of_the_tensors(dtype):
    x = noise(3, dtype=dtype)
    assert log_normal(x, 0.0, 1.0).dtype == dtype
    assert gaussian_kl(x, 1.0, 0.0, 2.0).dtype == dtype
    mean, _ = linear_gaussian_posterior(x, 1.0, x, 0.5, 1.0)
    assert mean.dtype == dtype
    eye = torch.eye(3, dtype=dtype)
    assert multivariate_kl(x, eye, x, eye).dtype == dtype


def test_gradients_reach_every_argument():
    arguments = [t.requires_grad_() for t in (noise(2), noise(2).exp())]
    gaussian_kl(*arguments, 0.0, 1.0).sum().backward()
    mean, variance = arguments
    assert_close(mean.grad, mean.detach())
    assert_close(variance.grad, (1 - 1 / variance.detach()) / 2)


@pytest.mark.verifies("prop-linear-gaussian-chain")
@pytest.mark.parametrize("T", [1, 2, 7])
def test_chain_moments_against_simulation(T):
    chain = LinearGaussianChain(*tables(T))
    xi = noise(T + 1, 100_000)
    states = [xi[T]]
    for t in range(T, 0, -1):
        step = chain.slope[t] * states[0] + chain.shift[t]
        states.insert(0, step + chain.std[t] * xi[t - 1])
    x = torch.stack(states) - chain.joint()[0][:, None]
    covariance = chain.joint()[1]
    for t in range(T + 1):
        assert abs(standard_score(x[t], 0.0)) < 5
        for u in range(T + 1):
            z = standard_score(x[t] * x[u], covariance[t, u].item())
            assert abs(z) < 5


@pytest.mark.verifies("prop-linear-gaussian-chain")
def test_a_chain_of_one_step_is_a_noisy_reading():
    chain = LinearGaussianChain(*tables(1))
    x0 = noise(4)
    mean, covariance = chain.condition(x0)
    k, c, s = chain.slope[1], chain.shift[1], chain.std[1]
    expected = linear_gaussian_posterior(0.0, 1.0, x0 - c, k, s**2)
    assert_close(mean[:, 0], expected[0])
    assert_close(covariance[0, 0], expected[1])
    assert_close(chain.log_prob(x0), log_normal(x0, c, k**2 + s**2))


def test_entry_zero_of_the_chain_is_not_used():
    one = LinearGaussianChain(*tables(3))
    changed = [table.clone() for table in tables(3)]
    for table in changed:
        table[0] = math.nan
    two = LinearGaussianChain(*changed)
    assert_close(one.joint(), two.joint(), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_chain_shapes(shape):
    chain = LinearGaussianChain(*tables(5))
    assert chain.T == 5
    x0 = noise(*shape)
    assert chain.log_prob(x0).shape == shape
    mean, covariance = chain.condition(x0)
    assert (mean.shape, covariance.shape) == ((*shape, 5), (5, 5))


@pytest.mark.gpu
def test_results_stay_on_the_device_of_the_data():
    x, eye = noise(3).cuda(), torch.eye(3, dtype=torch.float64).cuda()
    assert log_normal(x, 0.0, 1.0).is_cuda
    assert gaussian_kl(x, 1.0, 0.0, 2.0).is_cuda
    assert multivariate_kl(x, eye, x, eye).is_cuda
    mean, _ = linear_gaussian_posterior(0.0, 1.0, x, 0.5, 1.0)
    assert mean.is_cuda
    chain = LinearGaussianChain(*(table.cuda() for table in tables(4)))
    assert chain.condition(x)[0].is_cuda
    assert_close(
        chain.log_prob(x).cpu(),
        LinearGaussianChain(*tables(4)).log_prob(x.cpu()),
    )


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_a_variance_must_be_positive(bad):
    x = tensor(1.0)
    for name, call in [
        ("variance", lambda: log_normal(x, 0.0, bad)),
        ("var1", lambda: gaussian_kl(x, bad, 0.0, 1.0)),
        ("var2", lambda: gaussian_kl(x, 1.0, 0.0, bad)),
    ]:
        with pytest.raises(
            ValueError, match=rf"^{name} must be positive, got "
        ):
            call()


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"prior_var": -1.0}, "prior_var must not be negative, got -1.0"),
        ({"noise_var": math.nan}, "noise_var must not be negative, got nan"),
        (
            {"prior_var": 0.0, "noise_var": 0.0},
            r"scale\*\*2 \* prior_var \+ noise_var must be positive",
        ),
        (
            {"scale": 0.0, "noise_var": 0.0},
            r"scale\*\*2 \* prior_var \+ noise_var must be positive",
        ),
    ],
)
def test_a_posterior_without_a_law_is_refused(bad, sentence):
    good = {"prior_mean": 0.0, "prior_var": 1.0, "y": tensor(1.0)}
    good |= {"scale": 1.0, "noise_var": 1.0}
    with pytest.raises(ValueError, match=f"^{sentence}"):
        linear_gaussian_posterior(**(good | bad))


@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(2, 2),
        torch.tensor([[1.0, 2.0], [2.0, 1.0]]),
        torch.tensor([[1.0, 0.5], [0.0, 1.0]]),
    ],
)
def test_a_covariance_must_be_symmetric_and_positive(bad):
    mean, eye = torch.zeros(2), torch.eye(2)
    for name, pair in (("cov1", (bad, eye)), ("cov2", (eye, bad))):
        with pytest.raises(
            ValueError,
            match=f"^{name} must be symmetric and positive definite",
        ):
            multivariate_kl(mean, pair[0], mean, pair[1])


@pytest.mark.usefixtures("plain_errors")
@pytest.mark.parametrize(
    ("name", "bad", "sentence"),
    [
        ("slope", torch.ones(3), r"slope must be a float64 table \[T\+1\]"),
        ("shift", tensor(0.0, 0.0), "the tables must have equal length"),
        ("std", tensor(1.0, 0.0, 1.0), "std must be positive for t = 1..T"),
        (
            "std",
            torch.ones(3, 1, dtype=torch.float64),
            r"std must be a float64 table \[T\+1\]",
        ),
    ],
)
def test_a_chain_refuses_other_tables(name, bad, sentence):
    good = dict(zip(("slope", "shift", "std"), tables(2), strict=True))
    with pytest.raises(ValueError, match=f"^{sentence}"):
        LinearGaussianChain(**(good | {name: bad}))


def test_a_chain_has_a_step():
    one = tensor(1.0)
    with pytest.raises(ValueError, match="T at least 1"):
        LinearGaussianChain(one, one, one)
