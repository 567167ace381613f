"""Laws of the forward process, and what it refuses."""

import math
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from tangled.diffusion.forward import (
    diffuse,
    forward_chain,
    forward_step,
    prior_term,
    transition,
)
from tangled.diffusion.gaussian import log_normal
from tangled.diffusion.schedule import Schedule
from tangled.workshop.statistics import standard_score

X = torch.zeros(2, 3)
SHAPES = [(), (5,), (3, 8, 8), (3, 2, 4, 4)]

betas = st.lists(st.floats(1e-6, 0.99), min_size=1, max_size=30).map(
    lambda steps: torch.tensor(steps, dtype=torch.float64)
)


def noise(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize("dims", SHAPES)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16]
)
def test_each_sample_is_diffused_at_its_own_step(dims, dtype):
    schedule = Schedule.linear(1000)
    t = torch.tensor([0, 1, 500, 1000])
    x0, eps = (
        noise(4, *dims, dtype=dtype),
        noise(4, *dims, seed=1, dtype=dtype),
    )
    xt = diffuse(x0, t, eps, schedule)
    assert (xt.dtype, xt.shape) == (dtype, x0.shape)
    assert torch.equal(xt[0], x0[0])
    loose = {64: 1e-14, 32: 1e-6, 16: 0.03}[8 * dtype.itemsize]
    for i, step in enumerate(t.tolist()):
        signal, std = schedule.signal[step], schedule.noise_std[step]
        exact = signal * x0[i].double() + std * eps[i].double()
        assert_close(xt[i].double(), exact, rtol=0, atol=loose)


@given(betas, st.data())
def test_diffuse_is_linear_and_keeps_energy_on_average(beta, data):
    schedule = Schedule.from_betas(beta)
    t = torch.tensor([data.draw(st.integers(0, schedule.T))])
    x0, eps = noise(1, 6), noise(1, 6, seed=1)
    xt = diffuse(x0, t, eps, schedule)
    assert torch.equal(diffuse(2 * x0, t, 2 * eps, schedule), 2 * xt)
    # Rotating the pair (x_0, eps) by the angle phi keeps the sum of squares.
    other = diffuse(eps, t, -x0, schedule)
    assert_close(xt**2 + other**2, x0**2 + eps**2, rtol=1e-13, atol=1e-14)


@given(betas)
def test_an_empty_batch_stays_empty(beta):
    schedule = Schedule.from_betas(beta)
    x0, t = torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)
    assert diffuse(x0, t, x0, schedule).shape == (0, 3)
    assert prior_term(x0, schedule).shape == (0,)


def test_gradients_reach_the_data_and_the_noise():
    schedule = Schedule.linear(1000)
    x0, eps = (
        noise(2, 3).requires_grad_(),
        noise(2, 3, seed=1).requires_grad_(),
    )
    t = torch.tensor([100, 900])
    diffuse(x0, t, eps, schedule).sum().backward()
    assert torch.equal(x0.grad[:, 0], schedule.signal[t])
    assert torch.equal(eps.grad[:, 0], schedule.noise_std[t])


@pytest.mark.verifies("thm-forward-marginal")
@given(betas)
def test_steps_and_jump_have_equal_mean_and_variance(beta):
    schedule = Schedule.from_betas(beta)
    mean, variance = torch.ones(1, dtype=torch.float64), 0.0
    for t in range(1, schedule.T + 1):
        mean = forward_step(mean, t, torch.zeros_like(mean), schedule)
        variance = schedule.alpha[t] * variance + schedule.beta[t]
    assert_close(mean[0], schedule.signal[-1], rtol=1e-12, atol=1e-14)
    assert_close(variance, 1 - schedule.alpha_bar[-1], rtol=1e-12, atol=1e-14)


@pytest.mark.verifies("cor-forward-transition")
@given(betas, st.data())
def test_transitions_compose(beta, data):
    schedule = Schedule.from_betas(beta)
    r, s, t = sorted(data.draw(st.tuples(*[st.integers(0, schedule.T)] * 3)))
    first, second, direct = (
        transition(schedule, *pair) for pair in ((r, s), (s, t), (r, t))
    )
    assert_close(first[0] * second[0], direct[0], rtol=1e-12, atol=0)
    assert_close(
        second[0] ** 2 * first[1] + second[1],
        direct[1],
        rtol=1e-12,
        atol=1e-14,
    )


@given(betas)
def test_one_step_is_a_transition(beta):
    schedule = Schedule.from_betas(beta)
    for t in range(1, schedule.T + 1):
        scale, variance = transition(schedule, t - 1, t)
        assert_close(scale, schedule.alpha[t].sqrt(), rtol=1e-12, atol=0)
        assert_close(variance, schedule.beta[t], rtol=1e-9, atol=1e-15)


