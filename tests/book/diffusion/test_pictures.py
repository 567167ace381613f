"""Checks of the chapter “Your own pictures”.

Tangled from book/diffusion/pictures.md.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tangled.diffusion.ddim import ddim_sample
from tangled.diffusion.schedule import Schedule, zero_terminal_snr


def check_rescaled(rescale: Callable[[Schedule], Schedule]) -> None:
    """Check the ends of the new schedule, and that the map is straight."""
    for q in (Schedule.scaled_linear(1000), Schedule.linear(50, 1e-3, 0.1)):
        new = rescale(q)
        assert new.signal[-1] == new.snr[-1] == 0, "signal at the end"
        assert torch.allclose(new.signal[1], q.signal[1]), "another start"
        slope = new.signal[1:].diff() / q.signal[1:].diff()
        assert torch.allclose(slope, slope[:1]), "not straight"


def ends(q: Schedule, mean: float, std: float) -> tuple[float, float]:
    """Return mean and deviation of the samples, data N(mean, std^2)."""

    def network(xt: Tensor, t: Tensor) -> Tensor:
        a, s = q.signal[t[0]], q.noise_std[t[0]]
        kept = a * std**2 / (a**2 * std**2 + s**2)
        return (a * xt - mean - kept * (xt - a * mean)) / s

    start = torch.tensor([0.0, 1.0]).double()
    steps = range(1000, 0, -1)
    found = ddim_sample(network, start, q, steps, prediction="v")
    return found[0].item(), (found[1] - found[0]).item()


def check_brightness(lost: Callable[[float, float, float], tuple]) -> None:
    """Check sqrt(D) times the brightness, with D = 128^2, in both schedules."""
    usual, mean, std = Schedule.scaled_linear(1000), 128 * 0.4, 128 * 0.5
    new = zero_terminal_snr(usual)
    whole = pytest.approx((mean, std), rel=0.02)
    assert ends(new, mean, std) == whole, "lost in spite of the cure"
    found = [x / 128 for x in ends(usual, mean, std)]
    said = pytest.approx(lost(usual.signal[-1].item(), 0.4, 0.5), rel=0.02)
    assert found == said, "another brightness"


def lost_brightness(a: float, mean: float, std: float) -> tuple:
    root = (a**2 * std**2 + (1 - a**2) / 128**2) ** 0.5
    return mean - a * mean * std / root, std / (128 * root)


def test_the_rescaled_schedule_ends_without_signal():
    check_rescaled(zero_terminal_snr)


def test_what_is_left_of_the_brightness():
    check_brightness(lost_brightness)


def only_the_last(q):
    beta = q.beta[1:].tolist()
    return Schedule.from_betas([*beta[:-1], 1.0])  # WRONG: a jump at T


def of_one_number(a, mean, std):
    root = (a**2 * std**2 + 1 - a**2) ** 0.5  # WRONG: without D
    return mean - a * mean * std / root, std / root


def test_a_jump_and_a_forgotten_dimension_are_caught():
    with pytest.raises(AssertionError, match="not straight"):
        check_rescaled(only_the_last)
    with pytest.raises(AssertionError, match="signal at the end"):
        check_rescaled(lambda q: q)  # WRONG: as it was
    with pytest.raises(AssertionError, match="another brightness"):
        check_brightness(of_one_number)
