"""Densities, posteriors, divergences and the chain: what holds, and what is refused."""

import math

import pytest
import sympy
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
    rows = torch.randn(3, T + 1, generator=generator, dtype=torch.float64)
    return rows[0], rows[1], rows[2].abs() + 0.1  # slopes of both signs


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


@pytest.mark.verifies("lem-gaussian-closure")
def test_affine_images_are_gaussian_even_if_the_matrix_is_singular():
    """E exp(i u (A x + b)) by quadrature is that of the promised Gaussian."""
    mean, shift = tensor(0.3, -0.5), tensor(0.1, -0.2)
    covariance = tensor(1.0, 0.6, 0.6, 0.5).view(2, 2)
    image = tensor(1.0, -2.0, 0.5, -1.0).view(2, 2)
    grid = torch.linspace(-9, 9, 401, dtype=torch.float64)
    x = torch.cartesian_prod(grid, grid)
    square = ((x - mean) @ covariance.inverse() * (x - mean)).sum(1)
    weight = torch.softmax(-square / 2, 0)
    for u in (tensor(0.5, -0.3), tensor(0.7, 1.2)):
        found = (weight * torch.exp(1j * ((x @ image.T + shift) @ u))).sum()
        power = u @ image @ covariance @ image.T @ u
        expected = torch.exp(1j * (u @ (image @ mean + shift)) - power / 2)
        assert_close(found, expected, rtol=0, atol=1e-13)


@pytest.mark.refutes("lem-gaussian-closure")
def test_uncorrelated_is_not_enough_for_a_gaussian_sum():
    x = noise(100_000, seed=1)
    generator = torch.Generator().manual_seed(2)
    coin = 2 * torch.randint(2, x.shape, generator=generator) - 1
    assert abs(standard_score(x * coin * x, 0.0, 3**0.5)) < 5
    assert abs(standard_score((x + coin * x) ** 2, 2.0)) < 5
    still = (x + coin * x == 0).double()
    assert abs(standard_score(still, 0.5, 0.5)) < 5  # a Gaussian has 0


@pytest.mark.verifies("prop-gaussian-kl")
@given(numbers, variances, numbers, variances)
def test_divergence_is_not_negative_and_zero_for_equals(m1, v1, m2, v2):
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


@pytest.mark.verifies("prop-gaussian-kl")
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_full_divergence_is_its_formula(dim):
    """Inverses, traces and determinants of full matrices, letter by letter."""
    means, roots = noise(2, 3, dim), noise(2, 3, dim, dim, seed=1)
    cov1, cov2 = roots @ roots.mT + torch.eye(dim, dtype=torch.float64)
    gap, inverse = means[1] - means[0], cov2.inverse()
    expected = (inverse @ cov1).diagonal(dim1=1, dim2=2).sum(1) - dim
    expected += (gap[:, None] @ inverse @ gap[..., None]).flatten()
    expected += cov2.logdet() - cov1.logdet()
    found = multivariate_kl(means[0], cov1, means[1], cov2)
    assert_close(found, expected / 2, rtol=1e-11, atol=1e-11)


@pytest.mark.verifies("lem-linear-gaussian-bayes")
def test_completing_the_square_is_an_identity():
    u, y, m, c = sympy.symbols("u y m c", real=True)
    v, r = sympy.symbols("v r", positive=True)
    precision, total = 1 / v + c**2 / r, c**2 * v + r
    mean = (m / v + c * y / r) / precision
    square = (u - m) ** 2 / v + (y - c * u) ** 2 / r
    square -= (u - mean) ** 2 * precision + (y - c * m) ** 2 / total
    assert sympy.simplify(square) == 0  # the exponents agree
    assert sympy.simplify(total / precision - v * r) == 0  # the constants


@pytest.mark.refutes("lem-linear-gaussian-bayes")
def test_a_prior_with_two_peaks_has_another_posterior_mean():
    u = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    parts = [log_normal(u, m, 0.04) for m in (-1.0, 1.0)]  # variance 1.04
    weight = torch.softmax(
        torch.logaddexp(*parts) + log_normal(u, 0.5, 0.5), 0
    )
    linear, _ = linear_gaussian_posterior(0.0, 1.04, tensor(0.5), 1.0, 0.5)
    assert (weight * u).sum() - linear > 0.3


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


def test_numbers_leave_a_single_float32_as_it_is():
    x = torch.tensor(0.3)
    assert log_normal(x, 0.0, 0.7).dtype == torch.float32
    assert gaussian_kl(x, 0.7, 0.0, 2.0).dtype == torch.float32
    posterior = linear_gaussian_posterior(0.0, 1.0, x, 0.5, 0.7)
    assert [value.dtype for value in posterior] == [torch.float32] * 2


def test_numbers_alone_give_a_number():
    assert gaussian_kl(22.4, 0.8, 20.0, 4.0) == pytest.approx(1.124719, 1e-6)
    assert gaussian_kl(20.0, 4.0, 22.4, 0.8) == pytest.approx(4.795281, 1e-6)


