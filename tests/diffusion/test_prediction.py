"""Laws of the predictions, their weights and the losses, and what they refuse."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from tangled.diffusion.elbo import (
    ancestral_sample,
    bound_terms,
    decoder_term,
    empirical_denoiser,
    kl_terms,
    posterior_table,
    posterior_var,
    vlb,
)
from tangled.diffusion.forward import diffuse
from tangled.diffusion.prediction import (
    Prediction,
    convert,
    coordinates,
    denoiser,
    denoising_losses,
    hybrid_losses,
    learned_log_var,
    min_snr_weights,
    target,
    vlb_weights,
    weights_in,
)
from tangled.diffusion.schedule import Schedule, zero_terminal_snr
from tangled.workshop.statistics import standard_score

KINDS = list(Prediction)
SHAPES = [(3, 2), (3, 2, 4), (3, 3, 4, 4), (3, 3, 2, 4, 4)]


def noise(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def schedules():
    return Schedule.linear(1000), Schedule.cosine(40), Schedule.sigmoid(200)


@pytest.mark.verifies("prop-predictions")
@pytest.mark.parametrize("shape", SHAPES)
def test_every_target_gives_every_other_one(shape):
    for q in schedules():
        t = torch.tensor([1, q.T // 3, q.T])
        x0, eps = noise(*shape), noise(*shape, seed=1)
        xt = diffuse(x0, t, eps, q)
        for given_kind in KINDS:
            y = target(x0, eps, t, q, given_kind)
            for wanted in KINDS:
                found = convert(y, xt, t, q, given_kind, wanted)
                exact = target(x0, eps, t, q, wanted)
                assert_close(found, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.verifies("prop-predictions", "thm-exact-weights")
@pytest.mark.parametrize("given", ["x0", "v"])
def test_at_pure_noise_velocity_and_data_tell_everything(given):
    q = zero_terminal_snr(Schedule.linear(1000))
    t = torch.tensor([1, 500, 999, 1000])
    x0, eps = noise(4, 3), noise(4, 3, seed=1)
    xt, said = diffuse(x0, t, eps, q), target(x0, eps, t, q, given)
    for wanted in KINDS:
        found = convert(said, xt, t, q, given, wanted)
        assert_close(
            found, target(x0, eps, t, q, wanted), rtol=1e-9, atol=1e-9
        )
    assert torch.equal(target(x0, eps, t, q, "v")[3], -x0[3])
    weights = weights_in(given, vlb_weights(q), q)
    assert weights.isfinite().all()
    ratio = q.snr[999] / 2  # half of SNR_(T-1) - 0, in x_0 and in v
    assert weights[-1].item() == pytest.approx(ratio.item(), rel=1e-9)


@pytest.mark.parametrize("given", ["eps", "score"])
def test_at_pure_noise_the_noise_is_refused_by_name(given):
    q, t = Schedule.from_betas([0.3, 1.0]), torch.tensor([1, 2])
    xt = noise(2, 3)
    same = convert(xt, xt, t, q, given, given)
    assert torch.equal(same, xt)
    calls = [
        lambda: convert(xt, xt, t, q, given, "x0"),
        lambda: convert(xt, xt, t, q, given, "v"),
        lambda: weights_in(given, vlb_weights(q), q),
        lambda: denoiser(lambda x, t: x, q, given),
        lambda: denoising_losses(lambda x, t: x, xt, None, q, given),
        lambda: hybrid_losses(lambda x, t: (x, x), xt, None, q, given),
    ]
    sentence = rf"^prediction must be x0 or v, got '{given}': .* says nothing"
    for call in calls:
        with pytest.raises(ValueError, match=sentence):
            call()


@pytest.mark.verifies("eq-snr-weights", "prop-prior-gap")
def test_at_pure_noise_the_bound_pays_for_the_picture_and_not_for_the_end():
    q, x0 = zero_terminal_snr(Schedule.linear(20, 0.01, 0.3)), noise(3, 4)
    sigma = posterior_var(q).sqrt()
    model = denoiser(lambda x, t: x, q, "v")
    terms = bound_terms(
        model, x0, q, sigma, levels=None, generator=seeded(), chunk=7
    )
    assert terms.isfinite().all()
    assert (terms[:, 20] == 0).all()
    blind = bound_terms(
        lambda x, t: 0 * x, x0, q, sigma, levels=None, generator=seeded()
    )
    ratio = q.snr[19] / 2
    assert_close(blind[:, 19], ratio * x0.square().sum(1), rtol=1e-9, atol=0)


@pytest.mark.verifies("def-simple-loss", "eq-hybrid-loss")
@pytest.mark.parametrize("kind", ["x0", "v"])
def test_losses_at_pure_noise_are_those_of_the_data(kind):
    q, x0 = Schedule.from_betas([1.0]), noise(3, 4)
    sign = {"x0": 1, "v": -1}[kind]
    loss = denoising_losses(lambda x, t: 0 * x, x0, seeded(), q, kind)
    assert_close(loss, x0.square().mean(1))
    q = Schedule.from_betas([0.3, 1.0])
    both = hybrid_losses(
        lambda x, t: (sign * x0, 0 * x), x0, seeded(), q, "x0"
    )
    assert both.isfinite().all()


@given(st.floats(1e-6, 0.99), st.floats(-3, 3), st.floats(-3, 3))
def test_a_conversion_and_its_inverse_are_nothing(beta, said, seen):
    q = Schedule.from_betas(torch.tensor([beta], dtype=torch.float64))
    y, xt = (torch.tensor([v], dtype=torch.float64) for v in (said, seen))
    t = torch.ones(1, dtype=torch.int64)
    for kind in KINDS:
        assert torch.equal(convert(y, xt, t, q, kind, kind), y)
        for other in KINDS:
            there = convert(y, xt, t, q, kind, other)
            back = convert(there, xt, t, q, other, kind)
            size = 1e-12 * (there.abs() + xt.abs() + 1) / (beta * (1 - beta))
            assert (back - y).abs() <= size


def test_the_textbook_formulas():
    q, t = Schedule.linear(1000), torch.tensor([1, 400, 1000])
    x0, eps = noise(3, 5), noise(3, 5, seed=1)
    a, s = q.signal[t, None], q.noise_std[t, None]
    xt = a * x0 + s * eps
    v = a * eps - s * x0
    assert_close(target(x0, eps, t, q, "v"), v)
    assert_close(target(x0, eps, t, q, "score"), -eps / s)
    assert_close(convert(v, xt, t, q, "v", "x0"), a * xt - s * v)
    assert_close(convert(v, xt, t, q, "v", "eps"), s * xt + a * v)
    assert_close(convert(eps, xt, t, q, "eps", "x0"), (xt - s * eps) / a)
    assert_close(convert(x0, xt, t, q, "x0", "eps"), (xt - a * x0) / s)
    tweedie = (xt + s**2 * (-eps / s)) / a
    assert_close(convert(-eps / s, xt, t, q, "score", "x0"), tweedie)


def test_the_velocity_is_the_slope_along_the_angle():
    q, t = Schedule.cosine(100), torch.tensor([10, 50, 90])
    x0, eps = noise(3, 4), noise(3, 4, seed=1)
    h, phi = 1e-6, q.phi[t, None]
    ahead, behind = (
        (phi + d).cos() * x0 + (phi + d).sin() * eps for d in (h, -h)
    )
    slope = (ahead - behind) / (2 * h)
    assert_close(target(x0, eps, t, q, "v"), slope, rtol=1e-8, atol=1e-8)


def test_the_wider_dtype_counts():
    q, t = Schedule.linear(1000), torch.tensor([1000])
    xt = noise(1, 6, dtype=torch.float32)
    for kind in KINDS:
        found = convert(xt.bfloat16(), xt, t, q, kind, "x0")
        exact = convert(xt.bfloat16().double(), xt.double(), t, q, kind, "x0")
        assert found.dtype == torch.float32
        assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)
    assert convert(xt.half(), xt.half(), t, q, "v", "x0").dtype == torch.half


def test_unknown_words_are_refused():
    q, t, x = Schedule.linear(10), torch.tensor([1]), torch.zeros(1, 2)
    wanted = r"one of eps, x0, v, score, got 'noise'"
    for call in (
        lambda: convert(x, x, t, q, "noise", "x0"),
        lambda: convert(x, x, t, q, "x0", "noise"),
        lambda: target(x, x, t, q, "noise"),
        lambda: weights_in("noise", q.beta, q),
        lambda: denoiser(lambda xt, t: xt, q, "noise"),
        lambda: denoising_losses(lambda xt, t: xt, x, None, q, "noise"),
    ):
        with pytest.raises(ValueError, match=wanted):
            call()


@pytest.mark.verifies("thm-exact-weights")
def test_the_weight_of_the_noise_is_that_of_the_paper():
    for q in schedules():
        for variance in (posterior_var(q), q.beta, 0.3 * q.beta):
            found = weights_in("eps", vlb_weights(q, variance.sqrt()), q)
            exact = q.beta**2 / (2 * variance * q.alpha * q.noise_std**2)
            assert_close(found[2:], exact[2:], rtol=1e-9, atol=0)


def test_known_weights_of_the_usual_schedule():
    q = Schedule.linear(1000)
    found = weights_in("eps", vlb_weights(q), q)
    for step, value in ((2, 0.60), (10, 0.086), (100, 0.0103), (350, 0.0050)):
        assert found[step].item() == pytest.approx(value, rel=0.02)
    assert int(found[1:].argmin()) + 1 == 350


def test_the_first_weight_is_that_of_a_gaussian_decoder():
    q, x0, eps = Schedule.linear(50), noise(4, 3), noise(4, 3, seed=1)
    for sigma in (q.beta.sqrt(), posterior_var(q).sqrt()):
        off = noise(4, 3, seed=2)
        options = (x0, eps, q, sigma, None)
        guess = x0 + off
        error = decoder_term(lambda xt, t, x=guess: x, *options)
        error = error - decoder_term(lambda xt, t: x0, *options)
        weight = vlb_weights(q, sigma)[1]
        assert_close(error, weight * off.square().sum(1))
    assert_close(vlb_weights(q)[1:3], vlb_weights(q)[1:3].abs())
    assert vlb_weights(q).isfinite().all()


def test_one_step_has_a_weight():
    q = Schedule.from_betas(torch.tensor([0.5], dtype=torch.float64))
    sigma = torch.tensor([0.0, 0.5], dtype=torch.float64)
    assert vlb_weights(q, sigma).tolist() == [0.0, 2.0]


def test_tables_of_another_length_are_refused():
    q = Schedule.linear(10)
    with pytest.raises(ValueError, match=r"shape \[11\], got \[10\]"):
        vlb_weights(q, q.beta[1:])
    for cap in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="cap must be positive"):
            min_snr_weights(q, cap)


@pytest.mark.verifies("prop-min-snr")
def test_min_snr_in_each_prediction():
    q = Schedule.linear(1000)
    snr, low = q.snr[1:], q.snr[1:].clamp(max=5)
    for kind, exact in (
        ("x0", low),
        ("eps", low / snr),
        ("v", low / (snr + 1)),
        ("score", low / snr * q.noise_std[1:] ** 2),
    ):
        found = weights_in(kind, min_snr_weights(q), q)
        assert_close(found[1:], exact, rtol=1e-9, atol=0)
        assert found[0] == 0
    assert_close(min_snr_weights(q, 1.0)[1:], snr.clamp(max=1))


@pytest.mark.verifies("def-simple-loss")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_loss_is_the_formula_on_a_replayed_draw(kind, shape):
    q = Schedule.cosine(20)
    x0 = noise(*shape)
    weights = weights_in(kind, min_snr_weights(q), q)

    def model(xt, t):
        return xt.tanh() + t.reshape(-1, *[1] * (xt.ndim - 1)) / 20

    generator = seeded(3)
    t = torch.randint(1, 21, (3,), generator=generator)
    eps = torch.randn(shape, generator=generator, dtype=torch.float64)
    xt = diffuse(x0, t, eps, q)
    p, n = (
        table[t].reshape(-1, *[1] * (x0.ndim - 1))
        for table in coordinates(kind, q)
    )
    error = (model(xt, t) - p * x0 - n * eps).square().flatten(1).mean(1)
    found = denoising_losses(model, x0, seeded(3), q, kind)
    assert_close(found, error)
    found = denoising_losses(model, x0, seeded(3), q, kind, weights)
    assert_close(found, weights[t] * error)


def test_all_steps_are_drawn_alike():
    q, seen = Schedule.linear(7, 0.01, 0.3), []

    def model(xt, t):
        seen.append(t)
        return torch.zeros_like(xt)

    denoising_losses(model, torch.zeros(70_000, 1), seeded(), q)
    for step in range(1, 8):
        share = (seen[0] == step).double()
        assert abs(standard_score(share, 1 / 7, 6**0.5 / 7)) < 5
    assert seen[0].min() == 1
    assert seen[0].max() == 7


def test_the_loss_of_the_best_model_is_the_floor():
    """For x_0 ~ N(0, s^2) the error of the noise is a s / sqrt(a^2 s^2 + b^2)."""
    q = Schedule.linear(40, 0.0025, 0.4)
    a, b, s = q.signal, q.noise_std, 0.5

    def model(xt, t):
        a_t, b_t = a[t, None], b[t, None]
        return b_t * xt / ((a_t * s) ** 2 + b_t**2)

    x0 = s * noise(100_000, 1)
    losses = denoising_losses(model, x0, seeded(1), q)
    floor = ((a * s) ** 2 / ((a * s) ** 2 + b**2))[1:].mean().item()
    assert abs(standard_score(losses, floor)) < 5


def test_half_precision_is_averaged_in_float32():
    q, x0 = Schedule.linear(10), noise(4, 1000, dtype=torch.bfloat16)
    found = denoising_losses(lambda xt, t: xt, x0, seeded(), q)
    assert found.dtype == torch.float32
    wide = denoising_losses(
        lambda xt, t: xt.bfloat16(), x0.float(), seeded(), q
    )
    assert wide.dtype == torch.float32


def test_a_model_of_another_shape_is_refused():
    q, x0 = Schedule.linear(10), torch.zeros(4, 3)
    message = r"shape of xt, \[4, 3\], got \[4, 1\]"
    for losses in (
        lambda: denoising_losses(lambda xt, t: xt[:, :1], x0, None, q),
        lambda: hybrid_losses(lambda xt, t: (xt, xt[:, :1]), x0, None, q),
        lambda: hybrid_losses(lambda xt, t: (xt[:, :1], xt), x0, None, q),
    ):
        with pytest.raises(ValueError, match=message):
            losses()


def test_nothing_is_read_back():
    """On the device `meta` there are no values that one could read."""
    q = Schedule.linear(10)
    x0 = torch.zeros(4, 3, device="meta", dtype=torch.float32)
    weights = vlb_weights(q)
    for kind in KINDS:
        found = denoising_losses(lambda xt, t: xt, x0, None, q, kind, weights)
        assert found.shape == (4,)
        assert found.device.type == "meta"
    both = hybrid_losses(lambda xt, t: (xt, xt), x0, None, q)
    assert both.device.type == "meta"


def test_the_share_moves_between_the_two_bounds():
    q = Schedule.linear(100)
    t = torch.tensor([1, 2, 50, 100])
    low, high = torch.zeros(4, 2).double(), torch.ones(4, 2).double()
    narrow = posterior_var(q)[torch.tensor([2, 2, 50, 100]), None]
    assert_close(learned_log_var(low, t, q).exp(), narrow.expand(4, 2))
    wide = q.beta[t, None].expand(4, 2)
    assert_close(learned_log_var(high, t, q).exp(), wide)
    middle = learned_log_var((low + high) / 2, t, q)
    assert_close(middle, (narrow * wide).log() / 2)
    alone = Schedule.from_betas(torch.tensor([0.3], dtype=torch.float64))
    found = learned_log_var(low[:1], t[:1], alone)
    assert_close(found.exp(), torch.full_like(found, 0.3))


def both(share, off):
    """Return a network whose noise is off by `off`, with a constant share."""

    def model(xt, t):
        return off.expand_as(xt), share.expand_as(xt)

    return model


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_speaks_of_the_variance_alone(kind):
    q, x0 = Schedule.linear(50), noise(6, 4)
    off = noise(1, 4, seed=2).requires_grad_()
    share = torch.full((1, 4), 0.4, dtype=torch.float64, requires_grad=True)
    model = both(share, off)
    together = hybrid_losses(model, x0, seeded(1), q, kind, 0.7).sum()
    simple = denoising_losses(
        lambda xt, t: model(xt, t)[0], x0, seeded(1), q, kind
    ).sum()
    gradients = torch.autograd.grad(together, (off, share))
    assert_close(gradients[0], torch.autograd.grad(simple, off)[0])
    assert gradients[1].abs().max() > 0


def test_differences_of_the_hybrid_loss_are_those_of_the_bound():
    """Between two shares, with every t of the draw, t = 1 among them."""
    q, x0 = Schedule.linear(5, 0.01, 0.3), noise(40, 3)
    off, shares = noise(1, 3, seed=2), (0.2, 0.9)
    generator = seeded(1)
    t = torch.randint(1, 6, (40,), generator=generator)
    eps = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    xt = diffuse(x0, t, eps, q)
    guess = convert(off.expand_as(xt), xt, t, q, "eps", "x0")
    found, exact = [], []
    for value in shares:
        share = torch.full((1, 3), value, dtype=torch.float64)
        model = both(share, off)
        found.append(hybrid_losses(model, x0, seeded(1), q, "eps", 2.0))
        std = (learned_log_var(share.expand(40, 3), t, q) / 2).exp()
        first, rest = t == 1, t > 1
        terms = torch.empty(40, dtype=torch.float64)
        terms[first] = decoder_term(
            lambda xt, t, pair=(guess[first], std[first]): pair,
            x0[first],
            eps[first],
            q,
            None,
            None,
        )
        terms[rest] = kl_terms(
            lambda xt, t, pair=(guess[rest], std[rest]): pair,
            x0[rest],
            t[rest],
            eps[rest],
            q,
            None,
        )
        exact.append(terms)
    assert first.any()
    difference = 2.0 * 5 * (exact[1] - exact[0]) / 3
    assert_close(found[1] - found[0], difference)


def test_the_best_share_is_the_best_variance():
    """The gradient vanishes where sigma^2 is what the guess leaves over."""
    q, x0 = Schedule.linear(50), noise(1, 1)
    generator = seeded(4)
    t = torch.randint(1, 51, (1,), generator=generator)
    eps = torch.randn(1, 1, generator=generator, dtype=torch.float64)
    assert t > 1
    table = posterior_table(q)
    wanted = (table.variance * q.beta).sqrt()[
        t
    ]  # in the middle of the bounds
    miss = ((wanted - table.variance[t]).sqrt() / table.from_data[t])[:, None]
    off = q.signal[t, None] / q.noise_std[t, None] * miss
    share = torch.full((1, 1), 0.5, dtype=torch.float64, requires_grad=True)
    loss = hybrid_losses(both(share, eps + off), x0, seeded(4), q)
    assert torch.autograd.grad(loss.sum(), share)[0].abs() < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_serves_bound_and_sampler(kind):
    q = Schedule.linear(30, 0.003, 0.5)
    points = noise(5, 2)
    best = empirical_denoiser(points, q)

    def network(xt, t):
        return convert(best(xt, t), xt, t, q, "x0", kind)

    model, sigma = denoiser(network, q, kind), posterior_var(q).sqrt()
    options = {"levels": None}
    exact = vlb(best, points, q, sigma, generator=seeded(1), **options)
    found = vlb(model, points, q, sigma, generator=seeded(1), **options)
    assert_close(found, exact, rtol=1e-6, atol=1e-6)
    xT = noise(8, 2, seed=3)
    drawn = ancestral_sample(model, xT, q, sigma, seeded(2))
    same = ancestral_sample(best, xT, q, sigma, seeded(2))
    assert_close(drawn, same, rtol=1e-6, atol=1e-6)


def test_a_share_in_half_precision_is_widened():
    """As under autocast, where the data stay in float32."""
    q = Schedule.linear(1000)
    x0 = noise(64, 8, dtype=torch.float32)
    share = torch.rand(64, 8, generator=seeded(2)).bfloat16()
    found = hybrid_losses(lambda xt, t: (xt, share), x0, seeded(1), q)
    exact = hybrid_losses(lambda xt, t: (xt, share.float()), x0, seeded(1), q)
    assert torch.equal(found, exact)


@pytest.mark.verifies("prop-bayes-optimum")
def test_the_floor_is_finite_for_data_without_moments():
    """For Cauchy data: below the error of x_t / a, and near it far out."""
    q, t = Schedule.linear(1000), 500
    a, s = q.signal[t], q.noise_std[t]
    points = torch.linspace(-2000, 2000, 8001, dtype=torch.float64)
    log_data = -torch.log1p(points**2)
    x = torch.linspace(-400, 400, 401, dtype=torch.float64)[:, None]
    log_joint = log_data - ((x - a * points) / s) ** 2 / 2
    share, mass = log_joint.softmax(1), log_joint.exp().sum(1)
    mean = share @ points
    left = share @ points**2 - mean**2
    floor, bound = left @ mass / mass.sum(), 1 / q.snr[t]
    assert 0.3 * bound < floor < bound
    assert_close(left[0], bound, rtol=1e-2, atol=0)
