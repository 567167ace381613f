"""Predictions, weights and learned variances beside diffusers."""

import pytest
import torch
from torch.testing import assert_close

from tangled.diffusion.forward import diffuse
from tangled.diffusion.prediction import (
    convert,
    learned_log_var,
    min_snr_weights,
    target,
    weights_in,
)
from tangled.diffusion.schedule import Schedule, to_index

diffusers = pytest.importorskip("diffusers")

STEPS = torch.tensor([1, 2, 100, 500, 999, 1000])


def scheduler(**options):
    return diffusers.DDPMScheduler(1000, clip_sample=False, **options)


def draws(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 6, 3, 4, 4, generator=generator)


def test_the_velocity_is_theirs():
    x0, eps, _ = draws()
    theirs = scheduler().get_velocity(x0, eps, to_index(STEPS))
    ours = target(x0, eps, STEPS, Schedule.linear(1000), "v")
    assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("eps", "epsilon"), ("v", "v_prediction"), ("x0", "sample")],
)
def test_the_picture_of_a_prediction_is_theirs(ours, theirs):
    x0, eps, output = draws()
    q = Schedule.linear(1000)
    xt = diffuse(x0, STEPS, eps, q)
    found = convert(output, xt, STEPS, q, ours, "x0")
    peer = scheduler(prediction_type=theirs)
    for row, t in enumerate(STEPS.tolist()):
        step = peer.step(output[row], t - 1, xt[row])
        exact = step.pred_original_sample
        scale = exact.abs().max().item()
        assert_close(found[row], exact, rtol=0, atol=2e-5 * scale)


def test_the_learned_variance_is_theirs():
    """Theirs takes a network's output from -1 to 1."""
    q = Schedule.linear(1000)
    share = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    found = learned_log_var(share, STEPS, q)
    peer = scheduler(variance_type="learned_range")
    for row, t in enumerate(STEPS.tolist()):
        if t == 1:  # there the lower bound is 0: ours takes that of t = 2
            continue
        exact = peer._get_variance(t - 1, 2 * share[row] - 1)
        assert_close(found[row], exact, rtol=1e-3, atol=1e-3)


def test_the_snr_of_their_training_scripts():
    from diffusers.training_utils import compute_snr

    peer, q = scheduler(), Schedule.linear(1000)
    snr = compute_snr(peer, to_index(STEPS)).double()
    capped = snr.clamp(max=5)
    weights = min_snr_weights(q)
    for kind, exact in (("eps", capped / snr), ("v", capped / (snr + 1))):
        found = weights_in(kind, weights, q)[STEPS]
        assert_close(found, exact, rtol=1e-3, atol=0)
