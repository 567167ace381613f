"""Checks of the chapter “From an impossible integral to a sum of KLs”.

Tangled from book/diffusion/elbo.md.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import sympy
import torch
from diffusers import DDPMScheduler
from sklearn.datasets import load_digits
from torch import Tensor

from tangled.diffusion.elbo import (
    bits_per_dim,
    decoder_term,
    discretised_log_prob,
    kl_terms,
    posterior,
    posterior_mean,
    posterior_var,
    vlb,
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
from tangled.diffusion.mixture import GaussianMixture
from tangled.diffusion.schedule import Schedule, per_sample, to_index
from tangled.workshop.statistics import standard_score


def toy() -> tuple[LinearGaussianChain, Schedule, Tensor]:
    """Return the model with four steps, the forward schedule, and x_0."""
    slope = [0.4428245835718122, 0.5184052532980499]
    slope += [0.8006372326031985, 0.6910810180321839]
    shift = [-0.09052985842208917, -0.04311943261795318]
    shift += [-0.4039972258294502, -0.0463864755288379]
    std = [0.5938308605636857, 0.34546880796856133]
    std += [0.4564912761982648, 0.5066960730485455]
    tables = torch.tensor([slope, shift, std], dtype=torch.float64)
    chain = LinearGaussianChain(*torch.cat([torch.ones(3, 1), tables], 1))
    beta = torch.tensor([0.1, 0.25, 0.4, 0.6], dtype=torch.float64)
    x0 = torch.tensor(0.8, dtype=torch.float64)
    return chain, Schedule.from_betas(beta), x0


def blind_log_weights(chain: LinearGaussianChain, x0: Tensor, generator):
    """Return ln p(x_0 | x_1), x_1 drawn by the model, for each entry."""
    x = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    for t in range(chain.T, 1, -1):
        xi = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
        x = chain.slope[t] * x + chain.shift[t] + chain.std[t] * xi
    mean = chain.slope[1] * x + chain.shift[1]
    return log_normal(x0, mean, chain.std[1] ** 2)


def test_the_average_over_paths_is_the_density():
    chain, _, x0 = toy()
    generator = torch.Generator().manual_seed(0)
    logs = blind_log_weights(chain, x0.expand(100_000), generator)
    density = chain.log_prob(x0).exp().item()
    assert abs(standard_score(logs.exp(), density)) < 5


def kernel_square(
    t: int, chain: LinearGaussianChain, q: Schedule, x0: Tensor
):
    """Return E_q (x_{t-1} - k_t x_t - c_t)^2 given x_0."""
    k, c, scale = chain.slope[t], chain.shift[t], transition(q, t - 1, t)[0]
    early, late = 1 - q.alpha_bar[t - 1], 1 - q.alpha_bar[t]
    mean = (q.signal[t - 1] - k * q.signal[t]) * x0 - c
    return mean**2 + early + k**2 * late - 2 * k * scale * early


def cross_entropy(square: Tensor, variance: Tensor) -> Tensor:
    """Return -E ln N(x; m, variance), where `square` is E (x - m)^2."""
    return ((2 * math.pi * variance).log() + square / variance) / 2


def bound_from_kernels(chain: LinearGaussianChain, q: Schedule, x0: Tensor):
    """Return L_VLB as the expectation of ln q(x_1:T | x_0) - ln p(x_0:T)."""
    end = q.alpha_bar[-1] * x0**2 + 1 - q.alpha_bar[-1]
    total = cross_entropy(end, torch.ones(()).double())
    for t in range(1, q.T + 1):
        square = kernel_square(t, chain, q, x0)
        total = total + cross_entropy(square, chain.std[t] ** 2)
        total = total - cross_entropy(q.beta[t], q.beta[t])
    return total


def law_of_forward_path(q: Schedule, x0: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and covariance of x_1..x_T given x_0."""
    signal, variance = q.signal[1:], 1 - q.alpha_bar[1:]
    below = torch.tril(signal[:, None] / signal * variance)
    return signal * x0, below + below.T - below.diag().diag()


