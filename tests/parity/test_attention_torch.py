"""Attention beside torch's own: the fused function, its biases, and MultiheadAttention."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from tangled.attention.scaled_dot_product import (
    attention,
    attention_weights,
    tiled_attention,
)

WAYS = {
    "library": attention,
    "equation": lambda *a, **o: attention(*a, **o, fast=False),
    "tiles": lambda *a, **o: tiled_attention(*a, **o, tile=16),
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


def parts(dtype, n=37, m=53, h_kv=6):
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 6, n, 20), (2, h_kv, m, 20), (2, h_kv, m, 12)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in shapes
    ]


@pytest.mark.parametrize("h_kv", [1, 2, 6])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_forward_and_gradients_are_those_of_the_library(
    dtype, way, masked, h_kv
):
    ours, theirs = (
        [part.requires_grad_() for part in parts(dtype, h_kv=h_kv)]
        for _ in range(2)
    )
    mask = None
    if masked:
        generator = torch.Generator().manual_seed(1)
        mask = torch.rand(2, 1, 37, 53, generator=generator) < 0.5
    with sdpa_kernel(SDPBackend.MATH):
        expected = F.scaled_dot_product_attention(
            *theirs, mask, enable_gqa=h_kv != 6
        )
    found = WAYS[way](*ours, mask)
    assert found.dtype == dtype
    assert (found - expected).abs().max() < TOLERANCE[dtype]
    expected.sin().sum().backward()
    found.sin().sum().backward()
    for one, two in zip(ours, theirs, strict=True):
        scale = two.grad.abs().max()
        assert (one.grad - two.grad).abs().max() < TOLERANCE[
            dtype
        ] * 4 * scale


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_causal_is_is_causal_of_a_square(dtype, way):
    q, k, v = parts(dtype, 53)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    found = WAYS[way](q, k, v, causal=True)
    assert (found - expected).abs().max() < TOLERANCE[dtype]


@pytest.mark.parametrize("way", WAYS)
def test_causal_with_fewer_queries_is_the_lower_right_bias(way):
    q, k, v = parts(torch.float64)
    bias = causal_lower_right(37, 53)
    expected = F.scaled_dot_product_attention(q, k, v, bias)
    found = WAYS[way](q, k, v, causal=True)
    assert (found - expected).abs().max() < 1e-12


def test_the_library_aligns_to_the_first_keys():
    """The pitfall of the chapter: one query and a cache of five."""
    q, k, v = parts(torch.float64, 1, 5)
    theirs = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.equal(theirs, v[:, :, :1])
    ours = attention(q, k, v, causal=True)
    whole = F.scaled_dot_product_attention(q, k, v)
    assert torch.equal(ours, whole)


def test_multihead_attention_has_the_other_polarity():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 7, 8, generator=generator, dtype=torch.float64)
    module = torch.nn.MultiheadAttention(
        8, 2, bias=False, batch_first=True, dtype=torch.float64
    )
    may = torch.rand(7, 7, generator=generator) < 0.5
    may |= torch.eye(7).bool()
    _, theirs = module(x, x, x, attn_mask=~may, average_attn_weights=False)
    w_q, w_k, _ = module.in_proj_weight.chunk(3)
    q, k = (
        (x @ w.mT).unflatten(2, (2, 4)).transpose(1, 2) for w in (w_q, w_k)
    )
    ours = attention_weights(q, k, may)
    assert (ours - theirs).abs().max() < 1e-12
    wrong = attention_weights(q, k, ~may)
    assert (wrong - theirs).abs().max() > 0.1


@pytest.mark.parametrize(
    "backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_library_gives_zeros_where_nothing_may_be_read(dtype, backend):
    """What the fast path relies on, in each way in which torch computes it."""
    q, k, v = (part[..., :12].requires_grad_() for part in parts(dtype, 53))
    mask = torch.ones(2, 1, 53, 53, dtype=torch.bool)
    mask[0, 0, 7] = False
    with sdpa_kernel(backend):
        found = attention(q, k, v, mask)
    assert (found[0, :, 7] == 0).all()
    found.float().square().sum().backward()
    assert (q.grad[0, :, 7] == 0).all()
    for leaf in (q, k, v):
        assert leaf.grad.isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", WAYS)
def test_on_an_accelerator_all_ways_are_the_equation(way, dtype, causal):
    q, k, v = parts(torch.float64, 53, h_kv=2)
    mask = torch.ones(2, 1, 53, 53, dtype=torch.bool)
    mask[0, 0, 7], mask[1, 0, :, 40:] = False, False
    expected = attention(q, k, v, mask, causal, fast=False)
    leaves = [part.to("cuda", dtype).requires_grad_() for part in (q, k, v)]
    found = WAYS[way](*leaves, mask.cuda(), causal)
    unit = torch.finfo(dtype).eps
    assert (found.cpu().double() - expected).abs().max() < 40 * unit
    assert (found[0, :, 7] == 0).all()
    found.float().square().sum().backward()
    for leaf in leaves:
        assert leaf.grad.isfinite().all()
