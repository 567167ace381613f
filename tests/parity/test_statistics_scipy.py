"""Binomial laws and Wilson's interval against SciPy, which scikit-learn brings along."""

import pytest
import torch

from tangled.workshop.statistics import binomial_law, wilson_interval

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize("n", [1, 10, 500, 10_000])
def test_the_law_is_that_of_scipy(n):
    p = torch.tensor([0.001, 0.3, 0.97], dtype=torch.float64)
    k = torch.arange(n + 1)
    theirs = torch.from_numpy(stats.binom.pmf(k, n, p[:, None].numpy()))
    torch.testing.assert_close(binomial_law(n, p), theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("correct", "n"), [(0, 1), (9, 10), (10, 10), (485, 500), (3, 10_000)]
)
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_the_interval_is_that_of_scipy(correct, n, confidence):
    theirs = stats.binomtest(correct, n).proportion_ci(confidence, "wilson")
    ours = wilson_interval(correct, n, confidence)
    assert abs(ours[0] - theirs.low) < 1e-12
    assert abs(ours[1] - theirs.high) < 1e-12
