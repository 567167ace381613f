"""Gaussian laws: densities, posteriors, divergences, and a chain solved exactly.

Tangled from book/diffusion/gaussian.md.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

__all__ = [
    "LinearGaussianChain",
    "gaussian_kl",
    "linear_gaussian_posterior",
    "log_normal",
    "multivariate_kl",
]


def _as_tensor(value: Tensor | float) -> Tensor:
    """Return a number as a 0-dimensional tensor, which follows the others.

    A tensor without dimensions changes neither the dtype nor the device of
    what it is combined with.
    """
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value, dtype=torch.float64)


def _checked_variance(name: str, value: Tensor | float) -> Tensor:
    """Return the variance as a tensor if all its entries are positive."""
    variance = _as_tensor(value)
    if not (variance > 0).all():  # true for NaN as well
        raise ValueError(
            f"{name} must be positive, got {variance.min().item()}"
        )
    return variance


def log_normal(
    x: Float[Tensor, "..."],
    mean: Float[Tensor, "..."] | float,
    variance: Float[Tensor, "..."] | float,
) -> Float[Tensor, "..."]:
    """Return the log density of N(mean, variance) at x, elementwise.

    In nats, and not summed: the arguments broadcast, and each entry of the
    result is a density in one dimension. Sum over the coordinates of a sample
    for the density of independent coordinates.

    Raises:
        ValueError: if a variance is not positive.

    Implements eq-log-normal (book/diffusion/gaussian.md).
    """
    variance = _checked_variance("variance", variance)
    square = (x - mean) ** 2 / variance
    return -(square + variance.log() + math.log(2 * math.pi)) / 2


def linear_gaussian_posterior(
    prior_mean: Float[Tensor, "..."] | float,
    prior_var: Float[Tensor, "..."] | float,
    y: Float[Tensor, "..."],
    scale: Float[Tensor, "..."] | float,
    noise_var: Float[Tensor, "..."] | float,
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Return (mean, var) of u given y, where y = scale u + noise.

    The prior is u ~ N(prior_mean, prior_var), the noise N(0, noise_var); all
    arguments broadcast, entry by entry. One of the two variances may be 0:
    then u, or the reading, is exact.

    Raises:
        ValueError: if a variance is negative, or y tells its own variance 0.

    Implements lem-linear-gaussian-bayes (book/diffusion/gaussian.md).
    """
    v, r = _as_tensor(prior_var), _as_tensor(noise_var)
    for name, variance in (("prior_var", v), ("noise_var", r)):
        if not (variance >= 0).all():
            raise ValueError(
                f"{name} must not be negative, got {variance.min().item()}"
            )
    total = scale**2 * v + r  # the variance of y
    if not (total > 0).all():
        raise ValueError("scale**2 * prior_var + noise_var must be positive")
    mean = (r * prior_mean + scale * v * y) / total
    return mean, v * r / total


def gaussian_kl(
    mean1: Float[Tensor, "..."] | float,
    var1: Float[Tensor, "..."] | float,
    mean2: Float[Tensor, "..."] | float,
    var2: Float[Tensor, "..."] | float,
) -> Float[Tensor, "..."]:
    """Return KL(N(mean1, var1) || N(mean2, var2)), elementwise.

    In nats, and not summed: the arguments broadcast, and each entry of the
    result is a divergence in one dimension. The divergence of two laws with
    diagonal covariance is the sum over the coordinates.

    Raises:
        ValueError: if a variance is not positive.

    Implements eq-gaussian-kl-diagonal (book/diffusion/gaussian.md).
    """
    var1 = _checked_variance("var1", var1)
    var2 = _checked_variance("var2", var2)
    gap = _as_tensor(mean2) - mean1
    ratio = var1 / var2
    return (ratio + gap**2 / var2 - 1 - ratio.log()) / 2


def _cholesky(
    name: str, cov: Float[Tensor, "*batch D D"]
) -> Float[Tensor, "*batch D D"]:
    """Return the lower triangular root of a covariance matrix."""
    root, info = torch.linalg.cholesky_ex(cov)
    if info.any() or not torch.allclose(cov, cov.mT):
        raise ValueError(f"{name} must be symmetric and positive definite")
    return root


