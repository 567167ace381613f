"""Checks of the chapter “Gaussians, KL and latent variables”.

Tangled from book/diffusion/gaussian.md.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from tangled.diffusion.gaussian import (
    LinearGaussianChain,
    gaussian_kl,
    linear_gaussian_posterior,
    log_normal,
    multivariate_kl,
)
from tangled.diffusion.latent import VAE, negative_elbo
from tangled.diffusion.mixture import GaussianMixture, energy_distance
from tangled.workshop.statistics import standard_score


def check_sum(variance_of_sum: Callable[[float, float], float]) -> None:
    """Compare the density of a sum, by convolution, with the claim."""
    x = torch.linspace(-30, 30, 6001, dtype=torch.float64)
    one = log_normal(x, 0.8, 0.09).exp()
    for y in torch.tensor([-1.0, 0.8, 2.5], dtype=torch.float64):
        convolution = torch.trapezoid(
            one * log_normal(y - x, 0.0, 0.75).exp(), x
        )
        claim = log_normal(y, 0.8, variance_of_sum(0.09, 0.75)).exp()
        torch.testing.assert_close(convolution, claim, rtol=1e-12, atol=0)


def test_variances_of_independent_gaussians_add():
    check_sum(lambda v, w: v + w)


def test_added_deviations_are_caught():
    with pytest.raises(AssertionError, match="not close"):
        check_sum(lambda v, w: (v**0.5 + w**0.5) ** 2)  # WRONG


def check_posterior(posterior: Callable[..., tuple[Tensor, Tensor]]):
    """Check what 50,000 draws leave of u after subtracting its mean."""
    generator = torch.Generator().manual_seed(0)
    xi = torch.randn(2, 50_000, generator=generator, dtype=torch.float64)
    m, v, c, r = 1.5, 0.7, -0.6, 0.4
    u = m + v**0.5 * xi[0]
    y = c * u + r**0.5 * xi[1]
    mean, variance = posterior(m, v, y, c, r)
    left = (u - mean) / variance**0.5  # promised: N(0, 1), whatever y is
    total = (c**2 * v + r) ** 0.5
    memory = standard_score(left * (y - c * m) / total, 0.0, 1.0)
    assert abs(standard_score(left, 0.0, 1.0)) < 5, "wrong mean"
    assert abs(memory) < 5, "what is left still knows the reading"
    assert abs(standard_score(left**2, 1.0, 2**0.5)) < 5, "wrong variance"
    inside = (left.abs() < 1).double()  # one deviation holds 68.27 percent
    assert abs(standard_score(inside, 0.682689, 0.465428)) < 5, "no Gaussian"


def test_what_is_left_is_standard_normal():
    check_posterior(linear_gaussian_posterior)


def trusting_the_reading(m, v, y, c, r):
    return y / c, torch.tensor(r / c**2)  # WRONG: forgets the prior


def without_slope(m, v, y, c, r):
    _, variance = linear_gaussian_posterior(m, v, y, c, r)
    return (r * m + v * y) / (r + v), variance  # WRONG: c is missing


def adding_variances(m, v, y, c, r):
    mean, _ = linear_gaussian_posterior(m, v, y, c, r)
    return mean, torch.tensor(v + r)  # WRONG: precisions add


def test_three_wrong_posteriors_are_caught():
    for wrong, reason in (
        (trusting_the_reading, "knows the reading"),
        (without_slope, "wrong mean"),
        (adding_variances, "wrong variance"),
    ):
        with pytest.raises(AssertionError, match=reason):
            check_posterior(wrong)


def two_parts() -> GaussianMixture:
    """Return the one-dimensional example .3 N(-1.5, .3^2) + .7 N(1, .5^2)."""
    numbers = [[0.3, 0.7], [-1.5, 1.0], [0.3, 0.5]]
    weights, means, stds = torch.tensor(numbers, dtype=torch.float64)
    return GaussianMixture(weights, means[:, None], stds)


def check_denoiser(candidate: Callable[..., Tensor]) -> None:
    """Compare density and best guess with integrals over x_0."""
    x0 = torch.linspace(-6, 6, 8001, dtype=torch.float64)
    xt = torch.linspace(-3, 3, 13, dtype=torch.float64)[:, None]
    prior = two_parts().log_prob(x0[:, None]).exp()
    for signal, noise_std in ((0.99, 0.1), (-0.7, 0.7), (0.1, 1.0)):
        joint = prior * log_normal(xt, signal * x0, noise_std**2).exp()
        density = torch.trapezoid(joint, x0)
        noisy = two_parts().diffused(signal, noise_std).log_prob(xt).exp()
        torch.testing.assert_close(noisy, density, rtol=1e-10, atol=0)
        exact = torch.trapezoid(joint * x0, x0) / density
        found = candidate(two_parts(), xt, signal, noise_std)[:, 0]
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-10)


def test_noisy_mixture_by_brute_force():
    check_denoiser(GaussianMixture.denoised)


def clean_shares(mixture, xt, signal, noise_std):
    of_part, _ = linear_gaussian_posterior(
        mixture.means,
        mixture.stds[:, None] ** 2,
        xt[:, None],
        signal,
        noise_std**2,
    )
    share = mixture.responsibilities(xt)  # WRONG: of the clean mixture
    return (share[..., None] * of_part).sum(1)


def test_responsibilities_of_the_clean_mixture_are_caught():
    with pytest.raises(AssertionError, match="not close"):
        check_denoiser(clean_shares)


MEANS = torch.tensor([[0.3, -0.5], [-0.4, 0.2]], dtype=torch.float64)
COVS = torch.tensor(
    [[[1.0, 0.6], [0.6, 0.5]], [[0.8, -0.3], [-0.3, 1.5]]],
    dtype=torch.float64,
)


def check_divergence(kl: Callable[..., Tensor]) -> None:
    """Compare a divergence with the mean log-ratio, on a grid."""
    side = torch.linspace(-9, 9, 601, dtype=torch.float64)
    x = torch.cartesian_prod(side, side)
    log1, log2 = (
        -((x - m) @ c.inverse() * (x - m)).sum(1) / 2
        - torch.linalg.det(2 * math.pi * c).log() / 2
        for m, c in zip(MEANS, COVS, strict=True)
    )
    area = (side[1] - side[0]) ** 2
    integral = (log1.exp() * (log1 - log2)).sum() * area
    found = kl(MEANS[0], COVS[0], MEANS[1], COVS[1])
    torch.testing.assert_close(found, integral, rtol=1e-10, atol=0)


def by_coordinates(kl, mean1, cov1, mean2, cov2):
    """Sum kl over coordinates in which cov2 is I and cov1 diagonal."""
    white = torch.linalg.cholesky(cov2).inverse()
    variances, turn = torch.linalg.eigh(white @ cov1 @ white.T)
    return kl(turn.T @ white @ (mean1 - mean2), variances, 0.0, 1.0).sum()


def test_divergence_is_the_mean_log_ratio():
    check_divergence(multivariate_kl)
    check_divergence(partial(by_coordinates, gaussian_kl))


def exchanged(mean1, cov1, mean2, cov2):
    return multivariate_kl(mean2, cov2, mean1, cov1)  # WRONG order


def without_logarithm(mean1, var1, mean2, var2):
    ratio = var1 / var2
    return (ratio + (mean2 - mean1) ** 2 / var2 - 1) / 2  # WRONG


def without_correlations(mean1, cov1, mean2, cov2):
    variances = cov1.diagonal(), cov2.diagonal()  # WRONG: full matrices
    return gaussian_kl(mean1, variances[0], mean2, variances[1]).sum()


def test_three_wrong_divergences_are_caught():
    for wrong in (
        exchanged,
        partial(by_coordinates, without_logarithm),
        without_correlations,
    ):
        with pytest.raises(AssertionError, match="not close"):
            check_divergence(wrong)


x_line = torch.linspace(-12, 12, 24_001, dtype=torch.float64)
# Of the mixture: mean .3 (-1.5) + .7, second moment .3 (2.25 + .09) + .7 (1.25).
MEAN, STD = 0.25, (0.3 * 2.34 + 0.7 * 1.25 - 0.25**2) ** 0.5


def divergence(log_q: Tensor, log_p: Tensor) -> Tensor:
    return torch.trapezoid(log_q.exp() * (log_q - log_p), x_line)


def check_fit(divergence: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Compare entropy plus divergence with the cross-entropy."""
    log_q = two_parts().log_prob(x_line[:, None])
    entropy = torch.trapezoid(-log_q.exp() * log_q, x_line)
    costs = []
    for shift, factor in (
        (0, 1),
        (0.02, 1),
        (-0.02, 1),
        (0, 1.02),
        (0, 0.98),
    ):
        mean, std = MEAN + shift, STD * factor
        spread = (STD**2 + shift**2) / std**2  # E_q (x - mean)^2 / std^2
        exact = (spread + math.log(2 * math.pi * std**2)) / 2
        log_p = log_normal(x_line, mean, std**2)
        costs.append(entropy + divergence(log_q, log_p))
        assert abs(costs[-1] - exact) < 1e-10, "not the cross-entropy"
    assert all(costs[0] < cost for cost in costs[1:])


