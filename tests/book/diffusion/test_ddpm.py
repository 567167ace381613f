"""Checks of the chapter “Coding a DDPM from scratch”.

Tangled from book/diffusion/ddpm.md.
"""

import itertools
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tangled.diffusion.ddpm import ddpm_sample, respaced, sampler_variances
from tangled.diffusion.elbo import posterior_var
from tangled.diffusion.forward import transition
from tangled.diffusion.metrics import sliced_wasserstein
from tangled.diffusion.schedule import Schedule
from tangled.diffusion.unet import UNet, UNetConfig, time_features
from tangled.workshop.statistics import standard_score


def check_respaced(candidate: Callable[..., Schedule]) -> None:
    """Check that each jump is the transition of the whole chain."""
    q, steps = Schedule.cosine(300), [300, 207, 80, 9]
    short = candidate(q, steps)
    for i, (t, s) in enumerate(pairwise([*steps, 0])):
        scale, variance = transition(q, s, t)
        assert abs(short.beta[4 - i] - variance) < 1e-12, "another noise"
        assert abs(short.alpha[4 - i].sqrt() - scale) < 1e-12
        assert abs(short.signal[4 - i] - q.signal[t]) < 1e-12


def test_kept_steps_are_a_chain_of_their_own():
    check_respaced(respaced)


def the_same_betas(q: Schedule, steps: list[int]) -> Schedule:
    respaced(q, steps)
    return Schedule.from_betas(q.beta[steps[::-1]])  # WRONG: single steps


def test_the_betas_of_single_steps_are_too_small():
    with pytest.raises(AssertionError, match="another noise"):
        check_respaced(the_same_betas)


def check_sampler(candidate: Callable[..., Tensor]) -> None:
    """Check the hand example, and the formula with the noise's own table."""
    xt = torch.tensor([[0.1]], dtype=torch.float64)
    said = {2: -0.5455, 1: 0.2}
    two = Schedule.from_betas([0.36, 0.75])

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.full_like(x, said[int(t[0])])

    def drawn() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    xi = torch.empty_like(xt).normal_(generator=drawn())
    x1 = 1.0928 + 0.5669 * xi
    expected = (x1 - 0.36 * 0.2 / 0.6) / 0.8
    found = candidate(network, xt, two, [2, 1], generator=drawn())
    assert abs(found - expected).max() < 2e-4, "another step"


def test_the_step_is_that_of_the_hand_example():
    check_sampler(ddpm_sample)


def noise_at_the_end(network, xT, q, steps, generator):
    x = ddpm_sample(network, xT, q, steps, generator=generator)
    return x + q.beta[1].sqrt() * torch.randn(1).double()  # WRONG


def without_the_root(network, xT, q, steps, generator):
    said = network(xT, torch.tensor([2]))
    return (xT - q.beta[2] * said / q.noise_std[2]) / q.alpha[2]  # WRONG


def test_other_steps_are_refused():
    torch.manual_seed(0)
    for wrong in (noise_at_the_end, without_the_root):
        with pytest.raises(AssertionError, match="another step"):
            check_sampler(wrong)


def check_variance(candidate: Callable[..., Tensor]) -> None:
    """Check the variance of samples from the best network against v_0."""
    q, s0 = Schedule.linear(40, 1e-3, 0.2), 0.4
    share = q.noise_std / (q.signal**2 * s0**2 + q.noise_std**2)
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(50_000, 1, generator=g, dtype=torch.float64)
    x = candidate(
        lambda x, t: share[t][:, None] * x,
        noise,
        q,
        range(40, 0, -1),
        generator=g,
    )
    sigma = posterior_var(q).sqrt()
    v0 = sampler_variances(q, sigma, s0)[0].item()
    # A normal sample's mean square has this deviation under the claim.
    z = standard_score(x.square().flatten(), v0, std=v0 * 2**0.5)
    assert abs(z) < 5, "another variance"


def test_the_sampler_makes_the_variance_that_the_recursion_says():
    check_variance(ddpm_sample)


def twice_the_variance(network, xT, q, steps, generator):
    large = {"variance": "large"}  # WRONG: beta where it says posterior
    return ddpm_sample(network, xT, q, steps, generator=generator, **large)


def test_beta_is_not_the_posterior_variance():
    with pytest.raises(AssertionError, match="another variance"):
        check_variance(twice_the_variance)


def check_features(candidate: Callable[..., Tensor]) -> None:
    """Check that likeness of two steps depends on their distance alone."""
    t = torch.arange(1, 200)
    waves = candidate(t, 32).double()
    likeness = waves @ waves.T
    for gap in (0, 1, 7, 50):
        along = likeness.diagonal(gap)
        assert (along - along.mean()).abs().max() < 1e-3, "not by distance"
    assert (likeness.diagonal() - 16).abs().max() < 1e-4
    assert (candidate(t[:1], 32)[0, :16] == 1).all()