def multivariate_kl(
    mean1: Float[Tensor, "*batch D"],
    cov1: Float[Tensor, "*batch D D"],
    mean2: Float[Tensor, "*batch D"],
    cov2: Float[Tensor, "*batch D D"],
) -> Float[Tensor, "*batch"]:
    """Return KL(N(mean1, cov1) || N(mean2, cov2)) in nats, one per law.

    Raises:
        ValueError: if a covariance is not symmetric and positive definite.

    Implements prop-gaussian-kl (book/diffusion/gaussian.md).
    """
    root1, root2 = _cholesky("cov1", cov1), _cholesky("cov2", cov2)
    gap = (mean2 - mean1)[..., None]
    both = torch.cat([root1, gap], dim=-1)
    white = torch.linalg.solve_triangular(root2, both, upper=False)
    logs = [root.diagonal(dim1=-2, dim2=-1).log() for root in (root1, root2)]
    trace_and_square = white.square().sum((-2, -1))
    log_dets = 2 * (logs[1] - logs[0]).sum(-1)
    return (trace_and_square - mean1.shape[-1] + log_dets) / 2


@dataclass(frozen=True, eq=False)
class LinearGaussianChain:
    """The model x_T ~ N(0, 1), x_{t-1} | x_t ~ N(k_t x_t + c_t, s_t^2).

    One dimension, T steps, and everything about it is exact. The tables have
    one entry for t = 0..T; entry 0 is not used.

    Args:
        slope: the factors k_t, float64 [T+1].
        shift: the shifts c_t, float64 [T+1].
        std: the standard deviations s_t, float64 [T+1], positive for t >= 1.

    Raises:
        ValueError: if the tables differ in length, or are not such tables.

    Implements def-linear-gaussian-chain (book/diffusion/gaussian.md).
    """

    slope: Float64[Tensor, "T_plus_1"]
    shift: Float64[Tensor, "T_plus_1"]
    std: Float64[Tensor, "T_plus_1"]

    def __post_init__(self) -> None:
        for name in ("slope", "shift", "std"):
            table = getattr(self, name)
            if table.dtype != torch.float64 or table.ndim != 1:
                raise ValueError(f"{name} must be a float64 table [T+1]")
            if len(table) < 2 or len(table) != len(self.slope):
                raise ValueError(
                    "the tables must have equal length T+1 with T at least "
                    f"1, but {name} has {len(table)} entries"
                )
        if not (self.std[1:] > 0).all():
            raise ValueError("std must be positive for t = 1..T")

    @property
    def T(self) -> int:
        """The number of steps."""
        return len(self.slope) - 1

    def joint(
        self,
    ) -> tuple[
        Float64[Tensor, "T_plus_1"], Float64[Tensor, "T_plus_1 T_plus_1"]
    ]:
        """Return mean and covariance of (x_0, ..., x_T).

        Implements prop-linear-gaussian-chain (book/diffusion/gaussian.md).
        """
        T = self.T
        mean = self.slope.new_zeros(T + 1)
        covariance = self.slope.new_zeros(T + 1, T + 1)
        covariance[T, T] = 1.0
        for t in range(T, 0, -1):
            k = self.slope[t]
            mean[t - 1] = k * mean[t] + self.shift[t]
            with_later = k * covariance[t, t:]
            covariance[t - 1, t:] = covariance[t:, t - 1] = with_later
            covariance[t - 1, t - 1] = k * with_later[0] + self.std[t] ** 2
        return mean, covariance

    def log_prob(self, x0: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """Return the exact log density of x_0, in nats."""
        mean, covariance = self.joint()
        return log_normal(x0, mean[0], covariance[0, 0])

    def condition(
        self, x0: Float[Tensor, "*B"]
    ) -> tuple[Float64[Tensor, "*B T"], Float64[Tensor, "T T"]]:
        """Return mean and covariance of (x_1, ..., x_T) given x_0."""
        mean, covariance = self.joint()
        gain = covariance[1:, 0] / covariance[0, 0]
        given = covariance[1:, 1:] - torch.outer(gain, covariance[0, 1:])
        return mean[1:] + gain * (x0 - mean[0])[..., None], given