def test_fitting_a_gaussian_matches_its_moments():
    check_fit(divergence)


def test_the_other_direction_is_another_problem():
    with pytest.raises(AssertionError, match="not the cross-entropy"):
        check_fit(lambda log_q, log_p: divergence(log_p, log_q))  # WRONG


def linear_bound(y, q_mean, q_var, c, r):
    """Return -ELBO of u ~ N(20, 4), y | u ~ N(c u, r), term by term."""
    error = log_normal(y, c * q_mean, r) - c**2 * q_var / (2 * r)
    return gaussian_kl(q_mean, q_var, 20.0, 4.0) - error


def check_gap(bound: Callable[..., Tensor]) -> None:
    """Compare a bound with evidence plus divergence from the posterior."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(2, 100, generator=generator, dtype=torch.float64)
    q_mean, q_var = 18 + 6 * draws[0], 0.1 + 5 * draws[1]
    for y, c, r in [(23.0, 1.0, 1.0), (7.0, 0.5, 3.0), (-30.0, -1.5, 0.2)]:
        y = torch.tensor(y, dtype=torch.float64)
        posterior = linear_gaussian_posterior(20.0, 4.0, y, c, r)
        evidence = -log_normal(y, c * 20.0, c**2 * 4.0 + r)
        exact = evidence + gaussian_kl(q_mean, q_var, *posterior)
        found = bound(y, q_mean, q_var, c, r)
        torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)


def test_the_gap_is_the_divergence_from_the_posterior():
    check_gap(linear_bound)
    lazy = linear_bound(torch.tensor(23.0), 20.0, 4.0, 1.0, 1.0)
    evidence = -log_normal(torch.tensor(23.0), 20.0, 5.0)
    assert abs(lazy - 7.41894) < 1e-5  # the thermometer, by hand
    assert abs(evidence - 2.62366) < 1e-5


def backwards(y, q_mean, q_var, c, r):
    right = gaussian_kl(q_mean, q_var, 20.0, 4.0)
    wrong = gaussian_kl(20.0, 4.0, q_mean, q_var)  # WRONG direction
    return linear_bound(y, q_mean, q_var, c, r) - right + wrong


def without_spread(y, q_mean, q_var, c, r):
    price = gaussian_kl(q_mean, q_var, 20.0, 4.0)
    return price - log_normal(y, c * q_mean, r)  # WRONG: only at its mean


def test_a_divergence_turned_round_and_a_missing_average_are_caught():
    for wrong in (backwards, without_spread):
        with pytest.raises(AssertionError, match="not close"):
            check_gap(wrong)


def check_gradient(draw: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Compare E of the gradient of sin(draw(mean, std, eps)), by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    eps, weights = torch.tensor(nodes), torch.tensor(weights)
    for mean, std in [(0.0, 1.0), (0.7, 0.5), (-2.0, 1.3)]:
        theta = torch.tensor([mean, std], dtype=torch.float64)
        m, s = theta.requires_grad_()
        value = weights / weights.sum() @ draw(m, s, eps).sin()
        (found,) = torch.autograd.grad(value + 0 * m, theta)
        by_mean = math.exp(-(std**2) / 2) * math.cos(mean)
        by_std = -std * math.exp(-(std**2) / 2) * math.sin(mean)
        expected = torch.tensor([by_mean, by_std], dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_the_gradient_of_a_draw_that_is_made():
    check_gradient(lambda mean, std, eps: mean + std * eps)


def test_draws_that_forget_a_parameter_are_caught():
    for wrong in (
        lambda mean, std, eps: mean.detach() + std.detach() * eps,
        lambda mean, std, eps: mean + std.detach() * eps,
        lambda mean, std, eps: mean + std**2 * eps,  # variance for deviation
    ):
        with pytest.raises(AssertionError, match="not close"):
            check_gradient(wrong)


@torch.no_grad()
def exact_terms(vae: VAE, x: Tensor, n: int = 201) -> tuple[Tensor, Tensor]:
    """Return -ln p(x) and KL(q(z|x) || p(z|x)) of each x, on a grid."""
    side = torch.linspace(-5, 5, n, dtype=torch.float64)
    z, area = torch.cartesian_prod(side, side), (side[1] - side[0]) ** 2
    mean, log_r = vae.decode(z)
    prior = log_normal(z, 0.0, 1.0).sum(1)
    terms = []
    for point, m, log_v in zip(x, *vae.encode(x), strict=True):
        joint = prior + log_normal(point, mean, log_r.exp()).sum(1)
        evidence = joint.logsumexp(0) + area.log()
        log_q = log_normal(z, m, log_v.exp()).sum(1)
        gap = (log_q.exp() * (log_q - joint + evidence)).sum() * area
        terms.append(torch.stack([-evidence, gap]))
    return torch.stack(terms).unbind(1)


def check_loss(loss: Callable[[VAE, Tensor, Tensor], Tensor]) -> None:
    """Compare the mean of a loss over its noise with the exact value."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = VAE(dim=2, latent_dim=2).double()
    with torch.no_grad():
        vae.encoder[-1].bias[2:] = -2.0  # log variances near -2
        x = torch.tensor([[1.3, -0.2]], dtype=torch.float64)
        generator = torch.Generator().manual_seed(0)
        eps = torch.randn(20_000, 2, generator=generator, dtype=x.dtype)
        draws = loss(vae, x.expand(20_000, 2), eps)
    evidence, gap = exact_terms(vae, x)
    z = standard_score(draws, (evidence + gap).item())
    assert abs(z) < 5, f"off by {z:.0f} standard errors"


