"""Checks of the chapter “Scores, SDEs and the probability-flow ODE”.

Tangled from book/diffusion/score.md.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tangled.diffusion.elbo import posterior_mean
from tangled.diffusion.gaussian import log_normal
from tangled.diffusion.mixture import GaussianMixture
from tangled.diffusion.prediction import Prediction, convert, denoising_losses
from tangled.diffusion.schedule import Schedule
from tangled.diffusion.sde import VE, VP, backward, flow, log_likelihood
from tangled.workshop.statistics import standard_score


def check_score(average: Callable[..., Tensor]) -> None:
    """Check the score at three noise levels, by automatic differentiation."""
    points = torch.tensor([-1.5, 0.2, 1.0], dtype=torch.float64)
    q = Schedule.linear(1000)
    for step in (10, 300, 900):
        a, s = q.signal[step], q.noise_std[step]
        x = torch.linspace(-2, 2, 9, dtype=torch.float64, requires_grad=True)
        parts = log_normal(x[:, None], a * points, s**2)
        total = parts.logsumexp(1).sum()
        exact = torch.autograd.grad(total, x)[0]
        x = x.detach()
        each = (a * points - x[:, None]) / s**2  # of q(x_t | x_0)
        score = average(each, parts.detach().softmax(1))
        assert torch.allclose(score, exact, rtol=1e-9), "not the score"
        guess, t = (x + s**2 * score) / a, torch.full((9,), step)
        again = convert(guess, x, t, q, Prediction.X0, Prediction.SCORE)
        assert torch.allclose(again, exact, rtol=1e-9), "not Tweedie's guess"


def test_the_score_is_the_mean_over_what_x0_can_be():
    check_score(lambda each, share: (share * each).sum(1))


def over_all_data(each: Tensor, share: Tensor) -> Tensor:
    return each.mean(1)  # WRONG: forgets what x_t says about x_0


def test_the_mean_over_all_data_is_not_the_score():
    with pytest.raises(AssertionError, match="not the score"):
        check_score(over_all_data)


def check_matching(target_of: Callable[..., Tensor]) -> None:
    """Check that two fields differ by as much in either loss."""
    q, step, n = Schedule.linear(1000), 200, 200_000
    a, s = q.signal[step], q.noise_std[step]
    generator = torch.Generator().manual_seed(0)
    x0 = blobs_of_the_check().sample(n, generator)
    eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    xt = a * x0 + s * eps
    true = blobs_of_the_check().diffused(a, s).score(xt)
    y = target_of(eps, s)
    fields = (-xt, 0.3 * true)
    easy = [(h - y).square().sum(1) for h in fields]
    hard = [(h - true).square().sum(1) for h in fields]
    difference = (easy[0] - easy[1]) - (hard[0] - hard[1])
    assert abs(standard_score(difference, 0.0)) < 5, "not up to a constant"


def blobs_of_the_check() -> GaussianMixture:
    return GaussianMixture(
        torch.tensor([0.3, 0.7], dtype=torch.float64),
        torch.tensor([[-1.5, 0.0], [1.0, 0.5]], dtype=torch.float64),
        torch.tensor([0.3, 0.5], dtype=torch.float64),
    )


def test_the_known_target_ranks_fields_as_the_unknown_one_does():
    check_matching(lambda eps, s: -eps / s)


def test_the_loss_of_the_true_score_is_the_floor():
    q, mixture = Schedule.linear(50, 0.002, 0.4), blobs_of_the_check()

    def true(xt: Tensor, t: Tensor) -> Tensor:
        rows = [
            mixture.diffused(q.signal[s], q.noise_std[s]).score(x[None])
            for x, s in zip(xt, t, strict=True)
        ]
        return torch.cat(rows)

    generator = torch.Generator().manual_seed(0)
    x0 = mixture.sample(400, generator)
    options = (x0, generator, q, Prediction.SCORE, q.noise_std**2)
    best = denoising_losses(true, *options).mean()
    worse = denoising_losses(lambda xt, t: 0.7 * true(xt, t), *options).mean()
    assert 0.05 < best < worse


def test_noise_over_variance_is_no_score():
    with pytest.raises(AssertionError, match="not up to a constant"):
        check_matching(lambda eps, s: -eps / s**2)  # WRONG: deviation needed


def check_second_order(chain: Callable[[float], tuple[float, ...]]) -> None:
    """Check that the chain's coefficients leave Euler's like beta^2."""
    limits = (-1 / 8, 3 / 8, 1 / 2)
    for beta in (1e-2, 1e-3):
        euler = (1 - beta / 2, 1 + beta / 2, beta)
        rows = zip(chain(beta), euler, limits, strict=True)
        for found, other, limit in rows:
            ratio = (found - other) / beta**2
            assert abs(ratio - limit) < 2 * beta, "not of second order"


def of_ddpm(beta: float) -> tuple[float, ...]:
    """Return what the package's steps multiply x and the score with."""
    q = Schedule.from_betas(torch.tensor([0.3, beta], dtype=torch.float64))
    t, one = torch.tensor([2]), torch.ones(1, dtype=torch.float64)
    table = {}
    for name, x, score in (("x", one, 0 * one), ("score", 0 * one, one)):
        guess = convert(score, x, t, q, Prediction.SCORE, Prediction.X0)
        table[name] = posterior_mean(guess, x, t, q).item()
    return math.sqrt(1 - beta), table["x"], table["score"]


