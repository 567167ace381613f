"""The variational bound of a diffusion model: posterior, terms, and the way back.

Tangled from book/diffusion/elbo.md.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.special import log_ndtr

from tangled.diffusion.forward import diffuse, prior_term
from tangled.diffusion.gaussian import log_normal
from tangled.diffusion.schedule import Schedule, Table, per_sample

__all__ = [
    "Denoiser",
    "PosteriorTable",
    "ancestral_sample",
    "bits_per_dim",
    "bound_terms",
    "decoder_term",
    "discretised_log_prob",
    "empirical_denoiser",
    "kl_terms",
    "posterior",
    "posterior_mean",
    "posterior_table",
    "posterior_var",
    "reverse_mean",
    "vlb",
]


class PosteriorTable(NamedTuple):
    """The coefficients of q(x_{t-1} | x_t, x_0), one entry for t = 0..T.

    Entry 1 is exactly (1, 0, 0): given x_0, nothing is uncertain. Entry 0 has
    no meaning and is NaN.
    """

    from_data: Table
    from_noisy: Table
    variance: Table


@lru_cache(maxsize=64)
def posterior_table(schedule: Schedule) -> PosteriorTable:
    """Return the posterior's coefficients, computed once per schedule."""
    signal, noise = schedule.signal, 1 - schedule.alpha_bar
    alpha = schedule.alpha[1:]
    beta = 1 - alpha  # rounds as `noise` does, so that entry 1 is exact
    from_data = signal[:-1] * beta / noise[1:]
    from_noisy = alpha.sqrt() * noise[:-1] / noise[1:]
    variance = noise[:-1] / noise[1:] * beta
    none = torch.full_like(alpha[:1], torch.nan)  # no step ends at t = -1
    rows = (from_data, from_noisy, variance)
    return PosteriorTable(*(torch.cat([none, row]) for row in rows))


def posterior_var(schedule: Schedule) -> Table:
    """Return the variances of q(x_{t-1} | x_t, x_0), one for t = 0..T.

    Implements prop-posterior-variance, eq-posterior-variance
    (book/diffusion/elbo.md).
    """
    return posterior_table(schedule).variance


# Guesses x_0 [B, *dims] from x_t [B, *dims] and t [B].
Denoiser = Callable[[Tensor, Tensor], Tensor]


def _check_steps(t: Int64[Tensor, "B"], lowest: int, T: int) -> None:
    """Raise unless all t lie in lowest..T; on a GPU they are not read."""
    if t.device.type == "cpu" and ((t < lowest) | (t > T)).any():
        raise ValueError(
            f"t must lie in {lowest}..{T}, got {int(t.min())}..{int(t.max())}"
        )


def _check_guess(xt: Tensor, *guesses: Tensor) -> None:
    """Raise unless what the model returns has the shape of xt."""
    for guess in guesses:
        if guess.shape != xt.shape:
            raise ValueError(
                f"model must return the shape of xt, {list(xt.shape)}, "
                f"got {list(guess.shape)}"
            )


def _check_length(sigma: Table, T: int) -> None:
    """Raise unless sigma has one entry for each t = 0..T."""
    if sigma.shape != (T + 1,):
        raise ValueError(
            f"sigma must have shape [{T + 1}], got {list(sigma.shape)}"
        )


def _check_sigma(sigma: Table, T: int) -> None:
    """Raise unless sigma is a table [T+1], positive from t = 2 on.

    sigma[1] belongs to the decoder and may be 0. On a GPU the values are not
    read.
    """
    _check_length(sigma, T)
    right = torch.cat([sigma[1:2] >= 0, sigma[2:] > 0])  # false for NaN
    if sigma.device.type == "cpu" and not right.all():
        raise ValueError("sigma must be positive from t = 2 on")


