"""Laws of the loop, the DDPM sampler and its training, and what they refuse."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tangled.diffusion.ddpm import (
    PointNetwork,
    ddpm_losses,
    ddpm_move,
    ddpm_sample,
    digits_unet,
    evaluating,
    fit,
    halves,
    last,
    respaced,
    reverse_chain,
    sampler_variances,
)
from tangled.diffusion.elbo import ancestral_sample, posterior_var
from tangled.diffusion.mixture import GaussianMixture
from tangled.diffusion.prediction import (
    Prediction,
    convert,
    denoising_losses,
    hybrid_losses,
)
from tangled.diffusion.schedule import Schedule, zero_terminal_snr
from tangled.foundations.training import TrainingError
from tangled.workshop.statistics import standard_score


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def half(xt, t):
    return xt / 2


def down(schedule):
    return range(schedule.T, 0, -1)


@pytest.mark.verifies("alg-ddpm")
@pytest.mark.parametrize("variance", ["small", "large"])
def test_over_all_steps_it_is_ancestral_sampling(variance):
    q = Schedule.cosine(30)
    table = posterior_var(q) if variance == "small" else q.beta

    def guess(xt, t):
        return convert(half(xt, t), xt, t, q, "eps", "x0")

    exact = ancestral_sample(
        guess, noise(4, 3), q, table.sqrt(), generator=seeded(1)
    )
    found = ddpm_sample(
        half, noise(4, 3), q, down(q), variance=variance, generator=seeded(1)
    )
    assert_close(found, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.verifies("alg-ddpm")
def test_predictions_that_say_the_same_make_the_same_samples():
    q = Schedule.cosine(40)
    paths = []
    for name in Prediction:

        def network(xt, t, name=name):
            return convert(xt / 2, xt, t, q, "x0", name)

        paths.append(
            ddpm_sample(
                network,
                noise(3, 5),
                q,
                [40, 22, 9, 1],
                prediction=name,
                generator=seeded(2),
            )
        )
    for path in paths[1:]:
        assert_close(path, paths[0], rtol=1e-7, atol=1e-7)


@pytest.mark.verifies("eq-respaced")
def test_keeping_all_steps_changes_nothing():
    q = Schedule.linear(1000)
    assert_close(respaced(q, down(q)).beta, q.beta, rtol=0, atol=1e-12)


@pytest.mark.verifies("eq-respaced")
def test_keeping_twice_is_keeping_once():
    q = Schedule.cosine(100)
    once = respaced(q, [100, 60, 10])
    twice = respaced(respaced(q, [100, 80, 60, 10]), [4, 2, 1])
    assert_close(once.beta, twice.beta)


@pytest.mark.parametrize(
    ("steps", "error", "words"),
    [
        ([], ValueError, "steps must fall, one at least"),
        ([3, 5], ValueError, "steps must fall"),
        ([5, 5], ValueError, "steps must fall"),
        ([5, 0], ValueError, "1 <= step <= 10"),
        ([11, 5], ValueError, "1 <= step <= 10"),
        ([2.5], TypeError, "whole numbers"),
        ([True], TypeError, "whole numbers"),
    ],
)
def test_lists_that_are_no_way_down_are_refused(
    steps, error, words, plain_errors
):
    q = Schedule.cosine(10)
    for call in (
        lambda: respaced(q, steps),
        lambda: ddpm_sample(half, noise(2, 3), q, steps),
    ):
        with pytest.raises(error, match=words):
            call()


def test_unknown_words_are_refused():
    q = Schedule.cosine(10)
    with pytest.raises(ValueError, match="variance must be one of small, "):
        ddpm_sample(half, noise(2, 3), q, [10], variance="tiny")
    with pytest.raises(ValueError, match="prediction must be one of eps, "):
        ddpm_sample(half, noise(2, 3), q, [10], prediction="noise")


def test_an_output_of_another_shape_is_refused(plain_errors):
    q = Schedule.cosine(10)
    with pytest.raises(ValueError, match="must have the shape of xt"):
        ddpm_sample(lambda x, t: x[:, :2], noise(2, 3), q, [10])
    with pytest.raises(ValueError, match="must have the shape of xt"):
        ddpm_sample(half, noise(2, 4), q, [10], variance="learned")


@pytest.mark.parametrize("first", [9, 4, 1])
def test_the_first_step_that_is_not_finite_is_named(first):
    def network(xt, t):
        return torch.where(t[:, None] > first, xt, torch.inf)

    q = Schedule.cosine(10)
    with pytest.raises(FloatingPointError, match=rf"at t = {first}$"):
        ddpm_sample(network, noise(2, 3), q, down(q))


@pytest.mark.verifies("alg-ddpm")
@pytest.mark.parametrize(("share", "name"), [(-1.0, "small"), (1.0, "large")])
def test_the_ends_of_the_learned_range_are_the_two_fixed_ones(share, name):
    q = Schedule.linear(60, 1e-3, 0.2)

    def network(xt, t):
        return torch.cat([xt / 2, torch.full_like(xt, share)], 1)

    options = {"schedule": q, "steps": [60, 41, 17, 3]}
    learned = ddpm_sample(
        network,
        noise(5, 2, 3),
        variance="learned",
        generator=seeded(3),
        **options,
    )
    fixed = ddpm_sample(
        half, noise(5, 2, 3), variance=name, generator=seeded(3), **options
    )
    assert_close(learned, fixed, rtol=1e-7, atol=1e-9)


def test_clipped_samples_lie_in_range_and_others_need_not():
    q = Schedule.cosine(50)
    wild = ddpm_sample(half, 3 * noise(50, 4), q, [50, 20, 4])
    tame = ddpm_sample(half, 3 * noise(50, 4), q, [50, 20, 4], clip=True)
    assert wild.abs().max() > 1
    assert tame.abs().max() <= 1


@pytest.mark.verifies("prop-sampler-variance")
@pytest.mark.parametrize("s0", [0.3, 1.0, 2.0])
def test_the_recursion_is_that_of_a_product_form(s0):
    """Unrolled: v_0 is a sum over the steps of noise and what is kept of it."""
    q = Schedule.cosine(50)
    sigma = q.beta.sqrt() / 2
    total = (q.signal * s0) ** 2 + q.noise_std**2
    kept = torch.ones((), dtype=torch.float64)
    expected = 0.0
    for t in range(1, 51):
        expected += kept * sigma[t] ** 2 * (t > 1)
        kept = kept * (1 - q.beta[t] / total[t]) ** 2 / q.alpha[t]
        # `kept` is what is left at 0 of a unit of variance at t
    expected = expected + kept
    found = sampler_variances(q, sigma, s0)
    assert found.shape == (51,)
    assert_close(found[0], expected)


@pytest.mark.verifies("prop-sampler-variance")
def test_the_recursion_goes_on_from_pure_noise():
    q = zero_terminal_snr(Schedule.linear(50, 1e-3, 0.2))
    found = sampler_variances(q, q.beta.sqrt(), 1.0)
    assert_close(found[1:], torch.ones(50).double())
    assert_close(found[0], q.alpha[1])
    # the first step forgets where it began
    narrow = sampler_variances(q, posterior_var(q).sqrt(), 0.3)
    assert_close(narrow[49], 1 - q.alpha_bar[49])


@pytest.mark.verifies("alg-ddpm")
@pytest.mark.parametrize("variance", ["small", "large"])
def test_from_pure_noise_the_samples_have_the_mean_of_the_data(variance):
    plain = Schedule.linear(40, 2e-3, 0.2)
    for q, fits in ((zero_terminal_snr(plain), True), (plain, False)):

        def guess(xt, t, q=q):
            a, s = q.signal[t, None], q.noise_std[t, None]
            kept = a * 9 / (a**2 * 9 + s**2)
            return 50 + kept * (xt - a * 50)

        x = ddpm_sample(
            guess,
            noise(4000, 1),
            q,
            down(q),
            prediction="x0",
            variance=variance,
            generator=seeded(1),
        )
        assert (abs(standard_score(x[:, 0], 50.0)) < 5) == fits


@pytest.mark.parametrize("prediction", ["eps", "score"])
def test_noise_is_refused_where_it_says_nothing(prediction):
    q, x = Schedule.from_betas([0.3, 0.2, 1.0]), noise(3, 2)
    with pytest.raises(ValueError, match=f"x0 or v, got '{prediction}'"):
        ddpm_sample(half, x, q, [3, 1], prediction=prediction)
    found = ddpm_sample(half, x, q, [2, 1], prediction=prediction)
    assert found.isfinite().all()


@pytest.mark.verifies("alg-ddpm")
def test_the_exact_denoiser_of_a_mixture_draws_the_mixture():
    mixture = GaussianMixture(
        torch.tensor([0.3, 0.7]).double(),
        torch.tensor([[-2.0], [1.0]]).double(),
        torch.tensor([0.2, 0.5]).double(),
    )
    q, n = Schedule.cosine(400), 20_000

    def guess(xt, t):
        step = int(t[0])
        return mixture.denoised(xt, q.signal[step], q.noise_std[step])

    x = ddpm_sample(
        guess,
        noise(n, 1),
        q,
        down(q),
        prediction="x0",
        variance="large",
        generator=seeded(5),
    )
    left = (x < -1).double().flatten()
    assert abs(standard_score(left, 0.3, std=(0.3 * 0.7) ** 0.5)) < 5
    # Kolmogorov and Smirnov: a distance of 2.5 / sqrt(n) has odds of 1e-5;
    # steps of this size move the distribution by about as much again.
    points = x.flatten().sort().values
    parts = [
        w * torch.distributions.Normal(m, s).cdf(points)
        for w, m, s in zip(
            mixture.weights, mixture.means[:, 0], mixture.stds, strict=True
        )
    ]
    steps = torch.arange(1, n + 1).double() / n
    assert (sum(parts) - steps).abs().max() < 5 / n**0.5


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, xt, t):
        return self.dropout(xt)


def test_dropout_is_off_while_samples_are_drawn_and_on_afterwards():
    q, network = Schedule.cosine(10), Noisy()
    first, second = (
        ddpm_sample(network, noise(4, 3), q, [10, 5], generator=seeded())
        for _ in range(2)
    )
    assert torch.equal(first, second)
    assert network.training
    with evaluating(network):
        assert not network.training
    assert network.training
    with evaluating(network.eval()):
        pass
    assert not network.training


def test_the_chain_yields_every_state_and_the_network_sees_its_own_dtype():
    q, steps, seen = Schedule.cosine(10), [10, 6, 2], []

    def network(xt, t):
        seen.append((xt.dtype, t.tolist()))
        return xt / 2

    short = respaced(q, steps)
    xT = noise(2, 3, dtype=torch.float32)
    states = [*reverse_chain(network, xT, steps, ddpm_move(short))]
    assert seen == [(torch.float32, [t, t]) for t in steps]
    assert [x.dtype for x in states] == [torch.float64] * 3
    x = ddpm_sample(half, xT, q, steps, generator=seeded(1))
    chain = reverse_chain(
        half, xT, steps, ddpm_move(short, generator=seeded(1))
    )
    assert torch.equal(x, last(chain).float())
    assert x.dtype == torch.float32
    assert not x.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_in_half_precision_draws_about_the_same(dtype):
    q = Schedule.cosine(100)
    xT = noise(64, 8, dtype=torch.float32)
    full = ddpm_sample(half, xT, q, down(q), generator=seeded(1))
    low = ddpm_sample(half, xT.to(dtype), q, down(q), generator=seeded(1))
    assert low.dtype == dtype
    error = (low.float() - full).abs().max() / full.abs().max()
    assert error < 20 * torch.finfo(dtype).eps


@pytest.mark.verifies("alg-ddpm", "eq-learned-variance")
def test_a_share_in_half_precision_is_not_a_variance_in_half_precision():
    """A share of -1 is exact in bfloat16, a logarithm of a variance is not."""
    q = Schedule.cosine(50)
    xT = noise(64, 2, 4, dtype=torch.float32)

    def network(xt, t):
        return torch.cat([xt / 2, torch.full_like(xt, -1.0)], 1)

    def low(xt, t):
        return network(xt, t).bfloat16()

    def said(xt, t):
        return low(xt, t).chunk(2, 1)[0]

    learned, fixed = (
        ddpm_sample(model, xT, q, down(q), variance=name, generator=seeded(1))
        for model, name in ((low, "learned"), (said, "small"))
    )
    assert_close(learned, fixed, rtol=1e-5, atol=1e-6)


def test_nothing_is_shown_unless_it_is_asked_for(capsys):
    q = Schedule.cosine(10)
    ddpm_sample(half, noise(2, 3), q, down(q))
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("plain_errors")
def test_steps_may_be_a_tensor():
    q, x = Schedule.linear(20), noise(3, 2)
    found = ddpm_sample(half, x, q, torch.tensor([20, 7]), generator=seeded())
    exact = ddpm_sample(half, x, q, [20, 7], generator=seeded())
    assert torch.equal(found, exact)
    with pytest.raises(TypeError, match="steps must be whole"):
        ddpm_sample(half, x, q, torch.tensor([20.0, 7.0]))


@pytest.mark.usefixtures("plain_errors")
def test_whole_numbers_are_no_noise():
    x = torch.ones(3, 2, dtype=torch.int64)
    with pytest.raises(TypeError, match="xT must be a floating tensor"):
        ddpm_sample(half, x, Schedule.linear(20), [20, 7])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_learned_variance_needs_twice_the_channels(channels):
    with pytest.raises(ValueError, match=f"two channels .*got {channels} in"):
        ddpm_sample(
            half,
            noise(2, channels, 4, 4),
            Schedule.linear(20),
            [20, 7],
            variance="learned",
        )


@pytest.mark.verifies("alg-ddpm", "eq-respaced")
def test_the_network_is_asked_at_the_steps_that_it_was_trained_for():
    """Exact noise of data N(0, 1) at the full chain's steps keeps variance."""
    q, steps = Schedule.linear(1000), [1000, 700, 300, 40, 1]
    seen = []

    def network(xt, t):
        seen.append(int(t[0]))
        return q.noise_std[t][:, None] * xt

    x = ddpm_sample(
        network,
        noise(20_000, 1),
        q,
        steps,
        variance="large",
        generator=seeded(2),
    )
    assert seen == steps
    expected = q.alpha[1].item()
    z = standard_score(x.square().flatten(), expected, std=expected * 2**0.5)
    assert abs(z) < 5


