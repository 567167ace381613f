"""Wilson's interval against SciPy, which scikit-learn brings along."""

import pytest

from tangled.workshop.statistics import wilson_interval

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize(
    ("correct", "n"), [(0, 1), (9, 10), (10, 10), (485, 500), (3, 10_000)]
)
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_the_interval_is_that_of_scipy(correct, n, confidence):
    theirs = stats.binomtest(correct, n).proportion_ci(confidence, "wilson")
    ours = wilson_interval(correct, n, confidence)
    assert abs(ours[0] - theirs.low) < 1e-12
    assert abs(ours[1] - theirs.high) < 1e-12