def levels(white):
    """Standard scores of the shares below five levels of a standard normal."""
    for level in torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).double():
        p = torch.special.ndtr(level).item()
        below = (white.flatten() < level).double()
        yield standard_score(below, p, (p * (1 - p)) ** 0.5)


@pytest.mark.verifies("thm-forward-marginal")
def test_a_long_chain_has_the_distribution_of_the_theorem():
    schedule = Schedule.linear(1000)
    x0 = torch.tensor([1.7, -0.3]).double().repeat(10_000, 1)
    draw = torch.Generator().manual_seed(0)
    x = next(islice(forward_chain(x0, schedule, draw), 250, None))
    # a_250 and sbar_250 from the betas alone, by a route of its own.
    logs = [math.log1p(-1e-4 - t / 999 * 0.0199) for t in range(250)]
    power = math.exp(math.fsum(logs))
    white = (x - power**0.5 * x0) / (1 - power) ** 0.5
    assert all(abs(z) < 5 for z in levels(white))
    assert abs(standard_score(white[:, 0] * white[:, 1], 0.0, 1.0)) < 5


@pytest.mark.verifies("prop-forward-joint")
def test_the_covariance_of_the_whole_path_is_exact():
    schedule = Schedule.linear(1000)
    rows = [torch.zeros(1000).double()]  # row t: weights of eps_1.. in x_t
    for t, unit in enumerate(torch.eye(1000).double(), start=1):
        rows.append(forward_step(rows[-1], t, unit, schedule))
    weights = torch.stack(rows)
    signal, variance = schedule.signal, schedule.noise_std**2
    expected = torch.tril(signal[:, None] / signal * variance)
    covariance = torch.tril(weights @ weights.T)
    assert_close(covariance, expected, rtol=0, atol=1e-13)


@pytest.mark.verifies("prop-forward-joint")
def test_transition_after_jump_has_the_covariance_of_the_chain():
    schedule = Schedule.cosine(100)
    x0, eps = torch.zeros(50_000, dtype=torch.float64), noise(2, 50_000)
    xs = diffuse(x0, torch.full((50_000,), 30), eps[0], schedule)
    scale, variance = transition(schedule, 30, 60)
    xt = scale * xs + variance.sqrt() * eps[1]
    at_s, at_t = (schedule.noise_std[[30, 60]] ** 2).tolist()
    both = (schedule.signal[60] / schedule.signal[30]).item() * at_s
    assert abs(standard_score(xt**2, at_t, 2**0.5 * at_t)) < 5
    std = (at_s * at_t + both**2) ** 0.5
    assert abs(standard_score(xs * xt, both, std)) < 5


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16]
)
def test_the_chain_is_its_formula_on_a_replayed_generator(dtype):
    """Each state: its dtype kept, the noise of the generator, as in eq. (step)."""
    schedule, x0 = Schedule.linear(20, 0.01, 0.5), noise(3, 4).to(dtype)
    states = forward_chain(x0, schedule, torch.Generator().manual_seed(5))
    replay = torch.Generator().manual_seed(5)
    expected = next(states)
    assert torch.equal(expected, x0)
    for t, x in enumerate(states, start=1):
        eps = torch.randn(3, 4, generator=replay, dtype=dtype)
        beta = 0.01 + (t - 1) / 19 * 0.49
        expected = (1 - beta) ** 0.5 * expected + beta**0.5 * eps
        assert x.dtype == dtype
        loose = {"rtol": 0, "atol": 0.05} if dtype.itemsize == 2 else {}
        assert_close(x, expected, **loose)


def test_a_scalar_step_keeps_its_dtype():
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor(0.5, dtype=dtype)
        assert forward_step(x, 3, x, Schedule.linear(10)).dtype == dtype


def test_the_chain_yields_every_state_and_starts_at_the_data():
    schedule, x0 = Schedule.linear(5), noise(2, 3)
    states = list(
        forward_chain(x0, schedule, torch.Generator().manual_seed(1))
    )
    assert len(states) == 6
    assert torch.equal(states[0], x0)
    again = list(
        forward_chain(x0, schedule, torch.Generator().manual_seed(1))
    )
    assert torch.equal(states[-1], again[-1])


def test_the_chain_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    list(
        forward_chain(
            noise(2, 3), Schedule.linear(5), torch.Generator().manual_seed(1)
        )
    )
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.verifies("cor-forward-transition")
@pytest.mark.parametrize("s", [0, 3, 5])
def test_a_transition_to_pure_noise_forgets_and_to_itself_does_nothing(s):
    q = Schedule.from_betas([0.1, 0.2, 0.3, 0.4, 1.0])
    expected = (1.0, 0.0) if s == 5 else (0.0, 1.0)
    assert tuple(x.item() for x in transition(q, s, 5)) == expected


