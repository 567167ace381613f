"""Laws of the DDIM family, its sampler, inversion and interpolation, and what they refuse."""

import math
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from tangled.diffusion.ddim import (
    ddim_invert,
    ddim_mean,
    ddim_sample,
    ddim_sigma,
    euler_step,
    slerp,
)
from tangled.diffusion.elbo import ancestral_sample, posterior, posterior_var
from tangled.diffusion.mixture import GaussianMixture
from tangled.diffusion.prediction import Prediction, convert
from tangled.diffusion.schedule import (
    Schedule,
    step_list,
    zero_terminal_snr,
)
from tangled.workshop.statistics import standard_score


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def half(xt, t):
    return xt / 2


@pytest.mark.verifies("thm-ddim-eta")
def test_eta_one_is_the_posterior_at_random_steps():
    for q in (Schedule.linear(1000), Schedule.cosine(200)):
        x0, xt = noise(1, 4), noise(1, 4, seed=1)
        steps = torch.randint(2, q.T + 1, (50,), generator=seeded())
        for t in steps.tolist():
            mean, variance = posterior(x0, xt, torch.tensor([t]), q)
            sigma = ddim_sigma(q, t, t - 1, 1.0)
            assert_close(sigma**2, variance[0, 0], rtol=1e-9, atol=0)
            found = ddim_mean(x0, xt, t, t - 1, q, sigma)
            assert_close(found, mean, rtol=1e-8, atol=1e-8)


@pytest.mark.verifies("thm-ddim-marginals")
def test_the_moments_of_a_jump_are_those_of_the_level():
    """The mean is linear in x_t: its slope and place are checked exactly."""
    q = Schedule.linear(1000)
    for t, s in ((1000, 999), (1000, 1), (500, 200), (2, 1)):
        for eta in (0.0, 0.3, 1.0):
            sigma = ddim_sigma(q, t, s, eta)
            x0 = torch.tensor([0.7, 0.7], dtype=torch.float64)
            xt = q.signal[t] * x0 + torch.tensor([0.0, 1.0]).double()
            at = ddim_mean(x0, xt, t, s, q, sigma)
            slope = at[1] - at[0]
            assert_close(at[0], q.signal[s] * 0.7)
            level = slope**2 * q.noise_std[t] ** 2 + sigma**2
            assert_close(level, q.noise_std[s] ** 2, rtol=1e-10, atol=0)


def test_eta_scales_the_deviation():
    q = Schedule.cosine(50)
    one = ddim_sigma(q, 40, 20, 1.0)
    assert one.dtype == torch.float64
    assert_close(ddim_sigma(q, 40, 20, 0.25), one / 4)
    assert ddim_sigma(q, 40, 20, 0.0) == 0
    assert ddim_sigma(q, 40, 0, 1.0) == 0
    assert ddim_sigma(q, 40, 40, 1.0) == 0


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_eta_outside_of_its_range_is_refused(eta):
    q = Schedule.linear(10)
    with pytest.raises(ValueError, match="eta must lie between 0 and 1"):
        ddim_sigma(q, 5, 4, eta)
    with pytest.raises(ValueError, match="eta must lie between 0 and 1"):
        ddim_sample(half, noise(1, 2), q, [10, 5], eta=eta)


def test_jumps_upwards_and_too_much_noise_are_refused():
    q, x = Schedule.linear(10), noise(1, 2)
    with pytest.raises(ValueError, match="steps must satisfy"):
        ddim_sigma(q, 4, 5, 1.0)
    with pytest.raises(ValueError, match="sigma must be at most"):
        ddim_mean(x, x, 5, 4, q, q.noise_std[4] * 1.01)


@pytest.mark.verifies("thm-ddim-euler")
def test_a_step_without_noise_is_eulers_at_random_jumps():
    q = Schedule.linear(1000)
    x0, xt = noise(1, 6), noise(1, 6, seed=1)
    for pair in torch.randint(1, 1001, (50, 2), generator=seeded()).tolist():
        s, t = sorted(pair)
        at = torch.tensor([t])
        eps = convert(x0, xt, at, q, Prediction.X0, Prediction.EPS)
        exact = ddim_mean(x0, xt, t, s, q)
        assert_close(
            euler_step(xt, eps, t, s, q), exact, rtol=1e-9, atol=1e-9
        )
        back = euler_step(exact, eps, s, t, q)
        assert_close(back, xt, rtol=1e-8, atol=1e-8)


