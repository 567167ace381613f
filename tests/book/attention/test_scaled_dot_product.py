"""Checks of the chapter “Scaled dot-product attention”.

Tangled from book/attention/scaled-dot-product.md.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tangled.attention.scaled_dot_product import (
    Partial,
    _slices,
    absorb,
    attention,
    attention_scores,
    attention_weights,
    softmax_jacobian,
    tiled_attention,
    visible,
)
from tangled.workshop.statistics import standard_score


def check_variance(scores_of: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check that scores of random vectors have mean 0 and variance 1."""
    generator = torch.Generator().manual_seed(0)
    for d_k in (16, 64, 256):
        shape = (20_000, 1, 1, d_k)
        q, k = torch.randn((2, *shape), generator=generator).double()
        scores = scores_of(q, k).flatten()
        # Given q a score is normal; so its fourth moment is 3 + 6 / d_k.
        z = standard_score(scores**2, 1.0, math.sqrt(2 + 6 / d_k))
        assert abs(z) < 5, f"variance is not 1 at width {d_k}"
        assert abs(standard_score(scores, 0.0, 1.0)) < 5, "not centred"


def test_scores_of_random_vectors_have_variance_one():
    check_variance(attention_scores)


def by_the_width_of_four_heads(q, k):
    return attention_scores(q, k, scale=(4 * q.shape[3]) ** -0.5)  # WRONG


def by_the_width_itself(q, k):
    return attention_scores(q, k, scale=1 / q.shape[3])  # WRONG: no root


def without_the_root(q, k):
    return attention_scores(q, k, scale=1.0)  # WRONG


def without_a_sign(q, k):
    return attention_scores(q, k).abs()  # WRONG: never against


def test_other_scales_are_refused():
    for wrong in (
        without_the_root,
        by_the_width_of_four_heads,
        by_the_width_itself,
    ):
        with pytest.raises(AssertionError, match="variance is not 1"):
            check_variance(wrong)
    with pytest.raises(AssertionError, match="not centred"):
        check_variance(without_a_sign)


def check_jacobian(candidate: Callable[[Tensor], Tensor]) -> None:
    """Check a Jacobian, made from p, against automatic differentiation."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(6, generator=generator, dtype=torch.float64)
    softmax = torch.nn.Softmax(dim=0)
    exact = torch.autograd.functional.jacobian(softmax, scores)
    found, p = candidate(softmax(scores)), softmax(scores)
    assert (softmax(scores + 3.0) - p).abs().max() < 1e-15
    assert found.sum(1).abs().max() < 1e-15, "a common shift has an effect"
    assert (found - exact).abs().max() < 1e-15, "not the derivative"
    assert abs(found.trace() - (1 - p @ p)) < 1e-15, "another trace"


def test_the_jacobian_of_the_softmax_is_its_formula():
    check_jacobian(softmax_jacobian)


def like_a_sigmoid(p: Tensor) -> Tensor:
    return (p * (1 - p)).diag()  # WRONG: as if each score had its own p


def other_sign(p: Tensor) -> Tensor:
    return -softmax_jacobian(p)  # WRONG


def test_wrong_jacobians_are_refused():
    with pytest.raises(AssertionError, match="a common shift"):
        check_jacobian(like_a_sigmoid)
    with pytest.raises(AssertionError, match="not the derivative"):
        check_jacobian(other_sign)


def check_rows(candidate: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Check weights and gradients if a query may read nothing."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 3, 4, generator=generator).double()
    q.requires_grad_()
    mask = torch.tensor([[True, True, False], [False] * 3, [True] * 3])
    weights = candidate(q, k, mask)
    assert weights.isfinite().all(), "a weight is not a number"
    sums = weights.sum(-1).flatten().tolist()
    assert sums == pytest.approx([1, 0, 1]), "wrong sums of rows"
    (weights[..., 0, :] ** 2).sum().backward()  # the empty row is not used
    assert q.grad.isfinite().all(), "a gradient is not a number"
    assert weights[0, 0, 0, 2] == 0, "a hidden key has a share"


def test_a_row_without_keys_is_zero_and_harms_nobody():
    check_rows(attention_weights)


def with_infinity(q, k, mask):
    added = torch.zeros(mask.shape).masked_fill(~mask, -math.inf)
    return (attention_scores(q, k) + added).softmax(-1)  # WRONG: 0 / 0


def repaired_too_late(q, k, mask):
    return with_infinity(q, k, mask).nan_to_num()  # WRONG: the way back


def without_the_last_line(q, k, mask):
    lowest = torch.finfo(q.dtype).min
    scores = attention_scores(q, k).masked_fill(~mask, lowest)
    return scores.softmax(-1)  # WRONG: an empty row reads all


def test_other_ways_with_empty_rows_are_refused():
    with pytest.raises(AssertionError, match="a weight is not"):
        check_rows(with_infinity)
    with pytest.raises(AssertionError, match="a gradient is not"):
        check_rows(repaired_too_late)
    with pytest.raises(AssertionError, match="wrong sums"):
        check_rows(without_the_last_line)


def check_hull(candidate: Callable[..., Tensor]) -> None:
    """Check that outputs lie between the values, in random directions."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 9, 4, generator=generator).double()
    a = torch.randn(100, 4, generator=generator).double()
    v = v + 5 * a[0]  # zero is outside
    found, seen = candidate(q, k, v) @ a.T, v @ a.T
    for i in range(9):
        low, high = seen[:, :, : i + 1].amin(2), seen[:, :, : i + 1].amax(2)
        assert (found[:, :, i] > low - 1e-12).all(), "outside of the hull"
        assert (found[:, :, i] < high + 1e-12).all(), "outside of the hull"


