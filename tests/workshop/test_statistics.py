"""Laws of scores, intervals and samples, and what they refuse."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from tangled.workshop.statistics import (
    binomial_law,
    coverage,
    sample_variance,
    standard_score,
    stratified_variance,
    wilson_interval,
)

counts = st.integers(1, 2000).flatmap(
    lambda n: st.tuples(st.integers(0, n), st.just(n))
)


def float64(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


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


@given(st.integers(0, 300), st.floats(0, 1))
def test_a_binomial_law_is_a_law(n, p):
    law = binomial_law(n, float64(p))
    assert law.shape == (1, n + 1)
    assert (law >= 0).all()
    assert abs(law.sum() - 1) < 1e-11
    mirrored = binomial_law(n, float64(1 - p)).flip(1)
    assert_close(law, mirrored, rtol=1e-6, atol=1e-12)


@pytest.mark.verifies("prop-accuracy")
@given(st.integers(1, 200), st.floats(0, 1))
def test_mean_and_variance_of_a_binomial_share(n, p):
    law = binomial_law(n, float64(p))[0]
    share = torch.arange(n + 1, dtype=torch.float64) / n
    assert abs(law @ share - p) < 1e-11
    assert abs(law @ (share - p) ** 2 - p * (1 - p) / n) < 1e-11


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


def test_coverage_is_a_sum_over_the_law():
    p = float64(0.2, 0.6)
    assert_close(coverage(lambda k, n: (0.0, 1.0), 7, p), float64(1, 1))
    assert_close(coverage(lambda k, n: (2.0, 3.0), 7, p), float64(0, 0))
    ends = coverage(lambda k, n: (0.2, 0.6), 7, p)
    assert_close(ends, float64(1, 1))  # both ends belong to the interval
    only_three = coverage(lambda k, n: (float(k != 3), 1.0), 7, p)
    assert_close(only_three, binomial_law(7, p)[:, 3])


@pytest.mark.verifies("lem-simple-sample")
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30))
def test_the_whole_collection_has_no_variance_and_one_item_has_all(values):
    y = torch.tensor(values, dtype=torch.float64)
    assert sample_variance(y, len(y)) == 0
    assert_close(sample_variance(y, 1), y.var(correction=0))


@pytest.mark.verifies("prop-stratified")
@given(
    st.lists(
        st.lists(st.floats(-5, 5), min_size=2, max_size=8),
        min_size=1,
        max_size=5,
    )
)
def test_the_gain_is_what_lies_between_the_classes(classes):
    parts = [torch.tensor(part, dtype=torch.float64) for part in classes]
    y = torch.cat(parts)
    labels = torch.repeat_interleave(
        torch.arange(len(parts)), torch.tensor([len(part) for part in parts])
    )
    n, size = 2, len(y)
    between = sum(len(p) * (p.mean() - y.mean()) ** 2 for p in parts)
    price = sum((1 - len(p) / size) * p.var() for p in parts)
    expected = (1 - n / size) / n * (between - price) / (size - 1)
    gain = sample_variance(y, n) - stratified_variance(y, labels, n)
    assert_close(gain, torch.as_tensor(expected), rtol=1e-9, atol=1e-9)


def test_one_class_is_a_simple_sample():
    y = torch.arange(9, dtype=torch.float64)
    nobody = torch.zeros(9, dtype=torch.int64)
    assert_close(stratified_variance(y, nobody, 4), sample_variance(y, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: binomial_law(-1, float64(0.5)),
            "n must not be negative, got -1",
        ),
        (
            lambda: binomial_law(3, float64(1.5)),
            r"p must lie in 0..1, got \[1.5\]",
        ),
        (lambda: binomial_law(3, float64(math.nan)), "p must lie in 0..1"),
        (
            lambda: wilson_interval(5, 4),
            r"correct must lie in 0..n .*, got 5 of 4",
        ),
        (lambda: wilson_interval(-1, 4), "correct must lie in 0..n"),
        (lambda: wilson_interval(0, 0), "n at least 1, got 0 of 0"),
        (
            lambda: wilson_interval(1, 2, 1.0),
            r"confidence must lie in \(0, 1\), got 1.0",
        ),
        (
            lambda: sample_variance(float64(1), 1),
            "values must be two or more, got 1",
        ),
        (
            lambda: sample_variance(float64(1, 2), 3),
            r"n must lie in 1..2, got 3",
        ),
        (
            lambda: sample_variance(float64(1, 2), 0),
            r"n must lie in 1..2, got 0",
        ),
        (
            lambda: stratified_variance(
                float64(1, 2, 3), torch.tensor([0, 0, 1]), 2
            ),
            "labels must give each class at least two items",
        ),
        (
            lambda: stratified_variance(
                float64(1, 2), torch.tensor([0, 0]), 3
            ),
            r"n must lie in 1..2, got 3",
        ),
    ],
)
def test_a_bad_argument_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
