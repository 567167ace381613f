"""Checks of the chapter “The forward process and its schedules”.

Tangled from book/diffusion/forward.md.
"""

from collections.abc import Callable
from itertools import islice

import pytest
import sympy
import torch
from diffusers import DDPMScheduler
from sklearn.datasets import load_digits
from torch import Tensor

from tangled.diffusion.forward import (
    diffuse,
    forward_chain,
    forward_step,
    prior_term,
    transition,
)
from tangled.diffusion.gaussian import log_normal
from tangled.diffusion.schedule import (
    Schedule,
    per_sample,
    schedule_named,
    to_index,
)
from tangled.workshop.statistics import standard_score


def test_the_induction_step_is_an_identity():
    alpha, before = sympy.symbols("alpha alpha_bar_before", positive=True)
    variance = alpha * (1 - before) + (1 - alpha)
    assert sympy.expand(variance - (1 - alpha * before)) == 0


def test_the_recursion_meets_the_closed_form_at_every_step():
    schedule = Schedule.linear(1000)
    mean, variance = torch.ones(1).double(), 0.0
    zero = torch.zeros(1).double()
    for t in range(1, schedule.T + 1):
        mean = forward_step(mean, t, zero, schedule)
        variance = schedule.alpha[t] * variance + schedule.beta[t]
        assert abs(mean - schedule.signal[t]) < 1e-14
        assert abs(variance - schedule.noise_std[t] ** 2) < 1e-14


def test_the_chain_has_the_law_of_the_jump():
    schedule = Schedule.linear(1000)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.full((20_000,), 1.7, dtype=torch.float64)
    x = next(islice(forward_chain(x0, schedule, generator), 250, None))
    mean, std = 1.7 * schedule.signal[250], schedule.noise_std[250]
    assert abs(standard_score(x, mean.item())) < 5
    assert abs(standard_score((x - mean) ** 2, (std**2).item())) < 5


def whitened(jump: Callable[..., Tensor]) -> Tensor:
    """Return (x_t - a_t x_0) / noise_std_t for the digits, t = 1..1000."""
    schedule = Schedule.linear(1000)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.tensor(load_digits().images / 8 - 1)
    t = torch.randint(1, 1001, (len(x0),), generator=generator)
    eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    noise = jump(x0, t, eps, schedule) - schedule.signal[t, None, None] * x0
    return (noise / schedule.noise_std[t, None, None]).flatten()


def test_what_the_jump_adds_is_white_noise():
    white = whitened(diffuse)
    assert abs(standard_score(white, 0.0)) < 5
    assert abs(standard_score(white**2, 1.0)) < 5


def without_roots(x0, t, eps, schedule):
    # CORRECT: alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps
    alpha_bar = per_sample(schedule.alpha_bar, t, x0)
    return alpha_bar * x0 + (1 - alpha_bar) * eps  # WRONG: powers


def swapped(x0, t, eps, schedule):
    signal = per_sample(schedule.signal, t, x0)
    noise_std = per_sample(schedule.noise_std, t, x0)
    return noise_std * x0 + signal * eps  # WRONG: at t = 0 this is pure noise


def test_missing_roots_and_swapped_tables_are_caught():
    for wrong in (without_roots, swapped):
        assert abs(standard_score(whitened(wrong) ** 2, 1.0)) > 10


def test_noise_must_be_fresh_in_every_step():
    schedule = Schedule.linear(1000)
    std = torch.zeros(1).double()
    for t in range(1, schedule.T + 1):  # WRONG: eps = 1 stands for one noise
        std = forward_step(std, t, torch.ones(1).double(), schedule)
    assert std > 10 * schedule.noise_std[-1]