def test_outputs_are_mixtures_of_the_values_before():
    check_hull(lambda q, k, v: attention(q, k, v, causal=True))
    check_hull(lambda q, k, v: attention(q, k, v, causal=True, fast=False))


def not_normalised(q, k, v):
    seen = visible(9, 9, causal=True)
    return attention_scores(q, k).exp() * seen @ v  # WRONG: shares of what?


def masked_too_late(q, k, v):
    seen = visible(9, 9, causal=True)
    return attention_weights(q, k) * seen @ v  # WRONG: after the softmax


def with_dropout(q, k, v):
    torch.manual_seed(0)
    return attention(q, k, v, causal=True, dropout=0.5)  # not a mixture


def test_sums_that_are_no_mixtures_are_refused():
    for wrong in (not_normalised, masked_too_late, with_dropout):
        with pytest.raises(AssertionError, match="outside of the hull"):
            check_hull(wrong)


def check_pass(step: Callable[[Partial, Tensor, Tensor], Partial]) -> None:
    """Check one pass over 50 keys, 7 at a time, against the softmax."""
    generator = torch.Generator().manual_seed(0)
    scores = 20 * torch.randn(4, 50, generator=generator).double()
    values = torch.randn(50, 3, generator=generator).double()
    lowest = torch.finfo(torch.float64).min
    nought = torch.zeros(4, 3, dtype=torch.float64)
    part = Partial(nought[:, :1] + lowest, nought[:, :1], nought)
    for tile in range(0, 50, 7):
        columns = slice(tile, tile + 7)
        part = step(part, scores[:, columns], values[columns])
    exact = scores.softmax(1) @ values
    off = (part.output / part.total - exact).abs().max()
    assert off < 1e-12, f"off by {off:.1g}"


def test_one_pass_over_the_keys_is_exact():
    check_pass(absorb)


def without_rescaling(part, scores, values):
    fresh = absorb(
        Partial(part.top, 0 * part.total, 0 * part.output), scores, values
    )
    total = part.total + fresh.total  # WRONG: sums that belong to two tops
    return Partial(fresh.top, total, part.output + fresh.output)


def test_a_pass_that_forgets_to_rescale_is_refused():
    with pytest.raises(AssertionError, match="off by"):
        check_pass(without_rescaling)


def check_tiles(candidate: Callable[..., Tensor]) -> None:
    """Check attention in tiles of several sizes against the equation."""
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 4, 6, 3), (2, 2, 11, 3), (2, 2, 11, 5)
    parts = [torch.randn(s, generator=generator).double() for s in shapes]
    mask = torch.rand(2, 1, 6, 11, generator=generator) < 0.7
    mask[:, :, 2] = False  # a query that may read nothing
    for options in ({}, {"causal": True}, {"causal": True, "window": 4}):
        exact = attention(*parts, mask, **options, fast=False)
        for tile in (256, 4, 1):
            found = candidate(*parts, mask, **options, tile=tile)
            off = (found - exact).abs().max()
            assert off < 1e-12, f"tile {tile}, {options}: off by {off:.1g}"


def test_tiles_of_every_size_give_the_equation():
    check_tiles(tiled_attention)


def a_softmax_for_each_tile(q, k, v, mask, tile, **options):
    return sum(  # WRONG: each tile is divided by a sum of its own
        tiled_attention(q, k[:, :, c], v[:, :, c], mask[..., c], **options)
        for c in _slices(0, k.shape[2], tile)
    )


def from_the_first_key(q, k, v, mask, tile, **options):
    n = q.shape[2]  # WRONG: the queries are the last places, not the first
    seen = mask[..., :n], k[:, :, :n], v[:, :, :n]
    mask, k, v = seen if options else (mask, k, v)
    return tiled_attention(q, k, v, mask, tile=tile, **options)


def test_tiles_that_do_not_share_a_sum_or_a_place_are_refused():
    with pytest.raises(AssertionError, match=r"tile 4, {}: off by"):
        check_tiles(a_softmax_for_each_tile)
    with pytest.raises(AssertionError, match=r"'causal': True}: off by"):
        check_tiles(from_the_first_key)
