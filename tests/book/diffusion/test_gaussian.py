"""Checks of the chapter “Gaussians, KL and latent variables”.

Tangled from book/diffusion/gaussian.md.
"""

import math
from collections.abc import Callable

import numpy as np
import sympy
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


def test_affine_images_are_gaussian():
    mean = torch.tensor([0.3, -0.5], dtype=torch.float64)
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
    image = torch.tensor([[1.0, -2.0], [0.5, -1.0]], dtype=torch.float64)  # A
    shift = torch.tensor([0.1, -0.2], dtype=torch.float64)  # b
    grid = torch.linspace(-9, 9, 401, dtype=torch.float64)
    x = torch.cartesian_prod(grid, grid)
    square = ((x - mean) @ covariance.inverse() * (x - mean)).sum(1)
    weight = torch.softmax(-square / 2, 0)
    for u in torch.tensor([[0.5, -0.3], [0.7, 1.2]], dtype=torch.float64):
        found = (weight * torch.exp(1j * ((x @ image.T + shift) @ u))).sum()
        power = u @ image @ covariance @ image.T @ u
        expected = torch.exp(1j * (u @ (image @ mean + shift)) - power / 2)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_independent_gaussians_add():
    x = torch.linspace(-30, 30, 6001, dtype=torch.float64)
    scaled = log_normal(x, 0.5 * 1.6, 0.25 * 0.36).exp()  # 0.5 N(1.6, 0.36)
    for y in (-1.0, 0.8, 2.5):
        fresh = log_normal(y - x, 0.0, 0.75).exp()
        convolution = torch.trapezoid(scaled * fresh, x)
        at = torch.tensor(y, dtype=torch.float64)
        expected = log_normal(at, 0.8, 0.84).exp()
        torch.testing.assert_close(convolution, expected, rtol=1e-12, atol=0)


def test_uncorrelated_is_not_enough():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(100_000, generator=generator, dtype=torch.float64)
    coin = 2 * torch.randint(2, x.shape, generator=generator) - 1
    total = x + coin * x
    assert abs((x * coin * x).mean()) < 0.03  # uncorrelated
    assert 0.49 < (total == 0).double().mean() < 0.51  # half its mass on 0


def test_completing_the_square():
    u, y, m, c = sympy.symbols("u y m c", real=True)
    v, r = sympy.symbols("v r", positive=True)
    precision = 1 / v + c**2 / r
    mean = (m / v + c * y / r) / precision
    total = c**2 * v + r

    square = (u - m) ** 2 / v + (y - c * u) ** 2 / r
    square -= (u - mean) ** 2 * precision + (y - c * m) ** 2 / total
    assert sympy.simplify(square) == 0  # the exponents agree
    assert sympy.simplify(total / precision - v * r) == 0  # the constants
    code_mean = (r * m + c * v * y) / total
    assert sympy.simplify(code_mean - mean) == 0
    assert sympy.simplify(v * r / total - 1 / precision) == 0


