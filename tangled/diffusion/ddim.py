"""DDIM: sampling over any list of steps, with any share of noise; inversion; interpolation.

Tangled from book/diffusion/ddim.md.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from tangled.diffusion.checks import check_order
from tangled.diffusion.elbo import Denoiser
from tangled.diffusion.prediction import Prediction, convert, denoiser
from tangled.diffusion.schedule import Schedule

__all__ = [
    "ddim_invert",
    "ddim_mean",
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
    noise = 1 - schedule.alpha_bar
    step = 1 - schedule.alpha_bar[t] / schedule.alpha_bar[s]
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


@torch.no_grad()
def ddim_sample(
    model: Denoiser,
    xT: Float[Tensor, "B *dims"],
    schedule: Schedule,
    steps: Iterable[int],
    *,
    prediction: str = Prediction.EPS,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "B *dims"]:
    """Return samples of x_0 from the noise xT, over decreasing steps.

    `model(xt, t)` sees xt in the dtype of xT and returns the prediction.
    `steps` are the levels at which it is called; the last jump leads to 0.
    No tensor is read inside the loop.

    Raises:
        TypeError: if a step is not a whole number.
        ValueError: if the steps do not fall within 1..T, or eta is not in
            0..1.
        FloatingPointError: if the model returned a number that is not
            finite; the first such step is named.

    Source: Song, Meng and Ermon (2021).

    Implements alg-ddim (book/diffusion/ddim.md).
    """
    guess_of = denoiser(_narrowed(model, xT.dtype), schedule, prediction)
    x, first_bad = _wide(xT), torch.zeros((), device=xT.device)
    for t, s in pairwise([*_falling(steps, schedule.T), 0]):
        guess = guess_of(x, torch.full(x.shape[:1], t, device=x.device))
        bad = ~guess.isfinite().all() & (first_bad == 0)
        first_bad = torch.where(bad, t, first_bad)
        sigma = ddim_sigma(schedule, t, s, eta).item()
        x = ddim_mean(guess, x, t, s, schedule, sigma)
        if sigma:
            x = x + sigma * torch.empty_like(x).normal_(generator=generator)
    if step := int(first_bad):
        raise FloatingPointError(f"model is not finite at t = {step}")
    return x.to(xT.dtype)


def _wide(x: Tensor) -> Tensor:
    """Return x in float64, or float32 where the device has no other."""
    return x.float() if x.device.type == "mps" else x.double()


def _falling(steps: Iterable[int], T: int) -> list[int]:
    """Return the steps as a list, or raise unless they fall within 1..T."""
    found = list(steps)
    for t in found:
        check_order(1, T, step=t)
    if not found or any(t <= s for t, s in pairwise(found)):
        raise ValueError(f"steps must fall, one at least, got {found[:9]}")
    return [int(t) for t in found]


def _narrowed(model: Denoiser, dtype: torch.dtype) -> Denoiser:
    """Return a network that is shown x in its own dtype."""
    return lambda x, t: model(x.to(dtype), t)


def euler_step(
    x: Float[Tensor, "B *dims"],
    eps: Float[Tensor, "B *dims"],
    t: int,
    s: int,
    schedule: Schedule,
) -> Float[Tensor, "B *dims"]:
    """Return x_s from x_t and the noise, in either direction of time.

    The Euler step of d(x / signal) / d rho = eps; a DDIM step without noise.

    Implements thm-ddim-euler, eq-ddim-euler (book/diffusion/ddim.md).
    """
    rise = (schedule.rho[s] - schedule.rho[t]).item()
    kept = (schedule.signal[s] / schedule.signal[t]).item()
    return kept * x + schedule.signal[s].item() * rise * eps


@torch.no_grad()
def ddim_invert(
    model: Denoiser,
    x0: Float[Tensor, "B *dims"],
    schedule: Schedule,
    steps: Sequence[int],
    *,
    prediction: str = Prediction.EPS,
) -> Float[Tensor, "B *dims"]:
    """Return the noise from which `ddim_sample` makes x0 over these steps.

    Nearly, since an Euler step upwards is not the inverse of the one
    downwards: the network is asked at the lower level. Arguments as there.

    Source: Song, Meng and Ermon (2021), section 4.3.
    """
    guess_of = denoiser(_narrowed(model, x0.dtype), schedule, prediction)
    x, levels = _wide(x0), [0, *_falling(steps, schedule.T)[::-1]]
    for t, s in pairwise(levels):
        seen = max(t, levels[1])  # at t = 0 there is no noise to see
        at = torch.full(x.shape[:1], seen, device=x.device)
        guess = guess_of(x, at)
        eps = convert(guess, x, at, schedule, Prediction.X0, Prediction.EPS)
        x = euler_step(x, eps, t, s, schedule)
    return x.to(x0.dtype)


def slerp(
    x: Float[Tensor, "B *dims"], y: Float[Tensor, "B *dims"], share: float
) -> Float[Tensor, "B *dims"]:
    """Return the point on the great circle from x (share 0) to y (1).

    The angle is that of each pair of samples as vectors. Pairs that are
    parallel are joined by a straight line.

    Raises:
        ValueError: if share is not in 0..1.

    Implements eq-slerp (book/diffusion/ddim.md).
    """
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