def test_the_gap_is_the_divergence_of_the_paths():
    chain, q, x0 = toy()
    bound = bound_from_kernels(chain, q, x0)
    gap = bound + chain.log_prob(x0)
    paths = multivariate_kl(*law_of_forward_path(q, x0), *chain.condition(x0))
    assert abs(bound - 3.5578037996) < 1e-10
    assert abs(gap - 1.8417456215) < 1e-10
    assert abs(gap - paths) < 1e-10


def test_the_gap_has_a_direction():
    chain, q, x0 = toy()
    gap = bound_from_kernels(chain, q, x0) + chain.log_prob(x0)
    backward = multivariate_kl(  # WRONG: the posterior comes second
        *chain.condition(x0), *law_of_forward_path(q, x0)
    )
    assert abs(backward - gap) > 0.1


def test_paths_scored_with_another_law_break_the_bound():
    chain, q, x0 = toy()
    bound = bound_from_kernels(chain, q, x0)
    for beta in q.beta[1:]:  # WRONG: drawn with beta_t, scored with beta_t^2
        bound = bound + cross_entropy(beta, beta)
        bound = bound - cross_entropy(beta, beta**2)
    assert bound < -chain.log_prob(x0) - 1


def forward_log_weights(
    chain: LinearGaussianChain, q: Schedule, x0, generator
):
    """Return ln p(x_0:T) - ln q(x_1:T | x_0) of a forward path per entry."""
    path = list(forward_chain(x0, q, generator))
    total = log_normal(path[-1], 0.0, 1.0)
    for t in range(1, q.T + 1):
        mean = chain.slope[t] * path[t] + chain.shift[t]
        total = total + log_normal(path[t - 1], mean, chain.std[t] ** 2)
        kept = q.alpha[t].sqrt() * path[t - 1]
        total = total - log_normal(path[t], kept, q.beta[t])
    return total


def rungs() -> list[Tensor]:
    """Return draws of the ladder's middle for K = 1, 16, 256."""
    chain, q, x0 = toy()
    generator = torch.Generator().manual_seed(0)
    draws = []
    for K in (1, 16, 256):  # fresh paths for each K
        logs = forward_log_weights(chain, q, x0.expand(2**16), generator)
        draws.append(logs.reshape(-1, K).logsumexp(1) - math.log(K))
    return draws


def test_each_rung_is_higher_and_none_above_the_truth():
    chain, q, x0 = toy()
    draws = rungs()
    bound = bound_from_kernels(chain, q, x0).item()
    assert abs(standard_score(draws[0], -bound)) < 5
    for low, high in pairwise(draws):
        assert standard_score(high, low.mean().item()) > 5
    for draw in draws:
        assert standard_score(draw, chain.log_prob(x0).item()) < 5


def lowest_precision() -> Tensor:
    """Return the least eigenvalue that decides if E w_1^2 is finite."""
    chain, q, x0 = toy()
    model, forward = chain.condition(x0)[1], law_of_forward_path(q, x0)[1]
    return torch.linalg.eigvalsh(2 * model.inverse() - forward.inverse())[0]


def test_the_weights_of_the_toy_have_no_variance():
    assert lowest_precision() < -0.5


def terms_of_the_toy(divergence: Callable[..., Tensor] = gaussian_kl):
    """Return L_0, L_1, ..., L_4 of the toy chain, exactly."""
    chain, q, x0 = toy()
    square = kernel_square(1, chain, q, x0)
    terms = [cross_entropy(square, chain.std[1] ** 2)]
    for t in range(2, q.T + 1):
        readings, variance = linear_gaussian_posterior(
            q.signal[t - 1] * x0,
            1 - q.alpha_bar[t - 1],
            torch.tensor([0.0, 1.0], dtype=torch.float64),
            q.alpha[t].sqrt(),
            q.beta[t],
        )
        # the two means differ by slope x_t + shift
        slope = readings[1] - readings[0] - chain.slope[t]
        shift = readings[0] - chain.shift[t]
        mean = slope * q.signal[t] * x0 + shift
        spread = slope**2 * (1 - q.alpha_bar[t])
        gap = (mean**2 + spread).sqrt()
        terms.append(divergence(gap, variance, 0.0, chain.std[t] ** 2))
    terms.append(prior_term(x0[None], q)[0])
    return torch.stack(terms)


