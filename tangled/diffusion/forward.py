"""The forward process: a step, the chain, the jump, and the gap to noise.

Tangled from book/diffusion/forward.md.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from tangled.diffusion.schedule import Schedule, per_sample

__all__ = [
    "diffuse",
    "forward_chain",
    "forward_step",
    "prior_term",
    "transition",
]


def forward_step(
    x: Float[Tensor, "*dims"],
    t: int,
    eps: Float[Tensor, "*dims"],
    schedule: Schedule,
) -> Float[Tensor, "*dims"]:
    """Return x_t, one step of the chain from x = x_{t-1} with noise `eps`.

    Raises:
        ValueError: if t lies outside 1..T.

    Implements eq-forward-step (book/diffusion/forward.md).
    """
    if not 1 <= t <= schedule.T:
        raise ValueError(f"t must lie in 1..{schedule.T}, got {t}")
    keep = schedule.alpha[t].sqrt().to(x)
    add = schedule.beta[t].sqrt().to(x)
    return keep * x + add * eps


def forward_chain(
    x0: Float[Tensor, "B *dims"],
    schedule: Schedule,
    generator: torch.Generator | None = None,
) -> Iterator[Float[Tensor, "B *dims"]]:
    """Yield x_0, x_1, ..., x_T, simulated step by step with fresh noise.

    Implements def-forward-chain (book/diffusion/forward.md).
    """
    x = x0
    yield x
    for t in range(1, schedule.T + 1):
        eps = torch.randn(
            x.shape, generator=generator, dtype=x.dtype, device=x.device
        )
        x = forward_step(x, t, eps, schedule)
        yield x


def diffuse(
    x0: Float[Tensor, "B *dims"],
    t: Int64[Tensor, "B"],
    eps: Float[Tensor, "B *dims"],
    schedule: Schedule,
) -> Float[Tensor, "B *dims"]:
    """Return x_t = a_t x_0 + sqrt(1 - alpha_bar_t) eps, each sample at its t.

    The law is that of the chain at each fixed t, not that of its path.

    Raises:
        TypeError: if x0 or eps is not floating, or t not int64.
        ValueError: if eps does not match x0 in shape, dtype and device, or t
            is not one step in 0..T for each sample.

    Implements thm-forward-marginal, eq-diffuse (book/diffusion/forward.md).
    """
    if not x0.is_floating_point():
        raise TypeError(f"x0 must be a floating tensor, got {x0.dtype}")
    for name in ("shape", "dtype", "device"):
        if getattr(eps, name) != getattr(x0, name):
            raise ValueError(
                f"eps must have the {name} of x0, got "
                f"{getattr(eps, name)} and {getattr(x0, name)}"
            )
    signal = per_sample(schedule.signal, t, x0)
    noise_std = per_sample(schedule.noise_std, t, x0)
    return signal * x0 + noise_std * eps


def transition(
    schedule: Schedule, s: int, t: int
) -> tuple[Float64[Tensor, ""], Float64[Tensor, ""]]:
    """Return (scale, variance) of q(x_t | x_s) = N(scale x_s, variance I).

    Raises:
        ValueError: unless 0 <= s <= t <= T.

    Implements cor-forward-transition (book/diffusion/forward.md).
    """
    if not 0 <= s <= t <= schedule.T:
        raise ValueError(
            f"s and t must satisfy 0 <= s <= t <= {schedule.T}, "
            f"got s = {s}, t = {t}"
        )
    power = schedule.alpha_bar[t] / schedule.alpha_bar[s]
    return power.sqrt(), 1 - power


def prior_term(
    x0: Float[Tensor, "B *dims"], schedule: Schedule
) -> Float[Tensor, "B"]:
    """Return L_T = KL(q(x_T | x_0) || N(0, I)) of each sample.

    In nats, summed over the dimensions of a sample, in the dtype of x0.

    Raises:
        TypeError: if x0 is not floating.

    Implements prop-prior-gap (book/diffusion/forward.md).
    """
    if not x0.is_floating_point():
        raise TypeError(f"x0 must be a floating tensor, got {x0.dtype}")
    dim = math.prod(x0.shape[1:])
    power = schedule.alpha_bar[-1].item()
    energy = x0.reshape(len(x0), dim).square().sum(1)
    return (power * energy - dim * (power + math.log1p(-power))) / 2
