"""Checks of the chapter “The modern block”.

Tangled from book/attention/modern-block.md.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tangled.attention.modern_block import (
    LanguageModel,
    ModernConfig,
    ParallelBlock,
    RMSNorm,
    SwiGLU,
    grouped,
    initialise,
    next_token_losses,
)
from tangled.attention.multi_head import MultiHeadAttention
from tangled.attention.positions import Rotary, frequencies
from tangled.attention.transformer import Stack
from tangled.workshop.statistics import standard_score


def check_next_token(candidate: Callable[..., Tensor]) -> None:
    """Check the loss against PyTorch's, on texts with padding at the end."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 5, generator=generator).double()
    tokens = torch.randint(5, (2, 6), generator=generator)
    found = candidate(logits, tokens)
    expected = F.cross_entropy(
        logits[:, :-1].mT, tokens[:, 1:], reduction="none"
    )
    assert torch.allclose(found, expected), "another target"
    mask = torch.arange(6) < torch.tensor([[6], [4]])
    padded = candidate(logits, tokens, mask)
    assert (padded[1] != 0).tolist() == [True, True, True, False, False]


def test_each_place_is_judged_by_the_next_token():
    check_next_token(next_token_losses)


def its_own_token(logits: Tensor, tokens: Tensor, mask=None) -> Tensor:
    back = tokens.roll(1, 1)  # WRONG: each place is judged by itself
    return next_token_losses(logits, back, mask)


def test_a_model_that_copies_is_not_a_language_model():
    with pytest.raises(AssertionError, match="another target"):
        check_next_token(its_own_token)


def check_growth(draw: Callable[..., None]) -> None:
    """Check the sum over 80 draws of weights, and the size at two depths."""
    ends, generator = {}, torch.Generator().manual_seed(0)
    x0 = torch.randn(1, 6, 16, generator=generator)
    for depth in (1, 6):
        config = ModernConfig(
            vocab=2, d_model=16, n_layers=depth, n_heads=2, d_ff=32
        )
        stack, gaps, ends[depth] = Stack(config, causal=True), [], []
        for _ in range(80):
            draw(stack, depth, generator=generator)
            x, written = x0, 0.0
            for block in stack.blocks:
                new = block(x, causal=True)
                written, x = written + (new - x).square().mean(), new
            gaps.append(x.square().mean() - x0.square().mean() - written)
            ends[depth].append(x.square().mean())
        score = standard_score(torch.stack(gaps).double(), 0.0)
        assert abs(score) < 5, "branches write in one direction"
    ratio = torch.stack(ends[6]).mean() / torch.stack(ends[1]).mean()
    assert abs(ratio - 1) < 0.1, "depth shows"


@torch.no_grad()
def test_what_branches_write_adds_up():
    check_growth(initialise)


@torch.no_grad()
def test_matrices_with_a_mean_add_up_faster():
    def with_a_mean(stack, depth, generator):
        initialise(stack, depth, generator=generator)
        for block in stack.blocks:
            block.feed_forward.down.weight.abs_()  # WRONG: mean not 0
            block.feed_forward.up.weight.abs_()
            block.feed_forward.gate.weight.abs_()

    with pytest.raises(AssertionError, match="one direction"):
        check_growth(with_a_mean)


@torch.no_grad()
def test_without_the_factor_the_depth_shows():
    def as_if_shallow(stack, depth, generator):
        initialise(stack, 1, generator=generator)  # WRONG: not the depth

    with pytest.raises(AssertionError, match="depth shows"):
        check_growth(as_if_shallow)


def check_rms(norm: nn.Module) -> None:
    """Check invariance and the derivative, for a norm of width 6, no eps."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, generator=generator).double()
    gain = norm.gain.detach()
    out = norm(x)
    assert torch.allclose(norm(7 * x), out, rtol=1e-12), "the size matters"
    assert torch.allclose(out, gain * x / x.square().mean().sqrt())
    jacobian = torch.func.jacrev(norm)
    project = torch.eye(6) - torch.outer(x, x) / x.square().sum()
    exact = gain[:, None] * project / x.square().mean().sqrt()
    assert torch.allclose(jacobian(x), exact)
    assert torch.allclose(jacobian(7 * x), exact / 7)


def test_only_the_direction_counts():
    norm = RMSNorm(6, eps=0.0).double()
    norm.gain.data = torch.linspace(0.5, 1.5, 6).double()
    check_rms(norm)


def test_without_the_root_the_size_matters():
    class NoRoot(RMSNorm):
        def forward(self, x):
            return self.gain * x / x.square().mean()  # WRONG: no root

    with pytest.raises(AssertionError, match="the size matters"):
        check_rms(NoRoot(6, eps=0.0).double())


def test_an_epsilon_is_not_invariant():
    with pytest.raises(AssertionError, match="the size matters"):
        check_rms(RMSNorm(6, eps=0.1).double())


def check_rotary(turn: Callable[..., Tensor]) -> None:
    """Check offsets and lengths of turn(x, place), for both pairings."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=generator).double()
    for pairs in ("halves", "neighbours"):
        scores = [
            (turn(q, i, pairs) * turn(k, j, pairs)).sum()
            for i, j in ((7, 3), (104, 100), (5004, 5000))
        ]
        spread = max(scores) - min(scores)
        assert spread < 1e-10, "more than the offset counts"
        assert abs(scores[0] - (q * turn(k, -4, pairs)).sum()) < 1e-12
        assert torch.allclose(turn(q, 9, pairs).norm(), q.norm())


