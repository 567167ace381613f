"""The forward process: a step, the chain, the jump, and the gap to noise.

Tangled from book/diffusion/forward.md.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from tangled.diffusion.checks import check_alike, check_order
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
        TypeError: if x is not floating, or t not a whole number.
        ValueError: if t is not in 1..T, or eps does not match x.

    Implements eq-forward-step (book/diffusion/forward.md).
    """
    check_alike(x=x, eps=eps)
    check_order(1, schedule.T, t=t)
    keep = schedule.alpha[t].sqrt().to(x.dtype).to(x.device)
    add = schedule.beta[t].sqrt().to(x.dtype).to(x.device)
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

    At each fixed t this has the distribution of the chain; as a function of
    t it is not its path. No tensor is read back, so that a GPU need not wait
    and the function can be compiled, exported and mapped.

    Raises:
        TypeError: if x0 is not floating, or t not int64.
        ValueError: if eps does not match x0 in shape, dtype and device, or t
            is not one step for each sample.
        RuntimeError: if a step lies outside 0..T.

    Implements thm-forward-marginal, eq-diffuse (book/diffusion/forward.md).
    """
    check_alike(x0=x0, eps=eps)
    signal = per_sample(schedule.signal, t, x0)
    noise_std = per_sample(schedule.noise_std, t, x0)
    # signal * x0 + noise_std * eps, with one pass less over the memory
    return torch.addcmul(signal * x0, noise_std, eps)


def transition(
    schedule: Schedule, s: int, t: int
) -> tuple[Float64[Tensor, ""], Float64[Tensor, ""]]:
    """Return (scale, variance) of q(x_t | x_s) = N(scale x_s, variance I).

    Raises:
        TypeError: if s or t is not a whole number.
        ValueError: unless 0 <= s <= t <= T.

    Implements cor-forward-transition (book/diffusion/forward.md).
    """
    check_order(0, schedule.T, s=s, t=t)
    power = schedule.alpha[s + 1 : t + 1].prod()  # alpha_bar_t / alpha_bar_s
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
    check_alike(x0=x0)
    dim = math.prod(x0.shape[1:])
    power = schedule.alpha_bar[-1]
    constant = dim * (power + torch.log1p(-power))  # cancels: in float64
    wide = torch.promote_types(x0.dtype, torch.float32)
    energy = x0.reshape(len(x0), dim).square().sum(1, dtype=wide)
    gap = (power.to(energy) * energy - constant.to(energy)) / 2
    return gap.to(x0.dtype)
