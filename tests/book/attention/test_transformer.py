"""Checks of the chapter “The Transformer of 2017”.

Tangled from book/attention/transformer.md.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from tangled.attention.positions import frequencies, sinusoidal
from tangled.attention.recurrence import START, shifted
from tangled.attention.transformer import (
    Block,
    EncoderDecoder,
    TransformerConfig,
    layer_norm,
    smoothed_cross_entropy,
)


def check_shift(waves: Callable[[Tensor, int], Tensor]) -> None:
    """Check that one rotation carries all places to those 7 further on."""
    places = torch.tensor([0, 1, 2, 5, 60, 999])
    now, later = waves(places, 8), waves(places + 7, 8)
    turn = frequencies(8) * 7
    cos, sin = turn.cos(), turn.sin()
    block = torch.stack([cos, sin, -sin, cos], -1).reshape(4, 2, 2)
    moved = (block @ now.reshape(6, 4, 2, 1)).reshape(6, 8)
    assert (moved - later).abs().max() < 1e-10, "another rotation"
    products = (now * later).sum(-1)
    assert (products - cos.sum()).abs().max() < 1e-10


def test_a_shift_is_the_same_rotation_everywhere():
    check_shift(sinusoidal)


def without_minus(places: Tensor, width: int) -> Tensor:
    hands = frequencies(width) ** -1  # WRONG: 10000^(+2j/d)
    angles = places[..., None] * hands
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)


def side_by_side(places: Tensor, width: int) -> Tensor:
    return sinusoidal(places, width, pairs="halves")  # WRONG: other pairs


def test_other_hands_and_other_pairs_are_caught():
    for wrong in (without_minus, side_by_side):
        with pytest.raises(AssertionError, match="another rotation"):
            check_shift(wrong)


def check_norm(build: Callable[[TransformerConfig], nn.Module]) -> None:
    """Check the formula, what the norm forgets, and its derivative."""
    d = 6
    norm = build(TransformerConfig(2, d, norm_eps=0.0)).double()
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(d, generator=draw, dtype=torch.float64)
    s = (x - x.mean()).square().mean().sqrt()
    unit = norm(x)
    assert_close(unit, (x - x.mean()) / s, rtol=0, atol=1e-12)
    assert_close(norm(3 * x - 2), unit, rtol=0, atol=1e-12)
    found = torch.autograd.functional.jacobian(norm, x)
    ones = torch.ones_like(x)
    kept = torch.eye(d) - (ones.outer(ones) + unit.outer(unit)) / d
    assert_close(found, kept / s, rtol=0, atol=1e-12)


def test_a_norm_forgets_mean_and_length():
    check_norm(layer_norm)


class HomeMade(nn.Module):
    """A norm as one finds it in tutorials."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.theirs = layer_norm(config)

    def forward(self, x: Tensor) -> Tensor:
        d = x.shape[-1]  # x.std() is larger than the root mean square
        return self.theirs(x) * ((d - 1) / d) ** 0.5  # WRONG


def test_the_deviation_of_a_sample_is_another_one():
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        check_norm(HomeMade)


def check_path(build: Callable[[TransformerConfig], Block]) -> None:
    """Check both sums of the direct path on three blocks of each kind."""
    for first in (False, True):
        torch.manual_seed(0)
        config = TransformerConfig(
            2,
            8,
            n_heads=2,
            d_ff=32,
            norm_eps=0.0,
            norm_first=first,
            dropout=0.0,
        )
        x = start = torch.randn(1, 5, 8).double()
        share, rest = torch.ones(1, 5, 1), torch.zeros_like(x)
        for _ in range(3):
            block = build(config).double()
            after = block(x)
            for branch, norm in (
                (block.attention, block.attention_norm),
                (block.feed_forward, block.feed_forward_norm),
            ):
                f = branch(norm(x) if first else x)
                if not first:
                    f = f - f.mean(-1, keepdim=True)
                s = (
                    1
                    if first
                    else (x + f).std(-1, correction=0, keepdim=True)
                )
                share, rest = share / s, (rest + f) / s
                x = x + f if first else norm(x + f)
            assert (after - x).abs().max() < 1e-12, "another wiring"
        if not first:
            start = start - start.mean(-1, keepdim=True)
        assert_close(x, share * start + rest, rtol=0, atol=1e-12)


def test_the_direct_path_is_a_product_of_deviations():
    check_path(Block)


class AlwaysBefore(Block):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.norm_first = True  # WRONG: the formula of one, the other's code


def test_pre_norm_under_the_name_of_post_norm_is_caught():
    with pytest.raises(AssertionError, match="another wiring"):
        check_path(AlwaysBefore)


def check_reach(model: EncoderDecoder) -> None:
    """Check what each output feels, when one token in or out is changed."""
    model.double().eval()
    source, tokens = torch.tensor([[2, 3, 4, 0]]), torch.tensor([[1, 5, 6]])
    real = source != 0
    memory, out = model.encode(source, real), model(source, tokens, real)
    for j in range(4):
        other = source.clone()
        other[0, j] = 7
        moved = (model.encode(other, real) - memory)[0, :3].abs().amax(-1) > 0
        assert moved.tolist() == [j < 3] * 3, "the encoder's reach is wrong"
        felt = (model(other, tokens, real) - out)[0].abs().amax(-1) > 0
        assert felt.tolist() == [j < 3] * 3, "the memory's reach is wrong"
    for j in range(3):
        other = tokens.clone()
        other[0, j] = 7
        felt = (model(source, other, real) - out)[0].abs().amax(-1) > 0
        assert felt.tolist() == [i >= j for i in range(3)], "it reads ahead"


