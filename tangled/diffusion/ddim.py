"""DDIM: sampling over any list of steps, with any share of noise; inversion; interpolation.

Tangled from book/diffusion/ddim.md.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from tangled.diffusion.checks import check_alike, check_order
from tangled.diffusion.ddpm import (
    Move,
    guessed,
    last,
    respaced,
    reverse_chain,
)
from tangled.diffusion.elbo import Denoiser
from tangled.diffusion.forward import transition
from tangled.diffusion.prediction import Prediction, convert
from tangled.diffusion.schedule import Schedule

__all__ = [
    "ddim_invert",
    "ddim_mean",
    "ddim_move",
    "ddim_sample",
    "ddim_sigma",
    "euler_step",
    "slerp",
]


def ddim_sigma(
    schedule: Schedule, t: int, s: int, eta: float
) -> Float64[Tensor, ""]:
    """Return the deviation of the fresh noise in a jump from t down to s.

    Raises:
        TypeError: if t or s is not a whole number.
        ValueError: unless 0 <= s <= t <= T and 0 <= eta <= 1.

    Source: Song, Meng and Ermon (2021), equation 16.

    Implements thm-ddim-eta, eq-ddim-sigma (book/diffusion/ddim.md).
    """
    check_order(0, schedule.T, s=s, t=t)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie between 0 and 1, got {eta}")
    noise, (_, step) = 1 - schedule.alpha_bar, transition(schedule, s, t)
    return eta * (noise[s] / noise[t] * step).sqrt()


def ddim_mean(
    x0: Float[Tensor, "B *dims"],
    xt: Float[Tensor, "B *dims"],
    t: int,
    s: int,
    schedule: Schedule,
    sigma: float | Float64[Tensor, ""] = 0.0,
) -> Float[Tensor, "B *dims"]:
    """Return the mean of x_s, given x_t and x_0 (or a guess of it).

    `sigma` is the deviation of the fresh noise, at most noise_std_s.

    Raises:
        ValueError: if sigma is above noise_std_s.

    Implements def-ddim, eq-ddim (book/diffusion/ddim.md).
    """
    room = schedule.noise_std[s] ** 2 - sigma**2
    if room < 0:
        raise ValueError(
            f"sigma must be at most {schedule.noise_std[s]:.6g} at s = {s}, "
            f"got {float(sigma):.6g}"
        )
    eps = (xt - schedule.signal[t].item() * x0) / schedule.noise_std[t].item()
    return schedule.signal[s].item() * x0 + room.sqrt().item() * eps


def ddim_move(
    schedule: Schedule,
    prediction: str = Prediction.EPS,
    eta: float = 0.0,
    clip: bool = False,
    generator: torch.Generator | None = None,
) -> Move:
    """Return the move of DDIM over the steps of a (respaced) schedule.

    Arguments and errors are those of `ddim_sample`.

    Implements alg-ddim (book/diffusion/ddim.md).
    """
    sigma = [
        ddim_sigma(schedule, i, max(i - 1, 0), eta).item()
        for i in range(schedule.T + 1)
    ]

    def move(x: Tensor, output: Tensor, i: int) -> Tensor:
        at = torch.full(x.shape[:1], i, device=x.device)
        guess = guessed(output, x, at, schedule, prediction, clip)
        x = ddim_mean(guess, x, i, i - 1, schedule, sigma[i])
        if sigma[i]:
            x = x + sigma[i] * torch.empty_like(x).normal_(
                generator=generator
            )
        return x

    return move


def ddim_sample(
    network: Denoiser,
    xT: Float[Tensor, "B *dims"],
    schedule: Schedule,
    steps: Iterable[int],
    *,
    prediction: str = Prediction.EPS,
    eta: float = 0.0,
    clip: bool = False,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Float[Tensor, "B *dims"]:
    """Return samples of x_0 from the noise xT, over decreasing steps.

    `network(xt, t)` sees xt in the dtype of xT and returns the prediction.
    `steps` are the levels at which it is called; the last jump leads to 0.
    If `clip`, guesses of x_0 are clipped to [-1, 1]. No tensor is read inside
    the loop.

    Raises:
        TypeError: if a step is not a whole number.
        ValueError: if the steps do not fall within 1..T, or eta is not in
            0..1.
        FloatingPointError: if the network returned a number that is not
            finite; the first such step is named.

    Source: Song, Meng and Ermon (2021).
    """
    steps = list(steps)
    move = ddim_move(
        respaced(schedule, steps), prediction, eta, clip, generator
    )
    return last(reverse_chain(network, xT, steps, move, progress)).to(xT)


def euler_step(
    x: Float[Tensor, "B *dims"],
    eps: Float[Tensor, "B *dims"],
    t: int,
    s: int,
    schedule: Schedule,
) -> Float[Tensor, "B *dims"]:
    """Return x_s from x_t and the noise, in either direction of time.

    The Euler step of d(x / signal) / d rho = eps; a DDIM step without noise.

    Raises:
        ValueError: if it begins where no signal is left.

    Implements thm-ddim-euler, eq-ddim-euler (book/diffusion/ddim.md).
    """
    if not schedule.signal[t]:
        raise ValueError(f"at t = {t} the noise says nothing about the data")
    kept = (schedule.signal[s] / schedule.signal[t]).item()
    # signal_s (rho_s - rho_t), which is finite where rho_s is not
    rise = schedule.noise_std[s].item() - kept * schedule.noise_std[t].item()
    return kept * x + rise * eps


def ddim_invert(
    network: Denoiser,
    x0: Float[Tensor, "B *dims"],
    schedule: Schedule,
    steps: Iterable[int],
    *,
    prediction: str = Prediction.EPS,
) -> Float[Tensor, "B *dims"]:
    """Return the noise from which `ddim_sample` makes x0 over these steps.

    Nearly, since an Euler step upwards is not the inverse of the one
    downwards: the network is asked at the lower level. Arguments and errors
    are those of `ddim_sample`.

    Source: Song, Meng and Ermon (2021), section 4.3.
    """
    times = list(steps)[::-1]
    short = respaced(schedule, times[::-1])
    seen = [times[0], *times[:-1]]  # at t = 0 there is no noise to see

    def move(x: Tensor, output: Tensor, left: int) -> Tensor:
        i = len(seen) - left
        at = torch.full(x.shape[:1], max(i, 1), device=x.device)
        eps = convert(output, x, at, short, prediction, Prediction.EPS)
        return euler_step(x, eps, i, i + 1, short)

    return last(reverse_chain(network, x0, seen, move)).to(x0)


def slerp(
    x: Float[Tensor, "B *dims"], y: Float[Tensor, "B *dims"], share: float
) -> Float[Tensor, "B *dims"]:
    """Return the point on the great circle from x (share 0) to y (1).

    The angle is that of each pair of samples as vectors. Pairs that are
    parallel are joined by a straight line.

    Raises:
        TypeError: if x is not floating.
        ValueError: if share is not in 0..1, or x and y are not alike.

    Implements eq-slerp (book/diffusion/ddim.md).
    """
    check_alike(x=x, y=y)
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie between 0 and 1, got {share}")
    rows = [v.flatten(1) for v in (x, y)]
    units = [v / v.norm(dim=1, keepdim=True) for v in rows]
    cosine = (units[0] * units[1]).sum(1, keepdim=True).clamp(-1, 1)
    angle = cosine.acos()
    sine = angle.sin()
    near = sine < 1e-6
    safe = sine.masked_fill(near, 1)
    first = (((1 - share) * angle).sin() / safe).masked_fill(near, 1 - share)
    last = ((share * angle).sin() / safe).masked_fill(near, share)
    return (first * rows[0] + last * rows[1]).reshape(x.shape)
