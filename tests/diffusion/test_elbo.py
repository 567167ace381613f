"""Laws of the posterior, the terms of the bound and the decoder, and what they refuse."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from tangled.diffusion.elbo import (
    bits_per_dim,
    bound_terms,
    decoder_term,
    discretised_log_prob,
    kl_terms,
    posterior,
    posterior_mean,
    posterior_var,
    reverse_mean,
    vlb,
)
from tangled.diffusion.forward import diffuse, prior_term, transition
from tangled.diffusion.gaussian import linear_gaussian_posterior
from tangled.diffusion.schedule import Schedule

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
    terms = bound_terms(half, x0, schedule, sigma, levels, draw)
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
    total = vlb(half, x0, schedule, sigma, levels, draw)
    assert_close(total, terms.sum(1))


def test_a_chain_of_one_step_has_a_decoder_and_a_prior():
    schedule = Schedule.linear(1, 0.3, 0.3)
    terms = bound_terms(
        zeros, noise(2, 3), schedule, schedule.beta.sqrt(), None
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
    terms = bound_terms(
        lambda xt, t: scale * xt, x0, schedule, schedule.beta.sqrt()
    )
    for k in range(4):
        (gradient,) = torch.autograd.grad(
            terms[0, k], scale, retain_graph=True
        )
        assert gradient.isfinite()
        assert gradient != 0


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
    vlb(zeros, noise(2, 3), schedule, schedule.beta.sqrt(), None, draw)
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
    with pytest.raises(
        (ValueError, RuntimeError), match=r"must lie in 1\.\.10|out of bounds"
    ):
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


@pytest.mark.parametrize(
    "sigma",
    [
        torch.zeros(11, dtype=torch.float64),
        torch.ones(10, dtype=torch.float64),
        posterior_var(Schedule.linear(10)).sqrt(),
        torch.full((11,), torch.nan, dtype=torch.float64),
    ],
)
def test_a_reverse_step_without_noise_is_refused(sigma):
    x, schedule = torch.zeros(2, 3), Schedule.linear(10)
    sentence = r"^sigma must be a table \[11\], positive from t = 1 on$"
    with pytest.raises(ValueError, match=sentence):
        decoder_term(zeros, x, x, schedule, sigma)
    with pytest.raises(ValueError, match=sentence):
        kl_terms(zeros, x, torch.tensor([2, 3]), x, schedule, sigma)


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
