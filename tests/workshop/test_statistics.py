"""Laws of scores and intervals, and what they refuse."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, norm

from tangled.workshop.statistics import standard_score, wilson_interval

counts = st.integers(1, 2000).flatmap(
    lambda n: st.tuples(st.integers(0, n), st.just(n))
)


@pytest.mark.verifies("eq-standard-score")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_score_counts_standard_errors(dtype):
    values = torch.tensor([1.0, 2, 3, 6], dtype=dtype)
    z = standard_score(values, 2.0)
    assert isinstance(z, float)
    assert abs(z - math.sqrt(12 / 14)) < 1e-6
    assert standard_score(-values, -2.0) == -z
    assert abs(standard_score(10 * values + 5, 25.0) - z) < 1e-6
    assert standard_score(values, 3.0) == 0


def test_the_score_of_true_claims_is_nearly_standard_normal():
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(2000, 200, generator=generator, dtype=torch.float64)
    z = torch.tensor([standard_score(row, 0.5) for row in draws])
    assert abs(standard_score(z, 0.0)) < 5
    assert abs(z.var().item() - 1) < 0.15
    assert z.abs().max() < 5


@pytest.mark.verifies("prop-wilson")
@given(counts, st.floats(0.01, 0.999))
def test_the_interval_holds_the_score_lies_in_the_unit_and_mirrors(
    count, confidence
):
    correct, n = count
    low, high = wilson_interval(correct, n, confidence)
    assert 0 <= low <= correct / n + 1e-12
    assert correct / n - 1e-12 <= high <= 1
    mirrored = wilson_interval(n - correct, n, confidence)
    assert abs(low - (1 - mirrored[1])) < 1e-12
    assert abs(high - (1 - mirrored[0])) < 1e-12


@given(counts)
def test_more_confidence_is_wider_and_more_pictures_are_narrower(count):
    correct, n = count
    low, high = wilson_interval(correct, n)
    wide_low, wide_high = wilson_interval(correct, n, 0.99)
    assert wide_low <= low
    assert wide_high >= high
    four = wilson_interval(4 * correct, 4 * n)
    assert four[1] - four[0] < high - low


@pytest.mark.verifies("eq-standard-score")
def test_a_claimed_deviation_is_the_unit():
    values = torch.tensor([1.0, 2, 3, 6])
    assert abs(standard_score(values, 2.0, std=4.0) - 0.5) < 1e-12
    rare = torch.zeros(1000, dtype=torch.float64)
    std = math.sqrt(1e-4 * (1 - 1e-4))
    assert abs(standard_score(rare, 1e-4, std) + 0.3162) < 1e-3


@pytest.mark.refutes("eq-standard-score")
def test_an_outlier_cannot_score_more_than_one_by_its_own_deviation():
    for y in (1.0, 1e3, 1e6):
        values = torch.zeros(1000, dtype=torch.float64)
        values[7] = y
        assert abs(standard_score(values, 0.0) - 1) < 1e-9
        assert abs(standard_score(values, 0.0, 1.0) - y / 1000**0.5) < 1e-6


@pytest.mark.parametrize("std", [None, 0.0, -1.0])
def test_no_deviation_is_refused(std):
    with pytest.raises(ValueError, match="deviation of values must be pos"):
        standard_score(torch.ones(9), 0.5, std)


def coverage(accuracy, n, confidence=0.95):
    """Return the probability that the interval contains the accuracy."""
    ends = [wilson_interval(k, n, confidence) for k in range(n + 1)]
    inside = [low <= accuracy <= high for low, high in ends]
    return binom.pmf(range(n + 1), n, accuracy) @ inside


@pytest.mark.verifies("prop-wilson")
def test_the_interval_holds_what_it_contains_by_the_score_test():
    n, z = 40, norm.ppf(0.975)
    for accuracy in np.linspace(0.001, 0.999, 333):
        right = np.arange(n + 1) / n
        error = math.sqrt(accuracy * (1 - accuracy) / n)
        accepted = abs(right - accuracy) <= z * error
        exact = binom.pmf(np.arange(n + 1), n, accuracy) @ accepted
        assert abs(coverage(accuracy, n) - exact) < 1e-12


def test_coverage_keeps_the_promise_on_average():
    for n, confidence in ((20, 0.95), (200, 0.95), (50, 0.8)):
        grid = (np.arange(100) + 0.5) / 100
        found = [coverage(accuracy, n, confidence) for accuracy in grid]
        assert abs(np.mean(found) - confidence) < 0.01


def test_coverage_near_one_is_that_of_few_wrong_answers():
    # Just above the interval of one wrong answer only a faultless test covers
    # A, with probability A^n; just below, one wrong answer does so as well.
    n = 500
    end = wilson_interval(n - 1, n)[1]
    above, below = end + 1e-9, end - 1e-9
    assert wilson_interval(n, n)[0] < below
    assert abs(coverage(above, n) - above**n) < 1e-9
    two = below**n + n * below ** (n - 1) * (1 - below)
    assert abs(coverage(below, n) - two) < 1e-9
    assert coverage(above, n) < 0.9 < 0.95 < coverage(below, n)
    assert abs(coverage(1 - 1e-9, n) - 1) < 1e-6


@pytest.mark.parametrize(
    ("correct", "n", "confidence"),
    [(5, 4, 0.95), (-1, 4, 0.95), (0, 0, 0.95), (1, 2, 1.0), (1, 2, 0.0)],
)
def test_counts_and_confidence_out_of_range_are_refused(
    correct, n, confidence
):
    with pytest.raises(ValueError, match=f"got {correct} of {n}"):
        wilson_interval(correct, n, confidence)