def test_a_network_for_points_may_return_more_than_it_takes():
    network, xt = PointNetwork(outputs=4), noise(5, 2, dtype=torch.float32)
    t = torch.arange(1, 6)
    assert network(xt, t).shape == (5, 4)
    assert PointNetwork(3)(xt[:, [0, 1, 1]], t).shape == (5, 3)


@pytest.mark.usefixtures("plain_errors")
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_a_compiled_network_draws_the_same():
    torch.manual_seed(0)
    plain = PointNetwork()
    torch.compiler.reset()
    compiled = torch.compile(plain, fullgraph=True, backend="eager")
    q, x = Schedule.cosine(20), noise(4, 2, dtype=torch.float32)
    drawn = [
        ddpm_sample(network, x, q, [20, 9, 1], generator=seeded(1))
        for network in (plain, compiled)
    ]
    assert torch.equal(*drawn)
    assert plain.training


def test_samples_follow_the_generator_and_the_noise():
    q = Schedule.cosine(20)

    def drawn(seed):
        return ddpm_sample(
            half, noise(3, 2), q, [20, 9, 2], generator=seeded(seed)
        )

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_losses_are_those_of_the_two_lines():
    q, model = Schedule.cosine(20), PointNetwork()
    x0 = noise(5, 2, dtype=torch.float32)
    expected = denoising_losses(model, x0, seeded(1), q, "v")
    for batch in (x0, (x0, torch.arange(5))):
        found = ddpm_losses(q, "v")(model, batch, seeded(1))
        assert torch.equal(found, expected)


