"""How sure a measured number is: standard scores, binomial laws, intervals, splits.

Tangled from book/workshop/data.md.
"""

import math
from collections.abc import Callable
from statistics import NormalDist

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

__all__ = [
    "binomial_law",
    "coverage",
    "sample_variance",
    "standard_score",
    "stratified_variance",
    "wilson_interval",
]


def standard_score(
    values: Float[Tensor, "N"], expected: float, std: float | None = None
) -> float:
    """Return how many standard errors the mean of `values` is off `expected`.

    The values are two or more independent draws; under the claim their mean is
    `expected` and the score is nearly standard normal. Tests accept |z| < 5.

    Args:
        values: the draws [N].
        expected: their mean, if the claim is true.
        std: their standard deviation, if the claim fixes that as well. Without
            it the sample's own is taken, which heavy tails inflate.

    Implements eq-standard-score (book/workshop/data.md).
    """
    deviation = values.std().item() if std is None else std
    error = deviation / math.sqrt(len(values))
    return (values.mean().item() - expected) / error


def binomial_law(
    n: int, p: Float64[Tensor, "P"]
) -> Float64[Tensor, "P n_plus_1"]:
    """Return the probabilities of 0..n successes in n independent trials.

    Raises:
        ValueError: if n is negative or an entry of p is outside 0..1.

    Implements prop-accuracy (book/workshop/data.md).
    """
    if n < 0:
        raise ValueError(f"n must not be negative, got {n}")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p must lie in 0..1, got {p.tolist()}")
    k = torch.arange(n + 1, dtype=p.dtype, device=p.device)
    ways = math.lgamma(n + 1) - (k + 1).lgamma() - (n - k + 1).lgamma()
    p = p[:, None]
    return (ways + k.xlogy(p) + (n - k).xlogy(1 - p)).exp()


def wilson_interval(
    correct: int, n: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the accuracies that `correct` right answers of n do not refute.

    Raises:
        ValueError: unless 0 <= correct <= n, n >= 1 and 0 < confidence < 1.

    Source: Wilson (1927).

    Implements prop-wilson (book/workshop/data.md).
    """
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(
            "correct must lie in 0..n with n at least 1, "
            f"got {correct} of {n}"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (correct + z**2 / 2) / (n + z**2)
    spread = correct * (n - correct) / n + z**2 / 4
    half = z * math.sqrt(spread) / (n + z**2)
    low = centre - half if correct > 0 else 0.0  # exact, not nearly
    high = centre + half if correct < n else 1.0
    return low, high


def coverage(
    interval: Callable[[int, int], tuple[float, float]],
    n: int,
    p: Float64[Tensor, "P"],
) -> Float64[Tensor, "P"]:
    """Return how probable it is that interval(correct, n) contains p.

    Exact: a sum over all numbers of right answers, for each p.
    """
    ends = [interval(correct, n) for correct in range(n + 1)]
    low, high = torch.tensor(ends, dtype=p.dtype, device=p.device).T
    inside = (low <= p[:, None]) & (p[:, None] <= high)
    return (binomial_law(n, p) * inside).sum(1)


def sample_variance(
    values: Float64[Tensor, "N"], n: int
) -> Float64[Tensor, ""]:
    """Return the variance of the mean of n of these values, drawn at random.

    Drawn without replacement, all sets of n being equally likely.

    Raises:
        ValueError: if there are fewer than two values, or unless 1 <= n <= N.

    Implements lem-simple-sample (book/workshop/data.md).
    """
    if len(values) < 2:
        raise ValueError(f"values must be two or more, got {len(values)}")
    if not 1 <= n <= len(values):
        raise ValueError(f"n must lie in 1..{len(values)}, got {n}")
    return (1 - n / len(values)) * values.var() / n


def stratified_variance(
    values: Float64[Tensor, "N"], labels: Int64[Tensor, "N"], n: int
) -> Float64[Tensor, ""]:
    """Return the same variance if each class gives its share of the n items.

    The shares n N_c / N are taken as they are, whole or not.

    Raises:
        ValueError: if a class has a single item, or unless 1 <= n <= N.

    Implements prop-stratified (book/workshop/data.md).
    """
    if not 1 <= n <= len(values):
        raise ValueError(f"n must lie in 1..{len(values)}, got {n}")
    groups = [values[labels == c] for c in labels.unique()]
    if min(map(len, groups)) < 2:
        raise ValueError("labels must give each class at least two items")
    within = torch.stack([len(group) * group.var() for group in groups])
    return (1 - n / len(values)) * within.sum() / len(values) / n