def bayes_scores(posterior: Callable[..., tuple[Tensor, Tensor]]):
    """Return the standard scores of three promises about u given y."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 50_000, generator=generator, dtype=torch.float64)
    m, v, c, r = 1.5, 0.7, 0.6, 0.4
    u = m + v**0.5 * noise[0]
    y = c * u + r**0.5 * noise[1]
    mean, variance = posterior(m, v, y, c, r)
    left = u - mean
    square = left**2 / variance
    return [
        standard_score(left, 0.0),
        standard_score(left * y, 0.0),
        standard_score(square, 1.0),
    ]


def test_what_is_left_has_the_promised_law():
    assert all(abs(z) < 5 for z in bayes_scores(linear_gaussian_posterior))


def adding_variances(m, v, y, c, r):
    return (m * r + y * v) / (v + r), v * r / (v + r)  # WRONG: c is missing


def trusting_the_reading(m, v, y, c, r):
    return y / c, torch.tensor(r / c**2)  # WRONG: forgets the prior


def test_a_missing_scale_and_a_missing_prior_are_caught():
    for wrong in (adding_variances, trusting_the_reading):
        assert max(abs(z) for z in bayes_scores(wrong)) > 20


def test_a_prior_with_two_peaks_has_another_posterior_mean():
    u = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    parts = [log_normal(u, m, 0.04) for m in (-1.0, 1.0)]  # variance 1.04
    weight = torch.softmax(
        torch.logaddexp(*parts) + log_normal(u, 0.5, 0.5), 0
    )
    y = torch.tensor(0.5, dtype=torch.float64)
    linear, _ = linear_gaussian_posterior(0.0, 1.04, y, 1.0, 0.5)
    assert (weight * u).sum() - linear > 0.3


def two_parts() -> GaussianMixture:
    """Return the one-dimensional example .3 N(-1.5, .3^2) + .7 N(1, .5^2)."""
    numbers = [[0.3, 0.7], [-1.5, 1.0], [0.3, 0.5]]
    weights, means, stds = torch.tensor(numbers, dtype=torch.float64)
    return GaussianMixture(weights, means[:, None], stds)


def brute_force(xt: Tensor, signal: float, noise_std: float):
    """Return density of x_t and posterior mean of x_0, by quadrature."""
    x0 = torch.linspace(-6, 6, 8001, dtype=torch.float64)
    parts = ((0.3, -1.5, 0.09), (0.7, 1.0, 0.25))  # not by our class
    prior = sum(w * log_normal(x0, m, v).exp() for w, m, v in parts)
    given = log_normal(xt, signal * x0, noise_std**2)  # [13, 8001]
    joint = prior * given.exp()
    density = torch.trapezoid(joint, x0)
    return density, torch.trapezoid(joint * x0, x0) / density


def test_score_is_the_gradient():
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)[:, None]
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(two_parts().log_prob(x).sum(), x)
    score = two_parts().score(x.detach())
    torch.testing.assert_close(score, gradient, rtol=0, atol=1e-12)


def test_noisy_law_and_denoiser_against_quadrature():
    xt = torch.linspace(-3, 3, 13, dtype=torch.float64)[:, None]
    for signal, noise_std in ((0.99, 0.1), (0.7, 0.7), (0.1, 1.0)):
        density, mean = brute_force(xt, signal, noise_std)
        noisy = two_parts().diffused(signal, noise_std)
        denoised = two_parts().denoised(xt, signal, noise_std)
        found = noisy.log_prob(xt).exp()
        torch.testing.assert_close(found, density, rtol=1e-10, atol=0)
        torch.testing.assert_close(denoised[:, 0], mean, rtol=0, atol=1e-10)


def test_clean_responsibilities_and_added_deviations_are_caught():
    xt = torch.linspace(-3, 3, 13, dtype=torch.float64)[:, None]
    law, signal, noise_std = two_parts(), 0.7, 0.7
    density, mean = brute_force(xt, signal, noise_std)
    of_part, _ = linear_gaussian_posterior(
        law.means[:, 0], law.stds**2, xt, signal, noise_std**2
    )
    wrong = (law.responsibilities(xt) * of_part).sum(1)  # WRONG: clean law
    assert (wrong - mean).abs().max() > 0.1
    stds = signal * law.stds + noise_std  # WRONG: deviations do not add
    added = GaussianMixture(law.weights, signal * law.means, stds)
    assert (added.log_prob(xt).exp() - density).abs().max() > 0.01


def test_divergence_against_quadrature():
    x = torch.linspace(-12, 12, 8001, dtype=torch.float64)
    for one, two in [((0.3, 0.49), (-1.1, 3.61)), ((22.4, 0.8), (20.0, 4.0))]:
        log_p = log_normal(x + one[0], *one)
        log_q = log_normal(x + one[0], *two)
        integral = torch.trapezoid(log_p.exp() * (log_p - log_q), x)
        closed = gaussian_kl(*one, *two)
        torch.testing.assert_close(closed, integral, rtol=1e-10, atol=0)


def random_laws() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return means and covariance matrices of two laws in 4 dimensions."""
    generator = torch.Generator().manual_seed(1)
    means = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    roots = torch.randn(2, 4, 4, generator=generator, dtype=torch.float64)
    cov1, cov2 = roots @ roots.mT + torch.eye(4)
    return means[0], cov1, means[1], cov2


def divergence_score(candidate: Callable[..., Tensor]) -> float:
    """Return the standard score of a formula against 400,000 draws."""
    mean1, cov1, mean2, cov2 = random_laws()
    generator = torch.Generator().manual_seed(2)
    xi = torch.randn(400_000, 4, generator=generator, dtype=torch.float64)
    x = mean1 + xi @ torch.linalg.cholesky(cov1).mT
    law = torch.distributions.MultivariateNormal
    ratio = law(mean1, cov1).log_prob(x) - law(mean2, cov2).log_prob(x)
    return standard_score(ratio, candidate(mean1, cov1, mean2, cov2).item())