def test_losses_with_a_label_hand_it_to_the_network():
    q, model = Schedule.cosine(20), digits_unet()
    x0, label = (
        noise(3, 1, 8, 8, dtype=torch.float32),
        torch.tensor([1, 2, 3]),
    )
    found = ddpm_losses(q, labelled=True)(model, (x0, label), seeded(1))
    expected = denoising_losses(
        lambda xt, t: model(xt, t, label), x0, seeded(1), q
    )
    assert torch.equal(found, expected)


class Double(nn.Conv2d):
    """Twice the channels; the step does not count."""

    def forward(self, xt, t):
        return super().forward(xt)


def test_losses_of_a_learned_variance_are_the_hybrid_ones():
    q = Schedule.cosine(20)
    network = Double(1, 2, 1)
    x0 = noise(3, 1, 4, 4, dtype=torch.float32)
    found = ddpm_losses(q, learned=True)(network, x0, seeded(1))
    expected = hybrid_losses(
        lambda xt, t: halves(network(xt, t)), x0, seeded(1), q
    )
    assert torch.equal(found, expected)
    raw = network(x0, None)
    output, share = halves(raw)
    assert torch.equal(output, raw[:, :1])
    assert_close(2 * share - 1, raw[:, 1:])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prediction": "v"}, "prediction eps, this one has v"),
        ({"schedule": Schedule.cosine(20)}, "schedule 20 steps, SNR"),
        ({"learned": True}, "learned False, this one has True"),
    ],
)
def test_a_run_goes_on_with_its_own_loss_only(change, words, tmp_path):
    plain = {"schedule": Schedule.linear(20), "folder": tmp_path / "run"}
    plain |= {"data": noise(64, 2, dtype=torch.float32), "steps": 2}
    fit(PointNetwork(), **plain)
    with pytest.raises(TrainingError, match=words):
        fit(PointNetwork(), **plain | change)
    assert fit(PointNetwork(), **plain).step == 2


