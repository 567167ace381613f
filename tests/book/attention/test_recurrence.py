"""Checks of the chapter “Why attention?”.

Tangled from book/attention/recurrence.md.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tangled.attention.recurrence import (
    AdditiveScore,
    Elman,
    LuongScore,
    lag_norms,
    soft_lookup,
)


def networks() -> list[tuple[Elman, Tensor]]:
    """Return Elman networks of several sizes of weights, with inputs."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    shear = 0.9 * torch.eye(16) + 2 * torch.eye(16).roll(1, 1).triu()
    noise = torch.randn(16, 16, generator=generator) / 4
    made = []
    for weights in (0.4 * noise, noise, 3 * noise, shear):
        net = Elman(3, 16).double()
        net.w_h.weight.data = weights.double()
        net.w_x.weight.data *= 0.01
        x = torch.randn(12, 3, generator=generator).double()
        made.append((net, x))
    return made


def check_bound(
    size: Callable[[Tensor], Tensor],
    factor: Callable[[Tensor, Tensor], Tensor] = lambda d, w: d[:, None] * w,
) -> None:
    """Check the product of the steps, and its bound by a size of W_h."""
    for net, x in networks():
        states = net(x[None])[0]
        norms = lag_norms(net.step, x, torch.zeros(16).double())
        product = torch.eye(16).double()
        for lag in range(12):
            slope = 1 - states[11 - lag] ** 2  # of tanh, where L = 1
            product = product @ factor(slope, net.w_h.weight)
            found = torch.linalg.matrix_norm(product, ord=2)
            assert abs(norms[lag + 1] / found - 1) < 1e-9, "another product"
            bound = size(net.w_h.weight) ** (lag + 1)
            assert norms[lag + 1] <= bound * (1 + 1e-9), "above the bound"


def test_no_gradient_is_above_the_bound():
    check_bound(lambda weights: torch.linalg.matrix_norm(weights, ord=2))


def largest_eigenvalue(weights):
    return torch.linalg.eigvals(weights).abs().max()  # WRONG: not the norm


def slope_of_the_sigmoid(weights):
    return torch.linalg.matrix_norm(weights, ord=2) / 4  # WRONG: tanh has 1


def slopes_on_the_columns(slope, weights):
    return weights * slope  # WRONG: they belong to the rows


def without_slopes(slope, weights):
    return weights  # WRONG: as if the network were linear


def test_other_sizes_are_no_bounds():
    for wrong in (largest_eigenvalue, slope_of_the_sigmoid):
        with pytest.raises(AssertionError, match="above the bound"):
            check_bound(wrong)


def test_other_factors_make_another_product():
    for wrong in (slopes_on_the_columns, without_slopes):
        with pytest.raises(AssertionError, match="another product"):
            check_bound(torch.linalg.matrix_norm, wrong)


def check_limits(candidate: Callable[..., Tensor]) -> None:
    """Check the bound at all temperatures, and both limits."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(20, 7, generator=generator).double()
    values = torch.randn(20, 7, 3, generator=generator).double()
    order = scores.argsort(-1, descending=True)
    scores = scores.take_along_dim(order, -1)
    gap, far = scores[:, 0] - scores[:, 1], values - values[:, :1]
    unit = torch.eye(7).double().expand(20, 7, 7)  # values that give weights
    for tau in (1e-4, 0.01, 0.1, 1.0, 10.0):
        found = candidate(scores[:, None], values, tau)[:, 0]
        bound = 6 * (-gap / tau).exp() * far.norm(dim=-1).amax(1)
        off = (found - values[:, 0]).norm(dim=-1)
        assert (off <= bound + 1e-12).all(), "not hard when cold"
        one = candidate(scores[:, None], unit, tau)[:, 0, 0]
        bound = 6 * (-gap / tau).exp()
        assert (1 - one <= bound + 1e-12).all(), "not hard when cold"
    hot = candidate(scores[:, None], values, 1e6)[:, 0]
    assert torch.allclose(hot, values.mean(1), atol=1e-5), "not the mean"


def test_cold_is_hard_and_hot_is_the_mean():
    check_limits(soft_lookup)


def inverted(scores, values, temperature):
    return soft_lookup(scores, values, 1 / temperature)  # WRONG: times tau


def without_exponential(scores, values, temperature):
    positive = (scores / temperature).sigmoid()  # WRONG: no softmax
    return positive / positive.sum(-1, keepdim=True) @ values


def never_hot(scores, values, temperature):
    return soft_lookup(scores, values, min(temperature, 0.1))  # WRONG


def test_other_weights_are_not_hard_when_cold():
    for wrong in (inverted, without_exponential):
        with pytest.raises(AssertionError, match="not hard"):
            check_limits(wrong)
    with pytest.raises(AssertionError, match="not the mean"):
        check_limits(never_hot)


def check_concat(join: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check that a joined matrix makes the concat score additive."""
    torch.manual_seed(0)
    additive, concat = AdditiveScore(6), LuongScore(6, "concat")
    concat.w.weight.data = join(additive.w_q.weight, additive.w_k.weight)
    concat.u.weight.data = additive.u.weight
    q, k = torch.randn(2, 4, 6), torch.randn(2, 5, 6)
    same = torch.allclose(concat(q, k), additive(q, k), atol=1e-6)
    assert same, "another score"


def test_the_concat_score_is_the_additive_one():
    check_concat(lambda w_q, w_k: torch.cat([w_q, w_k], 1))


def keys_first(w_q, w_k):
    return torch.cat([w_k, w_q], 1)  # WRONG: the query stands above


def test_the_blocks_must_stand_in_order():
    with pytest.raises(AssertionError, match="another score"):
        check_concat(keys_first)