def _check_levels(
    place: Float[Tensor, "..."], std: float | Tensor, levels: int
) -> None:
    """Raise unless every place is a whole number in 0..levels - 1."""
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}")
    scale = torch.as_tensor(std)
    if scale.device.type == "cpu" and not (scale > 0).all():
        raise ValueError(f"std must be positive, got {std}")
    near = (place - place.round().clamp(0, levels - 1)).abs() < 0.01
    if place.device.type == "cpu" and not near.all():  # NaN is not near
        x0 = place[~near][0].item() * 2 / (levels - 1) - 1
        raise ValueError(
            f"x0 must lie on {levels} equal levels from -1 to 1, got {x0:.6g}"
        )


def _rows(x: Float[Tensor, "B *dims"]) -> Float[Tensor, "B D"]:
    """Return the samples as rows."""
    return x.reshape(len(x), math.prod(x.shape[1:]))


def _noise_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return standard normal noise in the shape, dtype and device of x."""
    return torch.randn(
        x.shape, generator=generator, dtype=x.dtype, device=x.device
    )


def _excess(ratio: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return what a wrong variance costs, in nats for one dimension."""
    return (ratio - 1 - ratio.log()) / 2


def posterior_mean(
    x0: Float[Tensor, "B *dims"],
    xt: Float[Tensor, "B *dims"],
    t: Int64[Tensor, "B"],
    schedule: Schedule,
) -> Float[Tensor, "B *dims"]:
    """Return the mean of q(x_{t-1} | x_t, x_0), each sample at its t in 1..T.

    At t = 1 it is x_0, to the last bit. If x0 and xt differ in dtype, as when
    a model guesses in half precision, the wider one counts.

    Raises:
        TypeError: if t is not an int64 tensor.
        ValueError: if t is not one step in 1..T for each sample.

    Implements eq-posterior (book/diffusion/elbo.md).
    """
    _check_steps(t, 1, schedule.T)
    table = posterior_table(schedule)
    like = xt.to(torch.promote_types(x0.dtype, xt.dtype))
    from_data = per_sample(table.from_data, t, like)
    from_noisy = per_sample(table.from_noisy, t, like)
    return from_data * x0 + from_noisy * xt


def posterior(
    x0: Float[Tensor, "B *dims"],
    xt: Float[Tensor, "B *dims"],
    t: Int64[Tensor, "B"],
    schedule: Schedule,
) -> tuple[Float[Tensor, "B *dims"], Float[Tensor, "B *ones"]]:
    """Return (mean, variance) of q(x_{t-1} | x_t, x_0), t in 1..T.

    The variance has shape [B, 1, ..., 1]. At t = 1 the distribution is the
    point x_0, with variance 0. Errors are those of `posterior_mean`.

    Source: Ho, Jain and Abbeel (2020), equations 6 and 7.

    Implements thm-posterior (book/diffusion/elbo.md).
    """
    mean = posterior_mean(x0, xt, t, schedule)
    return mean, per_sample(posterior_var(schedule), t, mean)


def reverse_mean(
    model: Denoiser,
    xt: Float[Tensor, "B *dims"],
    t: Int64[Tensor, "B"],
    schedule: Schedule,
) -> Float[Tensor, "B *dims"]:
    """Return the mean of p(x_{t-1} | x_t): the posterior's, with a guess.

    `model(xt, t)` guesses x_0; at t = 1 the mean is that guess.

    Raises:
        ValueError: if the guess has another shape than xt, or t lies outside
            1..T.

    Implements def-reverse-model, eq-reverse-mean (book/diffusion/elbo.md).
    """
    x0_hat = model(xt, t)
    _check_guess(xt, x0_hat)
    return posterior_mean(x0_hat, xt, t, schedule)


