"""Laws of the posterior, the terms of the bound and the decoder, and what they refuse."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from tangled.diffusion.elbo import (
    ancestral_sample,
    bits_per_dim,
    bound_terms,
    decoder_term,
    discretised_log_prob,
    empirical_denoiser,
    kl_terms,
    posterior,
    posterior_mean,
    posterior_table,
    posterior_var,
    reverse_mean,
    vlb,
)
from tangled.diffusion.forward import diffuse, prior_term, transition
from tangled.diffusion.gaussian import (
    LinearGaussianChain,
    gaussian_kl,
    linear_gaussian_posterior,
    log_normal,
    multivariate_kl,
)
from tangled.diffusion.mixture import GaussianMixture
from tangled.diffusion.schedule import Schedule
from tangled.workshop.statistics import standard_score

betas = st.lists(st.floats(1e-4, 0.9), min_size=1, max_size=12).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


def noise(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype)


def zeros(xt, t):
    return torch.zeros_like(xt)


def half(xt, t):
    return xt / 2


def grid(levels):
    return torch.linspace(-1, 1, levels, dtype=torch.float64)


@pytest.mark.verifies("thm-posterior")
@given(betas, st.data())
def test_posterior_is_bayes_at_every_step(beta, data):
    schedule = Schedule.from_betas(beta)
    step = data.draw(st.integers(1, schedule.T))
    x0, xt = noise(3, 4), noise(3, 4, seed=1)
    mean, variance = posterior(x0, xt, torch.full((3,), step), schedule)
    scale, r = transition(schedule, step - 1, step)
    prior = schedule.signal[step - 1] * x0, schedule.noise_std[step - 1] ** 2
    expected = linear_gaussian_posterior(*prior, xt, scale, r)
    assert_close(mean, expected[0], rtol=1e-8, atol=1e-10)
    assert variance.shape == (3, 1)
    assert_close(variance[0, 0], expected[1], rtol=1e-8, atol=1e-14)


@pytest.mark.verifies("thm-posterior")
@given(betas)
def test_posterior_of_a_noiseless_path_stays_on_it(beta):
    """If x_t = a_t x_0, the mean of x_{t-1} is a_{t-1} x_0."""
    schedule = Schedule.from_betas(beta)
    t = torch.arange(1, schedule.T + 1)
    x0 = noise(schedule.T, 2)
    xt = diffuse(x0, t, torch.zeros_like(x0), schedule)
    earlier = diffuse(x0, t - 1, torch.zeros_like(x0), schedule)
    mean = posterior_mean(x0, xt, t, schedule)
    assert_close(mean, earlier, rtol=1e-9, atol=1e-12)


@pytest.mark.verifies("prop-posterior-variance")
@given(betas)
def test_variances_are_zero_then_between_zero_and_beta(beta):
    schedule = Schedule.from_betas(beta)
    variance = posterior_var(schedule)
    assert variance.shape == (schedule.T + 1,)
    assert variance[1] == 0
    assert (variance[2:] > 0).all()
    assert (variance[2:] <= schedule.beta[2:]).all()
    harmonic = schedule.alpha[2:] / schedule.beta[2:]
    harmonic = harmonic + 1 / (1 - schedule.alpha_bar[1:-1])
    assert_close(variance[2:] * harmonic, torch.ones_like(harmonic))


@pytest.mark.verifies("prop-posterior-variance")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_at_the_first_step_the_posterior_is_the_datum(dtype):
    x0, xt = noise(4, 3, 2, 2, dtype=dtype), noise(4, 3, 2, 2, dtype=dtype)
    for schedule in (Schedule.linear(1000), Schedule.cosine(7)):
        mean, variance = posterior(x0, xt, torch.ones(4).long(), schedule)
        assert torch.equal(mean, x0)
        assert mean.dtype == variance.dtype == dtype
        assert variance.shape == (4, 1, 1, 1)
        assert (variance == 0).all()


@pytest.mark.verifies("thm-vlb-decomposition")
@given(betas, st.integers(1, 5))
def test_terms_are_sums_over_dimensions(beta, dim):
    schedule = Schedule.from_betas(beta)
    sigma, x0, eps = schedule.beta.sqrt(), noise(2, dim), noise(2, dim)
    for step in range(2, schedule.T + 1):
        t = torch.full((2,), step)
        whole = kl_terms(zeros, x0, t, eps, schedule, sigma)
        parts = [
            kl_terms(zeros, x0[:, [i]], t, eps[:, [i]], schedule, sigma)
            for i in range(dim)
        ]
        assert_close(whole, sum(parts), rtol=1e-9, atol=1e-12)
        assert (whole >= 0).all()
    for levels, data in (
        (None, x0),
        (17, grid(17)[3 + torch.arange(2 * dim)]),
    ):
        data = data.reshape(2, dim)
        whole = decoder_term(zeros, data, eps, schedule, sigma, levels)
        parts = [
            decoder_term(
                zeros, data[:, [i]], eps[:, [i]], schedule, sigma, levels
            )
            for i in range(dim)
        ]
        assert_close(whole, sum(parts), rtol=1e-9, atol=1e-12)


@pytest.mark.verifies("def-bound-terms")
@given(betas)
def test_a_denoiser_that_knows_the_answer_pays_for_variance_only(beta):
    schedule = Schedule.from_betas(beta)
    x0, eps = noise(3, 4), noise(3, 4, seed=1)
    ratio = posterior_var(schedule)[1:] / schedule.beta[1:]
    for step in range(2, schedule.T + 1):
        t = torch.full((3,), step)
        found = kl_terms(
            lambda xt, t: x0, x0, t, eps, schedule, schedule.beta.sqrt()
        )
        r = ratio[step - 1]
        assert_close(
            found,
            (2 * (r - 1 - r.log())).expand(3),
            rtol=1e-7,
            atol=1e-12,
        )


@pytest.mark.verifies("alg-bound")
@pytest.mark.parametrize("dims", [(), (3,), (2, 4, 4)])
@pytest.mark.parametrize("levels", [None, 17])
def test_columns_are_the_terms(dims, levels):
    schedule = Schedule.linear(5, 0.05, 0.4)
    x0 = grid(17)[torch.randint(17, (6, *dims))]
    sigma = schedule.beta.sqrt()
    draw = torch.Generator().manual_seed(2)
    options = {"levels": levels, "generator": draw}
    terms = bound_terms(half, x0, schedule, sigma, **options)
    assert terms.shape == (6, 6)
    assert_close(terms[:, -1], prior_term(x0, schedule))
    draw.manual_seed(2)
    eps = torch.randn(x0.shape, generator=draw, dtype=x0.dtype)
    first = decoder_term(half, x0, eps, schedule, sigma, levels)
    assert_close(terms[:, 0], first)
    for step in range(2, 6):
        eps = torch.randn(x0.shape, generator=draw, dtype=x0.dtype)
        t = torch.full((6,), step)
        each = kl_terms(half, x0, t, eps, schedule, sigma)
        assert_close(terms[:, step - 1], each)
    draw.manual_seed(2)
    total = vlb(half, x0, schedule, sigma, **options)
    assert_close(total, terms.sum(1))


def test_a_chain_of_one_step_has_a_decoder_and_a_prior():
    schedule = Schedule.linear(1, 0.3, 0.3)
    terms = bound_terms(
        zeros, noise(2, 3), schedule, schedule.beta.sqrt(), levels=None
    )
    assert terms.shape == (2, 2)


def test_an_empty_batch_stays_empty():
    schedule = Schedule.linear(3)
    terms = bound_terms(
        zeros, torch.zeros(0, 3), schedule, schedule.beta.sqrt()
    )
    assert terms.shape == (0, 4)


def test_gradients_reach_the_model_through_every_term():
    schedule = Schedule.linear(4, 0.05, 0.4)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    x0 = grid(256)[torch.tensor([[0, 100, 255]])]  # both open ends
    sigma, draw = schedule.beta.sqrt(), torch.Generator()

    def terms_at(value, grad):
        draw.manual_seed(3)
        return bound_terms(
            lambda xt, t: value * xt,
            x0,
            schedule,
            sigma,
            generator=draw,
            grad=grad,
        )[0]

    terms = terms_at(scale, grad=True)
    assert not terms_at(scale, grad=False).requires_grad
    step = 1e-6
    change = terms_at(1 + step, grad=False) - terms_at(1 - step, grad=False)
    for k in range(4):
        (gradient,) = torch.autograd.grad(terms[k], scale, retain_graph=True)
        assert_close(gradient, change[k] / (2 * step), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_dtype_follows_the_data(dtype):
    schedule = Schedule.linear(6, 0.05, 0.4)
    x0 = grid(256).to(dtype)[torch.randint(256, (3, 5))]
    terms = bound_terms(zeros, x0, schedule, schedule.beta.sqrt())
    assert terms.dtype == dtype
    assert terms.isfinite().all()


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    schedule = Schedule.linear(3)
    draw = torch.Generator().manual_seed(0)
    x, sigma = noise(2, 3), schedule.beta.sqrt()
    vlb(zeros, x, schedule, sigma, levels=None, generator=draw)
    ancestral_sample(zeros, x, schedule, sigma, draw)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.verifies("prop-discretised-decoder")
@given(st.integers(2, 300), st.floats(-3, 3), st.floats(0.003, 5), st.data())
def test_masses_add_to_one_and_mirror(levels, mean, std, data):
    x = grid(levels)
    at = torch.full_like(x, mean)
    logs = discretised_log_prob(x, at, std, levels)
    assert (logs <= 1e-15).all()
    assert logs.isfinite().all()
    assert abs(logs.logsumexp(0)) < 1e-10
    mirrored = discretised_log_prob(x.flip(0), -at, std, levels)
    assert_close(mirrored, logs, rtol=1e-9, atol=1e-9)


@pytest.mark.verifies("prop-discretised-decoder")
def test_single_precision_meets_double_precision():
    x, mean = grid(256), torch.linspace(-1.2, 1.2, 256).double()
    for std in (0.01, 0.1, 1.0):
        exact = discretised_log_prob(x, mean.flip(0), std)
        single = discretised_log_prob(x.float(), mean.flip(0).float(), std)
        assert_close(single.double(), exact, rtol=1e-4, atol=1e-3)


@pytest.mark.verifies("eq-bits")
def test_bits_are_nats_over_dim_and_the_logarithm_of_two():
    nats = torch.tensor([64 * math.log(2)])
    assert bits_per_dim(nats, 64).item() == pytest.approx(1.0)


@pytest.mark.gpu
def test_results_stay_on_the_device_of_the_data():
    schedule = Schedule.linear(5, 0.05, 0.4)
    x0 = grid(256).float()[torch.randint(256, (3, 4))]
    sigma = schedule.beta.sqrt()
    draw = torch.Generator("cuda").manual_seed(0)
    on_gpu = bound_terms(zeros, x0.cuda(), schedule, sigma, generator=draw)
    assert on_gpu.device.type == "cuda"
    t = torch.tensor([1, 2, 5])
    mean, variance = posterior(x0.cuda(), x0.cuda(), t.cuda(), schedule)
    expected = posterior(x0, x0, t, schedule)
    assert_close(mean.cpu(), expected[0])
    assert_close(variance.cpu(), expected[1])
    at = torch.zeros(3, 4)
    assert_close(
        discretised_log_prob(x0.cuda(), at.cuda(), 0.1).cpu(),
        discretised_log_prob(x0, at, 0.1),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("t", [0, -1, 11])
def test_a_posterior_outside_the_chain_is_refused(t):
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"^t must lie in 1\.\.10, got"):
        posterior(x, x, torch.full((2,), t), Schedule.linear(10))


def test_the_step_to_the_data_has_no_divergence():
    x, schedule = torch.zeros(2, 3), Schedule.linear(10)
    t = torch.tensor([1, 4])
    with pytest.raises(
        ValueError, match=r"^t must lie in 2\.\.10, got 1\.\."
    ):
        kl_terms(zeros, x, t, x, schedule, schedule.beta.sqrt())


@pytest.mark.usefixtures("plain_errors")
def test_a_guess_of_another_shape_is_refused():
    schedule = Schedule.linear(10)
    with pytest.raises(
        ValueError,
        match=r"^model must return the shape of xt, \[2, 3\], got \[2\]$",
    ):
        reverse_mean(
            lambda xt, t: xt[:, 0],
            torch.zeros(2, 3),
            torch.tensor([1, 2]),
            schedule,
        )


@pytest.mark.parametrize("place", [2, 5, 10])
@pytest.mark.parametrize("value", [0.0, -0.1, math.nan])
def test_a_reverse_step_without_noise_is_refused(place, value):
    x, schedule = torch.zeros(2, 3), Schedule.linear(10)
    sigma = schedule.beta.sqrt()
    sigma[place] = value  # one bad entry among good ones
    sentence = r"^sigma must be positive from t = 2 on$"
    with pytest.raises(ValueError, match=sentence):
        decoder_term(zeros, x, x, schedule, sigma)
    with pytest.raises(ValueError, match=sentence):
        kl_terms(zeros, x, torch.tensor([2, 3]), x, schedule, sigma)


def test_a_table_of_another_length_and_a_negative_decoder_are_refused():
    x, schedule = torch.zeros(2, 3), Schedule.linear(10)
    sigma = schedule.beta.sqrt()
    with pytest.raises(ValueError, match=r"^sigma must have shape \[11\]"):
        decoder_term(zeros, x, x, schedule, sigma[:-1])
    sigma[1] = -0.1
    with pytest.raises(ValueError, match=r"^sigma must be positive"):
        decoder_term(zeros, x, x, schedule, sigma)


@pytest.mark.usefixtures("plain_errors")
def test_a_guess_that_would_be_broadcast_is_refused():
    x, schedule = torch.zeros(3, 3), Schedule.linear(10)
    options = (schedule, schedule.beta.sqrt())
    sentence = r"^model must return the shape of xt, \[3, 3\], got \[3, 1\]$"

    def model(xt, t):
        return xt[:, :1]

    with pytest.raises(ValueError, match=sentence):
        kl_terms(model, x, torch.tensor([2, 3, 4]), x, *options)
    with pytest.raises(ValueError, match=sentence):
        decoder_term(model, x, x, *options)


@pytest.mark.usefixtures("plain_errors")
def test_a_deviation_of_another_shape_is_refused():
    """One per sample would be broadcast over the wrong dimension."""
    x, schedule = torch.zeros(3, 3), Schedule.linear(10)
    options = (schedule, None)
    sentence = r"^model must return the shape of xt, \[3, 3\], got \[3\]$"

    def model(xt, t):
        return xt, torch.ones(3)

    with pytest.raises(ValueError, match=sentence):
        kl_terms(model, x, torch.tensor([2, 3, 4]), x, *options)
    with pytest.raises(ValueError, match=sentence):
        decoder_term(model, x, x, *options)


@pytest.mark.parametrize("chunk", [0, -1])
def test_a_chunk_without_steps_is_refused(chunk):
    schedule = Schedule.linear(10)
    with pytest.raises(ValueError, match=r"^chunk must be at least 1, got "):
        vlb(zeros, noise(2, 3), schedule, schedule.beta.sqrt(), chunk=chunk)


def test_a_sampler_refuses_the_deviations_of_another_schedule():
    schedule, sigma = Schedule.linear(10), Schedule.linear(20).beta.sqrt()
    with pytest.raises(ValueError, match=r"^sigma must have shape \[11\]"):
        ancestral_sample(zeros, noise(2, 3), schedule, sigma)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.01, -1.0079, math.nan])
def test_data_between_the_levels_are_refused(value):
    x = torch.tensor([1.0, value], dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r"^x0 must lie on 256 equal levels from -1 to 1, "
    ):
        discretised_log_prob(x, torch.zeros_like(x), 0.1)


@pytest.mark.usefixtures("plain_errors")
def test_a_deviation_of_zero_and_a_single_level_are_refused():
    x = torch.ones(1)
    with pytest.raises(ValueError, match=r"^levels must be at least 2"):
        discretised_log_prob(x, x, 0.1, levels=1)
    with pytest.raises(ValueError, match=r"^std must be positive, got 0"):
        discretised_log_prob(x, x, 0.0)
    with pytest.raises(ValueError, match=r"^dim must be at least 1, got 0$"):
        bits_per_dim(x, 0)


def test_without_a_deviation_for_the_decoder_the_next_one_is_taken():
    schedule = Schedule.linear(10, 0.01, 0.4)
    x0, eps = grid(17)[torch.randint(17, (3, 4))], noise(3, 4)
    small = posterior_var(schedule).sqrt()
    given = small.clone()
    given[1] = small[2]
    for levels in (None, 17):
        found = decoder_term(half, x0, eps, schedule, small, levels)
        wanted = decoder_term(half, x0, eps, schedule, given, levels)
        assert torch.equal(found, wanted)
        assert found.isfinite().all()
    assert vlb(half, x0, schedule, small, levels=17).isfinite().all()
    one = Schedule.linear(1, 0.3, 0.3)
    with pytest.raises(ValueError, match=r"^std must be positive"):
        decoder_term(half, grid(256)[:1], eps[0, :1], one, 0 * one.beta)


def test_coefficients_are_made_once_and_exact_at_the_data():
    schedule = Schedule.cosine(12)
    table = posterior_table(schedule)
    assert posterior_table(schedule) is table
    assert [column[1].item() for column in table] == [1, 0, 0]
    assert all(column[0].isnan() for column in table)
    assert all(column.dtype == torch.float64 for column in table)
    # equal weights would not do: signal is kept in the mean
    kept = table.from_data + table.from_noisy * schedule.signal
    assert_close(kept[1:], schedule.signal[:-1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_guess_costs_what_it_costs_in_single_precision(dtype):
    schedule = Schedule.linear(1000)
    x0 = noise(999, 64, seed=2, dtype=torch.float32)
    t, eps = torch.arange(2, 1001), noise(999, 64, dtype=torch.float32)
    guess = (x0 + 0.01 * noise(999, 64, seed=1).float()).to(dtype)
    sigma = posterior_var(schedule).sqrt()
    options = (x0, t, eps, schedule, sigma)
    found = kl_terms(lambda xt, t: guess, *options)
    wanted = kl_terms(lambda xt, t: guess.float(), *options)
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)
    options = (torch.ones_like(x0), *options[1:])
    exact = kl_terms(lambda xt, t: torch.ones_like(xt, dtype=dtype), *options)
    assert_close(exact, torch.zeros(999), rtol=0, atol=1e-9)
    mean = posterior_mean(guess, x0, t, schedule)
    assert torch.equal(mean, posterior_mean(guess.float(), x0, t, schedule))
    first = (torch.ones(3, 64), eps[:3], schedule, sigma)
    assert torch.equal(
        decoder_term(lambda xt, t: guess[:3], *first),
        decoder_term(lambda xt, t: guess[:3].float(), *first),
    )


def test_a_wider_guess_is_not_rounded_to_the_data():
    schedule, t = Schedule.linear(1000), torch.arange(1, 1001)
    guess, xt = noise(1000, 8), noise(1000, 8, seed=1).float()
    mean = posterior_mean(guess, xt, t, schedule)
    assert torch.equal(mean, posterior_mean(guess, xt.double(), t, schedule))


@pytest.mark.verifies("prop-denoising-error")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_price_of_a_step_that_is_hardly_too_wide_keeps_its_digits(dtype):
    """Late in the chain beta and beta tilde differ in the seventh digit."""
    q, t = Schedule.linear(1000), torch.arange(2, 1001)
    x0 = torch.zeros(999, 1, dtype=dtype)
    found = kl_terms(zeros, x0, t, x0, q, q.beta.sqrt())[:, None]
    off = -q.beta[2:] * q.alpha_bar[1:-1] / (1 - q.alpha_bar[2:])
    exact = (off - off.log1p())[:, None] / 2
    assert off[-1].abs() < 1e-6
    assert_close(found.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.verifies("prop-denoising-error")
@given(betas, st.floats(0.3, 3))
def test_terms_are_divergences_for_every_deviation(beta, factor):
    schedule = Schedule.from_betas(beta)
    t = torch.arange(2, schedule.T + 1)
    x0, eps = noise(len(t), 3), noise(len(t), 3, seed=1)
    sigma = factor * schedule.beta.sqrt()
    xt = diffuse(x0, t, eps, schedule)
    mean, variance = posterior(x0, xt, t, schedule)
    back = reverse_mean(half, xt, t, schedule)
    kl = gaussian_kl(mean, variance, back, sigma[t][:, None] ** 2).sum(1)
    found = kl_terms(half, x0, t, eps, schedule, sigma)
    assert_close(found, kl, rtol=1e-6, atol=1e-10)


@pytest.mark.verifies("prop-denoising-error")
@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_the_true_variance_of_a_step_makes_the_term_smallest(factor):
    """For x_0 ~ N(0, factor^2): against a step wider and one narrower."""
    schedule, dim = Schedule.linear(20, 0.02, 0.4), 3
    t = torch.arange(2, 21)
    power, table = schedule.alpha_bar, posterior_table(schedule)
    # Var[x_0 | x_t]; the exact guess is off by a draw of that variance
    left = 1 / (factor**-2 + schedule.snr[1:])
    left = torch.cat([left[:1], left])
    best = (table.variance + table.from_data**2 * left).sqrt()
    exact = factor**2 * power[:-1] + 1 - power[:-1]
    exact = 1 / (1 / exact + schedule.alpha[1:] / schedule.beta[1:])
    assert_close(best[2:] ** 2, exact[1:])
    x0 = torch.ones(19, dim, dtype=torch.float64)

    def off(xt, steps):
        return x0 - left[steps, None].sqrt()

    terms = [
        kl_terms(off, x0, t, x0, schedule, size * best)
        for size in (0.99, 1.0, 1.01)
    ]
    assert (terms[1] < terms[0]).all()
    assert (terms[1] < terms[2]).all()


@pytest.mark.verifies("prop-denoising-error")
def test_a_learned_deviation_is_that_of_a_table_and_may_differ_by_pixel():
    schedule = Schedule.linear(10, 0.02, 0.4)
    t, sigma = torch.arange(2, 11), schedule.beta.sqrt()
    x0, eps = noise(9, 4), noise(9, 4, seed=1)

    def pair(xt, t):
        return xt / 2, sigma[t][:, None].expand_as(xt)

    def uneven(xt, t):
        return xt / 2, 0.1 + xt.sigmoid()

    found = kl_terms(pair, x0, t, eps, schedule, None)
    assert_close(found, kl_terms(half, x0, t, eps, schedule, sigma))
    xt = diffuse(x0, t, eps, schedule)
    mean, variance = posterior(x0, xt, t, schedule)
    back, std = uneven(xt, t)
    back = posterior_mean(back, xt, t, schedule)
    kl = gaussian_kl(mean, variance, back, std**2).sum(1)
    assert_close(kl_terms(uneven, x0, t, eps, schedule, None), kl)
    x1 = diffuse(x0, torch.ones(9).long(), eps, schedule)
    guess, std = uneven(x1, t)
    wanted = -log_normal(x0, guess, std**2).sum(1)
    assert_close(decoder_term(uneven, x0, eps, schedule, None, None), wanted)
    assert vlb(uneven, x0, schedule, None, levels=None).isfinite().all()


@pytest.mark.verifies("alg-bound")
@pytest.mark.parametrize("chunk", [2, 3, 100])
def test_the_size_of_a_chunk_changes_nothing(chunk):
    schedule = Schedule.linear(8, 0.05, 0.4)
    x0, sigma = noise(3, 2, 2), schedule.beta.sqrt()
    draw, calls = torch.Generator(), []

    def counted(xt, t):
        calls.append(len(t))
        return t.reshape(-1, 1, 1) * xt / 9

    def terms(size):
        draw.manual_seed(1)
        return bound_terms(
            counted,
            x0,
            schedule,
            sigma,
            levels=None,
            generator=draw,
            chunk=size,
        )

    assert_close(terms(chunk), terms(1), rtol=0, atol=1e-12)
    assert max(calls) == 3 * min(chunk, 7)


@pytest.mark.verifies("alg-bound")
def test_the_noise_of_the_terms_is_normal_to_its_tails():
    """The noise is read off a model; of 4e5 values 25 lie beyond 4."""
    schedule = Schedule.linear(4, 0.05, 0.4)
    x0, seen = torch.zeros(100_000, dtype=torch.float64), []

    def spy(xt, t):
        seen.append(xt / schedule.noise_std[t])
        return xt

    draw = torch.Generator().manual_seed(0)
    sigma = schedule.beta.sqrt()
    bound_terms(spy, x0, schedule, sigma, levels=None, generator=draw)
    eps = torch.cat(seen)
    for bound in (1.0, 2.0, 3.0, 4.0):
        p = math.erfc(bound / 2**0.5)
        beyond = (eps.abs() > bound).double()
        assert abs(standard_score(beyond, p, (p * (1 - p)) ** 0.5)) < 5
    assert (eps > 4).any()
    assert (eps < -4).any()


def chain_of(slope, shift, schedule, sigma):
    """The chain that a denoiser slope x_t + shift makes, and its denoiser."""
    table = posterior_table(schedule)
    chain = LinearGaussianChain(
        table.from_data * slope + table.from_noisy,
        table.from_data * shift,
        sigma,
    )
    return chain, lambda xt, t: slope * xt + shift


@pytest.mark.verifies("thm-vlb-decomposition", "thm-vlb", "def-bound-terms")
@given(betas, st.floats(-1.5, 1.5), st.floats(-1, 1), st.floats(-2, 2))
def test_the_bound_is_exact_on_linear_gaussian_chains(
    beta, slope, shift, value
):
    """Two noises -1 and 1 average the terms, which are quadratic, exactly."""
    q = Schedule.from_betas(beta.clamp(min=0.02))
    sigma = (q.beta * 0.7).sqrt()
    chain, model = chain_of(slope, shift, q, sigma)
    x0 = torch.tensor([value], dtype=torch.float64)
    signal, var = q.signal[1:], 1 - q.alpha_bar[1:]
    below = torch.tril(signal[:, None] / signal * var)
    paths = signal * x0, below + below.T - below.diag().diag()
    gap = multivariate_kl(*paths, *chain.condition(x0[0]))
    both, eps = x0.expand(2), torch.tensor([-1.0, 1.0], dtype=torch.float64)
    terms = [decoder_term(model, both, eps, q, sigma, None).mean()]
    for step in range(2, q.T + 1):
        t = torch.full((2,), step)
        terms.append(kl_terms(model, both, t, eps, q, sigma).mean())
    total = sum(terms) + prior_term(x0, q)[0]
    assert_close(total, gap - chain.log_prob(x0[0]), rtol=1e-7, atol=1e-8)


@pytest.mark.verifies("prop-exact-reverse")
def test_the_step_back_of_a_mixture_is_the_average_of_posteriors():
    """The parts, reversed one by one, against an integral over x_0."""
    half_and_half = torch.full((2,), 0.5, dtype=torch.float64)
    means = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    data = GaussianMixture(half_and_half, means, 0.3 * half_and_half)
    q, t = Schedule.cosine(4), 2
    xt = torch.tensor([0.3], dtype=torch.float64)
    x0 = torch.linspace(-2.5, 2.5, 4001, dtype=torch.float64)
    given_x0 = log_normal(xt, q.signal[t] * x0, q.noise_std[t] ** 2)
    share = (data.log_prob(x0[:, None]) + given_x0).softmax(0)
    mean, variance = posterior(
        x0, xt.expand_as(x0), torch.full(x0.shape, t), q
    )
    early = data.diffused(q.signal[t - 1], q.noise_std[t - 1])
    scale, r = transition(q, t - 1, t)
    centre, spread = linear_gaussian_posterior(
        early.means[:, 0], early.stds**2, xt, scale, r
    )
    late = data.diffused(q.signal[t], q.noise_std[t])
    weight = late.responsibilities(xt[:, None])[0]
    for x in torch.linspace(-2, 2, 9).double():
        mixed = (share * log_normal(x, mean, variance).exp()).sum()
        parts = (weight * log_normal(x, centre, spread).exp()).sum()
        assert_close(mixed, parts, rtol=1e-9, atol=1e-12)


@pytest.mark.verifies("prop-exact-reverse")
def test_for_gaussian_data_the_step_back_is_gaussian():
    q, t = Schedule.cosine(4), 2
    xt = torch.tensor(0.7, dtype=torch.float64)
    x0 = torch.linspace(-5, 5, 2001, dtype=torch.float64)
    given_x0 = log_normal(xt, q.signal[t] * x0, q.noise_std[t] ** 2)
    share = (log_normal(x0, 0.3, 0.25) + given_x0).softmax(0)
    mean, variance = posterior(
        x0, xt.expand_as(x0), torch.full(x0.shape, t), q
    )
    power = q.alpha_bar[t - 1]
    exact = linear_gaussian_posterior(
        power.sqrt() * 0.3,
        0.25 * power + 1 - power,
        xt,
        *transition(q, t - 1, t),
    )
    for x in torch.linspace(-2, 2, 9).double():
        mixed = (share * log_normal(x, mean, variance).exp()).sum()
        assert_close(mixed, log_normal(x, *exact).exp())


@pytest.mark.verifies("eq-empirical-denoiser")
@pytest.mark.parametrize("dims", [(5,), (2, 3)])
def test_the_empirical_denoiser_is_that_of_a_mixture_of_points(dims):
    schedule = Schedule.linear(50, 0.002, 0.4)
    points, xt = noise(7, *dims), 2 * noise(4, *dims, seed=1)
    weights = torch.full((7,), 1 / 7, dtype=torch.float64)
    mixture = GaussianMixture(
        weights, points.flatten(1), torch.zeros(7).double()
    )
    t = torch.tensor([5, 10, 30, 50])
    found = empirical_denoiser(points, schedule)(xt, t)
    for row in range(4):
        exact = mixture.denoised(
            xt[row : row + 1].flatten(1),
            schedule.signal[t[row]],
            schedule.noise_std[t[row]],
        )
        assert_close(found[row].flatten(), exact[0], rtol=1e-9, atol=1e-12)


@pytest.mark.verifies("alg-ancestral")
@given(betas, st.floats(-1, 1))
def test_samples_are_the_steps_on_a_replayed_draw(beta, slope):
    schedule = Schedule.from_betas(beta)
    sigma, xT = schedule.beta.sqrt(), noise(3, 2)
    draw = torch.Generator().manual_seed(5)
    found = ancestral_sample(
        lambda xt, t: slope * xt, xT, schedule, sigma, draw
    )
    draw.manual_seed(5)
    table, x = posterior_table(schedule), xT
    for t in range(schedule.T, 1, -1):
        xi = torch.randn(3, 2, generator=draw, dtype=torch.float64)
        x = (table.from_data[t] * slope + table.from_noisy[t]) * x
        x = x + sigma[t] * xi
    assert_close(found, slope * x)


@pytest.mark.verifies("alg-ancestral")
def test_white_noise_stays_white_with_variance_beta():
    """x_0 ~ N(0, 1) has E[x_0 | x_t] = a_t x_t, and sigma^2 = beta is exact."""
    schedule = Schedule.linear(20, 0.02, 0.4)

    def model(xt, t):
        return schedule.signal[t] * xt

    draw = torch.Generator().manual_seed(0)
    xT = torch.randn(100_000, generator=draw, dtype=torch.float64)
    x = ancestral_sample(model, xT, schedule, schedule.beta.sqrt(), draw)
    kept = 1 - schedule.beta[1].item()  # the last step gives a mean
    unit = x / kept**0.5
    assert abs(standard_score(unit, 0.0, 1.0)) < 5
    assert abs(standard_score(unit**2, 1.0, 2**0.5)) < 5
    beyond = (unit.abs() > 2).double()
    p = math.erfc(2**0.5)
    assert abs(standard_score(beyond, p, (p * (1 - p)) ** 0.5)) < 5


def test_samples_keep_the_dtype_and_no_graph():
    schedule = Schedule.linear(5, 0.05, 0.4)
    scale = torch.ones((), requires_grad=True)
    x = ancestral_sample(
        lambda xt, t: (scale * xt).bfloat16(),
        noise(2, 3, dtype=torch.float32),
        schedule,
        schedule.beta.sqrt(),
    )
    assert x.dtype == torch.float32
    assert not x.requires_grad


@pytest.mark.verifies("thm-vlb")
def test_no_bound_lies_below_the_entropy_on_average():
    """By Gibbs: the mean over a finite data set is at least ln N."""
    draw = torch.Generator().manual_seed(0)
    points = grid(5)[torch.randint(5, (40, 3), generator=draw)].unique(dim=0)
    for T in (3, 10, 60):
        schedule = Schedule.linear(T, 0.3 / T, min(20 / T, 0.9))
        model = empirical_denoiser(points, schedule)
        sigma = posterior_var(schedule).sqrt()
        many = points.repeat(50, 1)
        bound = vlb(model, many, schedule, sigma, levels=5, generator=draw)
        assert standard_score(bound, math.log(len(points))) > -5


def test_nothing_is_read_from_an_accelerator():
    """On the device `meta` any reading of a value raises."""
    schedule, device = Schedule.linear(5, 0.05, 0.4), torch.device("meta")
    x = torch.zeros(2, 3, device=device)
    t = torch.ones(2, dtype=torch.int64, device=device)
    sigma = schedule.beta.sqrt()
    assert posterior(x, x, t, schedule)[0].is_meta
    assert kl_terms(zeros, x, t, x, schedule, sigma).is_meta
    there = sigma.to(device)
    assert kl_terms(zeros, x, t, x, schedule, there).is_meta
    assert bound_terms(zeros, x, schedule, there, chunk=3).is_meta
    assert ancestral_sample(zeros, x, schedule, there).is_meta
    assert discretised_log_prob(x, x, 0.1).is_meta


@pytest.mark.verifies("eq-log-difference")
def test_both_tails_are_equally_exact_in_single_precision():
    x, mean = grid(256).float(), torch.linspace(-1.2, 1.2, 256).flip(0)
    for std in (0.02, 0.1, 0.5):
        found = discretised_log_prob(x, mean, std)
        assert torch.equal(found, discretised_log_prob(-x, -mean, std))
