"""Checks of the chapter “DDIM: a family of samplers”.

Tangled from book/diffusion/ddim.md.
"""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tangled.diffusion.ddim import (
    ddim_mean,
    ddim_sample,
    ddim_sigma,
    euler_step,
    slerp,
)
from tangled.diffusion.elbo import ancestral_sample, posterior, posterior_var
from tangled.diffusion.forward import transition
from tangled.diffusion.gaussian import gaussian_kl, linear_gaussian_posterior
from tangled.diffusion.prediction import Prediction, vlb_weights, weights_in
from tangled.diffusion.schedule import Schedule


def check_family(mean: Callable[..., Tensor]) -> None:
    """Check mean and variance of x_s given x_0, after two jumps."""
    q, x0 = Schedule.linear(1000), 0.7
    for eta in (0.0, 0.5, 1.0):
        # x_t = slope eps + a x_0: carry the two numbers through the jumps
        level, place = q.noise_std[900] ** 2, q.signal[900] * x0
        for t, s in ((900, 300), (300, 20)):
            sigma = ddim_sigma(q, t, s, eta)
            points = torch.tensor([0.0, 1.0, place], dtype=torch.float64)
            known = torch.full((3,), x0, dtype=torch.float64)
            at = mean(known, points, t, s, q, sigma)
            slope, place = at[1] - at[0], at[2]
            level = slope**2 * level + sigma**2
            assert torch.allclose(place, q.signal[s] * x0), "another mean"
            same = torch.allclose(level, q.noise_std[s] ** 2)
            assert same, "another spread"


def test_the_marginals_are_those_of_the_chain():
    check_family(ddim_mean)


def all_noise_kept(x0, xt, t, s, q, sigma):
    return ddim_mean(x0, xt, t, s, q)  # WRONG: and sigma is added on top


def minus_the_deviation(x0, xt, t, s, q, sigma):
    eps = (xt - q.signal[t] * x0) / q.noise_std[t]
    return q.signal[s] * x0 + (q.noise_std[s] - sigma) * eps  # WRONG: no root


def test_noise_that_does_not_add_up_is_refused():
    for wrong in (all_noise_kept, minus_the_deviation):
        with pytest.raises(AssertionError, match="another spread"):
            check_family(wrong)


def check_chain(sigma_of: Callable[..., Tensor]) -> None:
    """Check that eta = 1 is the posterior, for single steps and a jump."""
    q = Schedule.linear(1000)
    generator = torch.Generator().manual_seed(0)
    x0, xt = torch.randn(2, 4, 3, generator=generator).double()
    for t in (2, 10, 500, 1000):
        exact, variance = posterior(x0, xt, torch.full((4,), t), q)
        sigma = sigma_of(q, t, t - 1, 1.0)
        assert torch.allclose(sigma**2, variance[0]), "another variance"
        found = ddim_mean(x0, xt, t, t - 1, q, sigma)
        assert torch.allclose(found, exact, atol=1e-9), "another mean"
    jumps = [transition(q, 0, 200)[1], transition(q, 200, 700)[1]]
    coarse = Schedule.from_betas(torch.stack(jumps))
    exact = posterior_var(coarse)[2].sqrt()
    found = sigma_of(q, 700, 200, 1.0)
    assert torch.allclose(found, exact), "another jump"
    assert sigma_of(q, 5, 0, 1.0) == 0, "noise at the data"


def test_eta_one_is_the_chain():
    check_chain(ddim_sigma)


def of_the_forward_step(q, t, s, eta):
    return eta * (1 - q.alpha_bar[t] / q.alpha_bar[s]).sqrt()  # WRONG: beta


def test_the_forward_variance_is_another():
    with pytest.raises(AssertionError, match="another variance"):
        check_chain(of_the_forward_step)


def check_sampler(sampler: Callable[..., Tensor]) -> None:
    """Check eta = 1 over all steps against the chain, on the same noise."""
    q = Schedule.linear(40, 0.0025, 0.5)

    def model(xt: Tensor, t: Tensor) -> Tensor:
        return xt / 2

    generator = torch.Generator().manual_seed(0)
    xT = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    exact = ancestral_sample(
        model,
        xT,
        q,
        posterior_var(q).sqrt(),
        torch.Generator().manual_seed(1),
    )
    options = {"eta": 1.0, "generator": torch.Generator().manual_seed(1)}
    found = sampler(
        model, xT, q, range(40, 0, -1), prediction="x0", **options
    )
    assert torch.allclose(found, exact, atol=1e-9), "not the chain"


def test_over_all_steps_eta_one_is_the_chain():
    check_sampler(ddim_sample)


def less_noise(*arguments, eta, **options):
    return ddim_sample(*arguments, eta=0.9, **options)  # WRONG: another eta


def test_another_share_of_noise_is_not_the_chain():
    with pytest.raises(AssertionError, match="not the chain"):
        check_sampler(less_noise)


def check_euler(step: Callable[..., Tensor]) -> None:
    """Check random jumps, and the order of the method on a Gaussian."""
    q = Schedule.linear(1000)
    generator = torch.Generator().manual_seed(0)
    x, x0 = torch.randn(2, 5, 2, generator=generator).double()
    for t, s in ((1000, 700), (300, 5), (2, 1), (40, 0)):
        eps = (x - q.signal[t] * x0) / q.noise_std[t]
        exact = ddim_mean(x0, x, t, s, q)
        assert torch.allclose(step(x, eps, t, s, q), exact), "another step"
    # for N(0, 1/4) the flow stretches by the ratio of the deviations
    spread = (q.alpha_bar / 4 + q.noise_std**2).sqrt()
    errors = []
    for n in (50, 100, 200):
        y = torch.ones(1, dtype=torch.float64)
        ends = q.rho[[1000, 100]].log()
        levels = torch.linspace(*ends.tolist(), n + 1).exp()
        near = (q.rho[:, None] - levels).abs().argmin(0).tolist()
        for t, s in pairwise(near):
            eps = q.noise_std[t] * y / spread[t] ** 2
            y = step(y, eps, t, s, q)
        errors.append((y - spread[100] / spread[1000]).abs().item())
    for large, small in pairwise(errors):
        assert 1.6 < large / small < 2.4, "not of first order"


