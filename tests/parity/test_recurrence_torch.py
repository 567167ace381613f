"""The Elman layer, the scores and the soft lookup against what PyTorch ships."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from tangled.attention.recurrence import Elman, LuongScore, soft_lookup


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def twins(d_in, d):
    """Return our layer and PyTorch's with the same weights."""
    torch.manual_seed(0)
    ours = Elman(d_in, d).double()
    theirs = nn.RNN(d_in, d, batch_first=True).double()
    with torch.no_grad():
        ours.w_x.weight.copy_(theirs.weight_ih_l0)
        ours.w_x.bias.copy_(theirs.bias_ih_l0 + theirs.bias_hh_l0)
        ours.w_h.weight.copy_(theirs.weight_hh_l0)
    return ours, theirs


@pytest.mark.parametrize(("d_in", "d", "n"), [(1, 1, 1), (3, 7, 20)])
def test_the_layer_is_that_of_torch(d_in, d, n):
    ours, theirs = twins(d_in, d)
    x, h = noise(4, n, d_in), noise(4, d, seed=1)
    assert_close(ours(x), theirs(x)[0], rtol=1e-12, atol=1e-14)
    with_start = theirs(x, h[None])[0]
    assert_close(ours(x, h), with_start, rtol=1e-12, atol=1e-14)


def test_the_gradients_are_those_of_torch():
    ours, theirs = twins(3, 7)
    x, weight = noise(4, 20, 3), noise(4, 20, 7, seed=1)
    (ours(x) * weight).sum().backward()
    (theirs(x)[0] * weight).sum().backward()
    for mine, reference in (
        (ours.w_x.weight, theirs.weight_ih_l0),
        (ours.w_x.bias, theirs.bias_ih_l0),
        (ours.w_h.weight, theirs.weight_hh_l0),
    ):
        assert_close(mine.grad, reference.grad, rtol=1e-10, atol=1e-12)


def test_the_general_score_is_bilinear():
    score, bilinear = LuongScore(5, "general"), nn.Bilinear(5, 5, 1, False)
    score, bilinear = score.double(), bilinear.double()
    bilinear.weight.data[0] = score.w.weight.data
    q, k = noise(2, 3, 5), noise(2, 4, 5, seed=1)
    shape = (2, 3, 4, 5)
    pairs = q[:, :, None].expand(shape), k[:, None].expand(shape)
    pairs = [pair.contiguous() for pair in pairs]
    assert_close(score(q, k), bilinear(*pairs)[..., 0])


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_a_lookup_with_dot_scores_is_torchs_attention(temperature):
    q, k, v = noise(2, 3, 5), noise(2, 7, 5, seed=1), noise(2, 7, 4, seed=2)
    ours = soft_lookup(LuongScore(5, "dot")(q, k), v, temperature)
    theirs = F.scaled_dot_product_attention(q, k, v, scale=1 / temperature)
    assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