def test_the_loss_is_the_evidence_plus_the_gap():
    check_loss(negative_elbo)


def reconstruction(vae, x, z):
    mean, log_r = vae.decode(z)
    return -log_normal(x, mean, log_r.exp())


def variance_for_deviation(vae, x, eps):
    mean, log_var = vae.encode(x)
    z = mean + log_var.exp() * eps  # WRONG: half of log_var
    price = gaussian_kl(mean, log_var.exp(), 0.0, 1.0)
    return reconstruction(vae, x, z).sum(1) + price.sum(1)


def mean_for_sum(vae, x, eps):
    mean, log_var = vae.encode(x)
    z = mean + (log_var / 2).exp() * eps
    price = gaussian_kl(mean, log_var.exp(), 0.0, 1.0)
    return reconstruction(vae, x, z).mean(1) + price.sum(1)  # WRONG: mean


def exchanged_order(vae, x, eps):
    mean, log_var = vae.encode(x)
    z = mean + (log_var / 2).exp() * eps
    price = gaussian_kl(0.0, 1.0, mean, log_var.exp())  # WRONG direction
    return reconstruction(vae, x, z).sum(1) + price.sum(1)


def test_three_wrong_losses_are_caught():
    for wrong in (variance_for_deviation, mean_for_sum, exchanged_order):
        with pytest.raises(AssertionError, match="standard errors"):
            check_loss(wrong)