def test_the_sum_of_the_terms_is_the_bound():
    direct = bound_from_kernels(*toy())
    assert abs(terms_of_the_toy().sum() - direct) < 1e-12
    assert abs(terms_of_the_toy().sum() - 3.5578037996) < 1e-10


def test_exchanging_the_two_laws_is_caught():
    wrong = terms_of_the_toy(lambda m, v, n, w: gaussian_kl(n, w, m, v))
    assert abs(wrong.sum() - bound_from_kernels(*toy())) > 0.1


def test_the_step_to_the_data_has_no_divergence():
    chain, q, x0 = toy()
    x1 = q.signal[1] * x0
    mean = chain.slope[1] * x1 + chain.shift[1]
    with pytest.raises(ValueError, match="var1 must be positive"):
        gaussian_kl(x0, 0.0, mean, chain.std[1] ** 2)
    clipped = gaussian_kl(x0, 1e-20, mean, chain.std[1] ** 2)  # WRONG
    assert clipped > terms_of_the_toy()[0] + 20


def symbols() -> dict[str, sympy.Expr]:
    """Return the quantities of a step as expressions in alpha_t, abar_{t-1}."""
    alpha, before = sympy.symbols("alpha before", positive=True)
    x0, x, xt = sympy.symbols("x0 x xt", real=True)
    after, beta = alpha * before, 1 - alpha
    mean = sympy.sqrt(before) * beta / (1 - after) * x0
    mean += sympy.sqrt(alpha) * (1 - before) / (1 - after) * xt
    variance = (1 - before) / (1 - after) * beta
    return {
        "alpha": alpha, "before": before, "x0": x0, "x": x, "xt": xt,
        "after": after, "beta": beta, "mean": mean, "variance": variance,
    }  # fmt: skip


def test_first_route_conditioning_the_joint_law():
    s = symbols()
    covariance = sympy.sqrt(s["alpha"]) * (1 - s["before"])
    gain = covariance / (1 - s["after"])
    off = s["xt"] - sympy.sqrt(s["alpha"] * s["before"]) * s["x0"]
    mean = sympy.sqrt(s["before"]) * s["x0"] + gain * off
    variance = 1 - s["before"] - gain * covariance
    assert sympy.simplify(mean - s["mean"]) == 0
    assert sympy.simplify(variance - s["variance"]) == 0


def test_second_route_the_square_leaves_nothing():
    s = symbols()
    root, a = sympy.sqrt(s["alpha"]), sympy.sqrt(s["before"])
    bayes = (s["xt"] - root * s["x"]) ** 2 / s["beta"]
    bayes += (s["x"] - a * s["x0"]) ** 2 / (1 - s["before"])
    bayes -= (s["xt"] - root * a * s["x0"]) ** 2 / (1 - s["after"])
    square = (s["x"] - s["mean"]) ** 2 / s["variance"]
    assert sympy.simplify(bayes - square) == 0
    constants = s["beta"] * (1 - s["before"]) / (1 - s["after"])
    assert sympy.simplify(constants - s["variance"]) == 0


