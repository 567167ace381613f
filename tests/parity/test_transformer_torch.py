"""Blocks, the whole model and the smoothed loss against those of PyTorch."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from tangled.attention.transformer import (
    Block,
    EncoderDecoder,
    TransformerConfig,
    smoothed_cross_entropy,
)
from tangled.workshop.checkpoint import match_keys

# PyTorch says that it will not use a fast path.
pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor")
CONFIG = {"d_model": 24, "n_layers": 2, "n_heads": 3, "d_ff": 50}
BOTH = ("weight", "bias")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


def attention_keys(theirs, ours):
    """Return the rows of the key map for one attention."""
    rows = {}
    for kind in BOTH:
        parts = tuple(f"{ours}.{w}.{kind}" for w in ("w_q", "w_k", "w_v"))
        rows[f"{theirs}.in_proj_{kind}"] = parts
        rows[f"{theirs}.out_proj.{kind}"] = f"{ours}.w_o.{kind}"
    return rows


def block_keys(cross, theirs="", ours=""):
    """Return the key map of a layer of nn.Transformer."""
    rows = attention_keys(f"{theirs}self_attn", f"{ours}attention")
    names = [("norm1", "attention_norm"), ("linear1", "feed_forward.up")]
    names += [("linear2", "feed_forward.down")]
    if cross:
        rows |= attention_keys(f"{theirs}multihead_attn", f"{ours}cross")
        names += [("norm2", "cross_norm"), ("norm3", "feed_forward_norm")]
    else:
        names += [("norm2", "feed_forward_norm")]
    for a, b in names:
        rows |= {f"{theirs}{a}.{kind}": f"{ours}{b}.{kind}" for kind in BOTH}
    return rows


def scattered(module, dtype):
    """Give a module weights, gains and shifts that nobody would guess."""
    draw = torch.Generator().manual_seed(1)
    for name, p in module.named_parameters():
        middle = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        noise = torch.randn(p.shape, generator=draw)
        scale = 0.1 if p.ndim < 2 else p.shape[-1] ** -0.5
        p.data = middle + scale * noise
    return module.to(dtype).eval()


def noise(*shape, seed=0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)


def compare(found, expected):
    """Outputs of order one, equal absolutely and relatively."""
    limit = TOLERANCE[expected.dtype]
    assert 0.1 < expected.square().mean().sqrt() < 10
    gap = (found - expected).abs().max().item()
    assert gap < limit * expected.abs().max().item(), gap
    assert gap < 5 * limit, gap


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("act", ["relu", "gelu"])
def test_a_block_is_an_encoder_layer(dtype, first, act):
    theirs = nn.TransformerEncoderLayer(
        24, 3, 50, 0.0, act, batch_first=True, norm_first=first
    )
    theirs = scattered(theirs, dtype)
    config = TransformerConfig(
        9, **CONFIG, norm_first=first, feed_forward=act, dropout=0.0
    )
    ours = Block(config).to(dtype).eval()
    ours.load_state_dict(
        match_keys(ours, theirs.state_dict(), block_keys(False))
    )
    x = noise(4, 7, 24, dtype=dtype).requires_grad_()
    real = torch.arange(7) < torch.tensor([[7], [5], [1], [4]])
    expected = theirs(x, src_key_padding_mask=~real)
    found = ours(x, mask=real[:, None, None, :])
    compare(found[real], expected[real])
    future = torch.ones(7, 7, dtype=torch.bool).triu(1)
    expected = theirs(x, src_mask=future)
    found = ours(x, causal=True)
    compare(found, expected)
    wanted = noise(4, 7, 24, seed=2, dtype=dtype)
    [there] = torch.autograd.grad((expected * wanted).sum(), x)
    [here] = torch.autograd.grad((found * wanted).sum(), x)
    compare(here, there)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("first", [False, True])
def test_a_block_with_cross_attention_is_a_decoder_layer(dtype, first):
    theirs = nn.TransformerDecoderLayer(
        24, 3, 50, 0.0, batch_first=True, norm_first=first
    )
    theirs = scattered(theirs, dtype)
    config = TransformerConfig(9, **CONFIG, norm_first=first, dropout=0.0)
    ours = Block(config, cross=True).to(dtype).eval()
    ours.load_state_dict(
        match_keys(ours, theirs.state_dict(), block_keys(True))
    )
    x, memory = (
        noise(3, 5, 24, dtype=dtype),
        noise(3, 8, 24, seed=1, dtype=dtype),
    )
    real = torch.arange(8) < torch.tensor([[8], [3], [6]])
    future = torch.ones(5, 5, dtype=torch.bool).triu(1)
    expected = theirs(
        x, memory, tgt_mask=future, memory_key_padding_mask=~real
    )
    found = ours(x, memory, memory_mask=real[:, None, None, :], causal=True)
    compare(found, expected)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("first", [False, True])
def test_the_whole_model_is_the_one_of_pytorch(dtype, first):
    """Theirs has a norm after each stack in any case: ours gets it by hand."""
    theirs = nn.Transformer(
        24, 3, 2, 2, 50, 0.0, batch_first=True, norm_first=first
    )
    theirs = scattered(theirs, dtype)
    config = TransformerConfig(9, **CONFIG, norm_first=first, dropout=0.0)
    ours = EncoderDecoder(config).to(dtype).eval()
    keys = block_keys(False, "encoder.layers.#.", "encoder.blocks.#.")
    keys |= block_keys(True, "decoder.layers.#.", "decoder.blocks.#.")
    for stack in ("encoder", "decoder"):
        if not first:
            getattr(ours, stack).norm = nn.LayerNorm(24).to(dtype)
    tensors = theirs.state_dict()
    extra = {"embed.tokens.weight": noise(9, 24, dtype=dtype)}
    extra["head.bias"] = noise(9, dtype=dtype)
    ours.load_state_dict(match_keys(ours, tensors | extra, keys))
    source = torch.randint(
        9, (3, 8), generator=torch.Generator().manual_seed(0)
    )
    tokens = torch.randint(
        9, (3, 5), generator=torch.Generator().manual_seed(1)
    )
    real = torch.arange(8) < torch.tensor([[8], [3], [6]])
    future = torch.ones(5, 5, dtype=torch.bool).triu(1)
    rows = [
        ours.embed(t, torch.arange(t.shape[1])) / 3 for t in (source, tokens)
    ]
    expected = theirs(
        *rows,
        tgt_mask=future,
        src_key_padding_mask=~real,
        memory_key_padding_mask=~real,
    )
    mask = real[:, None, None, :]
    memory = ours.encoder(rows[0], mask=mask)
    found = ours.decoder(rows[1], memory, None, mask)
    compare(found, expected)


def test_the_first_weights_are_those_of_pytorch():
    """Both draw matrices with the variance of Glorot and Bengio."""
    torch.manual_seed(0)
    theirs = nn.Transformer(96, 2, 1, 1, 200)
    config = TransformerConfig(9, 96, 1, 2, 200)
    ours = EncoderDecoder(config)
    for a, b in (
        (
            theirs.encoder.layers[0].linear1,
            ours.encoder.blocks[0].feed_forward.up,
        ),
        (
            theirs.decoder.layers[0].linear2,
            ours.decoder.blocks[0].feed_forward.down,
        ),
    ):
        n = a.weight.numel()
        squares = [w.weight.double().square() for w in (a, b)]
        gap = (squares[0].mean() - squares[1].mean()).item()
        spread = math.sqrt(sum(s.var().item() for s in squares) / n)
        assert abs(gap) < 5 * spread


@pytest.mark.parametrize("doubt", [0.0, 0.1, 0.9])
def test_the_smoothed_loss(doubt):
    logits = noise(40, 13)
    target = torch.randint(
        13, (40,), generator=torch.Generator().manual_seed(0)
    )
    theirs = F.cross_entropy(
        logits, target, reduction="none", label_smoothing=doubt
    )
    ours = smoothed_cross_entropy(logits, target, doubt)
    assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