def test_two_transitions_compose_to_one():
    schedule = Schedule.linear(1000)
    for r, s, t in [(0, 1, 2), (0, 300, 500), (7, 250, 1000), (40, 40, 41)]:
        first, second = transition(schedule, r, s), transition(schedule, s, t)
        scale, variance = transition(schedule, r, t)
        through = second[0] ** 2 * first[1] + second[1]
        assert abs(first[0] * second[0] - scale) < 1e-14
        assert abs(through - variance) < 1e-14
    for t in range(schedule.T + 1):  # from the data it is the theorem
        scale, variance = transition(schedule, 0, t)
        assert abs(scale - schedule.signal[t]) < 1e-14
        assert abs(variance - schedule.noise_std[t] ** 2) < 1e-14


def test_the_marginal_variance_is_not_the_variance_of_a_transition():
    schedule = Schedule.from_betas(
        torch.tensor([1 - 0.81, 1 - 0.25 / 0.81], dtype=torch.float64)
    )
    scale, variance = transition(schedule, 1, 2)
    wrong = schedule.noise_std[2] ** 2  # WRONG: the variance given x_0
    before = schedule.noise_std[1] ** 2
    assert abs(scale**2 * before + variance - 0.75) < 1e-12  # CORRECT
    assert abs(scale**2 * before + wrong - 0.8086) < 1e-4


def noise_weights(schedule: Schedule) -> Tensor:
    """Return [T+1, T]: entry (t, s-1) is the weight of eps_s in x_t."""
    rows = [torch.zeros(schedule.T).double()]
    for t, unit in enumerate(torch.eye(schedule.T).double(), start=1):
        rows.append(forward_step(rows[-1], t, unit, schedule))
    return torch.stack(rows)


def test_covariance_of_the_whole_path():
    schedule = Schedule.linear(1000)
    weights = noise_weights(schedule)
    signal, variance = schedule.signal, schedule.noise_std**2
    expected = torch.tril(signal[:, None] / signal * variance)
    covariance = torch.tril(weights @ weights.T)
    torch.testing.assert_close(covariance, expected, rtol=0, atol=1e-13)


def test_covariance_of_simulated_chains():
    schedule = Schedule.linear(1000)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.zeros(10_000).double()
    xs, xt = islice(forward_chain(x0, schedule, generator), 300, 501, 200)
    scale, _ = transition(schedule, 300, 500)
    expected = (scale * schedule.noise_std[300] ** 2).item()
    assert abs(standard_score(xs * xt, expected)) < 5


def test_one_shared_noise_is_not_the_chain():
    schedule = Schedule.linear(1000)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.zeros(10_000).double()
    eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    t = torch.full(x0.shape, 300)
    xs = diffuse(x0, t, eps, schedule)
    xt = diffuse(x0, t + 200, eps, schedule)  # WRONG as a path: same eps
    scale, _ = transition(schedule, 300, 500)
    expected = (scale * schedule.noise_std[300] ** 2).item()
    assert abs(standard_score(xs**2, schedule.noise_std[300].item() ** 2)) < 5
    assert standard_score(xs * xt, expected) > 20


def test_covariance_recursion():
    schedule = Schedule.linear(1000)
    start = torch.tensor([[2.0, -0.7], [-0.7, 0.4]], dtype=torch.float64)
    identity, covariance = torch.eye(2).double(), start
    for t in range(1, schedule.T + 1):
        step = schedule.alpha[t] * covariance + schedule.beta[t] * identity
        covariance, power = step, schedule.alpha_bar[t]
        expected = power * start + (1 - power) * identity
        assert (covariance - expected).abs().max() < 1e-13


def pixel_score(jump: Callable[..., Tensor], step: int) -> float:
    """Return the standard score of the variance of single digit pixels."""
    schedule = Schedule.linear(1000)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.tensor(load_digits().images / 8 - 1).flatten()
    pick = torch.randint(len(pixels), (100_000,), generator=generator)
    eps = torch.randn(pick.shape, generator=generator, dtype=pixels.dtype)
    x = jump(pixels[pick], torch.full_like(pick, step), eps, schedule)
    squares = (x - schedule.signal[step] * pixels.mean()) ** 2
    power, spread = schedule.alpha_bar[step], pixels.var(correction=0)
    return standard_score(squares, (power * spread + 1 - power).item())