@pytest.mark.verifies("alg-ddim")
def test_over_all_steps_with_all_the_noise_it_is_the_chain():
    q, xT = Schedule.linear(50, 0.002, 0.4), noise(8, 3)
    sigma = posterior_var(q).sqrt()
    exact = ancestral_sample(half, xT, q, sigma, seeded(1))
    found = ddim_sample(
        half,
        xT,
        q,
        range(50, 0, -1),
        prediction="x0",
        eta=1.0,
        generator=seeded(1),
    )
    assert_close(found, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", list(Prediction))
def test_what_the_network_predicts_does_not_matter(kind):
    q, xT = Schedule.cosine(40), noise(5, 2, 3)

    def network(xt, t):
        return convert(xt / 2, xt, t, q, Prediction.X0, kind)

    steps = [40, 31, 9, 1]
    exact = ddim_sample(half, xT, q, steps, prediction="x0")
    found = ddim_sample(network, xT, q, steps, prediction=kind)
    assert_close(found, exact, rtol=1e-9, atol=1e-9)


def test_a_sampler_by_hand():
    q, x = Schedule.linear(10, 0.01, 0.3), noise(3, 2)
    found = ddim_sample(
        half, x, q, [9, 4], prediction="x0", eta=0.5, generator=seeded(2)
    )
    generator = seeded(2)
    for t, s in ((9, 4), (4, 0)):
        guess, a = x / 2, q.signal
        eps = (x - a[t] * guess) / q.noise_std[t]
        sigma = ddim_sigma(q, t, s, 0.5)
        kept = (q.noise_std[s] ** 2 - sigma**2).sqrt()
        x = a[s] * guess + kept * eps
        if s:
            xi = torch.randn(3, 2, generator=generator, dtype=torch.float64)
            x = x + sigma * xi
    assert_close(found, x)


def test_the_state_is_kept_in_float64():
    """A thousand steps lose less than those of a loop in float32."""
    q, xT = Schedule.linear(1000), noise(4, 16, dtype=torch.float32)
    seen = []

    def network(xt, t):
        seen.append(xt.dtype)
        return xt / 2

    steps = range(1000, 0, -1)
    found = ddim_sample(network, xT, q, steps, prediction="x0")
    exact = ddim_sample(half, xT.double(), q, steps, prediction="x0")
    narrow = xT
    for t, s in pairwise([*steps, 0]):
        narrow = ddim_mean(narrow / 2, narrow, t, s, q)
    assert narrow.dtype == found.dtype == torch.float32
    assert set(seen) == {torch.float32}
    errors = [(x - exact).abs().max() for x in (found, narrow)]
    assert errors[0] < errors[1] / 5, errors


def test_without_noise_none_is_drawn():
    generator = seeded()
    before = generator.get_state()
    q, x = Schedule.linear(10), noise(1, 2)
    ddim_sample(half, x, q, [10, 5], generator=generator)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.verifies("prop-ddim-contraction")
def test_the_product_for_gaussian_data():
    q = Schedule.linear(1000)
    for s0 in (0.4, 1.0, 3.0):

        def best(xt, t, s0=s0):
            a, v = q.signal[t, None], q.noise_std[t, None] ** 2
            return a * s0**2 * xt / (a**2 * s0**2 + v)

        steps = step_list(1000, 25)
        x = ddim_sample(
            best, torch.ones(1, 1).double(), q, steps, prediction="x0"
        )
        factor = 1.0
        for t, s in pairwise([*steps, 0]):
            a, b = q.signal, q.noise_std
            above = a[s] * a[t] * s0**2 + b[s] * b[t]
            factor = factor * above / (a[t] ** 2 * s0**2 + b[t] ** 2)
        assert_close(x[0, 0], factor, rtol=1e-10, atol=0)
    assert math.cos(math.pi / 50) ** 25 == pytest.approx(0.9518, abs=1e-4)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_many_steps_give_the_mixture(eta):
    q = Schedule.linear(1000)
    blobs = GaussianMixture(
        torch.tensor([0.3, 0.7], dtype=torch.float64),
        torch.tensor([[-1.5], [1.0]], dtype=torch.float64),
        torch.tensor([0.3, 0.5], dtype=torch.float64),
    )

    def best(xt, t):
        step = int(t[0])
        return blobs.denoised(xt, q.signal[step], q.noise_std[step])

    x = ddim_sample(
        best,
        noise(4000, 1),
        q,
        range(1000, 0, -2),
        prediction="x0",
        eta=eta,
        generator=seeded(1),
    )
    share = blobs.sample(400_000, seeded(3))
    for edge in (-1.5, -0.3, 1.0):
        exact = (share < edge).double().mean().item()
        below = (x[:, 0] < edge).double()
        deviation = (exact * (1 - exact)) ** 0.5
        assert abs(standard_score(below, exact, deviation)) < 5


@pytest.mark.parametrize(
    "steps", [[], [5, 5], [3, 5], [11], [0], [10, 3, 4], [5, 0]]
)
def test_lists_that_do_not_fall_within_the_schedule_are_refused(steps):
    q = Schedule.linear(10)
    with pytest.raises(ValueError, match="steps must"):
        ddim_sample(half, noise(1, 2), q, steps)
    with pytest.raises(ValueError, match="steps must"):
        ddim_invert(half, noise(1, 2), q, steps)


def test_steps_are_whole_numbers():
    with pytest.raises(TypeError, match="steps must be whole numbers"):
        ddim_sample(half, noise(1, 2), Schedule.linear(10), [5, True])


def test_the_first_step_that_is_not_finite_is_named():
    q, calls = Schedule.linear(10), []

    def network(xt, t):
        calls.append(int(t[0]))
        return xt / 0 if t[0] <= 6 else xt / 2

    with pytest.raises(FloatingPointError, match="not finite at t = 6"):
        ddim_sample(network, noise(2, 3), q, [10, 8, 6, 2], prediction="x0")
    assert calls == [10, 8, 6, 2]  # nothing was read inside of the loop


def best_velocity(q, mean, std):
    """Return the best prediction of v for N(mean, std^2)."""

    def network(xt, t):
        a, s = q.signal[t, None], q.noise_std[t, None]
        kept = a * std**2 / (a**2 * std**2 + s**2)
        return (a * xt - mean - kept * (xt - a * mean)) / s

    return network


@pytest.mark.verifies("eq-lost-brightness", "alg-ddim")
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("n", [5, 1000])
def test_from_pure_noise_the_mean_is_right_whatever_the_steps(n, eta):
    plain = Schedule.scaled_linear(1000)
    steps, start = step_list(1000, n, "trailing"), noise(1000, 1)
    start = torch.cat([start, -start])  # a mean of 0, and variance near 1
    errors = []
    for q in (zero_terminal_snr(plain), plain):
        x = ddim_sample(
            best_velocity(q, 50.0, 30.0),
            start,
            q,
            steps,
            prediction="v",
            eta=eta,
            generator=seeded(2),
        )
        assert x.isfinite().all()
        errors.append((x.mean() - 50).item())
    # Without fresh noise exactly; with it, within five standard errors.
    room = 1e-9 if eta == 0 else 5 * 30 / 2000**0.5
    assert abs(errors[0]) < room
    assert errors[1] < -10, "the plain schedule would do"


def test_without_signal_a_step_begins_with_a_picture_and_never_with_noise():
    q, x = Schedule.from_betas([0.3, 0.2, 1.0]), noise(3, 2)
    for prediction in ("eps", "score"):
        with pytest.raises(ValueError, match="must be x0 or v, got"):
            ddim_sample(half, x, q, [3, 1], prediction=prediction)
        below = ddim_sample(half, x, q, [2, 1], prediction=prediction)
        assert below.isfinite().all()
    with pytest.raises(ValueError, match="at t = 3 the noise says nothing"):
        euler_step(x, x, 3, 1, q)
    assert torch.equal(euler_step(x, x / 2, 1, 3, q), x / 2)
    for s, sigma in ((3, 0.0), (2, q.noise_std[2]), (0, 0.0)):
        assert ddim_sigma(q, 3, s, 1.0) == sigma


def test_inversion_up_to_pure_noise_is_the_noise_that_was_seen():
    q, x0 = zero_terminal_snr(Schedule.linear(1000)), noise(20, 1)
    steps = step_list(1000, 200, "trailing")
    network = best_velocity(q, 0.5, 0.5)
    there = ddim_invert(network, x0, q, steps, prediction="v")
    back = ddim_sample(network, there, q, steps, prediction="v")
    assert (back - x0).abs().max() < 0.1
    low = ddim_invert(half, x0, q, [1000, 600])
    x = euler_step(x0, x0 / 2, 0, 600, q)
    assert_close(low, x / 2)


def test_there_and_back_is_of_first_order():
    q, x0 = Schedule.linear(1000), noise(20, 1)

    def best(xt, t):
        a, v = q.signal[t, None], q.noise_std[t, None] ** 2
        return 0.25 * a * xt / (0.25 * a**2 + v)

    errors = []
    for n in (50, 100, 200):
        steps = step_list(1000, n)
        there = ddim_invert(best, x0, q, steps, prediction="x0")
        back = ddim_sample(best, there, q, steps, prediction="x0")
        errors.append((back - x0).abs().mean().item())
    for large, small in pairwise(errors):
        assert 1.5 < large / small < 2.6, errors
    assert ddim_invert(best, x0.float(), q, [9, 1]).dtype == torch.float32


def test_inversion_by_hand():
    q, x = Schedule.linear(10, 0.01, 0.3), noise(3, 2)
    found = ddim_invert(half, x, q, [7, 2], prediction="x0")
    eps = (x - q.signal[2] * x / 2) / q.noise_std[2]
    x = euler_step(x, eps, 0, 2, q)
    eps = (x - q.signal[2] * x / 2) / q.noise_std[2]
    assert_close(found, euler_step(x, eps, 2, 7, q))


def test_inversion_asks_a_network_as_the_sampler_does():
    class Flaky(torch.nn.Module):
        def forward(self, xt, t):
            assert not self.training
            return torch.where(t[:, None] >= 6, torch.nan, xt / 2)

    network, x, q = Flaky(), noise(2, 3), Schedule.linear(10)
    with pytest.raises(FloatingPointError, match="not finite at t = 6"):
        ddim_invert(network, x, q, [9, 8, 6, 3])
    assert network.training
    # the highest level is where it ends; nobody is asked there
    found = ddim_invert(network, x, q, iter([6, 3]))
    assert torch.equal(found, ddim_invert(half, x, q, [6, 3]))


@pytest.mark.usefixtures("plain_errors")
def test_noises_that_are_not_alike_have_no_circle():
    with pytest.raises(ValueError, match="y must have the shape of x"):
        slerp(noise(2, 3), noise(1, 3), 0.5)


@pytest.mark.verifies("eq-slerp")
def test_the_great_circle():
    x, y = noise(4, 3, 5), noise(4, 3, 5, seed=1)
    y = y / y.flatten(1).norm(dim=1)[:, None, None]
    x = x / x.flatten(1).norm(dim=1)[:, None, None]
    angle = (x * y).sum((1, 2)).acos()
    for share in (0.25, 0.5, 0.9):
        z = slerp(x, y, share)
        assert_close(z.flatten(1).norm(dim=1), torch.ones(4).double())
        assert_close((x * z).sum((1, 2)).acos(), share * angle)
    near = x * math.cos(0.005) + (y - x * angle.cos()[:, None, None]) * (
        math.sin(0.005) / angle.sin()[:, None, None]
    )  # a small angle is no straight line yet
    z = slerp(x, near, 0.5).flatten(1).norm(dim=1)
    assert_close(z, torch.ones(4).double(), rtol=1e-9, atol=0)
    near = x + 1e-9 * y
    assert_close(slerp(x, near, 0.5), (x + near) / 2)
    with pytest.raises(ValueError, match="share must lie between 0 and 1"):
        slerp(x, y, 1.5)


@pytest.mark.parametrize("spacing", ["linspace", "trailing", "leading"])
def test_lists_of_steps(spacing):
    for T, n in ((1000, 50), (1000, 30), (7, 7), (10, 1), (400, 3)):
        found = step_list(T, n, spacing)
        assert len(found) == n
        assert all(t > s for t, s in pairwise(found))
        assert found[0] <= T
        assert found[-1] >= 1
        assert (found[0] == T) == (spacing != "leading" or n == T)
    assert step_list(1000, 1, "trailing") == [1000]
    assert step_list(1000, 4, "linspace")[-1] == 1
    assert step_list(1000, 1, "linspace") == [1000]
    gaps = {t - s for t, s in pairwise(step_list(1000, 30, spacing))}
    assert max(gaps) - min(gaps) <= 1
    last = {"linspace": 1, "trailing": 33, "leading": 1}
    assert step_list(1000, 30, spacing)[-1] == last[spacing]
    assert spacing != "leading" or gaps == {33}


def test_impossible_lists_are_refused():
    with pytest.raises(ValueError, match="steps must satisfy"):
        step_list(10, 11)
    with pytest.raises(ValueError, match="spacing must be"):
        step_list(10, 5, "random")