def check_energy(distance: Callable[[Tensor, Tensor], float]) -> None:
    """Compare with twice the area between two distribution functions."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 300, 1, generator=generator, dtype=torch.float64)
    y = 1.5 * y + 0.4
    grid = torch.cat([x, y]).flatten().sort().values
    below = [(sample <= grid).double().mean(0) for sample in (x, y)]
    area = 2 * ((below[0] - below[1])[:-1] ** 2 * grid.diff()).sum()
    assert abs(distance(x, y) - area) < 1e-12, "not the area"


def test_energy_distance_on_a_line_is_an_area():
    check_energy(energy_distance)


def test_the_distance_of_means_and_a_forgotten_factor_are_caught():
    for wrong in (
        lambda x, y: (x.mean(0) - y.mean(0)).norm(),
        lambda x, y: energy_distance(x, y) / 2,
    ):
        with pytest.raises(AssertionError, match="not the area"):
            check_energy(wrong)


def check_chain(condition: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """Compare evidence times posterior with the product of the steps."""
    generator = torch.Generator().manual_seed(3)
    tables = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    chain = LinearGaussianChain(tables[0], tables[1], tables[2].abs() + 0.3)
    x = torch.randn(50, 5, generator=generator, dtype=torch.float64)
    steps = log_normal(x[:, 4], 0.0, 1.0)
    for t in range(4, 0, -1):
        mean = chain.slope[t] * x[:, t] + chain.shift[t]
        steps = steps + log_normal(x[:, t - 1], mean, chain.std[t] ** 2)
    given = torch.distributions.MultivariateNormal(*condition(chain, x[:, 0]))
    total = chain.log_prob(x[:, 0]) + given.log_prob(x[:, 1:])
    torch.testing.assert_close(total, steps, rtol=1e-11, atol=0)


def test_evidence_times_posterior_is_the_joint():
    check_chain(LinearGaussianChain.condition)


def independent(chain, x0):
    mean, covariance = chain.condition(x0)
    return mean, covariance.diagonal().diag()  # WRONG: they are not


def test_ignoring_the_covariance_of_the_posterior_is_caught():
    with pytest.raises(AssertionError, match="not close"):
        check_chain(independent)
