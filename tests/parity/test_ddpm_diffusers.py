"""The sampler beside diffusers' DDPMScheduler, over whole paths with the same noise."""

import pytest
import torch
from torch.testing import assert_close

from tangled.diffusion.ddpm import ddpm_sample
from tangled.diffusion.schedule import Schedule

diffusers = pytest.importorskip("diffusers")

# Their tables are float32, so that paths of 1,000 steps agree to about 1e-5.
TOLERANCE = 5e-5


def network(xt, t):
    """Stand in for a network: bounded, not linear, and different at each t."""
    return torch.sin(2 * xt + t.reshape(-1, 1, 1) / 300)


def with_share(xt, t):
    said = network(xt, t)
    return torch.cat([said, torch.cos(3 * xt)], 1)


def start():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 2, 8, generator=generator, dtype=torch.float64)


def theirs(model, n=1000, **options):
    """Return where their scheduler ends, and its steps, counted from 1."""
    options = {"clip_sample": False} | options
    peer = diffusers.DDPMScheduler(1000, **options)
    peer.set_timesteps(n)
    x, noise = start(), torch.Generator().manual_seed(1)
    for i in peer.timesteps.tolist():
        output = model(x, torch.full((3,), i + 1))
        x = peer.step(output, i, x, generator=noise).prev_sample
    return x, [i + 1 for i in peer.timesteps.tolist()]


def check(model, exact, steps, **options):
    found = ddpm_sample(
        model,
        start(),
        options.pop("schedule", Schedule.linear(1000)),
        steps,
        generator=torch.Generator().manual_seed(1),
        **options,
    )
    scale = exact.abs().max().item()
    assert_close(found, exact, rtol=0, atol=TOLERANCE * scale)


@pytest.mark.verifies("alg-ddpm")
@pytest.mark.parametrize("name", ["small", "large"])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_thousand_steps_are_theirs(name, clip, kind):
    exact, steps = theirs(
        network,
        variance_type=f"fixed_{name}",
        clip_sample=clip,
        prediction_type=kind,
    )
    ours = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}[kind]
    check(network, exact, steps, variance=name, clip=clip, prediction=ours)


@pytest.mark.verifies("alg-ddpm", "eq-respaced")
@pytest.mark.parametrize(
    ("name", "spacing"),
    [("small", "leading"), ("large", "leading"), ("small", "trailing")],
)
def test_fifty_steps_are_theirs(name, spacing):
    exact, steps = theirs(
        network, 50, variance_type=f"fixed_{name}", timestep_spacing=spacing
    )
    check(network, exact, steps, variance=name)


def test_their_last_step_is_noisy_if_it_does_not_begin_at_their_step_0():
    """Theirs asks whether i > 0 before it adds noise, not what comes after."""
    q = Schedule.linear(1000)
    exact, steps = theirs(
        network, 50, variance_type="fixed_large", timestep_spacing="trailing"
    )
    assert steps[-1] == 20
    noise = torch.Generator().manual_seed(1)
    found = ddpm_sample(
        network, start(), q, steps, variance="large", generator=noise
    )
    extra = torch.randn(3, 2, 8, generator=noise, dtype=torch.float64)
    found = found + (1 - q.alpha_bar[20]).sqrt() * extra
    scale = exact.abs().max().item()
    assert_close(found, exact, rtol=0, atol=TOLERANCE * scale)


@pytest.mark.verifies("alg-ddpm", "eq-learned-variance")
@pytest.mark.parametrize("n", [1000, 50])
def test_a_learned_range_is_theirs(n):
    exact, steps = theirs(with_share, n, variance_type="learned_range")
    check(with_share, exact, steps, variance="learned")


def test_the_cosine_schedule_is_theirs():
    exact, steps = theirs(
        network, 50, beta_schedule="squaredcos_cap_v2", clip_sample=True
    )
    check(network, exact, steps, schedule=Schedule.cosine(1000), clip=True)


def test_another_variance_would_be_seen():
    exact, steps = theirs(network, 50, variance_type="fixed_small")
    with pytest.raises(AssertionError):
        check(network, exact, steps, variance="large")