def test_no_value_of_a_tensor_is_read():
    """What reads a value cannot be mapped, nor compiled into one graph."""
    x, variance = noise(4), noise(4, seed=1).exp()
    for function, arguments in (
        (log_normal, (x, x + 1, variance)),
        (gaussian_kl, (x, variance, x + 1, 2 * variance)),
        (linear_gaussian_posterior, (x, variance, x + 1, x, 2 * variance)),
    ):
        mapped = torch.func.vmap(function)(*arguments)
        assert_close(mapped, function(*arguments))


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
    mean, covariance = chain.joint()
    std = covariance.diagonal().sqrt()
    x = (torch.stack(states) - mean[:, None]) / std[:, None]
    correlation = covariance / std / std[:, None]
    for t in range(T + 1):
        assert abs(standard_score(x[t], 0.0, 1.0)) < 5
        for s in range(T + 1):
            rho = correlation[t, s].item()  # Var(x_t x_s) is 1 + rho^2
            z = standard_score(x[t] * x[s], rho, (1 + rho**2) ** 0.5)
            assert abs(z) < 5


@pytest.mark.verifies("prop-linear-gaussian-chain")
def test_a_chain_of_one_step_is_a_noisy_reading():
    chain = LinearGaussianChain(*tables(1))
    x0 = noise(4)
    mean, covariance = chain.condition(x0)
    c, b, std = chain.slope[1], chain.shift[1], chain.std[1]
    expected = linear_gaussian_posterior(0.0, 1.0, x0 - b, c, std**2)
    assert_close(mean[:, 0], expected[0])
    assert_close(covariance[0, 0], expected[1])
    assert_close(chain.log_prob(x0), log_normal(x0, b, c**2 + std**2))


@pytest.mark.verifies("prop-linear-gaussian-chain")
@pytest.mark.parametrize("T", [1, 2, 7])
def test_joint_moments_are_those_of_the_product_of_steps(T):
    """The precision matrix of the chain, built from its steps, is inverted."""
    chain = LinearGaussianChain(*tables(T))
    steps = torch.eye(T + 1, dtype=torch.float64)  # L x = b + noise
    steps[range(T), range(1, T + 1)] = -chain.slope[1:]
    shift = torch.cat([chain.shift[1:], tensor(0.0)])
    std = torch.cat([chain.std[1:], tensor(1.0)])
    mean, covariance = chain.joint()
    assert_close(steps @ mean, shift, rtol=1e-11, atol=1e-11)
    expected = (std**2).diag()
    found = steps @ covariance @ steps.T
    assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.refutes("prop-linear-gaussian-chain")
def test_tables_in_the_wrong_order_are_another_chain():
    flipped = LinearGaussianChain(*(table.flip(0) for table in tables(4)))
    chain, x0 = LinearGaussianChain(*tables(4)), noise(9)
    assert (flipped.log_prob(x0) - chain.log_prob(x0)).abs().max() > 0.01


@pytest.mark.refutes("prop-reparameterisation-gradient")
def test_a_jump_hides_the_gradient():
    mean = tensor(0.3).requires_grad_()
    z = mean + noise(10_000)
    (found,) = torch.autograd.grad((z > 0).double().mean() + 0 * mean, mean)
    assert found == 0  # the derivative of Pr(z > 0) is the density, .38


def test_the_score_function_estimator_sees_the_jump():
    z = 0.3 + noise(100_000, seed=4)
    estimate = (z > 0).double() * (z - 0.3)  # f times d ln q / d mean
    density = log_normal(tensor(0.0), 0.3, 1.0).exp().item()
    assert abs(standard_score(estimate, density)) < 5


@pytest.mark.refutes("prop-reparameterisation-gradient")
def test_a_smooth_bounded_function_whose_gradient_has_no_mean():
    """E |f'| for f = sin exp z^2, cut off at |z| = R, grows without bound."""
    means = []
    for edge in (1.5, 2.0, 2.5):
        z = torch.linspace(-edge, edge, 200_001, dtype=torch.float64)
        power = (z**2).exp()
        slope = (2 * z * power * power.cos()).abs()
        weight = log_normal(z, 0.0, 1.0).exp()
        means.append(torch.trapezoid(slope * weight, z).item())
    assert means[1] > 2 * means[0]
    assert means[2] > 2 * means[1]


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


@pytest.mark.parametrize("bad", [0.0, -1e-12, -1.0, math.nan])
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
        ({"prior_var": -1e-12}, "prior_var must not be negative, got -1e-12"),
        ({"noise_var": -1e-12}, "noise_var must not be negative, got -1e-12"),
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
def test_a_posterior_that_is_not_defined_is_refused(bad, sentence):
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
            match=f"^{name} must be symmetric positive definite",
        ):
            multivariate_kl(mean, pair[0], mean, pair[1])


@pytest.mark.usefixtures("plain_errors")
@pytest.mark.parametrize(
    ("name", "bad", "sentence"),
    [
        ("slope", torch.ones(3), r"slope must be float64 \[T\+1\]"),
        (
            "shift",
            tensor(0.0, 0.0),
            r"shift must be float64 \[T\+1\]",
        ),
        ("std", tensor(1.0, 0.0, 1.0), "std must be positive for t = 1..T"),
        ("std", tensor(1.0, 1.0, 0.0), "std must be positive for t = 1..T"),
        (
            "std",
            torch.ones(3, 1, dtype=torch.float64),
            r"std must be float64 \[T\+1\]",
        ),
    ],
)
def test_a_chain_refuses_other_tables(name, bad, sentence):
    good = dict(zip(("slope", "shift", "std"), tables(2), strict=True))
    with pytest.raises(ValueError, match=f"^{sentence}"):
        LinearGaussianChain(**(good | {name: bad}))


def test_a_chain_has_a_step():
    one = tensor(1.0)
    with pytest.raises(ValueError, match="T >= 1"):
        LinearGaussianChain(one, one, one)