def posterior_scores(
    law: Callable[..., tuple[Tensor, Tensor]],
) -> list[float]:
    """Return the standard scores of three promises about x_{t-1}."""
    q, t = Schedule.linear(20, 0.01, 0.4), torch.full((50_000,), 7)
    generator = torch.Generator().manual_seed(0)
    x0, eps, xi = torch.randn(3, 50_000, generator=generator).double()
    early = diffuse(x0, t - 1, eps, q)
    scale, variance = transition(q, 6, 7)
    xt = scale * early + variance.sqrt() * xi
    mean, variance = law(x0, xt, t, q)
    left = early - mean
    return [
        standard_score(left * x0, 0.0),
        standard_score(left * xt, 0.0),
        standard_score(left**2 / variance, 1.0),
    ]


def test_what_is_left_of_a_step_has_the_promised_law():
    assert all(abs(z) < 5 for z in posterior_scores(posterior))


def swapped_weights(x0, xt, t, schedule):
    mean, variance = posterior(xt, x0, t, schedule)  # WRONG: exchanged
    return mean, variance


def variance_of_the_step(x0, xt, t, schedule):
    mean, _ = posterior(x0, xt, t, schedule)
    return mean, per_sample(schedule.beta, t, x0)  # WRONG: forward variance


def next_index(x0, xt, t, schedule):
    return posterior(x0, xt, t + 1, schedule)  # WRONG: off by one


def test_wrong_posteriors_are_caught():
    for wrong in (swapped_weights, variance_of_the_step, next_index):
        assert max(abs(z) for z in posterior_scores(wrong)) > 10


def test_mean_and_variance_are_those_of_diffusers():
    library = DDPMScheduler(
        variance_type="fixed_small", prediction_type="sample",
        clip_sample=False,
    )  # fmt: skip
    q = Schedule.linear(1000)
    library.alphas_cumprod = q.alpha_bar[1:]  # their algorithm, our tables
    generator = torch.Generator().manual_seed(0)
    x0, xt = torch.randn(2, 1, 16, generator=generator).double()
    for step in (1, 2, 10, 500, 1000):
        t = torch.tensor([step])
        mean, variance = posterior(x0, xt, t, q)
        theirs = library._get_variance(to_index(step))
        expected = variance.clamp(min=1e-20).squeeze()
        torch.testing.assert_close(theirs, expected, rtol=1e-9, atol=0)
        theirs = library.step(
            x0, to_index(step), xt, torch.Generator().manual_seed(1)
        ).prev_sample
        noise = torch.randn(
            x0.shape,
            generator=torch.Generator().manual_seed(1),
            dtype=x0.dtype,
        )
        ours = mean + (step > 1) * variance.sqrt() * noise
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-10)


def test_the_posterior_is_narrower_than_the_step():
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        beta = torch.rand(10, generator=generator, dtype=torch.float64)
        q = Schedule.from_betas(beta.clamp(0.01, 0.9))
        variance = posterior_var(q)
        assert variance[1] == 0
        assert (variance[2:] > 0).all()
        assert (variance[2:] < q.beta[2:]).all()
    linear = Schedule.linear(1000)
    ratio = posterior_var(linear)[1:] / linear.beta[1:]
    assert abs(ratio[1] - 0.4547) < 1e-4
    assert abs(ratio[999] - 0.99999918) < 1e-8


def test_at_the_first_step_the_posterior_is_the_datum():
    generator = torch.Generator().manual_seed(0)
    for q in (Schedule.linear(1000), Schedule.cosine(1000)):
        x0, xt = torch.randn(2, 5, 3, generator=generator).double()
        mean, variance = posterior(x0, xt, torch.ones(5).long(), q)
        assert torch.equal(mean, x0)
        assert (variance == 0).all()


def test_wrong_indices_of_the_variance_are_caught():
    q = Schedule.linear(1000)
    table, beta = q.alpha_bar[1:], q.beta[1:]  # index i = t - 1, as elsewhere
    i = 0
    wrapped = (1 - table[i - 1]) / (1 - table[i]) * beta[i]  # WRONG: last
    assert abs(wrapped - 1) < 1e-3  # not 0: variance 1 at the last step
    shifted = (1 - q.alpha_bar[0]) / (1 - q.alpha_bar[0])  # WRONG: t = 0
    assert shifted.isnan()
    late = (1 - table[i]) / (1 - table[i + 1]) * beta[i + 1]  # WRONG: step 2
    assert late > 0  # the CORRECT value is posterior_var(q)[1]
    assert posterior_var(q)[1] == 0