@pytest.mark.verifies("thm-forward-marginal", "prop-prior-gap")
def test_a_chain_that_ends_without_signal_ends_in_its_last_noise():
    q, x0 = Schedule.from_betas([0.1, 0.2, 1.0]), torch.randn(4, 2).double()
    eps, t = torch.randn(4, 2).double(), torch.full((4,), 3)
    assert torch.equal(diffuse(x0, t, eps, q), eps)
    assert torch.equal(forward_step(x0, 3, eps, q), eps)
    assert (prior_term(x0, q) == 0).all()


@pytest.mark.verifies("prop-prior-gap")
@given(betas, st.integers(1, 6))
def test_prior_term_is_a_sum_over_dimensions_and_not_negative(beta, dim):
    schedule = Schedule.from_betas(beta)
    x0 = noise(4, dim)
    each = torch.stack(
        [prior_term(x0[:, i], schedule) for i in range(dim)]
    ).sum(0)
    assert_close(prior_term(x0, schedule), each, rtol=1e-9, atol=1e-12)
    assert (prior_term(x0, schedule) >= 0).all()


def test_prior_term_of_a_long_chain_is_small_and_exact():
    x0 = torch.ones(1, 1)
    assert prior_term(x0, Schedule.linear(1000)).item() == pytest.approx(
        2.01796e-5, rel=1e-5
    )
    assert prior_term(
        x0, Schedule.scaled_linear(1000)
    ).item() == pytest.approx(2.33550e-3, rel=1e-5)
    # (alpha_bar - alpha_bar - ln(1 - alpha_bar)) / 2 = alpha_bar / 2 + alpha_bar^2 / 4 + ...
    power = Schedule.cosine(1000).alpha_bar[-1].item()
    assert prior_term(x0, Schedule.cosine(1000)).item() == pytest.approx(
        power / 2, rel=1e-6
    )


@pytest.mark.verifies("prop-prior-gap")
def test_the_gap_is_divergence_and_information():
    """E L_T = KL(q_T, N) + mutual information, by quadrature, two points."""
    schedule = Schedule.from_betas([0.36, 0.75])
    x = torch.linspace(-14, 14, 5601, dtype=torch.float64)
    prior = log_normal(x, 0.0, 1.0).exp()
    given_x0 = [log_normal(x, mean, 0.84).exp() for mean in (0.8, -0.8)]
    mixed = (given_x0[0] + given_x0[1]) / 2
    information = sum(
        torch.trapezoid(q * (q / mixed).log(), x) / 2 for q in given_x0
    )
    divergence = torch.trapezoid(mixed * (mixed / prior).log(), x)
    average = prior_term(torch.tensor([2.0, -2.0]).double(), schedule).mean()
    assert_close(average, divergence + information, rtol=1e-10, atol=0)
    assert information > 0.1  # so the bound is not an equality


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_prior_term_keeps_the_dtype_and_its_small_constant(dtype):
    """At x_0 = 0 and a small alpha_bar the constant is alpha_bar^2 / 4."""
    schedule = Schedule.linear(1000)
    found = prior_term(torch.zeros(1, 1, dtype=dtype), schedule)
    power = schedule.alpha_bar[-1].item()
    assert found.dtype == dtype
    exact = power**2 / 4 + power**3 / 6
    assert found.item() == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_prior_term_of_a_large_picture_in_half_precision(dtype):
    """The sum of 300,000 squares is beyond float16 and the digits of both."""
    x0, schedule = torch.ones(1, 300_000), Schedule.scaled_linear(1000)
    exact = prior_term(x0.double(), schedule).item()
    found = prior_term(x0.to(dtype), schedule)
    assert found.dtype == dtype
    assert found.item() == pytest.approx(exact, rel=0.01)


@pytest.mark.usefixtures("plain_errors")
def test_compiled_exported_and_mapped_it_is_the_same():
    schedule = Schedule.cosine(50)
    x0, eps = noise(2, 6, 3, dtype=torch.float32)
    t = torch.tensor([0, 1, 2, 25, 49, 50])
    expected = diffuse(x0, t, eps, schedule)
    for backend in ("eager", "aot_eager"):
        torch.compiler.reset()
        compiled = torch.compile(diffuse, fullgraph=True, backend=backend)
        assert_close(compiled(x0, t, eps, schedule), expected)

    class Jump(torch.nn.Module):
        def forward(self, x0, t, eps):
            return diffuse(x0, t, eps, schedule)

    batch = torch.export.Dim("batch")
    exported = torch.export.export(
        Jump(), (x0, t, eps), dynamic_shapes=({0: batch},) * 3
    ).module()
    assert_close(exported(x0[:4], t[:4], eps[:4]), expected[:4])
    one = torch.vmap(
        lambda x, t, e: diffuse(x[None], t[None], e[None], schedule)[0]
    )
    assert_close(one(x0, t, eps), expected)
    assert torch.equal(diffuse(x0, t, eps, schedule), expected)  # still