def test_the_step_without_noise_is_eulers():
    check_euler(euler_step)


def in_the_state_itself(x, eps, t, s, q):
    return x + (q.noise_std[s] - q.noise_std[t]) * eps  # WRONG: x, not x / a


def along_the_picture(x, eps, t, s, q):
    x0 = (x - q.noise_std[t] * eps) / q.signal[t]
    return euler_step(x, x0, t, s, q)  # WRONG: the slope is the noise


def test_eulers_step_in_other_units_is_another():
    for wrong in (in_the_state_itself, along_the_picture):
        with pytest.raises(AssertionError, match="another step"):
            check_euler(wrong)


def check_training(weight_of: Callable[..., Tensor]) -> None:
    """Check the divergence of the two steps, for several eta."""
    q = Schedule.linear(1000)
    generator = torch.Generator().manual_seed(0)
    eps, off = torch.randn(2, 6, generator=generator).double()
    for t in (2, 50, 500, 1000):
        xt = 0.3 + 0 * eps
        x0, guess = (
            (xt - q.noise_std[t] * e) / q.signal[t] for e in (eps, eps + off)
        )
        for eta in (0.1, 0.5, 1.0):
            sigma = ddim_sigma(q, t, t - 1, eta)
            means = [
                ddim_mean(x, xt, t, t - 1, q, sigma) for x in (x0, guess)
            ]
            kl = gaussian_kl(means[0], sigma**2, means[1], sigma**2)
            weight = weight_of(q, t, sigma)
            assert torch.allclose(kl, weight * off**2), "another weight"
        exact = weights_in(Prediction.EPS, vlb_weights(q), q)[t]
        assert torch.allclose(weight, exact), "not the chain's"


def family_weight(q: Schedule, t: int, sigma: Tensor) -> Tensor:
    """Return the weight of the theorem."""
    kept = (q.noise_std[t - 1] ** 2 - sigma**2).sqrt()
    return (q.signal[t - 1] * q.rho[t] - kept) ** 2 / (2 * sigma**2)


def test_every_member_has_these_weights():
    check_training(family_weight)


def as_often_quoted(q: Schedule, t: int, sigma: Tensor) -> Tensor:
    return 1 / (2 * sigma**2 * q.alpha_bar[t])  # WRONG: without the bracket


def test_the_weight_without_the_bracket_is_refused():
    with pytest.raises(AssertionError, match="another weight"):
        check_training(as_often_quoted)


def check_contraction(factor: Callable[..., Tensor]) -> None:
    """Check the sampler's whole product against the angles."""
    q = Schedule.linear(1000)
    for s0 in (0.4, 1.0, 3.0):

        def guess(xt: Tensor, t: Tensor, s0: float = s0) -> Tensor:
            a, v = q.signal[int(t)], q.noise_std[int(t)] ** 2
            none, spread = torch.zeros_like(xt), torch.tensor(s0**2)
            return linear_gaussian_posterior(none, spread, xt, a, v)[0]

        steps = [1000, 800, 530, 300, 120, 40, 7]
        start = torch.ones(1, 1, dtype=torch.float64)
        end = ddim_sample(guess, start, q, steps, prediction="x0")
        angle = (q.rho / s0).atan()
        spread = (q.alpha_bar * s0**2 + q.noise_std**2).sqrt()
        product = spread[0] / spread[1000]
        for t, s in pairwise([*steps, 0]):
            product = product * factor(angle[t] - angle[s])
        same = torch.allclose(end[0, 0], product, rtol=1e-10)
        assert same, "another product"


def test_each_step_shrinks_by_the_cosine():
    check_contraction(torch.cos)


def test_a_small_step_with_fresh_noise_loses_four_times_as_much():
    q, x = Schedule.linear(1000), torch.ones(1, dtype=torch.float64)
    for t in (100, 500, 900):
        lost = []
        for eta in (0.0, 1.0):
            sigma = ddim_sigma(q, t, t - 1, eta)
            mean = ddim_mean(q.signal[t] * x, x, t, t - 1, q, sigma)
            lost.append((1 - mean**2 - sigma**2).item())
        exact = q.alpha_bar[t - 1] * q.beta[t] ** 2 / q.noise_std[t] ** 2
        assert lost[1] == pytest.approx(exact.item(), rel=1e-6)
        assert lost[1] / lost[0] == pytest.approx(4, rel=0.02)


def test_without_the_shrinking_it_is_another_product():
    with pytest.raises(AssertionError, match="another product"):
        check_contraction(torch.ones_like)  # WRONG: as if steps were exact


def test_the_way_between_two_noises_stays_on_the_sphere():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 5, 3, 4, generator=generator).double()
    lengths = [v.flatten(1).norm(dim=1) for v in (x, y)]
    y = y * (lengths[0] / lengths[1])[:, None, None]
    for share in (0.0, 0.3, 1.0):
        found = slerp(x, y, share).flatten(1).norm(dim=1)
        assert torch.allclose(found, lengths[0])
    assert torch.allclose(slerp(x, y, 0.0), x)
    assert torch.allclose(slerp(x, y, 1.0), y)
    assert torch.allclose(slerp(x, x, 0.4), x)
