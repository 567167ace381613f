"""The variational bound of a diffusion model: posterior, terms, and units.

Tangled from book/diffusion/elbo.md.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.special import log_ndtr

from tangled.diffusion.forward import diffuse, prior_term
from tangled.diffusion.gaussian import gaussian_kl, log_normal
from tangled.diffusion.schedule import Schedule, Table, per_sample

__all__ = [
    "Denoiser",
    "bits_per_dim",
    "bound_terms",
    "decoder_term",
    "discretised_log_prob",
    "kl_terms",
    "posterior",
    "posterior_mean",
    "posterior_var",
    "reverse_mean",
    "vlb",
]


def posterior_var(schedule: Schedule) -> Table:
    """Return the variances of q(x_{t-1} | x_t, x_0), one for t = 0..T.

    Entry 1 is exactly 0: given x_0, nothing is uncertain. Entry 0 has no
    meaning and is 0.

    Source: Ho, Jain and Abbeel (2020), equation 7.

    Implements prop-posterior-variance (book/diffusion/elbo.md).
    """
    variance = 1 - schedule.alpha_bar
    steps = schedule.beta[1:] * variance[:-1] / variance[1:]
    return torch.cat([steps.new_zeros(1), steps])


def _check_steps(t: Int64[Tensor, "B"], lowest: int, T: int) -> None:
    """Raise unless every step lies in lowest..T."""
    if (t < lowest).any():
        raise ValueError(
            f"t must lie in {lowest}..{T}, got {int(t.min())}..{int(t.max())}"
        )


def posterior_mean(
    x0: Float[Tensor, "B *dims"],
    xt: Float[Tensor, "B *dims"],
    t: Int64[Tensor, "B"],
    schedule: Schedule,
) -> Float[Tensor, "B *dims"]:
    """Return the mean of q(x_{t-1} | x_t, x_0), each sample at its t in 1..T.

    At t = 1 it is x_0, to the last bit.

    Raises:
        TypeError: if t is not an int64 tensor.
        ValueError: if t is not one step in 1..T for each sample.

    Implements eq-posterior (book/diffusion/elbo.md).
    """
    variance = 1 - schedule.alpha_bar
    # 1 - alpha rounds as 1 - alpha_bar does, so that the first ratio is 1
    data = schedule.signal[:-1] * (1 - schedule.alpha[1:]) / variance[1:]
    noisy = schedule.alpha[1:].sqrt() * variance[:-1] / variance[1:]
    pad = data.new_zeros(1)
    from_data = per_sample(torch.cat([pad, data]), t, x0)
    from_noisy = per_sample(torch.cat([pad, noisy]), t, xt)
    _check_steps(t, 1, schedule.T)
    return from_data * x0 + from_noisy * xt


def posterior(
    x0: Float[Tensor, "B *dims"],
    xt: Float[Tensor, "B *dims"],
    t: Int64[Tensor, "B"],
    schedule: Schedule,
) -> tuple[Float[Tensor, "B *dims"], Float[Tensor, "B *ones"]]:
    """Return (mean, variance) of q(x_{t-1} | x_t, x_0), t in 1..T.

    The variance has shape [B, 1, ..., 1]. At t = 1 the law is the point x_0,
    with variance 0.

    Raises:
        TypeError: if t is not an int64 tensor.
        ValueError: if t is not one step in 1..T for each sample.

    Source: Ho, Jain and Abbeel (2020), equations 6 and 7.

    Implements thm-posterior (book/diffusion/elbo.md).
    """
    mean = posterior_mean(x0, xt, t, schedule)
    return mean, per_sample(posterior_var(schedule), t, x0)


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
            them, or std is not positive.

    Source: Ho, Jain and Abbeel (2020), equation 13.

    Implements prop-discretised-decoder, eq-log-difference
    (book/diffusion/elbo.md).
    """
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}")
    if not (torch.as_tensor(std) > 0).all():
        raise ValueError(f"std must be positive, got {std}")
    place = (x0 + 1) * (levels - 1) / 2
    nearest = place.round().clamp(0, levels - 1)
    on_level = (place - nearest).abs() < 0.01  # false for NaN as well
    if not on_level.all():
        raise ValueError(
            f"x0 must lie on {levels} equal levels from -1 to 1, "
            f"got {x0[~on_level][0].item():.6g}"
        )
    half = 1 / (levels - 1)
    below, above = (x0 - half - mean) / std, (x0 + half - mean) / std
    mirror = below + above > 0
    upper = log_ndtr(torch.where(mirror, -below, above))
    lower = log_ndtr(torch.where(mirror, -above, below))
    inner = upper + torch.log(-torch.expm1(lower - upper))
    first, last = place < 0.5, place > levels - 1.5
    ends = torch.where(first, log_ndtr(above), log_ndtr(-below))
    return torch.where(first | last, ends, inner)


# Guesses x_0 [B, *dims] from x_t [B, *dims] and t [B].
Denoiser = Callable[[Tensor, Tensor], Tensor]


