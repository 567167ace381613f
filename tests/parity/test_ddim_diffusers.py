"""The sampler beside diffusers' DDIM and DDPM, over whole paths."""

from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from tangled.diffusion.ddim import ddim_mean, ddim_sample, ddim_sigma
from tangled.diffusion.prediction import convert
from tangled.diffusion.schedule import Schedule, step_list, to_index

diffusers = pytest.importorskip("diffusers")

OPTIONS = {"beta_start": 1e-4, "beta_end": 0.02, "clip_sample": False}


def network(xt, t):
    """Stand in for a network: bounded, not linear, and different at each t."""
    return torch.sin(2 * xt + t.reshape(-1, 1) / 300)


def start():
    return torch.randn(3, 16, generator=torch.Generator().manual_seed(0))


def theirs(scheduler, eta, xT):
    x, noise = xT, torch.Generator().manual_seed(1)
    for i in scheduler.timesteps.tolist():
        output = network(x, torch.full((3,), i + 1))
        options = {"eta": eta} if eta is not None else {}
        x = scheduler.step(output, i, x, generator=noise, **options)
        x = x.prev_sample
    return x


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("n", [50, 30, 7])
def test_lists_of_steps_are_theirs(spacing, n):
    peer = diffusers.DDIMScheduler(1000, timestep_spacing=spacing)
    peer.set_timesteps(n)
    assert to_index(torch.tensor(step_list(1000, n, spacing))).tolist() == (
        peer.timesteps.tolist()
    )


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_the_deterministic_path_is_theirs(spacing, kind):
    peer = diffusers.DDIMScheduler(
        1000, timestep_spacing=spacing, prediction_type=kind, **OPTIONS
    )
    peer.set_timesteps(50)
    exact = theirs(peer, 0.0, start())
    ours = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}[kind]
    found = ddim_sample(
        network,
        start(),
        Schedule.linear(1000),
        step_list(1000, 50, spacing),
        prediction=ours,
    )
    scale = exact.abs().max().item()
    assert_close(found, exact, rtol=0, atol=2e-5 * scale)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("to_data", [True, False])
def test_offsets_and_the_end_of_their_path_are_ours_by_other_steps(
    offset, to_data
):
    """Without set_alpha_to_one theirs ends at the noise of our step 1."""
    peer = diffusers.DDIMScheduler(
        1000, steps_offset=offset, set_alpha_to_one=to_data, **OPTIONS
    )
    peer.set_timesteps(50)
    steps = [t + offset for t in step_list(1000, 50, "leading")]
    assert [i + 1 for i in peer.timesteps.tolist()] == steps
    exact = theirs(peer, 0.0, start())
    q, x = Schedule.linear(1000), start().double()
    for t, s in pairwise([*steps, 0 if to_data else 1]):
        at = torch.full((3,), t)
        guess = convert(network(x.float(), at), x, at, q, "eps", "x0")
        x = ddim_mean(guess, x, t, s, q)
    scale = exact.abs().max().item()
    assert_close(x.float(), exact, rtol=0, atol=2e-5 * scale)
    ours = ddim_sample(network, start(), q, steps)
    near = (ours - exact).abs().max() < 2e-5 * scale
    assert near == to_data


def test_their_clipped_guess_keeps_the_old_noise_unless_told():
    peer = diffusers.DDIMScheduler(1000, **OPTIONS | {"clip_sample": True})
    peer.set_timesteps(50)
    found = {}
    for told in (True, False):
        x = start()
        for i in peer.timesteps.tolist():
            output = network(x, torch.full((3,), i + 1))
            x = peer.step(output, i, x, use_clipped_model_output=told)
            x = x.prev_sample
        found[told] = x
    steps = step_list(1000, 50, "leading")
    q = Schedule.linear(1000)
    ours = ddim_sample(network, start(), q, steps, clip=True)
    assert_close(ours, found[True], rtol=0, atol=2e-5)
    assert (ours - found[False]).abs().max() > 0.1


def test_where_their_stride_is_not_their_list_the_paths_part():
    """Theirs goes to i - 1000 // n, not to the next step of its own list."""
    peer = diffusers.DDIMScheduler(
        1000, timestep_spacing="linspace", **OPTIONS
    )
    peer.set_timesteps(30)
    exact = theirs(peer, 0.0, start())
    found = ddim_sample(
        network, start(), Schedule.linear(1000), step_list(1000, 30)
    )
    assert (found - exact).abs().max() / exact.abs().max() > 1e-3


def test_respaced_ddpm_is_ddim_with_all_its_noise():
    peer = diffusers.DDPMScheduler(1000, **OPTIONS)
    peer.set_timesteps(50)
    steps = [i + 1 for i in peer.timesteps.tolist()]
    x, noise = start(), torch.Generator().manual_seed(1)
    for i in peer.timesteps.tolist():
        output = network(x, torch.full((3,), i + 1))
        x = peer.step(output, i, x, generator=noise).prev_sample

    q, ours = Schedule.linear(1000), start().double()
    noise = torch.Generator().manual_seed(1)
    for t, s in pairwise([*steps, 0]):
        at = torch.full((3,), t)
        output = network(ours.float(), at)
        guess = convert(output, ours, at, q, "eps", "x0")
        sigma = ddim_sigma(q, t, s, 1.0)
        ours = ddim_mean(guess, ours, t, s, q, sigma)
        if s:
            ours = ours + sigma * torch.randn(3, 16, generator=noise)
    scale = x.abs().max().item()
    assert_close(ours.float(), x, rtol=0, atol=5e-5 * scale)