def test_noise_at_the_last_step_is_caught():
    q = Schedule.linear(1000)
    generator = torch.Generator().manual_seed(0)
    x0, xi = torch.zeros(10_000), torch.randn(10_000, generator=generator)
    mean, _ = posterior(x0, x0, torch.ones(10_000).long(), q)
    noisy = mean + q.beta[1].sqrt() * xi  # WRONG: at t = 1 return the mean
    assert standard_score(noisy**2, 0.0) > 20
    assert abs(noisy.std() - 0.01) < 1e-3


def test_the_masses_of_all_levels_add_to_one():
    grid = torch.linspace(-1, 1, 256, dtype=torch.float64)
    for mean in (-1.3, 0.0, 0.2, 1.1):
        for std in (0.01, 0.05, 0.5):
            at = torch.full_like(grid, mean)
            total = discretised_log_prob(grid, at, std).exp().sum()
            assert abs(total - 1) < 1e-12


def test_the_far_tail_is_the_integral_of_the_density():
    grid = torch.linspace(-1, 1, 256, dtype=torch.float64)
    for x in grid[[20, 127, 235]]:
        for mean in (-0.7, 0.6):
            y = torch.linspace(-1 / 255, 1 / 255, 2001).double() + x
            at = torch.tensor(mean, dtype=torch.float64)
            logs = log_normal(y, at, 0.02**2)
            logs[[0, -1]] -= math.log(2)  # the trapezoidal rule
            integral = logs.logsumexp(0) + math.log(2 / 255 / 2000)
            found = discretised_log_prob(x, at, 0.02)
            torch.testing.assert_close(found, integral, rtol=0, atol=1e-4)
    far = discretised_log_prob(grid[:1], grid[-1:], 0.01)
    assert -20_000 < far.item() < -19_000  # exp of this is 0 in float64


def test_the_log_mass_has_finite_gradients_everywhere():
    grid = torch.linspace(-1, 1, 256)
    mean = torch.zeros(256, requires_grad=True)
    discretised_log_prob(grid, mean, 0.01).sum().backward()
    assert mean.grad.isfinite().all()


def difference_of_cdfs(x: Tensor, mean: float, std: float, half: float):
    """Return the mass of a closed bin as a difference of two cdfs."""
    above, below = (x + half - mean) / std, (x - half - mean) / std
    return torch.special.ndtr(above) - torch.special.ndtr(below)


def test_closed_ends_and_wrong_widths_do_not_add_to_one():
    grid = torch.linspace(-1, 1, 256, dtype=torch.float64)
    closed = difference_of_cdfs(grid, 1.1, 0.05, 1 / 255)  # WRONG: ends
    narrow = difference_of_cdfs(grid, 0.0, 0.05, 1 / 256)  # WRONG: width
    assert closed.sum() < 0.1
    assert 1 - narrow.sum() > 1e-3


def test_subtracting_cdfs_loses_the_tail():
    grid = torch.linspace(-1, 1, 256, dtype=torch.float64)
    naive = difference_of_cdfs(grid[200], -0.9, 0.05, 1 / 255).log()  # WRONG
    exact = discretised_log_prob(
        grid[200], torch.tensor(-0.9, dtype=torch.float64), 0.05
    )
    assert naive == -torch.inf
    assert exact > -600


def two_peaks() -> GaussianMixture:
    """Return the equal mixture of N(-1, 0.15^2) and N(1, 0.15^2)."""
    means = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    return GaussianMixture(torch.full((2,), 0.5).double(), means,
                           torch.full((2,), 0.15).double())  # fmt: skip