def test_the_chain_is_euler_maruyama_up_to_second_order():
    check_second_order(of_ddpm)


def half_the_score(beta: float) -> tuple[float, ...]:
    forward, x, score = of_ddpm(beta)
    return forward, x, score / 2  # WRONG: that is the step without noise


def test_half_the_score_is_another_equation():
    with pytest.raises(AssertionError, match="not of second order"):
        check_second_order(half_the_score)


def check_fokker_planck(half: float) -> None:
    """Check the equation for a mixture under VP, in one dimension."""
    data = GaussianMixture(
        torch.tensor([0.3, 0.7], dtype=torch.float64),
        torch.tensor([[-1.5], [1.0]], dtype=torch.float64),
        torch.tensor([0.3, 0.5], dtype=torch.float64),
    )
    process, h = VP(), 1e-4
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)

    def density(x: Tensor, u: float) -> Tensor:
        noisy = data.diffused(process.signal(u), process.noise_std(u))
        return noisy.log_prob(x[:, None]).exp()

    def flux(x: Tensor, u: float) -> Tensor:
        """Return density times velocity."""
        noisy = data.diffused(process.signal(u), process.noise_std(u))
        score = noisy.score(x[:, None])[:, 0]
        velocity = process.rate(u) * x - half * process.power(u) * score
        return velocity * density(x, u)

    for u in (0.1, 0.4, 0.8):
        change = (density(x, u + h) - density(x, u - h)) / (2 * h)
        loss = (flux(x + h, u) - flux(x - h, u)) / (2 * h)
        assert (change + loss).abs().max() < 1e-5, "density is not carried so"


def test_density_is_carried_by_drift_minus_half_the_score():
    check_fokker_planck(0.5)


def test_the_whole_score_carries_it_elsewhere():
    with pytest.raises(AssertionError, match="not carried so"):
        check_fokker_planck(1.0)  # WRONG: without the factor 1/2


def check_way_back(walk: Callable[..., Tensor]) -> None:
    """Check the variance of the data that come back, for x_0 ~ N(0, 1/4)."""
    process, n = VP(), 20_000

    def score(x: Tensor, u: float) -> Tensor:
        a, s = process.signal(u), process.noise_std(u)
        return -x / (a**2 / 4 + s**2)

    steps = (torch.linspace(1, 0.0, 401).double() ** 2).tolist()
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    for noise in (1.0, 0.5):
        x = walk(score, start, process, steps, noise, generator)
        z = standard_score(x[:, 0] ** 2, 0.25, 0.25 * 2**0.5)
        assert abs(z) < 5, "another variance"


def test_the_reverse_sde_brings_the_data_back():
    check_way_back(backward)


def drift_of_the_flow(score, x, process, steps, noise, generator):
    def half(x, u):
        return score(x, u) / 2  # WRONG: the drift of the ODE, with noise

    return backward(half, x, process, steps, noise, generator)