def kl_terms(
    model: Denoiser,
    x0: Float[Tensor, "B *dims"],
    t: Int64[Tensor, "B"],
    eps: Float[Tensor, "B *dims"],
    schedule: Schedule,
    sigma: Table | None,
    grad: bool = False,
) -> Float[Tensor, "B"]:
    """Return KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) at x_t from eps.

    In nats, summed over the dimensions of a sample, each at its own t in
    2..T. Averaged over standard normal eps it is L_{t-1}. The model is
    N(reverse_mean, sigma_t^2 I); with sigma = None, `model(xt, t)` returns
    (guess, deviation), the latter of the shape of xt. Gradients only if
    `grad`.

    Raises:
        ValueError: if a t lies outside 2..T (the step from t = 1 has no
            divergence: see `decoder_term`), or sigma is not positive.

    Implements def-bound-terms, prop-denoising-error (book/diffusion/elbo.md).
    """
    _check_steps(t, 2, schedule.T)
    xt, table = diffuse(x0, t, eps, schedule), posterior_table(schedule)
    slope = per_sample(table.from_data, t, x0)
    with torch.set_grad_enabled(grad):
        if sigma is None:
            x0_hat, std = model(xt, t)
            _check_guess(xt, std)
            variance = per_sample(table.variance, t, x0)
            excess = _excess(variance / std**2)
        else:
            _check_sigma(sigma, schedule.T)
            x0_hat, std = model(xt, t), per_sample(sigma, t, x0)
            ratio = table.variance.to(sigma.device) / sigma**2  # in float64
            excess = per_sample(_excess(ratio), t, x0)
        _check_guess(xt, x0_hat)
        error = (slope * (x0 - x0_hat) / std) ** 2 / 2
        return _rows(error + excess).sum(1)


def discretised_log_prob(
    x0: Float[Tensor, "..."],
    mean: Float[Tensor, "..."],
    std: float | Float[Tensor, "..."],
    levels: int = 256,
) -> Float[Tensor, "..."]:
    """Return the log mass that N(mean, std^2) gives to the bin of each x0.

    In nats, elementwise and not summed. The levels are equally spaced from -1
    to 1; the first and the last bin are open.

    Raises:
        ValueError: if x0 is not on the levels, there are fewer than 2 of
            them, or std is not positive. Tensors on a GPU are not read.

    Source: Ho, Jain and Abbeel (2020), equation 13.

    Implements prop-discretised-decoder, eq-log-difference
    (book/diffusion/elbo.md).
    """
    place = (x0 + 1) * (levels - 1) / 2
    _check_levels(place, std, levels)
    half = 1 / (levels - 1)
    below, above = (x0 - half - mean) / std, (x0 + half - mean) / std
    mirror = below + above > 0
    upper = log_ndtr(torch.where(mirror, -below, above))
    lower = log_ndtr(torch.where(mirror, -above, below))
    inner = upper + torch.log(-torch.expm1(lower - upper))
    first, last = place < 0.5, place > levels - 1.5
    # an infinite edge has no derivative: the end bins have one edge only
    ends = torch.where(first, log_ndtr(above), log_ndtr(-below))
    return torch.where(first | last, ends, inner)


def decoder_term(
    model: Denoiser,
    x0: Float[Tensor, "B *dims"],
    eps: Float[Tensor, "B *dims"],
    schedule: Schedule,
    sigma: Table | None,
    levels: int | None = 256,
    grad: bool = False,
) -> Float[Tensor, "B"]:
    """Return -ln p(x_0 | x_1) of each sample at x_1 made from eps.

    In nats, summed over the dimensions of a sample. Averaged over standard
    normal eps it is L_0. With `levels` the decoder gives probabilities to
    data on that many levels from -1 to 1; with None it is the density
    N(x_0; model(x_1, 1), sigma_1^2 I). If sigma_1 is 0, sigma_2 is taken.

    Raises:
        ValueError: if sigma is not positive, or x0 is not on the levels.
    """
    t = torch.ones(len(x0), dtype=torch.int64, device=x0.device)
    x1 = diffuse(x0, t, eps, schedule)
    with torch.set_grad_enabled(grad):
        if sigma is None:
            mean, std = model(x1, t)
            _check_guess(x1, std)
        else:
            _check_sigma(sigma, schedule.T)
            second = sigma[min(2, schedule.T)]
            std = torch.where(sigma[1] > 0, sigma[1], second).to(x0)
            mean = model(x1, t)
        _check_guess(x1, mean)
        if levels is None:
            log_prob = log_normal(x0, mean, std**2)
        else:
            log_prob = discretised_log_prob(x0, mean, std, levels)
        return -_rows(log_prob).sum(1)