def exact_reverse(data: GaussianMixture, xt: Tensor, t: int, q: Schedule):
    """Return weights [B, K], means [B, K] and variances [K] of x_{t-1}."""
    early = data.diffused(q.signal[t - 1], q.noise_std[t - 1])
    scale, noise = transition(q, t - 1, t)
    means, variances = linear_gaussian_posterior(
        early.means[:, 0], early.stds**2, xt[:, None], scale, noise
    )
    late = data.diffused(q.signal[t], q.noise_std[t])
    return late.responsibilities(xt[:, None]), means, variances


def moments(weights: Tensor, means: Tensor, variances: Tensor):
    """Return mean, variance and kurtosis of mixtures on the line, [B]."""
    mean = (weights * means).sum(-1)
    off = (means - mean[:, None]) ** 2
    second = (weights * (off + variances)).sum(-1)
    fourth = off**2 + 6 * off * variances + 3 * variances**2
    return mean, second, (weights * fourth).sum(-1) / second**2


def distance_from_gaussian(data: GaussianMixture, t: int, q: Schedule):
    """Return KL(exact reverse || matched Gaussian), averaged over x_t."""
    xt = torch.linspace(-4.5, 4.5, 181, dtype=torch.float64)
    late = data.diffused(q.signal[t], q.noise_std[t])
    density = late.log_prob(xt[:, None]).exp()
    weights, means, variances = exact_reverse(data, xt, t, q)
    mean, second, _ = moments(weights, means, variances)
    y = torch.linspace(-9, 9, 601, dtype=torch.float64)
    x = mean[:, None] + second.sqrt()[:, None] * y
    parts = [
        weights[:, k, None].log()
        + log_normal(x, means[:, k, None], variances[k])
        for k in range(2)
    ]
    log_q = torch.logaddexp(*parts)
    log_p = log_normal(x, mean[:, None], second[:, None])
    inner = torch.trapezoid(log_q.exp() * (log_q - log_p), y)
    return torch.trapezoid(density * second.sqrt() * inner, xt)


def cosine_of(T: int) -> Schedule:
    """Return the schedule with alpha_bar = cos^2(0.98 pi t / 2T)."""
    u = torch.arange(T + 1, dtype=torch.float64) / T
    power = (0.98 * math.pi * u / 2).cos() ** 2
    return Schedule.from_betas(1 - power[1:] / power[:-1])


def test_small_steps_back_are_nearly_gaussian():
    expected = {4: 0.14813, 16: 0.03367, 64: 0.00341, 256: 0.00027}
    for T, number in expected.items():
        q = cosine_of(T)
        steps = range(2, T + 1)
        total = sum(distance_from_gaussian(two_peaks(), t, q) for t in steps)
        assert abs(total - number) < 1e-5


def test_the_parts_are_the_average_of_posteriors():
    data, q, t = two_peaks(), cosine_of(4), 2
    xt = torch.tensor([0.3], dtype=torch.float64)
    x0 = torch.linspace(-2.5, 2.5, 2001, dtype=torch.float64)
    given = log_normal(xt, q.signal[t] * x0, q.noise_std[t] ** 2)
    share = (data.log_prob(x0[:, None]) + given).softmax(0)
    steps = torch.full(x0.shape, t)
    mean, variance = posterior(x0, xt.expand_as(x0), steps, q)
    weights, means, variances = exact_reverse(data, xt, t, q)
    for x in torch.linspace(-2, 2, 9).double():
        mixed = (share * log_normal(x, mean, variance).exp()).sum()
        parts = (weights * log_normal(x, means, variances).exp()).sum()
        torch.testing.assert_close(mixed, parts, rtol=1e-10, atol=1e-12)