def test_noise_without_its_drift_is_refused():
    with pytest.raises(AssertionError, match="another variance"):
        check_way_back(drift_of_the_flow)


def check_flow(carry: Callable[..., Tensor]) -> None:
    """Check the flow for N(0, 1/4), where it only stretches, and a mixture."""
    process = VP()

    def variance(u: float) -> float:
        return process.signal(u) ** 2 / 4 + process.noise_std(u) ** 2

    def score(x: Tensor, u: float) -> Tensor:
        return -x / variance(u)

    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    steps = (torch.linspace(1, 0.05, 201).double() ** 2).tolist()
    back = carry(score, x, process, steps)
    stretch = (variance(steps[-1]) / variance(1.0)) ** 0.5
    assert torch.allclose(back, stretch * x, atol=1e-6), "not the flow"
    away = carry(score, back, process, steps[::-1])
    assert torch.allclose(away, x, atol=1e-6), "not its own inverse"


def test_the_flow_of_a_gaussian_only_stretches():
    check_flow(flow)


def whole_score(score, x, process, steps):
    return flow(lambda x, u: 2 * score(x, u), x, process, steps)  # WRONG


def test_the_flow_with_the_whole_score_is_refused():
    with pytest.raises(AssertionError, match="not the flow"):
        check_flow(whole_score)


def check_likelihood(candidate: Callable[..., Tensor]) -> None:
    """Check the likelihood of a mixture against its formula."""
    process, mixture = VP(), blobs_of_the_check()

    def score(x: Tensor, u: float) -> Tensor:
        a, s = process.signal(u), process.noise_std(u)
        return mixture.diffused(a, s).score(x)

    x = mixture.sample(20, torch.Generator().manual_seed(0))
    steps = (torch.linspace(0.03, 1, 121).double() ** 2).tolist()
    first = steps[0]
    early = mixture.diffused(process.signal(first), process.noise_std(first))
    found = candidate(score, x, process, steps)
    end = flow(score, x, process, steps)
    last = mixture.diffused(process.signal(1.0), process.noise_std(1.0))
    normal = log_normal(end, 0.0, process.noise_std(1.0) ** 2).sum(1)
    exact = early.log_prob(x) + normal - last.log_prob(end)
    assert (found - exact).abs().max() < 1e-5, "another density"


def test_the_flow_knows_the_density():
    check_likelihood(log_likelihood)


def without_divergence(score, x, process, steps):
    end = flow(score, x, process, steps)
    return log_normal(end, 0.0, 1.0).sum(1)  # WRONG: as if volumes stayed


def divergence_twice(score, x, process, steps):
    exact = log_likelihood(score, x, process, steps)
    return 2 * exact - without_divergence(score, x, process, steps)  # WRONG


def test_other_divergences_give_other_densities():
    for wrong in (without_divergence, divergence_twice):
        with pytest.raises(AssertionError, match="another density"):
            check_likelihood(wrong)


def check_units(scale: Callable[[float], float]) -> None:
    """Check that a solution of one flow, in other units, solves the other."""
    vp, ve, mixture = VP(), VE(high=160.0), blobs_of_the_check()

    def score_of(process: VP | VE) -> Callable[[Tensor, float], Tensor]:
        def score(x: Tensor, u: float) -> Tensor:
            a, s = process.signal(u), process.noise_std(u)
            return mixture.diffused(a, s).score(x)

        return score

    x = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)
    x = torch.stack([x, x.flip(0) / 2], 1)
    steps = torch.linspace(0.6, 0.1, 101, dtype=torch.float64).tolist()
    one = flow(score_of(vp), x, vp, steps)
    levels = [vp.noise_std(u) / vp.signal(u) / 160 for u in steps]
    other = flow(score_of(ve), x / scale(0.6), ve, levels)
    assert torch.allclose(one / scale(0.1), other, atol=1e-5), "other units"


def test_the_two_processes_have_one_flow():
    check_units(VP().signal)


def test_other_units_do_not_fit():
    with pytest.raises(AssertionError, match="other units"):
        check_units(lambda u: VP().signal(u) ** 2)  # WRONG: the power
