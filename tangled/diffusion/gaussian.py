"""Gaussian distributions: densities, posteriors, divergences, and a chain solved exactly.

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


def _check_variance(name: str, value: Tensor | float, zero=False) -> None:
    """Refuse a number that is no variance; of a tensor nothing is read."""
    if isinstance(value, Tensor) or value > 0 or (zero and value == 0):
        return
    bound = "must not be negative" if zero else "must be positive"
    raise ValueError(f"{name} {bound}, got {value}")


def _log(value: Tensor | float) -> Tensor | float:
    return value.log() if isinstance(value, Tensor) else math.log(value)


def log_normal(
    x: Float[Tensor, "..."],
    mean: Float[Tensor, "..."] | float,
    variance: Float[Tensor, "..."] | float,
) -> Float[Tensor, "..."]:
    """Return the log density of N(mean, variance) at x, elementwise.

    In nats, and not summed; the arguments broadcast. Sum over the coordinates
    of a sample for the density of independent coordinates.

    Raises:
        ValueError: if the variance is a number and not positive.

    Implements eq-log-normal (book/diffusion/gaussian.md).
    """
    _check_variance("variance", variance)
    square = (x - mean) ** 2 / variance
    return -(square + _log(variance) + math.log(2 * math.pi)) / 2


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
        ValueError: if a number is a negative variance, or if numbers give y
            the variance 0. Tensors with such entries give NaN.

    Implements lem-linear-gaussian-bayes (book/diffusion/gaussian.md).
    """
    _check_variance("prior_var", prior_var, zero=True)
    _check_variance("noise_var", noise_var, zero=True)
    total = scale**2 * prior_var + noise_var  # the variance of y
    _check_variance("scale**2 * prior_var + noise_var", total)
    mean = (noise_var * prior_mean + scale * prior_var * y) / total
    variance = prior_var * noise_var / total
    return mean, torch.as_tensor(
        variance, dtype=mean.dtype, device=mean.device
    )


def gaussian_kl(
    mean1: Float[Tensor, "..."] | float,
    var1: Float[Tensor, "..."] | float,
    mean2: Float[Tensor, "..."] | float,
    var2: Float[Tensor, "..."] | float,
) -> Float[Tensor, "..."] | float:
    """Return KL(N(mean1, var1) || N(mean2, var2)), elementwise.

    In nats, and not summed; the arguments broadcast, and numbers alone give a
    number. The divergence of two distributions with diagonal covariance is
    the sum over the coordinates.

    Raises:
        ValueError: if a variance is a number and not positive.

    Implements eq-gaussian-kl-diagonal (book/diffusion/gaussian.md).
    """
    _check_variance("var1", var1)
    _check_variance("var2", var2)
    ratio = var1 / var2
    return (ratio + (mean2 - mean1) ** 2 / var2 - 1 - _log(ratio)) / 2


def multivariate_kl(
    mean1: Float[Tensor, "*batch D"],
    cov1: Float[Tensor, "*batch D D"],
    mean2: Float[Tensor, "*batch D"],
    cov2: Float[Tensor, "*batch D D"],
) -> Float[Tensor, "*batch"]:
    """Return KL(N(mean1, cov1) || N(mean2, cov2)) in nats, one per pair.

    Raises:
        ValueError: if a covariance is not symmetric and positive definite.

    Implements prop-gaussian-kl (book/diffusion/gaussian.md).
    """
    roots = []
    for name, cov in (("cov1", cov1), ("cov2", cov2)):
        root, info = torch.linalg.cholesky_ex(cov)
        if info.any() or not torch.allclose(cov, cov.mT):
            raise ValueError(
                f"{name} must be symmetric and positive definite"
            )
        roots.append(root)
    both = torch.cat([roots[0], (mean2 - mean1)[..., None]], dim=-1)
    white = torch.linalg.solve_triangular(roots[1], both, upper=False)
    logs = [root.diagonal(dim1=-2, dim2=-1).log().sum(-1) for root in roots]
    trace_and_square = white.square().sum((-2, -1))
    return (trace_and_square - mean1.shape[-1]) / 2 + logs[1] - logs[0]


@dataclass(frozen=True, eq=False)
class LinearGaussianChain:
    """The model x_T ~ N(0, 1), x_{t-1} | x_t ~ N(c_t x_t + b_t, r_t).

    One dimension, T steps, and everything about it is exact. The tables have
    one entry for t = 0..T; entry 0 is not used.

    Args:
        slope: the factors c_t, float64 [T+1].
        shift: the shifts b_t, float64 [T+1].
        std: the roots of r_t, float64 [T+1], positive for t >= 1.

    Raises:
        ValueError: if the tables are not such.

    Implements def-linear-gaussian-chain (book/diffusion/gaussian.md).
    """

    slope: Float64[Tensor, "T_plus_1"]
    shift: Float64[Tensor, "T_plus_1"]
    std: Float64[Tensor, "T_plus_1"]

    def __post_init__(self) -> None:
        for name, table in vars(self).items():
            size = list(table.shape)
            if table.dtype != torch.float64 or size != [len(self.slope)]:
                raise ValueError(
                    f"{name} must be a float64 table [T+1], all of one "
                    f"length, got {table.dtype} {size}"
                )
        if len(self.slope) < 2:
            raise ValueError("the tables must have T+1 entries, T at least 1")
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
            mean[t - 1] = self.slope[t] * mean[t] + self.shift[t]
            row = self.slope[t] * covariance[t, t:]
            covariance[t - 1, t:] = covariance[t:, t - 1] = row
            covariance[t - 1, t - 1] = (
                self.slope[t] * row[0] + self.std[t] ** 2
            )
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
