"""Checks of the chapter “The forward process and its schedules”.

Tangled from book/diffusion/forward.md.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.special import ndtr

from tangled.diffusion.forward import (
    diffuse,
    forward_chain,
    forward_step,
    prior_term,
    transition,
)
from tangled.diffusion.gaussian import log_normal
from tangled.diffusion.schedule import Schedule, per_sample, schedule_named
from tangled.workshop.statistics import standard_score

HAND = {1: (1.6, 0.36), 2: (0.8, 0.84)}  # t: mean and variance, by hand
HAND_STEPS = Schedule.from_betas([0.36, 0.75])


def check_marginal(draw: Callable[..., Tensor]) -> None:
    """Check the distribution of draw(x0, t, generator) at x0 = 2."""
    generator = torch.Generator().manual_seed(0)
    x0 = torch.full((20_000,), 2.0).double()
    for t, (mean, variance) in HAND.items():
        white = (draw(x0, t, generator) - mean) / variance**0.5
        for level in torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).double():
            p = ndtr(level).item()
            below = (white < level).double()
            z = standard_score(below, p, (p * (1 - p)) ** 0.5)
            assert abs(z) < 5, f"wrong share below {level:g} at t = {t}"


def by_chain(x0: Tensor, t: int, generator: torch.Generator) -> Tensor:
    return list(forward_chain(x0, HAND_STEPS, generator))[t]


def by_jump(x0, t, generator, jump=diffuse):
    eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    return jump(x0, torch.full(x0.shape, t), eps, HAND_STEPS)


def test_chain_and_jump_have_the_distribution_found_by_hand():
    check_marginal(by_chain)
    check_marginal(by_jump)


def without_roots(x0, t, eps, schedule):
    alpha_bar = per_sample(schedule.alpha_bar, t, x0)
    # CORRECT: alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps
    return alpha_bar * x0 + (1 - alpha_bar) * eps  # WRONG: powers


def test_missing_roots_are_caught():
    with pytest.raises(AssertionError, match=r"wrong share .* at t = 1"):
        check_marginal(lambda *draw: by_jump(*draw, jump=without_roots))


def by_coins(x0, t, generator):
    for step in range(1, t + 1):  # WRONG: right mean and variance, two values
        coins = torch.randint(2, x0.shape, generator=generator) * 2.0 - 1
        x0 = forward_step(x0, step, coins.double(), HAND_STEPS)
    return x0


def with_one_noise(x0, t, generator):
    eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    for step in range(1, t + 1):  # WRONG: the same eps in every step
        x0 = forward_step(x0, step, eps, HAND_STEPS)
    return x0


def test_coins_and_one_reused_noise_are_caught():
    with pytest.raises(AssertionError, match=r"wrong share .* at t = 1"):
        check_marginal(by_coins)
    with pytest.raises(AssertionError, match=r"wrong share .* at t = 2"):
        check_marginal(with_one_noise)


def check_transition(move: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """Check that two transitions compose to one, and the hand example."""
    schedule = Schedule.linear(1000)
    for r, s, t in [(0, 1, 2), (0, 300, 500), (7, 250, 1000), (40, 40, 41)]:
        first, second = move(schedule, r, s), move(schedule, s, t)
        scale, variance = move(schedule, r, t)
        through = second[0] ** 2 * first[1] + second[1]
        assert abs(first[0] * second[0] - scale) < 1e-14, "scale"
        assert abs(through - variance) < 1e-14, "variance"
    scale, variance = move(Schedule.from_betas([0.36, 0.75]), 0, 2)
    assert abs(scale - 0.4) < 1e-14, "scale"
    assert abs(variance - 0.84) < 1e-14, "variance"


def test_two_transitions_compose_to_one():
    check_transition(transition)


def marginal_variance(schedule, s, t):
    scale, _ = transition(schedule, s, t)
    return scale, schedule.noise_std[t] ** 2  # WRONG: the variance given x_0


def test_the_marginal_variance_is_not_that_of_a_transition():
    with pytest.raises(AssertionError, match="variance"):
        check_transition(marginal_variance)


def check_pair(pair: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """Check pair(x0, s, t, schedule, generator) at the hand example."""
    generator = torch.Generator().manual_seed(0)
    x0 = torch.full((20_000,), 2.0).double()
    x1, x2 = pair(x0, 1, 2, Schedule.from_betas([0.36, 0.75]), generator)
    u1, u2 = x1 - 1.6, x2 - 0.8
    # For a Gaussian, u^2 has deviation sqrt(2) var; the product as below.
    for values, expected, std, what in [
        (u1**2, 0.36, 2**0.5 * 0.36, "wrong variance at s"),
        (u2**2, 0.84, 2**0.5 * 0.84, "wrong variance at t"),
        (u1 * u2, 0.18, (0.36 * 0.84 + 0.18**2) ** 0.5, "wrong covariance"),
    ]:
        assert abs(standard_score(values, expected, std)) < 5, what


def from_chain(x0, s, t, schedule, generator):
    path = list(forward_chain(x0, schedule, generator))
    return path[s], path[t]


def test_two_states_of_the_chain_have_the_covariance_found_by_hand():
    check_pair(from_chain)


def with_a_shared_noise(x0, s, t, schedule, generator):
    eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    steps = torch.full(x0.shape, s), torch.full(x0.shape, t)
    return tuple(diffuse(x0, r, eps, schedule) for r in steps)  # WRONG


def test_one_shared_noise_is_not_the_chain():
    with pytest.raises(AssertionError, match="wrong covariance"):
        check_pair(with_a_shared_noise)


def check_variance(jump: Callable[..., Tensor]) -> None:
    """Check the variance of the numbers of a photograph, at five steps.

    Each number meets the noises 1 and -1 once. They are uncorrelated with the
    data and have variance 1, which is all that the proof uses.
    """
    pixels = torch.tensor(load_sample_image("flower.jpg")[::8, ::8])
    pixels = pixels.double().flatten() / 127.5 - 1
    x0, one = torch.cat([pixels, pixels]), torch.ones_like(pixels)
    schedule = Schedule.linear(1000)
    for step in (0, 100, 250, 500, 1000):
        t = torch.full(x0.shape, step)
        xt = jump(x0, t, torch.cat([one, -one]), schedule)
        power = schedule.alpha_bar[step]
        expected = power * x0.var(correction=0) + 1 - power
        error = xt.var(correction=0) - expected
        assert abs(error) < 1e-12, f"wrong variance at t = {step}"


def test_variance_along_the_jump():
    check_variance(diffuse)


def without_noise(x0, t, eps, schedule):
    return x0  # WRONG, although it "preserves the variance"


def dependent(x0, t, eps, schedule):
    white = (x0 - x0.mean()) / x0.std()
    return diffuse(x0, t, (eps + white) / 2**0.5, schedule)  # WRONG


def test_no_noise_and_noise_that_depends_on_the_data_are_caught():
    for wrong in (without_noise, dependent):
        with pytest.raises(AssertionError, match="wrong variance at t = 100"):
            check_variance(wrong)


def check_falls(snr_of: Callable[[Tensor], Tensor]) -> None:
    """Check the SNR of random schedules, from their betas."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        beta = torch.rand(50, generator=generator, dtype=torch.float64)
        snr = snr_of(beta.clamp(1e-6, 0.9))
        assert snr[0] == torch.inf, "noise in the data"
        assert snr[-1] > 0, "no signal at the end"
        assert (snr[1:] <= snr[:-1]).all(), "it rises"
        assert (snr[1:] < snr[:-1]).all(), "it does not move"