def test_for_gaussian_data_the_step_back_is_gaussian():
    q, t, xt = cosine_of(4), 2, torch.tensor(0.7, dtype=torch.float64)
    x0 = torch.linspace(-5, 5, 2001, dtype=torch.float64)
    given = log_normal(xt, q.signal[t] * x0, q.noise_std[t] ** 2)
    share = (log_normal(x0, 0.3, 0.25) + given).softmax(0)
    steps = torch.full(x0.shape, t)
    means, variance = posterior(x0, xt.expand_as(x0), steps, q)
    mixture = share[None], means[None], variance
    mean, second, kurtosis = moments(*mixture)
    power = q.alpha_bar[1]
    exact = linear_gaussian_posterior(
        power.sqrt() * 0.3, 0.25 * power + 1 - power, xt, *transition(q, 1, 2)
    )
    assert abs(mean - exact[0]) < 1e-12
    assert abs(second - exact[1]) < 1e-12
    assert abs(kurtosis - 3) < 1e-12


def step_between(before: float, after: float) -> Schedule:
    """Return two steps, with alpha_bar = before and alpha_bar = after."""
    powers = torch.tensor([1.0, before, after], dtype=torch.float64)
    return Schedule.from_betas(1 - powers[1:] / powers[:-1])


def kurtosis_of_step(before: float, after: float) -> float:
    """Return the kurtosis of the exact step back at x_t = 0, data +-2."""
    points = GaussianMixture(
        torch.full((2,), 0.5).double(),
        torch.tensor([[-2.0], [2.0]], dtype=torch.float64),
        torch.zeros(2).double(),
    )
    q = step_between(before, after)
    law = exact_reverse(points, torch.zeros(1).double(), 2, q)
    return moments(*law)[2].item()


def test_a_large_step_back_is_not_gaussian():
    assert abs(kurtosis_of_step(0.9, 0.1) - 1.11) < 0.01
    assert abs(kurtosis_of_step(0.9, 0.9 * 0.999) - 2.86) < 0.01
    assert abs(kurtosis_of_step(0.1, 0.1 * 0.999) - 3) < 1e-5
    large = distance_from_gaussian(two_peaks(), 2, step_between(0.9, 0.1))
    small = distance_from_gaussian(two_peaks(), 2, step_between(0.11, 0.1))
    assert large > 0.3
    assert small < 1e-4


def chain_denoiser(chain: LinearGaussianChain, q: Schedule) -> Callable:
    """Return the denoiser whose reverse model is the chain."""

    def model(xt: Tensor, t: Tensor) -> Tensor:
        zero, one = torch.zeros_like(xt), torch.ones_like(xt)
        from_data = posterior_mean(one, zero, t, q)
        wanted = per_sample(chain.slope, t, xt) * xt
        wanted = wanted + per_sample(chain.shift, t, xt)
        return (wanted - posterior_mean(zero, xt, t, q)) / from_data

    return model


def terms_by_code(D: int = 1) -> Tensor:
    """Return L_0, ..., L_4 of D copies of the toy chain, by the code."""
    chain, q, x0 = toy()
    model = chain_denoiser(chain, q)
    x0, eps = x0.expand(2, D), torch.tensor([[-1.0], [1.0]]).double()
    eps = eps.expand(2, D)
    terms = [decoder_term(model, x0, eps, q, chain.std, levels=None).mean()]
    for step in range(2, q.T + 1):
        t = torch.full((2,), step)
        terms.append(kl_terms(model, x0, t, eps, q, chain.std).mean())
    return torch.stack([*terms, prior_term(x0[:1], q)[0]])


def test_the_code_computes_the_terms():
    exact = terms_of_the_toy()
    for D in (1, 8):  # equal coordinates: every term is D times as large
        found = terms_by_code(D)
        torch.testing.assert_close(found, D * exact, rtol=0, atol=1e-12)
    assert abs(terms_by_code().sum() - 3.5578037996) < 1e-10


def test_one_draw_of_noise_is_right_on_average():
    chain, q, x0 = toy()
    generator = torch.Generator().manual_seed(0)
    model = chain_denoiser(chain, q)
    draws = vlb(model, x0.expand(20_000), q, chain.std, None, generator)
    assert abs(standard_score(draws, 3.5578037996)) < 5


