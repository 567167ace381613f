"""Schedules that end at SNR 0, beside diffusers' `rescale_betas_zero_snr`.

DDPM and DDIM end at exactly 0 there, as here. The schedulers that count in sigma = rho (Euler,
DPM-Solver, UniPC) cannot hold infinity: they set the last alpha_bar to 2^-24, a signal of 1/4096.
"""

import json

import pytest
import torch
from torch.testing import assert_close

from tangled.diffusion.ddim import ddim_sample
from tangled.diffusion.ddpm import ddpm_sample
from tangled.diffusion.forward import diffuse
from tangled.diffusion.prediction import target
from tangled.diffusion.schedule import (
    Schedule,
    schedule_from_config,
    schedule_to_config,
    step_list,
    to_index,
    zero_terminal_snr,
)

diffusers = pytest.importorskip("diffusers")

KINDS = {
    "linear": {"beta_schedule": "linear"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "scaled": {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
    },
}
OURS = {
    "linear": Schedule.linear,
    "cosine": Schedule.cosine,
    "scaled": Schedule.scaled_linear,
}
EXACT = ["DDPMScheduler", "DDIMScheduler"]
NEARLY = [
    "EulerDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
]


def peer(name, kind, **options):
    return getattr(diffusers, name)(
        num_train_timesteps=1000,
        rescale_betas_zero_snr=True,
        **KINDS[kind],
        **options,
    )


def ended(kind):
    return zero_terminal_snr(OURS[kind](1000))


def network(xt, t):
    """Stand in for a network: bounded, not linear, and different at each t."""
    return torch.sin(2 * xt + t.reshape(-1, 1) / 300)


def start():
    return torch.randn(3, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.verifies("eq-zero-terminal-snr")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", EXACT + NEARLY)
def test_the_tables_are_theirs(name, kind):
    theirs = peer(name, kind).alphas_cumprod.double()
    ours = ended(kind).alpha_bar[1:]
    assert_close(ours[:-1], theirs[:-1], rtol=0, atol=1e-6)
    assert ours[-1] == 0
    assert theirs[-1] == (0 if name in EXACT else 2**-24)
    # On the linear schedule that is more signal than a step earlier.
    rises = name in NEARLY and kind == "linear"
    assert (theirs[-1] > theirs[-2]) == rises


@pytest.mark.parametrize("kind", KINDS)
def test_a_rescaled_file_is_read_and_written(kind, tmp_path):
    peer("DDIMScheduler", kind).save_pretrained(tmp_path)
    text = (tmp_path / "scheduler_config.json").read_text()
    ours = schedule_from_config(json.loads(text))
    assert torch.equal(ours.beta, ended(kind).beta)
    for name in EXACT:
        back = getattr(diffusers, name)(**schedule_to_config(ours))
        assert back.alphas_cumprod[-1] == 0
        assert back.config.timestep_spacing == "trailing"
        assert_close(
            back.alphas_cumprod.double(),
            ours.alpha_bar[1:],
            rtol=0,
            atol=1e-6,
        )


def test_the_jump_and_the_velocity_are_theirs_up_to_the_end():
    q, theirs = ended("linear"), peer("DDPMScheduler", "linear")
    t = torch.tensor([1, 500, 1000])
    x0, eps = start(), start().flip(0)
    at = to_index(t)
    assert_close(
        diffuse(x0, t, eps, q),
        theirs.add_noise(x0, eps, at),
        atol=1e-5,
        rtol=0,
    )
    v = theirs.get_velocity(x0, eps, at)
    assert_close(target(x0, eps, t, q, "v"), v, rtol=1e-4, atol=2e-5)


@pytest.mark.verifies("alg-ddim")
@pytest.mark.parametrize("given", ["v_prediction", "sample"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_from_pure_noise_is_theirs(kind, given, eta):
    theirs = peer(
        "DDIMScheduler",
        kind,
        prediction_type=given,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    theirs.set_timesteps(50)
    x, noise = start().double(), torch.Generator().manual_seed(1)
    for i in theirs.timesteps.tolist():
        output = network(x, torch.full((3,), i + 1))
        x = theirs.step(output, i, x, eta=eta, generator=noise).prev_sample
    found = ddim_sample(
        network,
        start().double(),
        ended(kind),
        step_list(1000, 50, "trailing"),
        prediction={"v_prediction": "v", "sample": "x0"}[given],
        eta=eta,
        generator=torch.Generator().manual_seed(1),
    )
    scale = x.abs().max().item()
    assert_close(found, x, rtol=0, atol=2e-5 * scale)


@pytest.mark.verifies("alg-ddpm")
@pytest.mark.parametrize("given", ["v_prediction", "sample"])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_from_pure_noise_is_theirs(variance, given):
    theirs = peer(
        "DDPMScheduler",
        "linear",
        prediction_type=given,
        variance_type=f"fixed_{variance}",
        clip_sample=False,
    )
    x, noise = start().double(), torch.Generator().manual_seed(1)
    for i in theirs.timesteps.tolist():
        output = network(x, torch.full((3,), i + 1))
        x = theirs.step(output, i, x, generator=noise).prev_sample
    found = ddpm_sample(
        network,
        start().double(),
        ended("linear"),
        range(1000, 0, -1),
        prediction={"v_prediction": "v", "sample": "x0"}[given],
        variance=variance,
        generator=torch.Generator().manual_seed(1),
    )
    scale = x.abs().max().item()
    assert_close(found, x, rtol=0, atol=1e-4 * scale)


def test_where_they_divide_by_no_signal_we_refuse():
    theirs = peer("DDIMScheduler", "linear", timestep_spacing="trailing")
    theirs.set_timesteps(10)
    x = theirs.step(network(start(), torch.full((3,), 1000)), 999, start())
    assert (
        not x.pred_original_sample.isfinite().all()
        or (x.pred_original_sample.abs() == 1).all()
    )  # clipped infinities
    with pytest.raises(ValueError, match="must be x0 or v, got 'eps'"):
        ddim_sample(network, start(), ended("linear"), [1000, 500])