def _check_sigma(sigma: Table, T: int) -> None:
    """Raise unless sigma is a table of positive deviations for 1..T."""
    if sigma.shape != (T + 1,) or not (sigma[1:] > 0).all():
        raise ValueError(
            f"sigma must be a table [{T + 1}], positive from t = 1 on"
        )


def _sum_dimensions(values: Float[Tensor, "B *dims"]) -> Float[Tensor, "B"]:
    """Return the sum over the dimensions of each sample."""
    return values.reshape(len(values), math.prod(values.shape[1:])).sum(1)


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
    if x0_hat.shape != xt.shape:
        raise ValueError(
            f"model must return the shape of xt, {list(xt.shape)}, "
            f"got {list(x0_hat.shape)}"
        )
    return posterior_mean(x0_hat, xt, t, schedule)


def kl_terms(
    model: Denoiser,
    x0: Float[Tensor, "B *dims"],
    t: Int64[Tensor, "B"],
    eps: Float[Tensor, "B *dims"],
    schedule: Schedule,
    sigma: Table,
) -> Float[Tensor, "B"]:
    """Return KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) at x_t from eps.

    In nats, summed over the dimensions of a sample, each at its own t in
    2..T. Averaged over standard normal eps it is L_{t-1}. The model is
    N(reverse_mean, sigma_t^2 I).

    Raises:
        ValueError: if a t lies outside 2..T (the step from t = 1 has no
            divergence: see `decoder_term`), or sigma is not positive.

    Implements def-bound-terms (book/diffusion/elbo.md).
    """
    _check_sigma(sigma, schedule.T)
    xt = diffuse(x0, t, eps, schedule)
    _check_steps(t, 2, schedule.T)
    mean, variance = posterior(x0, xt, t, schedule)
    guess = reverse_mean(model, xt, t, schedule)
    kl = gaussian_kl(mean, variance, guess, per_sample(sigma**2, t, x0))
    return _sum_dimensions(kl)


def decoder_term(
    model: Denoiser,
    x0: Float[Tensor, "B *dims"],
    eps: Float[Tensor, "B *dims"],
    schedule: Schedule,
    sigma: Table,
    levels: int | None = 256,
) -> Float[Tensor, "B"]:
    """Return -ln p(x_0 | x_1) of each sample at x_1 made from eps.

    In nats, summed over the dimensions of a sample. Averaged over standard
    normal eps it is L_0. With `levels` the decoder gives probabilities to
    data on that many levels from -1 to 1; with None it is the density
    N(x_0; model(x_1, 1), sigma_1^2 I).

    Raises:
        ValueError: if sigma is not positive, or x0 is not on the levels.
    """
    _check_sigma(sigma, schedule.T)
    t = torch.ones(len(x0), dtype=torch.int64, device=x0.device)
    mean = reverse_mean(model, diffuse(x0, t, eps, schedule), t, schedule)
    std = sigma[1].item()
    if levels is None:
        log_prob = log_normal(x0, mean, std**2)
    else:
        log_prob = discretised_log_prob(x0, mean, std, levels)
    return -_sum_dimensions(log_prob)


def bound_terms(
    model: Denoiser,
    x0: Float[Tensor, "B *dims"],
    schedule: Schedule,
    sigma: Table,
    levels: int | None = 256,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "B T_plus_1"]:
    """Return estimates of L_0, ..., L_T of each sample; column k is L_k.

    In nats, summed over the dimensions of a sample, with one noise for each
    term. The model is called T times on the whole batch. Arguments as in
    `kl_terms` and `decoder_term`.

    Implements alg-bound (book/diffusion/elbo.md).
    """

    def fresh() -> Tensor:
        return torch.randn(
            x0.shape, generator=generator, dtype=x0.dtype, device=x0.device
        )

    terms = [decoder_term(model, x0, fresh(), schedule, sigma, levels)]
    for step in range(2, schedule.T + 1):
        t = torch.full((len(x0),), step, device=x0.device)
        terms.append(kl_terms(model, x0, t, fresh(), schedule, sigma))
    terms.append(prior_term(x0, schedule))
    return torch.stack(terms, dim=1)


def vlb(
    model: Denoiser,
    x0: Float[Tensor, "B *dims"],
    schedule: Schedule,
    sigma: Table,
    levels: int | None = 256,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "B"]:
    """Return an unbiased estimate of L_VLB of each sample.

    In nats, summed over the dimensions: an upper bound of -ln p(x_0) on
    average over the noise. Arguments as in `bound_terms`.

    Implements thm-vlb-decomposition (book/diffusion/elbo.md).
    """
    terms = bound_terms(model, x0, schedule, sigma, levels, generator)
    return terms.sum(1)


def bits_per_dim(nats: Float[Tensor, "*B"], dim: int) -> Float[Tensor, "*B"]:
    """Return nats / (dim ln 2), for nats that are summed over `dim` numbers.

    Raises:
        ValueError: if dim is below 1.

    Implements eq-bits (book/diffusion/elbo.md).
    """
    if dim < 1:
        raise ValueError(f"dim must be at least 1, got {dim}")
    return nats / (dim * math.log(2))
