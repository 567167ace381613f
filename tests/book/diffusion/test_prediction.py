"""Checks of the chapter “What is the network predicting?”.

Tangled from book/diffusion/prediction.md.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tangled.diffusion.elbo import (
    kl_terms,
    posterior_mean,
    posterior_table,
    posterior_var,
)
from tangled.diffusion.forward import diffuse
from tangled.diffusion.mixture import GaussianMixture
from tangled.diffusion.prediction import (
    Prediction,
    convert,
    coordinates,
    denoising_losses,
    min_snr_weights,
    target,
    vlb_weights,
    weights_in,
)
from tangled.diffusion.schedule import Schedule, Table


def check_conversion(candidate: Callable[..., Tensor]) -> None:
    """Check all sixteen conversions, and the ratios of the errors."""
    q, t = Schedule.cosine(50), torch.tensor([1, 7, 30, 50])
    generator = torch.Generator().manual_seed(0)
    x0, eps, off = torch.randn(3, 4, 5, generator=generator).double()
    xt = diffuse(x0, t, eps, q)
    errors = {}
    for given in Prediction:
        for wanted in Prediction:
            exact = target(x0, eps, t, q, given)
            found = candidate(exact, xt, t, q, given, wanted)
            right = target(x0, eps, t, q, wanted)
            assert torch.allclose(found, right, atol=1e-9), "another target"
        wrong = candidate(eps + off, xt, t, q, Prediction.EPS, given)
        error = wrong - target(x0, eps, t, q, given)
        errors[given] = error.square().sum(1)
    snr = q.snr[t]
    ratios = (errors["eps"] / snr, errors["v"] / (1 + snr))
    for ratio in ratios:
        assert torch.allclose(ratio, errors["x0"]), "another yardstick"


def test_each_target_tells_every_other():
    check_conversion(convert)


def opposite_velocity(output, xt, t, q, given, wanted):
    v = Prediction.V
    sign = -1 if (given == v) != (wanted == v) else 1
    return sign * convert(sign * output, xt, t, q, given, wanted)  # WRONG


def noise_as_data(output, xt, t, q, given, wanted):
    if (given, wanted) == (Prediction.EPS, Prediction.X0):
        return xt - output  # WRONG: forgets both amplitudes
    return convert(output, xt, t, q, given, wanted)


def test_other_conversions_are_refused():
    for wrong in (opposite_velocity, noise_as_data):
        with pytest.raises(AssertionError, match="another target"):
            check_conversion(wrong)


def check_weights(candidate: Callable[..., Table]) -> None:
    """Check each term of the bound, for both usual choices of sigma."""
    q, t = Schedule.linear(1000), torch.tensor([2, 10, 100, 350, 1000])
    generator = torch.Generator().manual_seed(0)
    x0, eps, off = torch.randn(3, 5, 4, generator=generator).double()
    xt, said = diffuse(x0, t, eps, q), eps + off
    guess = convert(said, xt, t, q, Prediction.EPS, Prediction.X0)
    narrow = posterior_var(q).sqrt()
    for sigma in (narrow, q.beta.sqrt()):
        term = kl_terms(lambda xt, t: guess, x0, t, eps, q, sigma)
        best = kl_terms(lambda xt, t: x0, x0, t, eps, q, sigma)
        weight = candidate(q, sigma)[t]
        error = weight * off.square().sum(1)
        assert torch.allclose(error, term - best), "another weight"
    ratio = (q.snr[t - 1] / q.snr[t] - 1) / 2
    assert torch.allclose(candidate(q, narrow)[t], ratio), "not by the SNR"
    step = xt - (q.beta / q.noise_std)[t, None] * said
    step = step / q.alpha[t, None].sqrt()
    mean = posterior_mean(guess, xt, t, q)
    assert torch.allclose(step, mean), "another mean"


def exact_weights(q: Schedule, sigma: Table) -> Table:
    return weights_in(Prediction.EPS, vlb_weights(q, sigma), q)


def test_the_terms_of_the_bound_have_these_weights():
    check_weights(exact_weights)


def sigma_forgotten(q, sigma):
    return weights_in(Prediction.EPS, vlb_weights(q), q)  # WRONG: always btil


def of_the_picture(q, sigma):
    return vlb_weights(q, sigma)  # WRONG: weighs x_0, not the noise


def test_other_weights_are_refused():
    for wrong in (sigma_forgotten, of_the_picture):
        with pytest.raises(AssertionError, match="another weight"):
            check_weights(wrong)


def by_snr(snr: Tensor) -> Schedule:
    """Return the schedule with these ratios at t = 1..T."""
    power = torch.cat([snr.new_ones(1), snr / (1 + snr)])
    return Schedule.from_betas(1 - power[1:] / power[:-1])


def check_limit(weigh: Callable[[Schedule], Table]) -> None:
    """Check the sum for x_0 ~ N(0, 1/4), on two schedules."""
    high, low, limit = 1e4, 4e-5, 3.912218
    for shape in ("log", "angle"):
        sums = []
        for T in (2000, 4000):
            u = torch.linspace(0, 1, T, dtype=torch.float64)
            if shape == "log":
                snr = high ** (1 - u) * low**u
            else:
                ends = torch.tensor([high, low], dtype=torch.float64)
                first, last = ends.rsqrt().atan()
                snr = (first + (last - first) * u).tan() ** -2
            error = 0.25 / (1 + 0.25 * snr)  # of the best guess
            sums.append((weigh(by_snr(snr))[2:] * error[1:]).sum())
        extrapolated = 2 * sums[1] - sums[0]  # removes the term in 1/T
        assert abs(extrapolated - limit) < 4e-3, "another limit"


def test_the_shape_of_the_schedule_drops_out():
    check_limit(vlb_weights)


def in_log_snr(q: Schedule) -> Table:
    weights = vlb_weights(q)
    ratio = (q.snr[:-1] / q.snr[1:]).log() / 2  # WRONG: of ln SNR
    return torch.cat([weights[:1], ratio])


def test_another_measure_of_the_steps_is_refused():
    with pytest.raises(AssertionError, match="another limit"):
        check_limit(in_log_snr)


def check_average(weigh: Callable[[Schedule, Tensor], Table]) -> None:
    """Check that the bound's squares, divided by weights, average to it."""
    q, t = Schedule.linear(20, 0.01, 0.3), torch.arange(1, 21)
    generator = torch.Generator().manual_seed(0)
    x0, eps, off = torch.randn(3, 20, 4, generator=generator).double()
    xt = diffuse(x0, t, eps, q)
    guess = convert(eps + off, xt, t, q, Prediction.EPS, Prediction.X0)
    sigma, rest = q.beta.sqrt(), slice(1, None)
    decoder = (guess[:1] - x0[:1]).square().sum(1) / (2 * sigma[1] ** 2)
    given = (x0[rest], t[rest], eps[rest], q, sigma)
    term = kl_terms(lambda xt, t: guess[rest], *given)
    best = kl_terms(lambda xt, t: x0[rest], *given)
    squares = torch.cat([decoder, term - best])
    average = (squares / weigh(q, sigma)[1:]).mean()
    simple = off.square().sum(1).mean()
    assert torch.allclose(average, simple), "not the simple loss"