def test_fit_goes_on_where_it_was(tmp_path):
    q, x0 = Schedule.cosine(50), noise(64, 2, dtype=torch.float32)
    runs = []
    for folder in (None, tmp_path):
        torch.manual_seed(0)
        model = PointNetwork(width=16)
        if folder:
            fit(model, x0, q, 30, batch_size=8, folder=folder, save_every=10)
            torch.manual_seed(1)
            model = PointNetwork(width=16)
        run = fit(model, x0, q, 30, batch_size=8, folder=folder)
        runs.append(run)
    whole, resumed = runs
    assert whole.step == resumed.step == 30
    for a, b in zip(
        whole.averaged.parameters(),
        resumed.averaged.parameters(),
        strict=True,
    ):
        assert torch.equal(a, b)
    assert whole.log[0]["loss"] > 0
    assert whole.average is not None


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_on_a_gpu_nothing_is_read_between_the_jumps(precision):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    torch.manual_seed(0)
    q, model, label = Schedule.cosine(50), digits_unet(), torch.arange(4)
    xT = noise(4, 1, 8, 8, dtype=torch.float32)

    def states(device):
        """Return the states; between the jumps nothing is read."""
        network, asked = model.to(device), label.to(device)
        short = respaced(q.to(device), [50, 30, 11])
        generator = torch.Generator(device).manual_seed(0)
        move = ddpm_move(short, clip=True, generator=generator)
        chain = reverse_chain(
            lambda xt, t: network(xt, t, asked),
            xT.to(device),
            [50, 30, 11],
            move,
        )
        found = [next(chain)]  # the first jump makes the tables
        torch.cuda.set_sync_debug_mode("error")
        try:
            found += [next(chain), next(chain)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return [x.cpu() for x in (*found, *chain)]

    low = precision == "bfloat16"
    cpu = states("cpu")
    with torch.autocast("cuda", torch.bfloat16, enabled=low):
        gpu = states("cuda")
    assert [x.shape for x in gpu] == [x.shape for x in cpu]
    assert all(x.isfinite().all() for x in gpu)
