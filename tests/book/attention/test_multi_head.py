"""Checks of the chapter “Self-attention and many heads”.

Tangled from book/attention/multi-head.md.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tangled.attention.multi_head import (
    MultiHeadAttention,
    induction_score,
    previous_score,
    self_attention,
)
from tangled.attention.scaled_dot_product import attention_weights


def noise(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).double()


def maps_of_a_head() -> list[Tensor]:
    return [noise(12, 4, seed=seed) / 12**0.5 for seed in (1, 2, 3)]


def check_equivariance(head: Callable[..., Tensor]) -> None:
    """Check that the output moves with the input, and with the mask."""
    x, seed = noise(2, 9, 12), torch.Generator().manual_seed(6)
    order = torch.randperm(9, generator=seed)
    mask = noise(9, 9, seed=5) > 0
    for seen in (None, mask):
        moved = None if seen is None else seen[order][:, order]
        found, straight = head(x[:, order], moved), head(x, seen)
        off = (found - straight[:, order]).abs().max()
        assert off < 1e-13, "not equivariant"
        assert (found - straight).abs().max() > 0.1, "does not move at all"


def one_head(x: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
    return self_attention(x, *maps_of_a_head(), mask, causal)


def test_the_output_moves_with_the_input():
    check_equivariance(one_head)


def with_places(x, mask):
    return one_head(x + noise(9, 12, seed=7), mask)  # a vector for each place


def test_places_and_order_break_the_symmetry():
    with pytest.raises(AssertionError, match="not equivariant"):
        check_equivariance(with_places)
    with pytest.raises(AssertionError, match="not equivariant"):
        check_equivariance(lambda x, mask: one_head(x, mask, causal=True))
    with pytest.raises(AssertionError, match="does not move"):
        check_equivariance(lambda x, mask: 0 * one_head(x, mask))


def check_causality(layer: Callable[[Tensor], Tensor]) -> None:
    """Check that what comes later changes no bit of what comes before."""
    x = noise(2, 9, 12)
    before = layer(x)
    for j in range(1, 9):
        other = torch.cat([x[:, :j], noise(2, 9 - j, 12, seed=j)], 1)
        after = layer(other)
        assert torch.equal(after[:, :j], before[:, :j]), "the future leaks"
        changed = (after[:, j:] != before[:, j:]).any(-1)
        assert changed.all(), "the present is not seen"


def test_a_causal_head_does_not_see_the_future():
    check_causality(lambda x: one_head(x, None, causal=True))


def one_too_far(x):
    mask = torch.ones(9, 9).tril(1).bool()  # WRONG: j <= i + 1
    return one_head(x, mask)


def masked_too_late(x):
    q, k, v = ((x @ w)[:, None] for w in maps_of_a_head())
    weights = attention_weights(q, k).tril()  # WRONG: after the softmax
    return (weights @ v)[:, 0]


def test_leaks_are_found():
    for wrong in (one_too_far, masked_too_late):
        with pytest.raises(AssertionError, match="the future leaks"):
            check_causality(wrong)
    with pytest.raises(AssertionError, match="the present is not seen"):
        check_causality(lambda x: 0 * one_head(x, None, causal=True))


def check_lookups(read: Callable[..., Tensor]) -> None:
    """Check the best error of l lookups with h random heads, over c."""
    torch.manual_seed(0)
    x = torch.randn(1, 6, 12).double()
    for count in (2, 3, 4):
        for h in range(1, count + 1):
            layer = MultiHeadAttention(12, h, d_head=4).double()
            weights = read(layer, x)[:count]  # [count, h] of the last place
            wanted = torch.eye(count).double()
            best = torch.linalg.pinv(weights)  # by least squares
            error = (weights @ best - wanted).square().sum()
            assert error > count - h - 1e-8, (
                "fewer heads than lookups suffice"
            )
            assert error < count - h + 1e-8, "a head is wasted"


def of_the_heads(layer: MultiHeadAttention, x: Tensor) -> Tensor:
    return layer.weights(x)[0, :, -1].T.detach()


def test_each_lookup_needs_a_head():
    check_lookups(of_the_heads)


def a_map_for_each_place(layer, x):
    seen = of_the_heads(layer, x)
    return torch.diag(seen[:, 0])  # WRONG: one head, but six matrices


def all_heads_alike(layer, x):
    return of_the_heads(layer, x)[:, :1].expand(-1, layer.n_heads)


def test_other_countings_of_heads_are_refused():
    with pytest.raises(AssertionError, match="fewer heads"):
        check_lookups(a_map_for_each_place)
    with pytest.raises(AssertionError, match="a head is wasted"):
        check_lookups(all_heads_alike)


def check_sum(make: Callable[..., nn.Module]) -> None:
    """Check a layer against a sum of plain heads, the ranks and the count."""
    torch.manual_seed(0)
    x, d = noise(2, 7, 12), 12
    for h in (1, 2, 3, 6):
        layer, width = make(d, h, bias=False).double(), d // h
        size = sum(p.numel() for p in layer.parameters())
        assert size == 4 * d * d, "heads cost weights"
        q, k, v, o = (
            getattr(layer, f"w_{name}").weight.detach() for name in "qkvo"
        )
        total = 0
        for r in range(h):
            own = slice(r * width, (r + 1) * width)
            head = self_attention(x, q[own].T, k[own].T, v[own].T)
            total = total + head @ o[:, own].T
            assert torch.linalg.matrix_rank(q[own].T @ k[own]) == width
            assert torch.linalg.matrix_rank(v[own].T @ o[:, own].T) == width
        assert (layer(x) - total).abs().max() < 1e-13, "not the sum of heads"
        parts = layer.contributions(x).sum(1)
        assert (parts - total).abs().max() < 1e-13, "not what heads add"


def test_a_layer_is_the_sum_of_its_heads():
    check_sum(MultiHeadAttention)


class Viewed(MultiHeadAttention):
    def forward(self, x):
        out = self.heads(x)
        return self.w_o(out.reshape(x.shape))  # WRONG: no transpose


class Wide(MultiHeadAttention):
    def __init__(self, d, h, bias):
        super().__init__(d, h, bias=bias, d_head=d)


class Averaged(MultiHeadAttention):
    def contributions(self, x):
        return super().contributions(x) / self.n_heads


def test_other_layers_are_refused():
    with pytest.raises(AssertionError, match="not the sum of heads"):
        check_sum(Viewed)
    with pytest.raises(AssertionError, match="not what heads add"):
        check_sum(Averaged)
    with pytest.raises(AssertionError, match="heads cost weights"):
        check_sum(Wide)


def check_groups(make: Callable[..., nn.Module]) -> None:
    """Check grouped layers against full ones with repeated matrices."""
    torch.manual_seed(0)
    x = noise(2, 7, 12)
    for kv in (2, 3, 1, 6):
        layer = make(12, 6, n_kv_heads=kv).double()
        full = MultiHeadAttention(12, 6).double()
        state = layer.state_dict()
        for name in ("w_k.weight", "w_k.bias", "w_v.weight", "w_v.bias"):
            heads = state[name].unflatten(0, (kv, -1))
            state[name] = heads.repeat_interleave(6 // kv, 0).flatten(0, 1)
        full.load_state_dict(state)
        off = (layer(x, causal=True) - full(x, causal=True)).abs().max()
        assert off < 1e-13, "not a full layer with equal heads"
        few, all_ = layer.keys_values(x)[0], full.keys_values(x)[0]
        assert few.numel() * 6 == all_.numel() * kv, "another cache"


def test_a_grouped_layer_is_a_full_one_with_equal_keys():
    check_groups(MultiHeadAttention)


class Dealt(MultiHeadAttention):
    def keys_values(self, read, rotate=None):
        k, v = super().keys_values(read, rotate)
        times = self.n_heads // self.n_kv_heads
        return k.repeat(1, times, 1, 1), v.repeat(1, times, 1, 1)  # WRONG


class Copied(MultiHeadAttention):
    def keys_values(self, read, rotate=None):
        k, v = super().keys_values(read, rotate)
        times = self.n_heads // self.n_kv_heads
        return tuple(x.repeat_interleave(times, 1) for x in (k, v))


def test_heads_dealt_like_cards_and_full_caches_are_refused():
    with pytest.raises(AssertionError, match="not a full layer"):
        check_groups(Dealt)
    with pytest.raises(AssertionError, match="another cache"):
        check_groups(Copied)  # the same function, and nothing saved


def check_scores(before: Callable, after: Callable) -> None:
    """Check both scores on heads that point where they should."""
    tokens = torch.tensor([[1, 2, 3, 1, 2, 3, 1]])
    lag, copy = torch.zeros(2, 1, 1, 7, 7)
    for i in range(1, 7):
        lag[0, 0, i, i - 1] = 1
    for i in range(3, 7):
        copy[0, 0, i, i - 2] = 1
    even = torch.ones(7, 7).tril()
    even = (even / even.sum(1, keepdim=True))[None, None]
    assert before(lag).item() == 1, "another place before"
    assert before(copy).item() == 0, "another place before"
    assert after(copy, tokens).item() == 1, "not what followed"
    assert after(lag, tokens).item() == 0, "not what followed"
    mean = sum(1 / i for i in range(2, 8)) / 6
    assert abs(before(even).item() - mean) < 1e-6, "another average"
    mean = (1 / 4 + 1 / 5 + 1 / 6 + 2 / 7) / 4
    assert abs(after(even, tokens).item() - mean) < 1e-6, "another average"


def test_the_scores_tell_the_two_kinds_of_heads():
    check_scores(previous_score, induction_score)


def test_other_scores_are_refused():
    with pytest.raises(AssertionError, match="another place before"):
        check_scores(lambda a: a.diagonal(0, 2, 3).mean((0, 2)), None)
    with pytest.raises(AssertionError, match="not what followed"):
        check_scores(
            previous_score, lambda a, t: induction_score(a.roll(1, 3), t)
        )
    with pytest.raises(AssertionError, match="another place before"):
        check_scores(lambda a: a.diagonal(-1, 2, 3).sum((0, 2)) / 7, None)