def test_the_bound_without_its_weights_is_the_simple_loss():
    check_average(exact_weights)


def test_the_bound_itself_is_not_the_simple_loss():
    with pytest.raises(AssertionError, match="not the simple loss"):
        check_average(lambda q, sigma: 0 * exact_weights(q, sigma) + 1)


def check_same_loss(weigh: Callable[[Prediction], Table]) -> None:
    """Check that one weighting has one gradient, whatever is predicted."""
    q, t = Schedule.linear(1000), torch.tensor([1, 10, 100, 350, 700, 1000])
    generator = torch.Generator().manual_seed(0)
    x0, eps, off = torch.randn(3, 6, 4, generator=generator).double()
    xt, gradients = diffuse(x0, t, eps, q), []
    for name in Prediction:
        shift = torch.zeros(6, 4, dtype=torch.float64, requires_grad=True)
        said = x0 + off + shift  # one guess of x_0, in four languages
        output = convert(said, xt, t, q, Prediction.X0, name)
        error = output - target(x0, eps, t, q, name)
        loss = (weigh(name)[t, None] * error.square()).sum()
        gradients.append(torch.autograd.grad(loss, shift)[0])
    for other in gradients[1:]:
        assert torch.allclose(gradients[0], other, rtol=1e-9), "two losses"


def capped(name: Prediction) -> Table:
    q = Schedule.linear(1000)
    return weights_in(name, min_snr_weights(q), q)


def test_one_weighting_is_one_loss():
    q = Schedule.linear(1000)
    check_same_loss(capped)
    check_same_loss(lambda name: weights_in(name, q.snr, q))
    simple = weights_in(Prediction.EPS, q.snr, q)[1:]
    assert (simple - 1).abs().max() < 1e-12, "the simple loss has weight 1"


def test_the_loss_in_code_is_the_formula():
    def model(xt, t):
        return 0.5 * xt

    q = Schedule.linear(1000)
    x0 = torch.randn(64, 3, 2, generator=torch.Generator().manual_seed(1))
    found = denoising_losses(model, x0, torch.Generator().manual_seed(2), q)
    generator = torch.Generator().manual_seed(2)
    t = torch.randint(1, 1001, (64,), generator=generator)
    eps = torch.randn(x0.shape, generator=generator)
    error = (eps - model(diffuse(x0, t, eps, q), t)).square()
    assert torch.allclose(found, error.mean((1, 2)))
    assert set(t.tolist()) <= set(range(1, 1001))


