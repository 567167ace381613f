"""How far to trust a measured number: the standard score and an interval.

Tangled from book/workshop/data.md.
"""

import math
from statistics import NormalDist

from jaxtyping import Float
from torch import Tensor

__all__ = ["standard_score", "wilson_interval"]


def standard_score(
    values: Float[Tensor, "N"], expected: float, std: float | None = None
) -> float:
    """Return how many standard errors the mean of `values` is off `expected`.

    The claim is that the values are independent draws from one distribution
    with this mean. If it is true and they are many, the score is nearly
    standard normal; tests accept |z| < 5. Give their deviation `std` if the
    claim fixes it: heavy tails inflate the sample's own.

    Implements eq-standard-score (book/workshop/data.md).
    """
    deviation = values.std().item() if std is None else std
    if deviation <= 0:
        raise ValueError(
            f"the deviation of values must be positive, got {deviation}: "
            "where all are equal, the claim has to give std"
        )
    error = deviation / math.sqrt(len(values))
    return (values.mean().item() - expected) / error


def wilson_interval(
    correct: int, n: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the accuracies that `correct` right answers of n do not refute.

    Source: Wilson (1927).

    Implements prop-wilson (book/workshop/data.md).
    """
    if not (0 <= correct <= n and n >= 1 and 0 < confidence < 1):
        raise ValueError(
            "it takes 0 <= correct <= n, n >= 1 and 0 < confidence < 1, "
            f"got {correct} of {n} and {confidence}"
        )
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (correct + z**2 / 2) / (n + z**2)
    spread = correct * (n - correct) / n + z**2 / 4
    half = z * math.sqrt(spread) / (n + z**2)
    low = centre - half if correct > 0 else 0.0  # exact, not nearly
    high = centre + half if correct < n else 1.0
    return low, high