def test_the_snr_falls_strictly_on_random_schedules():
    check_falls(lambda beta: Schedule.from_betas(beta).snr)


def with_an_idle_step(beta):
    beta[20] = 0.0  # WRONG: a step that does nothing
    power = (1 - F.pad(beta, (1, 0))).cumprod(0)
    return power / (1 - power)


def test_an_idle_step_is_caught_and_refused():
    with pytest.raises(AssertionError, match="it does not move"):
        check_falls(with_an_idle_step)
    with pytest.raises(ValueError, match=r"at t = 2 beta is 0\.0 "):
        Schedule.from_betas([0.1, 0.0, 0.2])


LIBRARY = {  # our name: theirs, beta_min, beta_max
    "linear": ("linear", 1e-4, 0.02),
    "scaled_linear": ("scaled_linear", 0.00085, 0.012),
    "cosine": ("squaredcos_cap_v2", 1e-4, 0.02),
    "sigmoid": ("sigmoid", 1e-4, 0.02),
}


def check_tables(beta_of: Callable[[str], Tensor]) -> None:
    """Compare the steps of four schedules with those of diffusers."""
    for name, (theirs, start, end) in LIBRARY.items():
        library = DDPMScheduler(
            beta_schedule=theirs, beta_start=start, beta_end=end
        )
        error = (library.betas.double() - beta_of(name)[1:]).abs().max()
        assert error < 3e-7, f"{name} differs"  # float32 there


def test_the_tables_are_those_of_diffusers():
    check_tables(lambda name: schedule_named(name, 1000).beta)


def one_late(name):
    beta = schedule_named(name, 1000).beta
    return beta.roll(1)  # WRONG: shifted by a step