def test_divergence_in_four_dimensions_against_draws():
    assert abs(divergence_score(multivariate_kl)) < 5


def test_divergence_does_not_depend_on_coordinates():
    generator = torch.Generator().manual_seed(0)
    new = torch.tensor([[2.0, 1, 0], [0, 1, -1], [1, 0, 2]]).double()
    means = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    variances = torch.rand(2, 3, generator=generator).double() + 0.1
    terms = gaussian_kl(means[0], variances[0], means[1], variances[1])
    mean1, mean2 = means @ new.T
    cov1, cov2 = (new @ v.diag() @ new.T for v in variances)
    whole = multivariate_kl(mean1, cov1, mean2, cov2)
    torch.testing.assert_close(whole, terms.sum(), rtol=1e-12, atol=0)


def exchanged(mean1, cov1, mean2, cov2):
    return multivariate_kl(mean2, cov2, mean1, cov1)  # WRONG order


def without_determinants(mean1, cov1, mean2, cov2):
    logs = torch.logdet(cov2) - torch.logdet(cov1)
    return multivariate_kl(mean1, cov1, mean2, cov2) - logs / 2  # WRONG


def test_exchanged_laws_and_a_forgotten_logarithm_are_caught():
    for wrong in (exchanged, without_determinants):
        assert abs(divergence_score(wrong)) > 20


def test_the_order_of_the_two_laws_matters():
    there = gaussian_kl(torch.zeros(2), 1.0, 0.0, 3.0).sum()
    back = gaussian_kl(torch.zeros(2), 3.0, 0.0, 1.0).sum()
    assert abs(there - 0.432) < 1e-3
    assert abs(back - 0.901) < 1e-3


