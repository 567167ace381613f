"""Our layer against nn.MultiheadAttention, with its weights."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tangled.attention.multi_head import MultiHeadAttention

CLOSE = {torch.float32: 1e-6, torch.float64: 1e-12}


def pair(dtype, heads=6, bias=True, width=None):
    """Return the library's layer and ours, with equal weights."""
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(
        12, heads, bias=bias, kdim=width, vdim=width, batch_first=True
    ).to(dtype)
    ours = MultiHeadAttention(12, heads, bias=bias, d_context=width).to(dtype)
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.2 * torch.randn_like(p))
        names = ("w_q", "w_k", "w_v")
        if width is None:
            weights = theirs.in_proj_weight.chunk(3)
        else:
            weights = [getattr(theirs, f"{n}_proj_weight") for n in "qkv"]
        for name, weight in zip(names, weights, strict=True):
            getattr(ours, name).weight.copy_(weight)
        ours.w_o.weight.copy_(theirs.out_proj.weight)
        if bias:
            biases = theirs.in_proj_bias.chunk(3)
            for name, value in zip(names, biases, strict=True):
                getattr(ours, name).bias.copy_(value)
            ours.w_o.bias.copy_(theirs.out_proj.bias)
    return theirs.eval(), ours.eval()


@pytest.mark.parametrize("dtype", list(CLOSE))
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("heads", [1, 3, 6])
@pytest.mark.parametrize("kind", ["plain", "causal", "padding", "cross"])
def test_outputs_weights_and_gradients(kind, heads, bias, dtype):
    width = 7 if kind == "cross" else None
    theirs, ours = pair(dtype, heads, bias, width)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 8, 12, generator=generator).to(dtype)
    read, m = x, 8
    if kind == "cross":
        read = torch.randn(3, 5, 7, generator=generator).to(dtype)
        m = 5
    them, us = {}, {}
    if kind == "causal":
        them = {"attn_mask": torch.ones(8, 8).triu(1).bool()}  # True = hidden
        us = {"causal": True}
    if kind in ("padding", "cross"):
        hidden = torch.zeros(3, m).bool()
        hidden[1, 3:] = True
        them = {"key_padding_mask": hidden}
        us = {"mask": ~hidden[:, None, None]}  # True = may be read
    rows = [x.clone().requires_grad_() for _ in range(2)]
    if kind == "cross":
        us["context"] = read
    out, weights = theirs(
        rows[0],
        read if kind == "cross" else rows[0],
        read if kind == "cross" else rows[0],
        average_attn_weights=False,
        **them,
    )
    found = ours(rows[1], **us)
    close = {"rtol": 0, "atol": CLOSE[dtype]}
    assert 0.1 < out.abs().mean() < 10
    assert_close(found, out, **close)
    assert_close(ours.weights(rows[1], **us), weights, **close)
    for total in (out, found):
        total.square().mean().backward()
    assert_close(rows[1].grad, rows[0].grad, **close)
    grad = theirs.out_proj.weight.grad
    assert_close(ours.w_o.weight.grad, grad, **close)


def test_the_opposite_polarity_is_another_layer():
    theirs, ours = pair(torch.float64)
    x = torch.randn(2, 6, 12, dtype=torch.float64)
    hidden = torch.ones(6, 6).triu(1).bool()
    out = theirs(x, x, x, attn_mask=hidden)[0]
    assert_close(ours(x, mask=~hidden), out, rtol=0, atol=1e-12)
    assert (ours(x, mask=hidden) - out).abs().max() > 0.1