def placed(x: Tensor, place: int, pairs: str) -> Tensor:
    """Return a vector turned by its place."""
    rotary = Rotary(x.shape[-1], pairs=pairs)
    return rotary.rotation(torch.tensor([place]), x.dtype)(x)


def test_scores_see_the_offset_only():
    check_rotary(placed)


def mixed(x: Tensor, place: int, pairs: str) -> Tensor:
    angle = place * frequencies(8).repeat_interleave(2)  # of neighbours
    cos, sin = angle.cos().chunk(2), angle.sin().chunk(2)
    a, b = x.chunk(2, dim=-1)  # WRONG: of halves
    return torch.cat([a * cos[0] - b * sin[0], a * sin[1] + b * cos[1]], -1)


def test_angles_of_one_pairing_do_not_fit_the_other():
    assert torch.allclose(
        mixed(torch.ones(1, 1, 1, 8).double(), 0, ""),
        placed(torch.ones(1, 1, 1, 8).double(), 0, "halves"),
    )
    with pytest.raises(AssertionError, match="more than the offset"):
        check_rotary(mixed)


def check_pairings(order: Tensor) -> None:
    """Check that a permutation of 8 coordinates takes one to the other."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 5, 8, generator=generator).double()
    halves, neighbours = (
        Rotary(8, pairs=pairs).rotation(torch.arange(5), x.dtype)
        for pairs in ("halves", "neighbours")
    )
    same = torch.allclose(halves(x[..., order]), neighbours(x)[..., order])
    assert same, "another permutation"


def test_a_permutation_leads_from_one_to_the_other():
    check_pairings(torch.tensor([0, 2, 4, 6, 1, 3, 5, 7]))


def test_the_inverse_permutation_does_not():
    with pytest.raises(AssertionError, match="another permutation"):
        check_pairings(torch.tensor([0, 4, 1, 5, 2, 6, 3, 7]))


def check_swiglu(candidate: Callable[[nn.Module, Tensor], Tensor]) -> None:
    """Check the formula number by number, and the count of parameters."""
    generator = torch.Generator().manual_seed(0)
    net = SwiGLU(ModernConfig(vocab=2, d_model=6, d_ff=16)).double()
    x = torch.randn(6, generator=generator).double()
    gate, up = net.gate.weight @ x, net.up.weight @ x
    hidden = torch.stack(
        [g / (1 + math.exp(-g)) * u for g, u in zip(gate, up, strict=True)]
    )
    assert torch.allclose(candidate(net, x), net.down.weight @ hidden), "gate"
    assert sum(p.numel() for p in net.parameters()) == 8 * 6**2


@torch.no_grad()
def test_one_copy_gates_the_other():
    check_swiglu(lambda net, x: net(x))


@torch.no_grad()
def test_gate_and_up_are_not_the_same():
    def exchanged(net: SwiGLU, x: Tensor) -> Tensor:
        net.gate, net.up = net.up, net.gate  # WRONG
        out = net(x)
        net.gate, net.up = net.up, net.gate
        return out

    with pytest.raises(AssertionError, match="gate"):
        check_swiglu(exchanged)


def largest_score(layer: MultiHeadAttention, x: Tensor) -> Tensor:
    """Return the largest score of a layer in absolute value."""
    found = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: found.update({name: output})

    for name in ("q_norm", "k_norm"):
        getattr(layer, name).register_forward_hook(keep(name))
    layer(x)
    q, k = found["q_norm"], found["k_norm"]
    return (q @ k.mT).abs().max() / q.shape[-1] ** 0.5


def check_bound(layer: MultiHeadAttention) -> None:
    """Check four heads of width 4, all gains 1, with equal q and k."""
    layer.w_k.weight.data = layer.w_q.weight.data * 1000
    x = 50 * torch.randn(1, 9, 16, generator=torch.Generator().manual_seed(0))
    score = largest_score(layer, x)
    assert score < 2 + 1e-5, "beyond the bound"
    assert score > 2 - 1e-3  # reached where query and key are parallel


@torch.no_grad()
def test_no_score_is_larger_than_the_root_of_the_width():
    torch.manual_seed(0)
    check_bound(grouped(ModernConfig(2, 16, n_heads=4, qk_norm=True)))


@torch.no_grad()
def test_one_norm_for_all_heads_bounds_less():
    class Together(RMSNorm):
        def forward(self, x):
            rows = x.transpose(1, 2).flatten(2)  # WRONG: all heads at once
            rows = RMSNorm(rows.shape[-1])(rows)
            return rows.unflatten(-1, (4, 4)).transpose(1, 2)

    torch.manual_seed(0)
    layer = grouped(ModernConfig(2, 16, n_heads=4, qk_norm=True))
    layer.q_norm, layer.k_norm = Together(4), Together(4)
    with pytest.raises(AssertionError, match="beyond the bound"):
        check_bound(layer)


@torch.no_grad()
def test_without_norms_scores_grow_with_the_weights():
    torch.manual_seed(0)
    with pytest.raises(AssertionError, match="beyond the bound"):
        check_bound(grouped(ModernConfig(2, 16, n_heads=4)))


@torch.no_grad()
def reached(config: ModernConfig) -> Tensor:
    """Return which inputs move which outputs of layers over 20 places."""
    torch.manual_seed(0)
    layers = [grouped(config).double() for _ in range(config.n_layers)]

    def stacked(x: Tensor) -> Tensor:
        for layer in layers:
            x = x + layer(x, causal=True)
        return x

    x = torch.randn(1, 20, config.d_model).double()
    base, columns = stacked(x), []
    for j in range(20):
        moved = x.clone()
        moved[0, j] += 1
        columns.append((stacked(moved) != base).any(-1)[0])
    return torch.stack(columns, dim=1)


def check_reach(window: int) -> None:
    """Check that three layers that should have a window of 4 reach nine back."""
    config = ModernConfig(2, 8, n_layers=3, n_heads=2, d_ff=8, window=window)
    back = torch.arange(20)[:, None] - torch.arange(20)
    exact = (back >= 0) & (back <= 9)
    assert torch.equal(reached(config), exact), "another reach"


def test_three_layers_reach_three_times_as_far():
    check_reach(4)


def test_a_window_that_does_not_count_itself_reaches_farther():
    with pytest.raises(AssertionError, match="another reach"):
        check_reach(4 + 1)  # WRONG: four places and itself


def check_tied(model: LanguageModel) -> None:
    """Check the storage, and the gradient against two tables of equal values."""
    table = model.embed.tokens.weight
    assert model.head.weight.data_ptr() == table.data_ptr(), "a copy"
    two = LanguageModel(replace(model.config, tied=False))
    state = model.state_dict()
    two.load_state_dict(state)
    tokens = torch.arange(6)[None] % 5
    for each in (model, two):
        next_token_losses(each(tokens), tokens).mean().backward()
    both = two.embed.tokens.weight.grad + two.head.weight.grad
    assert torch.allclose(table.grad, both, atol=1e-6)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (model, two)]
    assert sizes[1] - sizes[0] == 5 * 8


TINY = ModernConfig(5, 8, n_layers=1, n_heads=2, d_ff=8)


def test_one_table_gets_both_gradients():
    torch.manual_seed(0)
    check_tied(LanguageModel(TINY))


def test_equal_values_are_not_one_table():
    torch.manual_seed(0)
    model = LanguageModel(TINY)
    model.head.weight = nn.Parameter(model.head.weight.clone())  # WRONG
    with pytest.raises(AssertionError, match="a copy"):
        check_tied(model)


def check_parallel(block: Callable[..., Tensor], parts: nn.Module) -> None:
    """Check a block of these parts against the formula."""
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    y = parts.norm(x)
    exact = x + parts.attention(y, causal=True) + parts.feed_forward(y)
    found = block(x, causal=True)
    assert torch.allclose(found, exact, atol=1e-6), "one after the other"


def test_both_branches_read_the_same_rows():
    torch.manual_seed(0)
    block = ParallelBlock(TINY)
    check_parallel(block, block)


def test_one_branch_after_the_other_is_another_block():
    torch.manual_seed(0)
    parts = ParallelBlock(TINY)

    def in_turn(x: Tensor, causal: bool) -> Tensor:
        x = x + parts.attention(parts.norm(x), causal=causal)
        return x + parts.feed_forward(parts.norm(x))  # WRONG: the new row

    with pytest.raises(AssertionError, match="one after the other"):
        check_parallel(in_turn, parts)