def another_sigmoid(name):
    if name != "sigmoid":
        return schedule_named(name, 1000).beta
    u = torch.linspace(-6, 6, 1001).double()
    power = (-u).sigmoid()  # WRONG: logistic in alpha_bar, not in beta
    return F.pad(1 - power[1:] / power[:-1], (1, 0))


def test_a_shifted_table_and_the_other_sigmoid_are_caught():
    with pytest.raises(AssertionError, match="linear differs"):
        check_tables(one_late)
    with pytest.raises(AssertionError, match="sigmoid differs"):
        check_tables(another_sigmoid)


def unshifted(x0, t, eps, schedule):
    table = schedule.alpha_bar[1:]  # as libraries keep it: entry t - 1
    power = table[t]  # WRONG: that is step t + 1
    return power.sqrt() * x0 + (1 - power).sqrt() * eps


def shifted_too_far(x0, t, eps, schedule):
    table = schedule.alpha_bar[1:]
    power = table[t - 1]  # WRONG at t = 0: the last entry
    return power.sqrt() * x0 + (1 - power).sqrt() * eps


def test_step_zero_returns_the_data_in_diffuse_alone():
    x0, eps = torch.ones(5).double(), torch.full((5,), 9.0).double()
    t, schedule = torch.zeros(5, dtype=torch.int64), Schedule.linear(1000)
    assert torch.equal(diffuse(x0, t, eps, schedule), x0)
    assert not torch.equal(unshifted(x0, t, eps, schedule), x0)
    assert (shifted_too_far(x0, t, eps, schedule) > 8.9).all()  # pure noise


def check_shift(shifted: Callable[[Schedule, int], Schedule]) -> None:
    """Check that blocks of s by s pixels see the SNR from before."""
    usual, units = Schedule.linear(1000), torch.eye(64).double()
    for s in (2, 4):
        blocks = F.avg_pool2d(units.reshape(64, 1, 8, 8), s).flatten(1)
        gram = blocks.T @ blocks  # covariance of averaged unit noise
        schedule = shifted(usual, s)
        seen = schedule.alpha_bar / schedule.noise_std**2 / gram[0, 0]
        assert torch.equal(gram, gram[0, 0] * torch.eye(len(gram)))
        error = (seen / usual.snr)[1:] - 1
        assert error.abs().max() < 1e-9, "blocks see another SNR"


def test_a_larger_picture_needs_a_shift_of_two_logarithms():
    check_shift(lambda schedule, s: schedule.shifted(1 / s))


def test_half_the_shift_and_the_other_direction_are_caught():
    for b in (lambda s: s**-0.5, lambda s: float(s)):  # WRONG: ln s; upwards
        with pytest.raises(AssertionError, match="another SNR"):
            check_shift(lambda schedule, s, b=b: schedule.shifted(b(s)))


def check_gap(gap: Callable[[Tensor, Schedule], Tensor]) -> None:
    """Check L_T of the hand example against an integral over a grid."""
    schedule = Schedule.from_betas([0.36, 0.75])
    x = torch.linspace(-14, 14, 5601, dtype=torch.float64)
    prior = log_normal(x, 0.0, 1.0)
    for x0 in (2.0, -0.5):
        last = log_normal(x, 0.4 * x0, 0.84)
        integral = torch.trapezoid(last.exp() * (last - prior), x)
        for dim in (1, 3):  # equal coordinates: three times the divergence
            found = gap(torch.full((1, dim), x0).double(), schedule)
            error = abs(found[0] / integral / dim - 1)
            assert error < 1e-10, f"wrong gap in {dim} dimensions"


def test_prior_term_against_quadrature():
    check_gap(prior_term)


def means_only(x0, schedule):
    return schedule.alpha_bar[-1] * x0.square().sum(1) / 2  # WRONG: no ln


def averaged(x0, schedule):
    return prior_term(x0, schedule) / x0[0].numel()  # WRONG: mean, not sum


def test_a_missing_logarithm_and_a_mean_are_caught():
    with pytest.raises(AssertionError, match="wrong gap in 1 dim"):
        check_gap(means_only)
    with pytest.raises(AssertionError, match="wrong gap in 3 dim"):
        check_gap(averaged)


def check_end(schedule: Schedule) -> None:
    """Check that the chain ends as close to noise as the usual one."""
    x0 = torch.ones(1, 100).double()
    usual = prior_term(x0, Schedule.linear(1000))
    assert prior_term(x0, schedule) < 1.1 * usual, "it stops half-way"


def test_a_short_chain_with_the_long_range_does_not_reach_noise():
    check_end(Schedule.linear(100, 1e-3, 0.2))  # CORRECT: ten times the range
    with pytest.raises(AssertionError, match="stops half-way"):
        check_end(Schedule.linear(100))  # WRONG: the range of T = 1000
