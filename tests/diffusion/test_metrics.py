"""Laws of the three measurements of samples."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tangled.diffusion.metrics import (
    judge_accuracy,
    nearest,
    sliced_wasserstein,
)


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.verifies("eq-sliced-wasserstein")
def test_the_distance_is_a_distance():
    x, y, z = drawn(200, 6), 2 * drawn(200, 6, seed=1), drawn(200, 6, seed=2)

    def d(a, b):
        return sliced_wasserstein(a, b, seeded(3))

    assert d(x, x) == 0 < d(x, y)
    assert d(x, y) == pytest.approx(d(y, x))
    assert d(x, z) <= d(x, y) + d(y, z)
    assert d(3 * x, 3 * y) == pytest.approx(3 * d(x, y))


@pytest.mark.verifies("eq-sliced-wasserstein")
def test_in_one_dimension_it_is_the_mean_distance_of_sorted_pairs():
    x, y = drawn(100, 1), drawn(100, 1, seed=1)
    expected = (x.sort(0).values - y.sort(0).values).abs().mean().item()
    assert sliced_wasserstein(x, y, seeded(), 7) == pytest.approx(expected)


@pytest.mark.verifies("eq-sliced-wasserstein")
def test_pictures_in_float32_are_measured_in_float64():
    x, y = drawn(50, 1, 2, 3).float(), drawn(50, 1, 2, 3, seed=1).float()
    expected = sliced_wasserstein(x.double(), y.double(), seeded())
    assert sliced_wasserstein(x, y, seeded()) == expected


@pytest.mark.verifies("prop-sorted-pairs")
def test_no_other_pairing_is_better():
    scipy = pytest.importorskip("scipy.optimize")
    x, y = drawn(40, 1), drawn(40, 1, seed=1) ** 3
    cost = torch.cdist(x, y).numpy()
    rows, columns = scipy.linear_sum_assignment(cost)
    best = cost[rows, columns].mean()
    assert sliced_wasserstein(x, y, seeded(), 3) == pytest.approx(best)


def test_the_distance_refuses_samples_that_are_not_alike(plain_errors):
    with pytest.raises(ValueError, match="alike in number and shape"):
        sliced_wasserstein(drawn(5, 2), drawn(6, 2))


def test_the_nearest_of_a_sample_in_the_data_is_itself():
    data = drawn(50, 1, 3, 3)
    gap, which = nearest(data[[4, 30]] + 1e-9, data)
    assert which.tolist() == [4, 30]
    assert gap.max() < 1e-7
    x = drawn(20, 1, 3, 3, seed=1)
    gap, which = nearest(x, data)
    assert_close(gap, (x - data[which]).flatten(1).norm(dim=1))
    each = (x[:, None] - data).flatten(2).norm(dim=2)
    assert_close(gap, each.min(1).values)


class Sign(nn.Module):
    """Class 1 where the mean is positive; wrong while in training mode."""

    def forward(self, x0):
        mean = x0.mean((1, 2, 3)) * (-1 if self.training else 1)
        return torch.stack([-mean, mean], 1)


def test_the_judge_is_asked_in_evaluation_mode_in_parts():
    judge, x0 = Sign(), drawn(1203, 1, 2, 2)
    labels = (x0.mean((1, 2, 3)) > 0).long()
    assert judge_accuracy(judge, x0, labels) == 1.0
    assert judge.training
    labels[:601] = 1 - labels[:601]
    assert judge_accuracy(judge, x0, labels) == pytest.approx(602 / 1203)