def test_variance_of_diffused_digit_pixels():
    for step in (0, 100, 250, 500):
        assert abs(pixel_score(diffuse, step)) < 5


def variance_spread(jump: Callable[..., Tensor]) -> float:
    """Return how much the pixel variance of the digits varies over t."""
    schedule = Schedule.linear(1000)
    generator = torch.Generator().manual_seed(0)
    x0, variances = torch.tensor(load_digits().images / 8 - 1), []
    for step in range(0, 1001, 50):
        t = torch.full((len(x0),), step)
        eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
        variances.append(jump(x0, t, eps, schedule).var())
    return torch.stack(variances).std().item()


def test_constancy_of_variance_is_the_wrong_test():
    assert variance_spread(diffuse) > 0.1  # rejects the correct code
    # and accepts code that adds no noise at all
    assert variance_spread(lambda x0, t, eps, schedule: x0) == 0


def test_noise_that_depends_on_the_data_is_caught():
    def dependent(x0, t, eps, schedule):
        white = (x0 - x0.mean()) / x0.std()
        return diffuse(x0, t, (eps + white) / 2**0.5, schedule)  # WRONG

    assert pixel_score(dependent, 250) > 20


def test_snr_falls_strictly_on_random_schedules():
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        beta = torch.rand(50, generator=generator, dtype=torch.float64)
        schedule = Schedule.from_betas(beta.clamp(1e-6, 0.9))
        assert schedule.snr[0] == torch.inf
        assert schedule.snr[-1] > 0
        assert (schedule.snr.diff() < 0).all()
        assert (schedule.half_log_snr.diff() < 0).all()
        assert (schedule.phi.diff() > 0).all()
        # The four units say the same.
        squared, log = schedule.rho[1:] ** 2, schedule.rho[1:].log()
        assert (squared * schedule.snr[1:] - 1).abs().max() < 1e-14
        assert (log + schedule.half_log_snr[1:]).abs().max() < 1e-13
        assert (schedule.phi.cos() - schedule.signal).abs().max() < 1e-15


def test_a_step_without_noise_stops_the_fall_and_is_refused():
    beta = torch.tensor([0.1, 0.0, 0.2], dtype=torch.float64)
    power = (1 - beta).cumprod(0)
    assert not (power.diff() < 0).all()  # the strict test notices
    assert (power.diff() <= 0).all()  # the loose test does not
    with pytest.raises(ValueError, match=r"but beta\[2\] = 0.0"):
        Schedule.from_betas(beta)


LIBRARY = {  # our name: theirs, beta_1, beta_T
    "linear": ("linear", 1e-4, 0.02),
    "scaled_linear": ("scaled_linear", 0.00085, 0.012),
    "cosine": ("squaredcos_cap_v2", 1e-4, 0.02),
    "sigmoid": ("sigmoid", 1e-4, 0.02),
}


def test_tables_and_noisy_pictures_are_those_of_diffusers():
    x0, eps = torch.randn(
        2, 4, 8, 8, generator=torch.Generator().manual_seed(0)
    )
    t = torch.tensor([1, 250, 999, 1000])
    for name, (theirs, start, end) in LIBRARY.items():
        ours = schedule_named(name, 1000)
        library = DDPMScheduler(
            beta_schedule=theirs, beta_start=start, beta_end=end
        )
        for table, own, tolerance in (
            (library.betas, ours.beta, 3e-7),
            (library.alphas_cumprod, ours.alpha_bar, 5e-7),
        ):
            assert (table.double() - own[1:]).abs().max() < tolerance
        noisy = library.add_noise(x0, eps, to_index(t))
        torch.testing.assert_close(
            noisy, diffuse(x0, t, eps, ours), rtol=0, atol=1e-5
        )