def one_more_in_both(name: Prediction) -> Table:
    q = Schedule.linear(1000)
    snr = q.snr.clamp(max=5)
    plus = (snr + 1) / (q.snr + 1)  # WRONG: 1 in the numerator as well
    return plus if name == Prediction.V else capped(name)


def unweighted(name: Prediction) -> Table:
    return torch.ones(1001).double()  # WRONG: four different losses


def test_other_weights_are_other_losses():
    for wrong in (one_more_in_both, unweighted):
        with pytest.raises(AssertionError, match="two losses"):
            check_same_loss(wrong)


def check_optimum(spread: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check optimum and floor by sums over x_0, for three points."""
    q, points = Schedule.linear(1000), torch.tensor([-1.0, 0.5, 2.0]).double()
    x = torch.linspace(-9, 9, 6001, dtype=torch.float64)[:, None]
    for step in (10, 300, 900):
        a, s = q.signal[step], q.noise_std[step]
        t = torch.full((len(x),), step)
        fit = -(((x - a * points) / s) ** 2) / 2
        share, density = fit.softmax(1), fit.exp()
        mean = (share * points).sum(1)
        variance = (share * points**2).sum(1) - mean**2
        mass = density.sum(1) / density.sum()
        for name in Prediction:
            eps = (x - a * points) / s
            p, n = (table[step] for table in coordinates(name, q))
            y = p * points + n * eps
            best = (share * y).sum(1)
            said = convert(mean[:, None], x, t, q, Prediction.X0, name)
            assert torch.allclose(best, said[:, 0]), "optima apart"
            error = (share * (y - best[:, None]) ** 2).sum(1) @ mass
            keep = weights_in(name, torch.ones(1001).double(), q)[step]
            promised = spread(variance, mass) / keep
            assert torch.allclose(error, promised, rtol=1e-6), "another floor"


def test_the_optima_belong_together_and_have_this_floor():
    check_optimum(lambda variance, mass: variance @ mass)


def variance_of_the_data(variance, mass):
    return torch.tensor(1.5).double()  # WRONG: forgets what x_t tells


def test_the_variance_of_the_data_is_no_floor():
    with pytest.raises(AssertionError, match="another floor"):
        check_optimum(variance_of_the_data)


def best_variance(q: Schedule, step: int, spread: Tensor) -> Tensor:
    """Return the best variance, given the variance of x_0 that is left."""
    return posterior_var(q)[step] + vlb_slope(q, step) ** 2 * spread


def vlb_slope(q: Schedule, step: int) -> Tensor:
    return posterior_table(q).from_data[step]


def check_best_variance(candidate: Callable[..., Tensor]) -> None:
    """Check against Var(x_{t-1} | x_t), for x_0 = -.9 or .9, blurred."""
    q, means = Schedule.linear(1000), torch.tensor([-0.9, 0.9]).double()
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
    mixture = GaussianMixture(
        torch.full((2,), 0.5).double(),
        means[:, None],
        torch.full((2,), 0.2).double(),
    )
    for step in (2, 50, 300, 900):
        a, s = q.signal[step], q.noise_std[step]
        noisy = mixture.diffused(a, s)
        mass = noisy.log_prob(x).exp()
        mass = mass / mass.sum()
        # the slope of the denoiser, times s^2 / a, is the variance left
        x.requires_grad_()
        guess = mixture.denoised(x, a, s)
        slope = torch.autograd.grad(guess.sum(), x)[0][:, 0]
        spread = (slope * s**2 / a) @ mass
        x = x.detach().requires_grad_()
        first = noisy.score(x)
        second = torch.autograd.grad(first.sum(), x)[0][:, 0]
        beta, alpha = q.beta[step], q.alpha[step]
        direct = (beta + beta**2 * second) / alpha  # of x_{t-1} given x_t
        exact, x = direct @ mass, x.detach()
        found = candidate(q, step, spread)
        assert torch.allclose(found, exact, rtol=1e-8), "not the variance"
        low, high = posterior_var(q)[step], beta
        assert low < found < high, "out of bounds"


def test_the_best_variance_is_what_is_left_of_a_step():
    check_best_variance(best_variance)


def always_narrow(q, step, spread):
    return posterior_var(q)[step]  # WRONG: as if x_0 were known


def of_all_data(q, step, spread):
    return best_variance(q, step, torch.tensor(0.85))  # WRONG: ignores x_t


def test_other_variances_are_refused():
    for wrong in (always_narrow, of_all_data):
        with pytest.raises(AssertionError, match="not the variance"):
            check_best_variance(wrong)
