"""Laws of many heads, for every variant of the layer, and what it refuses."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from tangled.attention.multi_head import (
    MultiHeadAttention,
    induction_score,
    merge,
    previous_score,
    self_attention,
    split,
    without_heads,
)
from tangled.attention.scaled_dot_product import visible

# Every variant of a causal layer of width 12.
VARIANTS = {
    "dense": {},
    "no bias": {"bias": False},
    "one head": {"n_heads": 1},
    "wide heads": {"d_head": 10},
    "window": {"window": 3},
    "window of one": {"window": 1},
    "grouped": {"n_kv_heads": 2},
    "one for all": {"n_kv_heads": 1},
    "normalised": {"norm": nn.LayerNorm},
    "all": {
        "n_kv_heads": 3,
        "d_head": 4,
        "window": 4,
        "norm": nn.LayerNorm,
        "bias": False,
    },
}


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def made(seed=0, n_heads=6, d_model=12, **options):
    torch.manual_seed(seed)
    layer = MultiHeadAttention(d_model, n_heads, **options).double().eval()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return layer


def rotation(places):
    """Return a function that turns each half of a head by its place."""

    def rotate(x):
        angle = places.double()[:, None] / 3
        one, two = x.chunk(2, -1)
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([cos * one - sin * two, sin * one + cos * two], -1)

    return rotate


class Kept:
    """The smallest cache: a list of what was read."""

    def __init__(self):
        self.k, self.v = [], []

    def keys_values(self, layer, read, rotate):
        k, v = layer.keys_values(read, rotate)
        self.k.append(k)
        self.v.append(v)
        return torch.cat(self.k, 2), torch.cat(self.v, 2)


def in_parts(layer, x, cuts, rotated=False):
    """Return the layer's output, with a cache, a part at a time."""
    cache, found = Kept(), []
    for start, stop in zip((0, *cuts), (*cuts, x.shape[1]), strict=True):
        turn = rotation(torch.arange(start, stop)) if rotated else None
        part = x[:, start:stop]
        found.append(layer(part, causal=True, rotate=turn, cache=cache))
    return torch.cat(found, 1)


