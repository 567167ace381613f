"""Checks of the chapter “From an impossible integral to a sum of KLs”.

Tangled from book/diffusion/elbo.md.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tangled.diffusion.elbo import (
    ancestral_sample,
    decoder_term,
    discretised_log_prob,
    empirical_denoiser,
    kl_terms,
    posterior,
    posterior_mean,
    posterior_table,
    posterior_var,
    reverse_mean,
)
from tangled.diffusion.forward import (
    diffuse,
    forward_chain,
    prior_term,
    transition,
)
from tangled.diffusion.gaussian import (
    LinearGaussianChain,
    gaussian_kl,
    linear_gaussian_posterior,
    log_normal,
    multivariate_kl,
)
from tangled.diffusion.schedule import Schedule, per_sample
from tangled.workshop.statistics import standard_score


def check_posterior(candidate: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """Check that (x_{t-1} - mean) / std is N(0, 1), apart from x_0, x_t."""
    q, n = Schedule.linear(20, 0.01, 0.4), 50_000
    t, generator = torch.full((n,), 7), torch.Generator().manual_seed(0)
    x0, eps, xi = torch.randn(3, n, generator=generator).double()
    early = diffuse(x0, t - 1, eps, q)
    scale, step = transition(q, 6, 7)
    xt = scale * early + step.sqrt() * xi
    mean, variance = candidate(x0, xt, t, q)
    left = (early - mean) / variance.sqrt()
    inside = (left.abs() < 1).double()
    assert abs(standard_score(left * x0, 0.0, 1.0)) < 5, "x_0 is left over"
    assert abs(standard_score(left * xt, 0.0, 1.0)) < 5, "x_t is left over"
    assert abs(standard_score(left**2, 1.0, 2**0.5)) < 5, "wrong variance"
    assert abs(standard_score(inside, 0.6827, 0.4654)) < 5, "not normal"


def test_what_is_left_of_a_step_is_standard_normal():
    check_posterior(posterior)


def swapped_weights(x0, xt, t, schedule):
    return posterior(xt, x0, t, schedule)  # WRONG: exchanged


def variance_of_the_step(x0, xt, t, schedule):
    mean, _ = posterior(x0, xt, t, schedule)
    return mean, per_sample(schedule.beta, t, x0)  # WRONG: forward variance


def next_index(x0, xt, t, schedule):
    return posterior(x0, xt, t + 1, schedule)  # WRONG: off by one


def refuse_posterior(wrong: Callable, reason: str) -> None:
    with pytest.raises(AssertionError, match=reason):
        check_posterior(wrong)


def test_wrong_posteriors_are_refused():
    refuse_posterior(swapped_weights, "left over")
    refuse_posterior(variance_of_the_step, "wrong variance")
    refuse_posterior(next_index, "left over")


def check_variance_table(candidate: Callable[[Schedule], Tensor]) -> None:
    """Check the variances of the steps back, shape [T+1]."""
    for q in (Schedule.linear(1000), Schedule.cosine(30)):
        variance = candidate(q)
        assert variance[1] == 0, "noise is left at the data"
        assert (variance[2:] > 0).all(), "a step back without noise"
        assert (variance[2:] < q.beta[2:]).all(), "wider than the step"
        precision = q.alpha / q.beta + 1 / (1 - q.alpha_bar).roll(1)
        one = variance[2:] * precision[2:]
        assert (one - 1).abs().max() < 1e-9, "precisions do not add"


def test_the_posterior_is_narrower_than_the_step():
    check_variance_table(posterior_var)
    x0, xt = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    mean, _ = posterior(x0, xt, torch.ones(5).long(), Schedule.cosine(50))
    assert torch.equal(mean, x0)


def without_the_data_end(q: Schedule) -> Tensor:
    power = q.alpha_bar.clone()
    power[0] = power[-1]  # WRONG: "the entry before the first" is the last
    variance = (1 - power[:-1]) / (1 - power[1:]) * q.beta[1:]
    return torch.cat([variance.new_zeros(1), variance])


def one_step_late(q: Schedule) -> Tensor:
    variance = posterior_var(q).clone()
    variance[1:-1] = variance[2:].clone()  # WRONG: t + 1
    return variance


def test_wrong_tables_of_variances_are_refused():
    for wrong in (without_the_data_end, one_step_late, lambda q: q.beta):
        with pytest.raises(AssertionError, match="noise is left"):
            check_variance_table(wrong)
    with pytest.raises(AssertionError, match="precisions"):
        check_variance_table(lambda q: posterior_var(q) * 0.99)


def by_hand() -> tuple[Schedule, Tensor]:
    """Return the two steps of the hand example, and x_0 = 2."""
    beta = torch.tensor([0.36, 0.75], dtype=torch.float64)
    return Schedule.from_betas(beta), torch.tensor([2.0]).double()


def halve(xt: Tensor, t: Tensor) -> Tensor:
    return xt / 2


def crude_model() -> LinearGaussianChain:
    """Return the reverse model of `halve` with variances beta_t."""
    q, _ = by_hand()
    table = posterior_table(q)
    slope = table.from_data / 2 + table.from_noisy
    return LinearGaussianChain(slope, torch.zeros(3).double(), q.beta.sqrt())


def exact_bound() -> tuple[float, float]:
    """Return -ln p(x_0) of the crude model, and the gap of its bound."""
    (q, x0), chain = by_hand(), crude_model()
    signal, noise = q.signal[1:], 1 - q.alpha_bar[1:]
    cov = noise.diag()  # of x_1, x_2 given x_0
    cov[0, 1] = cov[1, 0] = signal[1] / signal[0] * noise[0]
    gap = multivariate_kl(signal * x0, cov, *chain.condition(x0[0]))
    return -chain.log_prob(x0).item(), gap.item()


def test_the_chain_takes_the_steps_of_the_crude_denoiser():
    xt, t = (
        torch.tensor([0.1, -2.0], dtype=torch.float64),
        torch.tensor([2, 1]),
    )
    mean = reverse_mean(halve, xt, t, by_hand()[0])
    assert torch.allclose(mean, crude_model().slope[t] * xt)


def check_bound(score_of_step: Callable[..., Tensor]) -> None:
    """Check E ln q/p over forward paths, with ln q of a step as given."""
    (q, x0), chain = by_hand(), crude_model()
    generator = torch.Generator().manual_seed(0)
    path = list(forward_chain(x0.expand(100_000), q, generator))
    draws = -log_normal(path[2], 0.0, 1.0)
    for t in (1, 2):
        keep, variance = transition(q, t - 1, t)
        draws = draws + score_of_step(path[t], keep * path[t - 1], variance)
        back = chain.slope[t] * path[t]
        draws = draws - log_normal(path[t - 1], back, chain.std[t] ** 2)
    z = standard_score(draws, sum(exact_bound()))
    assert z > -5, "below the truth plus the gap"
    assert z < 5, "above the truth plus the gap"


def test_the_bound_is_the_truth_plus_the_divergence_of_paths():
    check_bound(log_normal)


def test_the_average_over_the_models_own_paths_is_the_density():
    (_, x0), chain = by_hand(), crude_model()
    generator = torch.Generator().manual_seed(0)
    x2, xi = torch.randn(2, 100_000, generator=generator).double()
    x1 = chain.slope[2] * x2 + chain.std[2] * xi
    weight = log_normal(x0, chain.slope[1] * x1, chain.std[1] ** 2).exp()
    assert abs(standard_score(weight, math.exp(-exact_bound()[0]))) < 5


def squared_variance(x, mean, variance):
    return log_normal(x, mean, variance**2)  # WRONG: drawn with beta_t


def not_normalised(x, mean, variance):
    return -((x - mean) ** 2) / (2 * variance)  # WRONG: no constant


def test_paths_scored_by_something_else_give_no_bound():
    with pytest.raises(AssertionError, match="below the truth"):
        check_bound(squared_variance)
    with pytest.raises(AssertionError, match="above the truth"):
        check_bound(not_normalised)


def check_target(
    share: Callable[[Tensor], Tensor], best: Callable[[Tensor], Tensor]
) -> None:
    """Check both claims at x_2 = 0.3, for three equally likely points x_0."""
    q, points = by_hand()[0], torch.tensor([-1.0, 0.5, 2.0]).double()
    t, xt = torch.full((3,), 2), torch.full((3,), 0.3, dtype=torch.float64)
    likelihood = log_normal(xt, q.signal[2] * points, q.noise_std[2] ** 2)
    true_share = likelihood.softmax(0)
    mean, variance = posterior(points, xt, t, q)
    x = torch.linspace(-8, 9, 4001, dtype=torch.float64)
    honest = (
        true_share @ log_normal(x, mean[:, None], variance[:, None]).exp()
    )
    guesses = torch.linspace(-1, 2, 301, dtype=torch.float64)
    easy, hard = torch.zeros(2, 301, dtype=torch.float64)
    for i, guess in enumerate(guesses):
        centre = posterior_mean(guess.expand(3), xt, t, q)
        easy[i] = share(likelihood) @ gaussian_kl(mean, variance, centre, 0.5)
        ratio = honest.log() - log_normal(x, centre[0], 0.5)
        hard[i] = torch.trapezoid(honest * ratio, x)
    assert (easy - hard).std() < 1e-9, "not equal up to a constant"
    found, promised = guesses[hard.argmin()], best(true_share * points)
    assert abs(found - promised) < 0.006, "another guess is better"


def test_the_target_with_the_data_trains_the_same_step():
    check_target(lambda log_q: log_q.softmax(0), torch.sum)


def prior_share(likelihood: Tensor) -> Tensor:
    return torch.ones_like(likelihood) / 3  # WRONG: forgets what x_t says


def likeliest_point(parts: Tensor) -> Tensor:
    return parts[1] / parts[1] * 0.5  # WRONG: the mode, not the mean


def test_other_averages_and_other_guesses_are_refused():
    with pytest.raises(AssertionError, match="up to a constant"):
        check_target(prior_share, torch.sum)
    with pytest.raises(AssertionError, match="another guess"):
        check_target(lambda log_q: log_q.softmax(0), likeliest_point)


def check_weight(
    weight: Callable[[Schedule], Tensor], terms: Callable = kl_terms
) -> None:
    """Check one term per t against the divergence of the two Gaussians."""
    q, generator = Schedule.linear(1000), torch.Generator().manual_seed(0)
    t = torch.arange(2, 1001)
    x0, eps = torch.randn(2, 999, 5, generator=generator).double()
    for sigma in (posterior_var(q).sqrt(), q.beta.sqrt()):
        mean, variance = posterior(x0, diffuse(x0, t, eps, q), t, q)
        guess = reverse_mean(halve, diffuse(x0, t, eps, q), t, q)
        kl = gaussian_kl(mean, variance, guess, sigma[2:, None] ** 2).sum(1)
        found = terms(halve, x0, t, eps, q, sigma)
        assert torch.allclose(found, kl, rtol=1e-7), "not the divergence"
        if sigma[1] == 0:
            error = (x0 - diffuse(x0, t, eps, q) / 2).square().sum(1)
            whole = weight(q)[1:] * error
            assert torch.allclose(whole, kl, rtol=1e-7), "another weight"


def test_each_term_is_a_weighted_squared_error():
    check_weight(lambda q: -q.snr.diff() / 2)


def mean_over_dimensions(model, x0, t, eps, q, sigma):
    return kl_terms(model, x0, t, eps, q, sigma) / x0.shape[1]  # WRONG


def test_other_weights_and_a_mean_are_refused():
    with pytest.raises(AssertionError, match="another weight"):
        check_weight(lambda q: -q.snr.diff())  # WRONG: the half is lost
    with pytest.raises(AssertionError, match="another weight"):
        check_weight(lambda q: -q.snr.diff().roll(-1) / 2)  # WRONG: next step
    with pytest.raises(AssertionError, match="not the divergence"):
        check_weight(lambda q: -q.snr.diff() / 2, mean_over_dimensions)


def check_decoder(log_mass: Callable[..., Tensor]) -> None:
    """Check that the masses add up to 1, and that the far tail has one."""
    grid = torch.linspace(-1, 1, 256, dtype=torch.float64)
    for mean in (-1.3, 0.0, 0.2, 1.1):
        for std in (0.01, 0.05, 0.5):
            logs = log_mass(grid, torch.full_like(grid, mean), std)
            assert abs(logs.exp().sum() - 1) < 1e-12, "masses do not add to 1"
    far = log_mass(grid[200], -0.9 * torch.ones_like(grid[0]), 0.05)
    assert far > -600, "the tail is lost"


def test_the_masses_of_all_levels_add_to_one():
    check_decoder(discretised_log_prob)


def closed_ends(x: Tensor, mean: Tensor, std: float) -> Tensor:
    logs = discretised_log_prob(x, mean, std)
    closed = log_normal(x, mean, std**2) + math.log(2 / 255)
    return torch.where(x.abs() > 0.999, closed, logs)  # WRONG: no open ends


def difference_of_cdfs(x: Tensor, mean: Tensor, std: float) -> Tensor:
    edge = torch.tensor(torch.inf, dtype=x.dtype)
    above = torch.where(x > 0.999, edge, (x + 1 / 255 - mean) / std)
    below = torch.where(x < -0.999, -edge, (x - 1 / 255 - mean) / std)
    return (torch.special.ndtr(above) - torch.special.ndtr(below)).log()


def test_closed_ends_and_differences_of_cdfs_are_refused():
    with pytest.raises(AssertionError, match="do not add"):
        check_decoder(closed_ends)
    with pytest.raises(AssertionError, match="tail is lost"):
        check_decoder(difference_of_cdfs)  # WRONG: 1 - 1 far from the mean


def check_sum(divergence: Callable[..., Tensor], last: Callable) -> None:
    """Check L_0 + L_1 + L_2 against the truth plus the gap, to 1e-12."""
    q, x0 = by_hand()
    data, sigma = x0.expand(2), q.beta.sqrt()
    eps, t = (
        torch.tensor([-1.0, 1.0], dtype=torch.float64),
        torch.full((2,), 2),
    )
    total = last(halve, data, eps, q, sigma, None).mean()
    total += divergence(halve, data, t, eps, q, sigma).mean()
    off = total + prior_term(x0, q)[0] - sum(exact_bound())
    assert abs(off) < 1e-12, f"off by {off:.2g} nats"


def test_the_terms_add_up_to_the_bound():
    check_sum(kl_terms, decoder_term)


def exchanged(model, x0, t, eps, q, sigma):
    xt = diffuse(x0, t, eps, q)
    mean, variance = posterior(x0, xt, t, q)
    back = reverse_mean(model, xt, t, q)
    return gaussian_kl(back, sigma[t] ** 2, mean, variance)  # WRONG: order


def divergence_at_one(model, x0, eps, q, sigma, levels):
    guess = model(diffuse(x0, torch.ones(2).long(), eps, q), t=None)
    return gaussian_kl(x0, 1e-20, guess, sigma[1] ** 2)  # WRONG: a point


def test_exchanged_terms_and_a_divergence_at_the_data_are_refused():
    for terms in ((exchanged, decoder_term), (kl_terms, divergence_at_one)):
        with pytest.raises(AssertionError, match="off by"):
            check_sum(*terms)


def kl_from_gaussian(half: float, width: float, beta: float) -> float:
    """Return KL(step back || matched Gaussian) at x_t = 0, by quadrature.

    x_{t-1} is an equal mixture of N(-half, width^2) and N(half, width^2).
    """
    peaks = torch.tensor([-half, half], dtype=torch.float64)
    means, variance = linear_gaussian_posterior(
        peaks, width**2, torch.zeros(2).double(), (1 - beta) ** 0.5, beta
    )  # the two parts of the step back; at x_t = 0 they are equally likely
    std = (variance + means[1] ** 2).sqrt()
    x = std * torch.linspace(-9, 9, 4001, dtype=torch.float64)
    parts = log_normal(x[:, None], means, variance)
    log_q = parts.logsumexp(1) - math.log(2)
    ratio = log_q - log_normal(x, 0.0, std**2)
    return torch.trapezoid(log_q.exp() * ratio, x).item()


def check_small_steps(size: Callable[[float], float]) -> None:
    """Check that the divergence falls tenfold when beta falls tenfold."""
    found = [
        kl_from_gaussian(size(beta), 0.4 * size(beta), beta)
        for beta in (0.1, 0.01, 0.001)
    ]
    for large, small in pairwise(found):
        assert small < large / 10, "small steps are not more Gaussian"


def test_small_steps_back_are_nearly_gaussian():
    check_small_steps(lambda beta: 1.0)


def test_small_steps_in_rough_terrain_are_not_gaussian():
    with pytest.raises(AssertionError, match="not more Gaussian"):
        check_small_steps(lambda beta: 2 * beta**0.5)  # WRONG: rougher too


def check_sampler(sampler: Callable[..., Tensor]) -> None:
    """Check that samples of two points come out as often as the points."""
    points = torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=torch.float64)[:, None]
    q, generator = Schedule.linear(40, 0.0025, 0.5), torch.Generator()
    generator.manual_seed(0)
    xT = torch.randn(4000, 1, generator=generator, dtype=torch.float64)
    model = empirical_denoiser(points, q)
    x = sampler(model, xT, q, posterior_var(q).sqrt(), generator)
    assert ((x.abs() - 1).abs() < 1e-6).all(), "not a point of the data"
    high = (x[:, 0] > 0).double()
    assert abs(standard_score(high, 0.75, 0.1875**0.5)) < 5, "wrong shares"


def test_the_sampler_returns_the_points_in_their_shares():
    check_sampler(ancestral_sample)


def without_noise(model, xT, q, sigma, generator):
    return ancestral_sample(model, xT, q, 0 * sigma, generator)  # WRONG


def noise_at_the_end(model, xT, q, sigma, generator):
    x = ancestral_sample(model, xT, q, sigma, generator)
    return x + q.beta[1].sqrt() * xT  # WRONG: the last step adds noise


def test_other_samplers_are_refused():
    with pytest.raises(AssertionError, match="wrong shares"):
        check_sampler(without_noise)
    with pytest.raises(AssertionError, match="not a point"):
        check_sampler(noise_at_the_end)
