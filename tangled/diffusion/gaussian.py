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
    "Values",
    "gaussian_kl",
    "linear_gaussian_posterior",
    "log_normal",
    "multivariate_kl",
]

Values = Float[Tensor, "..."] | float  # a number goes with every entry


def _check_variance(name: str, value: Values, zero: bool = False) -> None:
    """Refuse a number that is no variance; of a tensor nothing is read."""
    if isinstance(value, Tensor) or value > 0 or (zero and value == 0):
        return
    bound = "must not be negative" if zero else "must be positive"
    raise ValueError(f"{name} {bound}, got {value}")


def _log(value: Values) -> Values:
    return value.log() if isinstance(value, Tensor) else math.log(value)


def log_normal(
    x: Float[Tensor, "..."], mean: Values, variance: Values
) -> Float[Tensor, "..."]:
    """Return the log density of N(mean, variance) at x, elementwise.

    In nats; the arguments broadcast. Independent coordinates: sum over them.

    Raises:
        ValueError: if the variance is a number and not positive.

    Implements eq-log-normal (book/diffusion/gaussian.md).
    """
    _check_variance("variance", variance)
    square = (x - mean) ** 2 / variance
    return -(square + _log(variance) + math.log(2 * math.pi)) / 2


def linear_gaussian_posterior(
    prior_mean: Values,
    prior_var: Values,
    y: Float[Tensor, "..."],
    scale: Values,
    noise_var: Values,
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Return (mean, var) of u given y, where y = scale u + noise.

    The prior is u ~ N(prior_mean, prior_var), the noise N(0, noise_var); the
    arguments broadcast. One of the two variances may be 0.

    Raises:
        ValueError: if numbers give a negative variance, or y the variance 0;
            tensors give NaN instead.

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
    mean1: Values, var1: Values, mean2: Values, var2: Values
) -> Values:
    """Return KL(N(mean1, var1) || N(mean2, var2)), elementwise.

    In nats; the arguments broadcast, numbers alone give a number. Independent
    coordinates: sum over them.

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
        ValueError: if a covariance is not symmetric positive definite.

    Implements prop-gaussian-kl (book/diffusion/gaussian.md).
    """
    roots = []
    for name, cov in (("cov1", cov1), ("cov2", cov2)):
        root, info = torch.linalg.cholesky_ex(cov)
        if info.any() or not torch.allclose(cov, cov.mT):
            raise ValueError(f"{name} must be symmetric positive definite")
        roots.append(root)
    both = torch.cat([roots[0], (mean2 - mean1)[..., None]], dim=-1)
    white = torch.linalg.solve_triangular(roots[1], both, upper=False)
    logs = [root.diagonal(dim1=-2, dim2=-1).log().sum(-1) for root in roots]
    trace_and_square = white.square().sum((-2, -1))
    return (trace_and_square - mean1.shape[-1]) / 2 + logs[1] - logs[0]


@dataclass(frozen=True, eq=False)
class LinearGaussianChain:
    """The model x_T ~ N(0, 1), x_{t-1} | x_t ~ N(c_t x_t + b_t, r_t).

    In one dimension. The tables `slope` c_t, `shift` b_t and `std` sqrt(r_t)
    have an entry for t = 0..T; entry 0 is not used.

    Raises:
        ValueError: if the tables are not float64 [T+1] with T at least 1, or
            a deviation is not positive.

    Implements def-linear-gaussian-chain (book/diffusion/gaussian.md).
    """

    slope: Float64[Tensor, "T_plus_1"]
    shift: Float64[Tensor, "T_plus_1"]
    std: Float64[Tensor, "T_plus_1"]

    def __post_init__(self) -> None:
        size = (max(self.slope.numel(), 2),)
        for name, table in vars(self).items():
            if table.dtype != torch.float64 or table.shape != size:
                raise ValueError(f"{name} must be float64 [T+1], T >= 1")
        if not (self.std[1:] > 0).all():
            raise ValueError("std must be positive for t = 1..T")

    @property
    def T(self) -> int:
        """The number of steps."""
        return len(self.slope) - 1

    def joint(self) -> tuple[Float64[Tensor, "N"], Float64[Tensor, "N N"]]:
        """Return mean and covariance of (x_0, ..., x_T); N is T + 1.

        Implements prop-linear-gaussian-chain (book/diffusion/gaussian.md).
        """
        mean = torch.zeros_like(self.slope)
        cov = torch.outer(mean, mean)
        cov[-1, -1] = 1.0
        for t in range(self.T, 0, -1):
            c, b, r = self.slope[t], self.shift[t], self.std[t] ** 2
            mean[t - 1] = c * mean[t] + b
            cov[t - 1, t:] = cov[t:, t - 1] = c * cov[t, t:]
            cov[t - 1, t - 1] = c**2 * cov[t, t] + r
        return mean, cov

    def log_prob(self, x0: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """Return the exact log density of x_0, in nats."""
        mean, cov = self.joint()
        return log_normal(x0, mean[0], cov[0, 0])

    def condition(
        self, x0: Float[Tensor, "*B"]
    ) -> tuple[Float64[Tensor, "*B T"], Float64[Tensor, "T T"]]:
        """Return mean and covariance of (x_1, ..., x_T) given x_0."""
        mean, cov = self.joint()
        gain = cov[1:, 0] / cov[0, 0]
        given = cov[1:, 1:] - torch.outer(gain, cov[0, 1:])
        return mean[1:] + gain * (x0 - mean[0])[..., None], given