@pytest.mark.verifies("prop-causality")
@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("cuts", [None, (4,), (1, 2, 3, 4, 5, 6, 7, 8)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_future_changes_no_bit_of_any_variant(variant, cuts, rotated):
    layer, x = made(**VARIANTS[variant]), noise(2, 9, 12)
    turn = rotation(torch.arange(9)) if rotated else None
    if turn and layer.d_head % 2:
        return

    def run(rows):
        if cuts is None:
            return layer(rows, causal=True, rotate=turn)
        return in_parts(layer, rows, cuts, rotated)

    before = run(x)
    for j in range(1, 9):
        other = torch.cat([x[:, :j], noise(2, 9 - j, 12, seed=j)], 1)
        after = run(other)
        assert torch.equal(after[:, :j], before[:, :j])
        assert (after[:, j] != before[:, j]).any()


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_cache_changes_nothing(variant, rotated):
    layer, x = made(**VARIANTS[variant]), noise(2, 9, 12)
    if rotated and layer.d_head % 2:
        return
    turn = rotation(torch.arange(9)) if rotated else None
    whole = layer(x, causal=True, rotate=turn)
    for cuts in ((4,), (1, 6), tuple(range(1, 9))):
        found = in_parts(layer, x, cuts, rotated)
        assert_close(found, whole, rtol=0, atol=1e-13)


@pytest.mark.verifies("prop-permutation-equivariance")
@pytest.mark.parametrize(
    "variant", [v for v in VARIANTS if "window" not in VARIANTS[v]]
)
def test_every_variant_without_order_is_equivariant(variant):
    layer, x = made(**VARIANTS[variant]), noise(2, 9, 12)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    mask = noise(2, 1, 9, 9, seed=5) > -0.5
    for seen in (None, mask):
        moved = seen if seen is None else seen[:, :, order][..., order]
        found = layer(x[:, order], mask=moved)
        exact = layer(x, mask=seen)[:, order]
        assert_close(found, exact, rtol=0, atol=1e-13)


@pytest.mark.verifies("prop-permutation-equivariance")
def test_what_is_read_may_be_shuffled():
    layer, context = made(d_context=5), noise(2, 7, 5, seed=1)
    x, order = noise(2, 4, 12), torch.tensor([6, 2, 0, 5, 1, 3, 4])
    mask = noise(2, 1, 1, 7, seed=2) > -0.5
    found = layer(x, context[:, order], mask[..., order])
    assert_close(found, layer(x, context, mask), rtol=0, atol=1e-13)


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_and_contributions_belong_to_the_output(variant):
    layer, x = made(**VARIANTS[variant]), noise(2, 9, 12)
    mask, turn = torch.ones(2, 1, 1, 9).bool(), None
    mask[1, ..., 3] = False
    if layer.d_head % 2 == 0:
        turn = rotation(torch.arange(9))
    given_ = {"mask": mask, "causal": True, "rotate": turn}
    out, weights = layer(x, **given_), layer.weights(x, **given_)
    total = layer.contributions(x, **given_).sum(1)
    if layer.w_o.bias is not None:
        total = total + layer.w_o.bias
    assert_close(total, out, rtol=0, atol=1e-13)
    _, v = layer.keys_values(x, turn)
    v = v.repeat_interleave(layer.n_heads // layer.n_kv_heads, 1)
    assert_close(layer.w_o(merge(weights @ v)), out, rtol=0, atol=1e-13)
    reads = torch.ones_like(weights[..., 0])
    if layer.window == 1:
        reads[1, :, 3] = 0  # its only key is hidden
    assert_close(weights.sum(-1), reads)
    assert not weights[1, ..., 3].any()
    assert not weights.triu(1).any()
    if layer.window:
        assert not weights.tril(-layer.window).any()


@pytest.mark.verifies("prop-head-decomposition")
@given(st.sampled_from([1, 2, 3, 4, 6]), st.integers(1, 5), st.booleans())
def test_a_layer_is_plain_heads_side_by_side(h, n, causal):
    layer, x = made(n_heads=h, bias=False, d_head=3), noise(1, n, 12)
    q, k, v, o = (getattr(layer, f"w_{name}").weight for name in "qkvo")
    total = 0
    for r in range(h):
        own = slice(3 * r, 3 * r + 3)
        head = self_attention(x, q[own].T, k[own].T, v[own].T, None, causal)
        total = total + head @ o[:, own].T
    assert_close(layer(x, causal=causal), total, rtol=0, atol=1e-13)


@pytest.mark.verifies("prop-grouped-heads")
@pytest.mark.parametrize("kv", [1, 2, 3, 6])
def test_gradients_of_a_group_are_sums(kv):
    layer, full, x = made(n_kv_heads=kv), made(), noise(2, 5, 12)
    state = layer.state_dict()
    for name in ("w_k.weight", "w_k.bias", "w_v.weight", "w_v.bias"):
        heads = state[name].unflatten(0, (kv, -1))
        heads = heads.repeat_interleave(6 // kv, 0)
        state[name] = heads.flatten(0, 1)
    full.load_state_dict(state)
    for one in (layer, full):
        one(x).square().sum().backward()
    exact = full.w_k.weight.grad.unflatten(0, (kv, 6 // kv, -1)).sum(1)
    assert_close(layer.w_k.weight.grad, exact.flatten(0, 1))


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_merge_undoes_split(heads, width, n):
    x = noise(2, n, heads * width)
    cut = split(x, heads)
    assert cut.shape == (2, heads, n, width)
    for r in range(heads):
        assert torch.equal(cut[:, r], x[..., r * width : (r + 1) * width])
    assert torch.equal(merge(cut), x)


def test_a_row_that_may_read_nothing_gets_the_bias():
    layer, x = made(), noise(2, 5, 12).requires_grad_()
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[2] = False
    out = layer(x, mask=mask)
    assert_close(out[:, 2], layer.w_o.bias.expand(2, -1))
    out.sum().backward()
    assert x.grad.isfinite().all()


def test_hidden_padding_is_as_if_it_were_not_there():
    layer, context = made(d_context=7), noise(2, 6, 7)
    x, mask = noise(2, 4, 12, seed=1), torch.ones(2, 1, 1, 6).bool()
    mask[1, ..., 4:] = False
    found = layer(x, context, mask)
    assert_close(found[1:], layer(x[1:], context[1:, :4]))
    other = context.clone()
    other[1, 4:] = 100.0
    assert torch.equal(layer(x, other, mask), found)


def test_dropout_acts_in_training_alone():
    layer, x = made(dropout=0.5), noise(2, 5, 12)
    assert torch.equal(layer(x), layer(x))
    assert_close(layer(x), made()(x))
    layer.train()
    assert not torch.equal(layer(x), layer(x))
    wide = x[:1].expand(4000, -1, -1)
    torch.manual_seed(0)
    inner = layer.heads(wide).mean(0)
    exact = layer.eval().heads(x[:1])[0]
    assert (inner - exact).abs().max() < 0.1


def test_queries_and_keys_are_normalised_head_by_head():
    layer, x = made(norm=nn.LayerNorm), noise(1, 5, 12)
    assert layer.q_norm.normalized_shape == (2,)
    scaled = made(norm=nn.LayerNorm)
    with torch.no_grad():
        for linear in (scaled.w_q, scaled.w_k):
            linear.weight.mul_(1e4)
            linear.bias.mul_(1e4)
        for linear in (layer.w_q, layer.w_k):
            linear.weight.mul_(1e3)
            linear.bias.mul_(1e3)
    assert_close(scaled(x), layer(x), rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_and_shape_follow_the_input(dtype):
    layer = MultiHeadAttention(12, 6, n_kv_heads=2).to(dtype)
    for n in (1, 4):
        out = layer(torch.randn(3, n, 12, dtype=dtype), causal=True)
        assert (out.dtype, out.shape) == (dtype, (3, n, 12))


def test_keys_of_parameters():
    layer = MultiHeadAttention(12, 6, n_kv_heads=2, d_context=5, d_head=4)
    shapes = {n: tuple(p.shape) for n, p in layer.named_parameters()}
    assert shapes == {
        "w_q.weight": (24, 12),
        "w_q.bias": (24,),
        "w_k.weight": (8, 5),
        "w_k.bias": (8,),
        "w_v.weight": (8, 5),
        "w_v.bias": (8,),
        "w_o.weight": (12, 24),
        "w_o.bias": (12,),
    }


@pytest.mark.verifies("eq-head-scores")
def test_scores_against_plain_loops():
    tokens = torch.randint(
        4, (3, 8), generator=torch.Generator().manual_seed(1)
    )
    weights = noise(3, 2, 8, 8).masked_fill(
        ~visible(8, 8, causal=True), -math.inf
    )
    weights = weights.softmax(-1)
    for h in range(2):
        before, after = [], []
        for b in range(3):
            for i in range(8):
                row = weights[b, h, i]
                if i:
                    before.append(row[i - 1])
                own = tokens[b, :i] == tokens[b, i]
                if own.any():
                    after.append(row[1 : i + 1][own].sum())
        exact = torch.stack(before).mean(), torch.stack(after).mean()
        assert_close(previous_score(weights)[h], exact[0])
        assert_close(induction_score(weights, tokens)[h], exact[1])


def test_without_heads_is_the_sum_of_the_others():
    layer, x = made(n_kv_heads=2), noise(2, 5, 12)
    parts, bias = layer.contributions(x), layer.w_o.bias
    kept = layer.w_o.weight.clone()
    with without_heads(layer, 1, 4):
        left = parts[:, [0, 2, 3, 5]].sum(1) + bias
        assert_close(layer(x), left, rtol=0, atol=1e-13)
    assert torch.equal(layer.w_o.weight, kept)
    with pytest.raises(KeyError), without_heads(layer, 0):
        raise KeyError
    assert torch.equal(layer.w_o.weight, kept)
    for head in (-1, 6):
        with (
            pytest.raises(IndexError, match=r"head must lie in 0\.\.5"),
            without_heads(layer, head),
        ):
            pass


@pytest.mark.usefixtures("plain_errors")
@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ((12, 5), {}, r"n_heads must divide d_model .* got 5 and 12"),
        ((12, 0), {}, r"n_heads must be a whole number from 1 on, got 0"),
        ((0, 1), {}, r"d_model must be a whole number"),
        ((12, 2.0), {}, r"n_heads must be a whole number"),
        ((12, 6), {"n_kv_heads": 4}, r"n_kv_heads must divide n_heads"),
        ((12, 6), {"n_kv_heads": 0}, r"n_kv_heads must be a whole"),
        ((12, 6), {"n_kv_heads": 12}, r"n_kv_heads must divide n_heads"),
        ((12, 6), {"d_head": 0}, r"d_head must be a whole number"),
        ((12, 6), {"d_context": 0}, r"d_context must be a whole number"),
        ((12, 6), {"window": 0}, r"window must be a whole number"),
        ((12, 6), {"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ((12, 6), {"dropout": -0.1}, r"dropout must lie in \[0, 1\)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, options, message):
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(*sizes, **options)


@pytest.mark.usefixtures("plain_errors")
def test_inputs_that_do_not_fit_are_refused():
    layer, x = made(), noise(2, 5, 12)
    for wrong in (x[..., :11], x[0], x[None]):
        with pytest.raises(ValueError, match=r"x must be \[B, n, 12\]"):
            layer(wrong)
    with pytest.raises(ValueError, match=r"what is read must be .* 12\]"):
        layer(x, noise(2, 5, 7))
    with pytest.raises(ValueError, match=r"one batch, got 2 and 1"):
        layer(x, x[:1])
    with pytest.raises(TypeError, match=r"True means"):
        layer(x, mask=torch.ones(5, 5))
    with pytest.raises(ValueError, match=r"must broadcast"):
        layer(x, mask=torch.ones(4, 5).bool())
    with pytest.raises(ValueError, match=r"n must not exceed m"):
        layer(x, x[:, :3], causal=True)
    with pytest.raises(ValueError, match=r"needs causal"):
        made(window=3)(x)