def test_steps_are_alike_by_their_distance():
    check_features(time_features)


def sines_only(t, width):
    return time_features(t, 2 * width)[:, width:]  # WRONG: half a clock


def test_half_a_clock_is_refused():
    with pytest.raises(AssertionError, match="not by distance"):
        check_features(sines_only)


def small_unet(**choices: Any) -> UNet:
    torch.manual_seed(0)
    config = UNetConfig(
        **{"widths": (8, 16), "blocks": 1, "groups": 4, **choices}
    )
    return UNet(config).double()


def check_block(block: nn.Module) -> None:
    """Check that a block whose last layer is silent changes nothing."""
    x, time = torch.randn(2, 8, 4, 4).double(), torch.randn(2, 32).double()
    nn.init.zeros_(block.conv2.weight)
    nn.init.zeros_(block.conv2.bias)
    assert torch.equal(block(x, time), x), "not a correction"


def check_attention(attend: nn.Module) -> None:
    """Check the formula, written out for one head."""
    x = torch.randn(2, 16, 3, 3).double()
    rows = attend.group_norm(x).flatten(2).mT
    q, k, v = attend.to_q(rows), attend.to_k(rows), attend.to_v(rows)
    weights = (q @ k.mT / 16**0.5).softmax(-1)
    seen = attend.to_out(weights @ v).mT.reshape(x.shape)
    assert torch.allclose(attend(x), x + seen), "another mean"


def check_sight(model: nn.Module) -> None:
    """Check that each output depends on each pixel, and on the step."""
    xt = torch.randn(1, 3, 64, 64, requires_grad=True, dtype=torch.float64)
    t = torch.tensor([7])
    output = model(xt, t)
    assert output.shape == xt.shape
    output[0, 0, 0, 0].backward()
    assert (xt.grad[0, 0] != 0).all(), "not the whole picture"
    assert not torch.allclose(model(xt, t + 400), output), "any step"


def test_a_block_corrects():
    check_block(small_unet().down_blocks[0].resnets[0])


def test_attention_is_the_weighted_mean():
    check_attention(small_unet(head_dim=16).mid_block.attentions[0])


def test_each_output_sees_all_pixels_and_the_step():
    check_sight(small_unet(norm="none"))


def test_a_block_that_replaces_is_refused():
    block = small_unet().down_blocks[0].resnets[0]
    forward = block.forward
    block.forward = lambda x, time: forward(x, time) - x  # WRONG
    with pytest.raises(AssertionError, match="not a correction"):
        check_block(block)


def test_two_heads_are_not_one():
    attend = small_unet(head_dim=8).mid_block.attentions[0]  # WRONG
    with pytest.raises(AssertionError, match="another mean"):
        check_attention(attend)


def test_a_network_that_does_not_look_afar_is_refused():
    model = small_unet(groups=8, norm="none")
    model.mid_block.attentions[0] = nn.Identity()  # WRONG: nothing afar
    with pytest.raises(AssertionError, match="not the whole picture"):
        check_sight(model)


def test_a_network_without_the_step_is_refused():
    with pytest.raises(AssertionError, match="any step"):
        check_sight(small_unet(time="none"))


def check_sliced(distance: Callable[..., float]) -> None:
    """Check the distance of a shifted sample, and the order of the rows."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(300, 8, generator=g, dtype=torch.float64)
    shift = torch.ones(8).double()
    mixed = x[torch.randperm(300, generator=g)]
    assert distance(x, mixed, g, 50) < 1e-12, "the order counts"
    # |u_1| on the sphere has mean G(D/2) / (sqrt(pi) G((D+1)/2)), and
    # <u, u> / D is the mean of u_1^2.
    mean = math.gamma(4) / (math.pi**0.5 * math.gamma(4.5))
    std = (1 / 8 - mean**2) ** 0.5
    found = distance(x, mixed + shift, g, 4000) / 8**0.5
    assert abs(found - mean) / (std / 4000**0.5) < 5, "another length"


def test_a_shift_is_seen_from_all_sides():
    check_sliced(sliced_wasserstein)


def test_sorted_pairs_beat_all_others():
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, 5, generator=g).double().sort().values
    every = torch.tensor([*itertools.permutations(range(5))])
    costs = (x - y[every]).abs().sum(1)
    assert costs.argmin() == 0


def in_the_order_given(x, y, g, n):
    u = F.normalize(torch.randn(8, n, generator=g).double(), dim=0)
    sliced_wasserstein(x, y, g, 1)
    return (x @ u - y @ u).abs().mean().item()  # WRONG: not sorted


def twice_as_long(x, y, g, n):
    return 2 * sliced_wasserstein(x, y, g, n)  # WRONG


def test_other_distances_are_refused():
    for wrong, reason in (
        (in_the_order_given, "the order counts"),
        (twice_as_long, "another length"),
    ):
        with pytest.raises(AssertionError, match=reason):
            check_sliced(wrong)