def test_the_hand_example_of_the_chapter():
    q = Schedule.from_betas(torch.tensor([0.36, 0.75], dtype=torch.float64))
    x0, t = torch.tensor([2.0], dtype=torch.float64), torch.tensor([2])
    sigma = torch.cat([q.beta[:2], posterior_var(q)[2:]]).sqrt()
    eps = (0.1 - q.signal[2] * x0) / q.noise_std[2]  # so that x_2 = 0.1
    term = kl_terms(
        lambda xt, t: torch.full_like(xt, 1.5), x0, t, eps, q, sigma
    )
    assert abs(term - 0.1984) < 1e-4


def test_a_mean_over_the_dimensions_is_not_the_term():
    chain, q, x0 = toy()
    exact = bound_from_kernels(chain, q, x0)
    D = 8
    terms = terms_by_code(D)
    averaged = terms[0] + terms[1:-1].sum() / D + terms[-1]  # WRONG: mean
    assert abs(terms.sum() - D * exact) < 1e-10  # CORRECT: sum
    assert averaged < -D * chain.log_prob(x0)  # below the truth: no bound


def test_a_weight_with_the_square_of_the_variance_is_caught():
    gap, variance = torch.tensor([0.3, 0.25], dtype=torch.float64)
    exact = gaussian_kl(0.0, variance, gap, variance)
    squared = gap**2 / (2 * variance**2)  # WRONG: 1 / (2 ||Sigma||^2)
    assert abs(gap**2 / (2 * variance) - exact) < 1e-12  # CORRECT
    assert abs(squared / exact - 4) < 1e-12  # 1 / sigma^2 times too large


def test_a_wrong_sign_turns_the_bound_over():
    chain, _, x0 = toy()
    terms = terms_by_code()
    wrong = terms[0] + terms[-1] - terms[1:-1].sum()  # WRONG: minus
    assert wrong < -chain.log_prob(x0) < terms.sum()


LEVELS = 17  # a pixel of the digits is one of 0..16


def histograms() -> Tensor:
    """Return the log share of each level in each pixel, [8, 8, 17]."""
    images = torch.tensor(load_digits().images)
    hits = [(images == level).sum(0) for level in range(LEVELS)]
    counts = torch.stack(hits, -1).double() + 1
    return (counts / counts.sum(-1, keepdim=True)).log()


def exact_nats(x0: Tensor, log_share: Tensor) -> Tensor:
    """Return -ln p(x_0) of pictures [B, 8, 8] with levels in [-1, 1]."""
    level = (8 * x0 + 8).round().long()[..., None]
    rows = log_share.expand(len(x0), 8, 8, LEVELS)
    return -rows.gather(-1, level).sum((1, 2, 3))


def histogram_denoiser(log_share: Tensor, q: Schedule) -> Callable:
    """Return E[x_0 | x_t] for independent pixels with these histograms."""
    grid = torch.linspace(-1, 1, LEVELS, dtype=torch.float64)

    def model(xt: Tensor, t: Tensor) -> Tensor:
        signal = q.signal[t, None, None, None]
        noise_std = q.noise_std[t, None, None, None]
        off = (xt[..., None] - signal * grid) / noise_std
        return (log_share - off**2 / 2).softmax(-1) @ grid

    return model


def test_the_bound_on_digits_lies_above_the_exact_value():
    x0 = torch.tensor(load_digits().images[::100] / 8 - 1)
    log_share, q = histograms(), Schedule.linear(100, 1e-3, 0.2)
    model = histogram_denoiser(log_share, q)
    generator = torch.Generator().manual_seed(0)
    bound = vlb(model, x0, q, q.beta.sqrt(), LEVELS, generator)
    above = bound - exact_nats(x0, log_share)
    assert standard_score(above, 0.0) > 5
    assert bits_per_dim(above, 64).mean() < 1