def bound_terms(
    model: Denoiser,
    x0: Float[Tensor, "B *dims"],
    schedule: Schedule,
    sigma: Table | None,
    *,
    levels: int | None = 256,
    generator: torch.Generator | None = None,
    chunk: int = 1,
    grad: bool = False,
) -> Float[Tensor, "B T_plus_1"]:
    """Return estimates of L_0, ..., L_T of each sample; column t is L_t.

    In nats, summed over the dimensions of a sample, with one noise for each
    term. The model sees `chunk` steps of the whole batch at a time; the
    result is the same for every `chunk`. Other arguments are those of
    `kl_terms` and `decoder_term`.

    Raises:
        ValueError: if chunk is below 1, or as those two functions do.

    Implements alg-bound (book/diffusion/elbo.md).
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    eps = _noise_like(x0, generator)
    terms = [decoder_term(model, x0, eps, schedule, sigma, levels, grad)]
    for first in range(2, schedule.T + 1, chunk):
        last = min(first + chunk, schedule.T + 1)
        steps = torch.arange(first, last, device=x0.device)
        t, many = steps.repeat_interleave(len(x0)), [x0] * len(steps)
        eps = torch.cat([_noise_like(x0, generator) for _ in steps])
        kl = kl_terms(model, torch.cat(many), t, eps, schedule, sigma, grad)
        terms.extend(kl.reshape(len(steps), len(x0)))
    return torch.stack([*terms, prior_term(x0, schedule)], dim=1)


def vlb(
    model: Denoiser,
    x0: Float[Tensor, "B *dims"],
    schedule: Schedule,
    sigma: Table | None,
    **options: int | bool | torch.Generator | None,
) -> Float[Tensor, "B"]:
    """Return an unbiased estimate of L_VLB of each sample, in nats.

    The sum of `bound_terms`, with its arguments: on average over the noise an
    upper bound of -ln p(x_0), summed over the dimensions.

    Implements thm-vlb-decomposition (book/diffusion/elbo.md).
    """
    return bound_terms(model, x0, schedule, sigma, **options).sum(1)


def bits_per_dim(nats: Float[Tensor, "*B"], dim: int) -> Float[Tensor, "*B"]:
    """Return nats / (dim ln 2), for nats that are summed over `dim` numbers.

    Raises:
        ValueError: if dim is below 1.

    Implements eq-bits (book/diffusion/elbo.md).
    """
    if dim < 1:
        raise ValueError(f"dim must be at least 1, got {dim}")
    return nats / (dim * math.log(2))


def empirical_denoiser(
    points: Float[Tensor, "N *dims"], schedule: Schedule
) -> Denoiser:
    """Return E[x_0 | x_t] for x_0 drawn from the N points, for t in 1..T.

    Implements eq-empirical-denoiser (book/diffusion/elbo.md).
    """
    rows = _rows(points)
    energy = rows.square().sum(1)

    def model(xt: Tensor, t: Tensor) -> Tensor:
        x = _rows(xt)
        a, s = (
            per_sample(table, t, x)
            for table in (schedule.signal, schedule.noise_std)
        )
        # -|x_t - a x_i|^2 / 2, without |x_t|^2, which is the same for all i
        fit = a * (x @ rows.T) - a**2 * energy / 2
        return ((fit / s**2).softmax(1) @ rows).reshape(xt.shape)

    return model


@torch.no_grad()
def ancestral_sample(
    model: Denoiser,
    xT: Float[Tensor, "B *dims"],
    schedule: Schedule,
    sigma: Table,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "B *dims"]:
    """Return samples of x_0 from the noise xT, without noise in the last step.

    Raises:
        ValueError: if sigma is not a table [T+1], or a guess of the model has
            another shape than xT.

    Source: Ho, Jain and Abbeel (2020), algorithm 2.

    Implements alg-ancestral (book/diffusion/elbo.md).
    """
    _check_length(sigma, schedule.T)
    x = xT
    for step in range(schedule.T, 0, -1):
        t = torch.full((len(x),), step, device=x.device)
        x = reverse_mean(model, x, t, schedule)
        if step > 1:
            x = x + sigma[step] * _noise_like(x, generator)
    return x