class NoDouble(TorchDispatchMode):
    """A device, here "meta", that has no float64 and whose values are hidden."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.device.type == "meta":
            assert out.dtype != torch.float64, func
        return out


def test_it_works_where_there_is_no_float64_and_nothing_can_be_read():
    x = torch.zeros(2, 3, device="meta")
    t = torch.zeros(2, dtype=torch.int64, device="meta")
    schedule = Schedule.linear(10)
    with NoDouble():
        assert diffuse(x, t, x, schedule).device.type == "meta"
        assert forward_step(x, 1, x, schedule).dtype == torch.float32
        assert prior_term(x, schedule).shape == (2,)


@pytest.mark.gpu
def test_a_gpu_does_not_wait():
    x = torch.zeros(2, 3, device="cuda")
    t = torch.tensor([1, 2], device="cuda")
    schedule = Schedule.linear(10).to("cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        diffuse(x, t, x, schedule)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_results_stay_on_the_device_of_the_data():
    schedule = Schedule.linear(1000)
    x0, eps = (
        noise(4, 3, 8, 8, dtype=torch.float32),
        noise(4, 3, 8, 8, seed=1, dtype=torch.float32),
    )
    t = torch.tensor([0, 1, 500, 1000])
    on_gpu = diffuse(x0.cuda(), t.cuda(), eps.cuda(), schedule)
    assert on_gpu.device.type == "cuda"
    assert_close(on_gpu.cpu(), diffuse(x0, t, eps, schedule))
    *_, last = forward_chain(
        x0.cuda(), Schedule.linear(5), torch.Generator("cuda").manual_seed(0)
    )
    assert last.device.type == "cuda"
    assert_close(
        prior_term(x0.cuda(), schedule).cpu(), prior_term(x0, schedule)
    )


@pytest.mark.usefixtures("plain_errors")
@pytest.mark.parametrize(
    ("bad", "kind", "sentence"),
    [
        (
            {"x0": torch.zeros(2, 3).long()},
            TypeError,
            "x0 must be a floating",
        ),
        ({"eps": torch.zeros(2, 4)}, ValueError, "eps must have the shape"),
        ({"t": torch.tensor([1.0, 2.0])}, TypeError, "t must be an int64"),
        ({"t": torch.tensor([1])}, ValueError, r"t must have shape \[2\]"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(bad, kind, sentence):
    good = {"x0": X, "t": torch.tensor([1, 2]), "eps": X}
    with pytest.raises(kind, match=f"^{sentence}") as caught:
        diffuse(**(good | bad), schedule=Schedule.linear(10))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("t", [[-1, 3], [0, 11], [-11, 5]])
def test_a_step_outside_the_chain_is_refused_without_being_read(t):
    with pytest.raises(RuntimeError, match="out of bounds"):
        diffuse(X, torch.tensor(t), X, Schedule.linear(10))


@pytest.mark.parametrize("t", [0, -1, 11])
def test_a_single_step_outside_the_chain_is_refused(t):
    with pytest.raises(
        ValueError, match=rf"^steps must satisfy 1 <= t <= 10, got t = {t}$"
    ):
        forward_step(X, t, X, Schedule.linear(10))


@pytest.mark.usefixtures("plain_errors")
def test_a_single_step_refuses_noise_of_another_kind():
    for eps, kind in ((X.double(), ValueError), (X[0], ValueError)):
        with pytest.raises(kind, match=r"^eps must have the "):
            forward_step(X, 1, eps, Schedule.linear(10))


@pytest.mark.parametrize(("s", "t"), [(-1, 3), (4, 3), (0, 11)])
def test_a_transition_must_go_forward(s, t):
    with pytest.raises(
        ValueError,
        match=rf"^steps must satisfy 0 <= s <= t <= 10, got s = {s}, t = {t}",
    ):
        transition(Schedule.linear(10), s, t)


@pytest.mark.usefixtures("plain_errors")
def test_prior_term_refuses_whole_numbers():
    with pytest.raises(
        TypeError, match=r"^x0 must be a floating tensor, got torch\.uint8$"
    ):
        prior_term(torch.zeros(2, 3, dtype=torch.uint8), Schedule.linear(10))


@given(st.floats(0.1, 3.0))
def test_known_divergence_at_the_origin(beta_sum):
    """With x_0 = 0 only the variance differs from 1: L_T = -(p + ln(1 - p)) / 2 per dimension."""
    power = math.exp(-beta_sum)
    schedule = Schedule.from_betas(
        torch.tensor([1 - power], dtype=torch.float64)
    )
    expected = -(power + math.log1p(-power)) / 2
    found = prior_term(
        torch.zeros(1, 1, dtype=torch.float64), schedule
    ).item()
    assert found == pytest.approx(expected, rel=1e-9)