def test_step_zero_returns_the_data():
    schedule = Schedule.linear(1000)
    x0, eps = torch.ones(3, 2).double(), torch.full((3, 2), 9.0).double()
    assert torch.equal(diffuse(x0, torch.zeros(3).long(), eps, schedule), x0)
    for t in (-1, 1001):
        with pytest.raises(ValueError, match=r"t must lie in 0\.\.1000"):
            diffuse(x0, torch.full((3,), t), eps, schedule)


def test_wrong_indices_are_caught():
    schedule = Schedule.linear(1000)
    table = schedule.alpha_bar[1:]  # as other libraries store it: index t - 1
    x0, eps = torch.tensor(1.0).double(), torch.tensor(9.0).double()
    for index in (0, 0 - 1):  # WRONG at t = 0: no shift; a shift too far
        x = table[index].sqrt() * x0 + (1 - table[index]).sqrt() * eps
        assert x != x0
    assert abs(x - eps) < 0.01  # the last entry: x_0 became pure noise
    assert (1 - table[1]) / schedule.noise_std[1] ** 2 > 2  # step 1 reads 2


def test_prior_term_against_quadrature():
    beta = torch.tensor([0.36, 0.75], dtype=torch.float64)
    schedule = Schedule.from_betas(beta)
    x = torch.linspace(-14, 14, 5601, dtype=torch.float64)
    data = torch.tensor([2.0, -2.0]).double()  # two equally likely points
    prior = log_normal(x, 0.0, 1.0).exp()
    given = [log_normal(x, 0.4 * x0, 0.84).exp() for x0 in data.tolist()]
    mixed = (given[0] + given[1]) / 2
    gap = [torch.trapezoid(q * (q / prior).log(), x) for q in given]
    known = [torch.trapezoid(q * (q / mixed).log(), x) for q in given]
    average = torch.trapezoid(mixed * (mixed / prior).log(), x)
    exact = prior_term(data, schedule)
    torch.testing.assert_close(exact, torch.stack(gap), rtol=1e-10, atol=0)
    both = prior_term(torch.stack([data, data], 1), schedule)
    torch.testing.assert_close(both, 2 * exact, rtol=1e-14, atol=0)
    torch.testing.assert_close(  # the identity behind the bound
        exact.mean(), average + (known[0] + known[1]) / 2, rtol=1e-10, atol=0
    )


def test_forgetting_the_logarithm_or_the_sum_is_caught():
    beta = torch.tensor([0.36, 0.75], dtype=torch.float64)
    schedule = Schedule.from_betas(beta)
    x0 = torch.full((1, 3), 2.0, dtype=torch.float64)
    exact, power = prior_term(x0, schedule), schedule.alpha_bar[-1]
    means_only = power * x0.square().sum(1) / 2  # WRONG: equal variances
    averaged = prior_term(x0[:, :1], schedule)  # WRONG: mean over D, not sum
    assert (means_only - exact).abs() > 0.01
    torch.testing.assert_close(exact, 3 * averaged)


def test_the_bound_is_not_an_equality():
    beta = torch.tensor([0.36, 0.75], dtype=torch.float64)
    schedule = Schedule.from_betas(beta)
    x = torch.linspace(-14, 14, 5601, dtype=torch.float64)
    peaks = [log_normal(x, mean, 0.84).exp() for mean in (0.8, -0.8)]
    mixed = (peaks[0] + peaks[1]) / 2
    prior = log_normal(x, 0.0, 1.0).exp()
    average = torch.trapezoid(mixed * (mixed / prior).log(), x)
    assert average < prior_term(torch.tensor([2.0]).double(), schedule) - 0.1


def test_a_short_chain_with_the_long_range_does_not_reach_noise():
    x0 = torch.tensor(load_digits().images / 8 - 1)
    full = prior_term(x0, Schedule.linear(1000)).mean()
    short = prior_term(x0, Schedule.linear(100)).mean()  # WRONG
    scaled = prior_term(x0, Schedule.linear(100, 1e-3, 0.2)).mean()  # CORRECT
    assert short > 5000 * full
    assert scaled < full