def test_all_read_the_source_and_nobody_the_future():
    torch.manual_seed(0)
    check_reach(EncoderDecoder(TransformerConfig(8, 8, 2, 2, 16)))


def wrong(**changes: Any) -> EncoderDecoder:
    torch.manual_seed(0)
    model = EncoderDecoder(TransformerConfig(8, 8, 2, 2, 16))
    for name, causal in changes.items():
        getattr(model, name).causal = causal
    return model


class Unmasked(EncoderDecoder):
    def decode(
        self, tokens: Tensor, memory: Tensor, memory_mask: Tensor
    ) -> Tensor:
        return super().decode(tokens, memory)  # WRONG: the mask is dropped


def test_stacks_that_read_too_little_or_too_much_are_caught():
    with pytest.raises(AssertionError, match="encoder's reach"):
        check_reach(wrong(encoder=True))
    with pytest.raises(AssertionError, match="reads ahead"):
        check_reach(wrong(decoder=False))
    with pytest.raises(AssertionError, match="memory's reach"):
        check_reach(Unmasked(TransformerConfig(8, 8, 2, 2, 16)))


def check_cost(build: Callable[[TransformerConfig], nn.Module]) -> None:
    """Count a block's matrices, and the operations on ten tokens."""
    d = 48
    config = TransformerConfig(2, d, n_heads=4, d_ff=4 * d)
    block = build(config)
    sizes = {n: p.numel() for n, p in block.named_parameters() if p.ndim > 1}
    network = sum(s for n, s in sizes.items() if n.startswith("feed_forward"))
    assert (sum(sizes.values()), network) == (12 * d * d, 8 * d * d), "size"
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):  # which it can count
        block(torch.randn(1, 10, d))
    assert counter.get_total_flops() == 10 * (24 * d * d + 40 * d), "work"


def test_a_block_has_twelve_squares():
    check_cost(Block)


class Twice(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(super().forward(x))  # WRONG: run again


def test_sixteen_squares_and_twice_the_work_are_caught():
    with pytest.raises(AssertionError, match="size"):
        check_cost(lambda config: Block(config, cross=True))
    with pytest.raises(AssertionError, match="work"):
        check_cost(Twice)


def check_one_pass(shift: Callable[[Tensor], Tensor]) -> None:
    """Check that one pass gives what writing token by token gives."""
    torch.manual_seed(0)
    model = EncoderDecoder(TransformerConfig(9, 8, 2, 2, 16)).double().eval()
    source, target = torch.randint(2, 9, (2, 3, 5))
    once = model(source, shift(target))
    memory, read = model.encode(source), torch.full((3, 1), START)
    for i in range(5):
        step = model.decode(read, memory)[:, -1]
        gap = (once[:, i] - step).abs().max()
        assert gap < 1e-12, f"another token {i} was read"
        read = torch.cat([read, target[:, i : i + 1]], 1)


def test_one_pass_is_as_good_as_many():
    check_one_pass(shifted)


def not_shifted(target: Tensor) -> Tensor:
    assert shifted(target).shape == target.shape
    return target  # WRONG: place i reads the token that it must guess


def test_a_target_that_is_not_shifted_is_caught():
    with pytest.raises(AssertionError, match="another token 0"):
        check_one_pass(not_shifted)


def check_smoothing(loss: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """Check the gradient, the optimum, and PyTorch's own version."""
    draw = torch.Generator().manual_seed(0)
    o = torch.randn(4, 31, generator=draw, dtype=torch.float64)
    o.requires_grad_()
    y, doubt = torch.tensor([0, 7, 7, 30]), 0.1
    wanted = (1 - doubt) * F.one_hot(y, 31).double() + doubt / 31
    found = loss(o, y, doubt)
    [gradient] = torch.autograd.grad(found.sum(), o)
    gap = (gradient - (o.softmax(-1) - wanted)).abs().max()
    assert gap < 1e-12, "another gradient"
    theirs = F.cross_entropy(o, y, reduction="none", label_smoothing=doubt)
    assert_close(found, theirs)
    best = loss(wanted.log(), y, doubt)
    assert_close(best, -(wanted * wanted.log()).sum(-1))
    assert (best < found).all()
    ahead = wanted.log()[0, 0] - wanted.log()[0, 1]
    assert abs(ahead - math.log(1 + 31 * 0.9 / 0.1)) < 1e-12


def test_smoothing_stops_at_the_smoothed_target():
    check_smoothing(smoothed_cross_entropy)


def others_only(logits: Tensor, y: Tensor, doubt: float) -> Tensor:
    hard = smoothed_cross_entropy(logits, y)
    uniform = -logits.log_softmax(-1).sum(-1) - hard
    return (1 - doubt) * hard + doubt * uniform / 31  # WRONG: 30 others


def test_doubt_that_does_not_add_up_is_caught():
    with pytest.raises(AssertionError, match="another gradient"):
        check_smoothing(others_only)
