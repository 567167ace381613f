"""Diffusion in continuous time: processes, the way back with and without noise, likelihood.

Tangled from book/diffusion/score.md.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from tangled.diffusion.gaussian import log_normal

__all__ = [
    "VE",
    "VP",
    "Process",
    "Score",
    "backward",
    "flow",
    "log_likelihood",
    "velocity",
]


@runtime_checkable
class Process(Protocol):
    """A linear process dx = rate(u) x du + sqrt(power(u)) dW on 0 <= u <= 1."""

    def rate(self, u: float) -> float:
        """Return the factor of x in the drift."""

    def power(self, u: float) -> float:
        """Return the noise power per time."""

    def signal(self, u: float) -> float:
        """Return the amplitude of x_0 in x_u."""

    def noise_std(self, u: float) -> float:
        """Return the deviation of x_u given x_0."""


# The score of the noisy data, from x [B, *dims] and the time u.
Score = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class VP:
    """The variance-preserving process, beta linear in u from low to high.

    The default is Ho's linear schedule of 1,000 steps in continuous time.

    Source: Song et al. (2021), appendices B and C.

    Implements def-sde, eq-vp-marginal (book/diffusion/score.md).
    """

    low: float = 0.1
    high: float = 20.0

    def beta(self, u: float) -> float:
        """Return the noise power per time."""
        return self.low + (self.high - self.low) * u

    def rate(self, u: float) -> float:
        """Return the factor of x in the drift."""
        return -self.beta(u) / 2

    def power(self, u: float) -> float:
        """Return the noise power per time."""
        return self.beta(u)

    def signal(self, u: float) -> float:
        """Return the amplitude of x_0."""
        return math.exp(-self._integral(u) / 2)

    def noise_std(self, u: float) -> float:
        """Return the deviation of x_u given x_0."""
        return math.sqrt(-math.expm1(-self._integral(u)))

    def _integral(self, u: float) -> float:
        """Return the integral of beta from 0 to u."""
        return self.low * u + (self.high - self.low) * u**2 / 2


@dataclass(frozen=True)
class VE:
    """The variance-exploding process with deviation high * u.

    Source: Karras et al. (2022), whose sigma is the time itself.
    """

    high: float = 80.0

    def rate(self, u: float) -> float:
        """Return the factor of x in the drift."""
        return 0.0

    def power(self, u: float) -> float:
        """Return the noise power per time."""
        return 2 * self.high**2 * u

    def signal(self, u: float) -> float:
        """Return the amplitude of x_0."""
        return 1.0

    def noise_std(self, u: float) -> float:
        """Return the deviation of x_u given x_0."""
        return self.high * u


@torch.no_grad()
def backward(
    score: Score,
    x: Float[Tensor, "B *dims"],
    process: Process,
    times: Iterable[float],
    noise: float = 1.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "B *dims"]:
    """Return x carried back over decreasing times, by Euler-Maruyama steps.

    `noise` is the share of the forward noise that is added: 1 for the
    reverse SDE, 0 for the probability-flow ODE. All have the same marginals
    in the limit of small steps.

    Raises:
        ValueError: if the times do not decrease, or noise is negative.

    Implements thm-reverse-sde, eq-reverse-sde (book/diffusion/score.md).
    """
    if noise < 0:
        raise ValueError(f"noise must not be negative, got {noise}")
    for u, v in _pairs(times, falling=True):
        power = process.power(u)
        pull = (1 + noise) / 2 * power * score(x, u)
        x = x - (process.rate(u) * x - pull) * (u - v)
        if noise:
            xi = torch.empty_like(x).normal_(generator=generator)
            x = x + math.sqrt(noise * power * (u - v)) * xi
    return x


def _pairs(
    times: Iterable[float], falling: bool = False
) -> list[tuple[float, float]]:
    """Return the steps between times in 0..1, or raise if one turns back."""
    steps = list(pairwise(times))
    signs = {(v > u) - (v < u) for u, v in steps}
    inside = all(0 <= v <= 1 for step in steps for v in step)
    if not inside or signs not in ([{-1}] if falling else [{-1}, {1}]):
        wanted = "fall" if falling else "rise or fall"
        raise ValueError(f"times must {wanted} within 0..1, two at least")
    return steps


def velocity(
    score: Score, x: Float[Tensor, "B *dims"], process: Process, u: float
) -> Float[Tensor, "B *dims"]:
    """Return dx/du of the probability flow."""
    return process.rate(u) * x - process.power(u) / 2 * score(x, u)


def _runge_kutta(
    field: Callable[[Tensor, float], Tensor], x: Tensor, u: float, v: float
) -> Tensor:
    """Return the solution of dx/du = field at v, from x at u."""
    h, middle = v - u, (u + v) / 2
    k1 = field(x, u)
    k2 = field(x + h / 2 * k1, middle)
    k3 = field(x + h / 2 * k2, middle)
    k4 = field(x + h * k3, v)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


@torch.no_grad()
def flow(
    score: Score,
    x: Float[Tensor, "B *dims"],
    process: Process,
    times: Iterable[float],
) -> Float[Tensor, "B *dims"]:
    """Return x carried by the probability flow, up or down in time.

    By the classical Runge-Kutta method, four scores a step.

    Raises:
        ValueError: if the times turn back, or leave 0..1.

    Implements thm-probability-flow, eq-probability-flow
    (book/diffusion/score.md).
    """
    for u, v in _pairs(times):
        x = _runge_kutta(lambda x, u: velocity(score, x, process, u), x, u, v)
    return x


def log_likelihood(
    score: Score,
    x: Float[Tensor, "B D"],
    process: Process,
    times: Iterable[float],
) -> Float[Tensor, "B"]:
    """Return ln q(x) in nats, by the probability flow over rising times.

    The last density is taken to be N(0, noise_std(1)^2 I). The divergence is
    exact, at the price of D derivatives for each of four scores a step.

    Raises:
        ValueError: if the times do not rise within 0..1.

    Implements prop-flow-likelihood, eq-flow-likelihood
    (book/diffusion/score.md).
    """
    total = x.new_zeros(len(x))
    steps = _pairs(list(times)[::-1], falling=True)[::-1]
    for v, u in steps:

        def both(state: Tensor, now: float) -> Tensor:
            here = state[:, :-1].detach().requires_grad_()
            with torch.enable_grad():
                w = velocity(score, here, process, now)
                slopes = [
                    torch.autograd.grad(
                        w[:, i].sum(), here, retain_graph=True
                    )[0][:, i]
                    for i in range(here.shape[1])
                ]
            return torch.cat([w.detach(), sum(slopes)[:, None]], 1)

        state = _runge_kutta(both, torch.cat([x, total[:, None]], 1), u, v)
        x, total = state[:, :-1], state[:, -1]
    last = process.noise_std(v)
    return total + log_normal(x, 0.0, last**2).sum(1)