def on_a_line(mean: float, std: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return E_q[-ln p], KL(q || p) and KL(p || q) for p = N(mean, std^2)."""
    x = torch.linspace(-12, 12, 24_001, dtype=torch.float64)
    log_q = two_parts().log_prob(x[:, None])
    log_p = log_normal(x, mean, std**2)
    likelihood = torch.trapezoid(-log_q.exp() * log_p, x)
    forward = torch.trapezoid(log_q.exp() * (log_q - log_p), x)
    backward = torch.trapezoid(log_p.exp() * (log_p - log_q), x)
    return likelihood, forward, backward


# Of the mixture: mean .3 (-1.5) + .7, second moment .3 (2.25 + .09) + .7 (1.25).
MEAN, STD = 0.25, (0.3 * 2.34 + 0.7 * 1.25 - 0.25**2) ** 0.5
NEIGHBOURS = [
    (MEAN + i / 50, STD + j / 50) for i in (-1, 0, 1) for j in (-1, 0, 1)
]


def test_cross_entropy_is_entropy_plus_divergence():
    x = torch.linspace(-12, 12, 24_001, dtype=torch.float64)
    log_q = two_parts().log_prob(x[:, None])
    entropy = torch.trapezoid(-log_q.exp() * log_q, x)
    for mean, std in [(MEAN, STD), (-1.5, 0.3), (0.0, 2.0), (2.0, 0.9)]:
        spread = (STD**2 + (MEAN - mean) ** 2) / std**2  # E_q (x - m)^2 / v
        exact = (spread + math.log(2 * math.pi * std**2)) / 2
        likelihood, forward, _ = on_a_line(mean, std)
        assert abs(likelihood - exact) < 1e-10 * exact
        assert abs(entropy + forward - exact) < 1e-10 * exact


def test_the_best_gaussian_has_the_moments_of_the_data():
    costs = [on_a_line(*pair)[0] for pair in NEIGHBOURS]
    assert min(costs) == costs[4]  # the middle one, strictly
    assert sorted(costs)[1] > costs[4]


def test_the_other_direction_has_another_minimum():
    costs = [on_a_line(*pair)[2] for pair in NEIGHBOURS]
    assert min(costs) < costs[4]
    assert on_a_line(1.0, 0.5)[2] < on_a_line(MEAN, STD)[2]
    assert on_a_line(1.0, 0.5)[0] > on_a_line(MEAN, STD)[0] + 1


def test_points_have_no_entropy_and_a_mixture_overfits_without_bound():
    points = two_parts().sample(10, torch.Generator().manual_seed(0))
    fresh = two_parts().sample(2000, torch.Generator().manual_seed(1))
    seen, unseen = [], []
    for narrow in (1e-1, 1e-10, 1e-100):
        model = GaussianMixture(
            torch.tensor([0.5, 0.5], dtype=torch.float64),
            torch.stack([points[0], points.mean(0)]),
            torch.tensor([narrow, 1.5], dtype=torch.float64),
        )
        seen.append(model.log_prob(points).mean())
        unseen.append(model.log_prob(fresh).mean())
    assert seen[2] > seen[1] + 10 > seen[0] + 10  # better and better
    assert unseen[2] < unseen[0]  # while it is not


def test_energy_distance_on_a_line_is_an_area():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 300, 1, generator=generator, dtype=torch.float64)
    y = 1.5 * y + 0.4
    grid = torch.cat([x, y]).flatten().sort().values
    below = [(sample <= grid).double().mean(0) for sample in (x, y)]
    area = 2 * ((below[0] - below[1])[:-1] ** 2 * grid.diff()).sum()
    assert abs(energy_distance(x, y) - area) < 1e-12


def test_energy_distance_ignores_rotation_and_order_and_vanishes():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    y = x + torch.tensor([0.3, 0.0])
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    here = energy_distance(x, y)
    assert abs(energy_distance(x @ turn, y @ turn) - here) < 1e-12
    assert abs(energy_distance(y, x) - here) < 1e-12
    assert abs(energy_distance(x, x.flip(0))) < 1e-12
    assert here > 0.01


def test_equal_means_are_not_enough():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 1000, 2, generator=generator)
    y = y.sign()  # mean 0 and variance 1 as well, but four points
    means_apart = (x.mean(0) - y.mean(0)).norm()
    assert means_apart < 0.1  # the distance of the means sees nothing
    assert energy_distance(x, y) > 0.05


def linear_terms(y: float, q_mean: Tensor, q_var: Tensor, c: float, r: float):
    """Return -ELBO, -ln p(y) and the posterior, for u ~ N(20, 4)."""
    reading = torch.tensor(y, dtype=torch.float64)
    error = log_normal(reading, c * q_mean, r) - c**2 * q_var / (2 * r)
    bound = gaussian_kl(q_mean, q_var, 20.0, 4.0) - error
    evidence = -log_normal(reading, c * 20.0, c**2 * 4.0 + r)
    posterior = linear_gaussian_posterior(20.0, 4.0, reading, c, r)
    return bound, evidence, posterior


def test_the_gap_is_the_divergence_from_the_posterior():
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(2, 100, generator=generator, dtype=torch.float64)
    q_mean, q_var = 18 + 6 * draws[0], 0.1 + 5 * draws[1]
    for y, c, r in [(23.0, 1.0, 1.0), (7.0, 0.5, 3.0), (-30.0, -1.5, 0.2)]:
        bound, evidence, posterior = linear_terms(y, q_mean, q_var, c, r)
        gap = gaussian_kl(q_mean, q_var, *posterior)
        torch.testing.assert_close(
            bound, evidence + gap, rtol=1e-12, atol=1e-12
        )
        tight, _, _ = linear_terms(y, *posterior, c, r)
        assert abs(tight - evidence) < 1e-12 * evidence


def test_the_lazy_guess_of_the_thermometer():
    lazy = torch.tensor(20.0).double(), torch.tensor(4.0).double()
    bound, evidence, _ = linear_terms(23.0, *lazy, 1.0, 1.0)
    assert abs(bound - 7.41894) < 1e-5
    assert abs(evidence - 2.62366) < 1e-5
    assert abs(bound - evidence - 4.79528) < 1e-5


def test_the_other_direction_and_the_prior_are_not_the_gap():
    q_mean, q_var = torch.tensor([21.0, 3.0]).double()
    bound, evidence, posterior = linear_terms(23.0, q_mean, q_var, 1.0, 1.0)
    gap = bound - evidence
    backward = gaussian_kl(*posterior, q_mean, q_var)  # WRONG direction
    from_prior = gaussian_kl(q_mean, q_var, 20.0, 4.0)  # WRONG: not posterior
    for wrong in (backward, from_prior):
        assert abs(wrong - gap) > 0.1


def test_a_law_that_is_not_normalised_breaks_the_bound():
    _, evidence, posterior = linear_terms(
        23.0, *torch.tensor([20.0, 4.0]).double(), 1.0, 1.0
    )
    bound, _, _ = linear_terms(23.0, *posterior, 1.0, 1.0)
    wrong = bound - math.log(2)  # WRONG: q / 2 in place of q
    assert wrong < evidence - 0.5  # claims more than there is


def random_chain() -> LinearGaussianChain:
    """Return a chain of four steps."""
    generator = torch.Generator().manual_seed(3)
    tables = torch.rand(3, 5, generator=generator, dtype=torch.float64)
    low = torch.tensor([[0.4], [-0.4], [0.3]])
    width = torch.tensor([[0.5], [0.8], [0.4]])
    return LinearGaussianChain(*(low + width * tables))


def product_of_steps(chain: LinearGaussianChain, x: Tensor) -> Tensor:
    """Return ln p(x_0, ..., x_T) for points [N, T+1], step by step."""
    total = log_normal(x[:, -1], 0.0, 1.0)
    for t in range(chain.T, 0, -1):
        mean = chain.slope[t] * x[:, t] + chain.shift[t]
        total = total + log_normal(x[:, t - 1], mean, chain.std[t] ** 2)
    return total


def points_of_the_chain() -> Tensor:
    """Return 50 points [50, 5] at which densities are compared."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(50, 5, generator=generator, dtype=torch.float64)


def test_the_joint_law_is_the_product_of_the_steps():
    chain, x = random_chain(), points_of_the_chain()
    joint = torch.distributions.MultivariateNormal(*chain.joint())
    steps = product_of_steps(chain, x)
    torch.testing.assert_close(joint.log_prob(x), steps, rtol=1e-12, atol=0)


def test_evidence_times_posterior_is_the_joint_law():
    chain, x = random_chain(), points_of_the_chain()
    given = torch.distributions.MultivariateNormal(*chain.condition(x[:, 0]))
    total = chain.log_prob(x[:, 0]) + given.log_prob(x[:, 1:])
    steps = product_of_steps(chain, x)
    torch.testing.assert_close(total, steps, rtol=1e-12, atol=0)


def test_ignoring_the_covariance_of_the_posterior_is_caught():
    chain, x = random_chain(), points_of_the_chain()
    mean, covariance = chain.condition(x[:, 0])
    apart = log_normal(x[:, 1:], mean, covariance.diagonal()).sum(1)  # WRONG
    wrong = chain.log_prob(x[:, 0]) + apart
    assert (wrong - product_of_steps(chain, x)).abs().max() > 0.1


def test_running_the_recursion_the_wrong_way_is_caught():
    chain = random_chain()
    flipped = LinearGaussianChain(  # WRONG: entry 0 is not at the end
        *(table.flip(0) for table in (chain.slope, chain.shift, chain.std))
    )
    x = points_of_the_chain()
    wrong = flipped.log_prob(x[:, 0])
    assert (wrong - chain.log_prob(x[:, 0])).abs().max() > 0.01


def gradient_of_mean(f: Callable[[Tensor], Tensor], mean: float, std: float):
    """Return E of the gradient of f(mean + std eps), by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    eps, weights = torch.tensor(nodes), torch.tensor(weights)
    theta = torch.tensor([mean, std], dtype=torch.float64, requires_grad=True)
    value = (weights / weights.sum() * f(theta[0] + theta[1] * eps)).sum()
    return torch.autograd.grad(value, theta)[0]


def test_gradient_of_a_sine():
    for mean, std in [(0.0, 1.0), (0.7, 0.5), (-2.0, 1.3)]:
        damping = math.exp(-(std**2) / 2)
        by_mean = damping * math.cos(mean)
        by_std = -std * damping * math.sin(mean)
        expected = torch.tensor([by_mean, by_std], dtype=torch.float64)
        found = gradient_of_mean(torch.sin, mean, std)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_jump_hides_the_gradient():
    def jump(z):
        return (z > 0).double() + 0 * z  # P(z > 0) is its mean

    found = gradient_of_mean(jump, 0.3, 1.0)
    truth = math.exp(-(0.3**2) / 2) / math.sqrt(2 * math.pi)
    assert torch.equal(found, torch.zeros(2).double())  # WRONG
    assert truth > 0.38


def test_a_law_that_depends_on_theta_hides_the_gradient():
    # z = eps with eps ~ N(0, std^2): E z^2 = std^2, the truth is 2 std.
    std = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    zeros = torch.zeros(100_000, dtype=torch.float64)
    drawn = torch.normal(zeros, std.expand(100_000), generator=generator)
    made = std * torch.randn(zeros.shape, generator=generator).double()
    (wrong,) = torch.autograd.grad((drawn**2).mean() + 0 * std, std)
    (right,) = torch.autograd.grad((made**2).mean(), std)
    assert wrong == 0  # no error, no warning, no gradient
    assert abs(right - 3.0) < 0.1


def untrained() -> VAE:
    """Return a VAE in float64 whose encoder is fairly sure."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = VAE(dim=2, latent_dim=2).double()
    with torch.no_grad():
        vae.encoder[-1].bias[2:] = -2.0  # variances near exp(-2)
    return vae


@torch.no_grad()
def exact_terms(vae: VAE, x: Tensor, n: int = 201) -> tuple[Tensor, Tensor]:
    """Return -ln p(x) and KL(q(z|x) || p(z|x)) of each x, on a grid."""
    side = torch.linspace(-5, 5, n, dtype=torch.float64)
    z, area = torch.cartesian_prod(side, side), (side[1] - side[0]) ** 2
    mean, variance = vae.decode(z)
    prior = log_normal(z, 0.0, 1.0).sum(1)
    terms = []
    for point, m, v in zip(x, *vae.encode(x), strict=True):
        joint = prior + log_normal(point, mean, variance).sum(1)
        evidence = joint.logsumexp(0) + area.log()
        log_q = log_normal(z, m, v).sum(1)
        gap = (log_q.exp() * (log_q - joint + evidence)).sum() * area
        terms.append(torch.stack([-evidence, gap]))
    return torch.stack(terms).unbind(1)


def bound_score(loss: Callable[[VAE, Tensor, Tensor], Tensor]) -> float:
    """Return the standard score of a loss against the exact value."""
    vae, x = untrained(), torch.tensor([[1.3, -0.2]]).double()
    generator = torch.Generator().manual_seed(0)
    eps = torch.randn(20_000, 2, generator=generator, dtype=torch.float64)
    evidence, gap = exact_terms(vae, x)
    with torch.no_grad():
        draws = loss(vae, x.expand(20_000, 2), eps)
    return standard_score(draws, (evidence + gap).item())


def test_the_loss_is_the_evidence_plus_the_gap():
    assert abs(bound_score(negative_elbo)) < 5


def test_closed_divergence_against_draws():
    mean = torch.tensor([0.7, -1.2]).double()
    variance = torch.tensor([0.3, 1.7]).double()
    generator = torch.Generator().manual_seed(0)
    eps = torch.randn(200_000, 2, generator=generator, dtype=torch.float64)
    z = mean + variance.sqrt() * eps
    ratio = log_normal(z, mean, variance) - log_normal(z, 0.0, 1.0)
    closed = gaussian_kl(mean, variance, 0.0, 1.0).sum()
    assert abs(standard_score(ratio.sum(1), closed.item())) < 5


def terms(vae, x, z, mean, variance):
    reconstruction = -log_normal(x, *vae.decode(z))
    return reconstruction, gaussian_kl(mean, variance, 0.0, 1.0)


def variance_for_deviation(vae, x, eps):
    mean, variance = vae.encode(x)
    z = mean + variance * eps  # WRONG: sqrt is missing
    parts = terms(vae, x, z, mean, variance)
    return parts[0].sum(1) + parts[1].sum(1)


def mean_for_sum(vae, x, eps):
    mean, variance = vae.encode(x)
    parts = terms(vae, x, mean + variance.sqrt() * eps, mean, variance)
    return parts[0].mean(1) + parts[1].sum(1)  # WRONG: a mean and a sum


def exchanged_laws(vae, x, eps):
    mean, variance = vae.encode(x)
    z = mean + variance.sqrt() * eps
    reconstruction, _ = terms(vae, x, z, mean, variance)
    backward = gaussian_kl(0.0, 1.0, mean, variance)  # WRONG direction
    return reconstruction.sum(1) + backward.sum(1)


def test_three_wrong_losses_are_caught():
    for wrong in (variance_for_deviation, mean_for_sum, exchanged_laws):
        assert abs(bound_score(wrong)) > 20
