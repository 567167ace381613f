"""What a network predicts, how its errors are weighed, and the losses that train it.

Tangled from book/diffusion/prediction.md.
"""

from collections.abc import Callable
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from tangled.diffusion.elbo import Denoiser, posterior_table, posterior_var
from tangled.diffusion.forward import diffuse
from tangled.diffusion.schedule import Schedule, Table, per_sample

__all__ = [
    "Coordinates",
    "Prediction",
    "convert",
    "coordinates",
    "denoiser",
    "denoising_losses",
    "hybrid_losses",
    "learned_log_var",
    "min_snr_weights",
    "target",
    "vlb_weights",
    "weights_in",
]


class Prediction(StrEnum):
    """What a network predicts; its words serve wherever a member does."""

    EPS = "eps"
    X0 = "x0"
    V = "v"
    SCORE = "score"

    @classmethod
    def _missing_(cls, value: object) -> "Prediction":
        names = ", ".join(cls)
        raise ValueError(f"prediction must be one of {names}, got {value!r}")


class Coordinates(NamedTuple):
    """A target data_t x_0 + noise_t eps, one entry for t = 0..T.

    Entry 0 has no meaning where there is no noise to speak of.
    """

    data: Table
    noise: Table


@lru_cache(maxsize=64)
def coordinates(prediction: str, schedule: Schedule) -> Coordinates:
    """Return the coefficients of a target, computed once per schedule."""
    a, s = schedule.signal, schedule.noise_std
    one, zero = torch.ones_like(a), torch.zeros_like(a)
    return {
        Prediction.EPS: Coordinates(zero, one),
        Prediction.X0: Coordinates(one, zero),
        Prediction.V: Coordinates(-s, a),
        Prediction.SCORE: Coordinates(zero, -1 / s),
    }[Prediction(prediction)]


def target(
    x0: Float[Tensor, "B *dims"],
    eps: Float[Tensor, "B *dims"],
    t: Int64[Tensor, "B"],
    schedule: Schedule,
    prediction: str,
) -> Float[Tensor, "B *dims"]:
    """Return what a network should predict at x_t, each sample at its t.

    Implements def-prediction, eq-target (book/diffusion/prediction.md).
    """
    data, noise = coordinates(Prediction(prediction), schedule)
    return per_sample(data, t, x0) * x0 + per_sample(noise, t, x0) * eps


def _checked(output: Tensor, xt: Tensor) -> Tensor:
    """Return what a model predicts, or raise if it has another shape."""
    if output.shape != xt.shape:
        raise ValueError(
            f"a prediction must have the shape of xt, {list(xt.shape)}, "
            f"got {list(output.shape)}"
        )
    return output


def _check_told(prediction: str, schedule: Schedule) -> None:
    """Raise if at the last step the prediction says nothing of the data."""
    noise = (Prediction.EPS, Prediction.SCORE)
    if Prediction(prediction) in noise and not schedule.keeps_signal:
        raise ValueError(
            f"prediction must be x0 or v, got '{prediction}': this schedule "
            "ends at SNR 0, where the noise says nothing about the data"
        )


@lru_cache(maxsize=256)
def _conversion(
    given: Prediction, wanted: Prediction, schedule: Schedule
) -> tuple[Table, Table]:
    """Return (G, H) with wanted = G given + H x_t, one entry for t = 0..T."""
    a, s = schedule.signal, schedule.noise_std
    if given == wanted:  # also where nothing else can be told
        return torch.ones_like(a), torch.zeros_like(a)
    _check_told(given, schedule)
    old, new = coordinates(given, schedule), coordinates(wanted, schedule)
    det = old.data * s - old.noise * a
    keep = (new.data * s - new.noise * a) / det
    return keep, (old.data * new.noise - old.noise * new.data) / det


def convert(
    output: Float[Tensor, "B *dims"],
    xt: Float[Tensor, "B *dims"],
    t: Int64[Tensor, "B"],
    schedule: Schedule,
    given: str,
    wanted: str,
) -> Float[Tensor, "B *dims"]:
    """Return one prediction at x_t as another, each sample at its t in 1..T.

    If output and xt differ in dtype, as when a network answers in half
    precision, the wider one counts.

    Raises:
        ValueError: if a prediction is unknown, output has another shape than
            xt, t is not one step for each sample, or noise is given on a
            schedule that ends at SNR 0 (whatever t is: it is not read).

    Implements prop-predictions, eq-conversion (book/diffusion/prediction.md).
    """
    given, wanted = Prediction(given), Prediction(wanted)
    like = xt.to(torch.promote_types(output.dtype, xt.dtype))
    keep, add = (
        per_sample(x, t, like) for x in _conversion(given, wanted, schedule)
    )
    return keep * _checked(output, xt) + add * xt


def vlb_weights(schedule: Schedule, sigma: Table | None = None) -> Table:
    """Return the bound's weights of |x_0 - x0_hat|^2, one for t = 0..T.

    In nats, for errors that are summed over the dimensions. `sigma` are the
    deviations of the reverse model, the posterior's by default. Entry 1 is
    that of a Gaussian decoder; if sigma_1 is 0, sigma_2 is taken.

    Raises:
        ValueError: if sigma is not a table [T+1].

    Implements thm-exact-weights, eq-exact-weights
    (book/diffusion/prediction.md).
    """
    table = posterior_table(schedule)
    variance = table.variance if sigma is None else sigma.double() ** 2
    if variance.shape != schedule.beta.shape:
        raise ValueError(
            f"sigma must have shape {list(schedule.beta.shape)}, "
            f"got {list(variance.shape)}"
        )
    second = variance[min(2, schedule.T)]
    variance = variance.clone()
    variance[1] = torch.where(variance[1] > 0, variance[1], second)
    return _none_at_0(table.from_data**2 / (2 * variance))


def weights_in(prediction: str, weights: Table, schedule: Schedule) -> Table:
    """Return weights of squared errors in x_0 as those in a prediction."""
    keep, _ = _conversion(Prediction(prediction), Prediction.X0, schedule)
    return _none_at_0(keep**2 * weights)


def _none_at_0(weights: Table) -> Table:
    """Return weights that are 0 at t = 0, where there is nothing to guess."""
    return torch.cat([torch.zeros_like(weights[:1]), weights[1:]])


def denoising_losses(
    model: nn.Module | Denoiser,
    x0: Float[Tensor, "B *dims"],
    generator: torch.Generator | None,
    schedule: Schedule,
    prediction: str = Prediction.EPS,
    weights: Table | None = None,
) -> Float[Tensor, "B"]:
    """Return a loss for each sample, at a step drawn from 1..T.

    The mean squared error over the dimensions of what `model(xt, t)`
    predicts, in float32 at least. By default it is the simple loss, divided
    by the number of dimensions. `weights` [T+1] weigh errors in the
    prediction's own units, as `weights_in` gives them.

    Raises:
        ValueError: if the model returns another shape than xt, or predicts
            noise on a schedule that ends at SNR 0.

    Source: Ho, Jain and Abbeel (2020), equation 14.

    Implements def-simple-loss, eq-simple-loss (book/diffusion/prediction.md).
    """
    _check_told(prediction, schedule)
    t, eps = _drawn(x0, generator, schedule)
    xt = diffuse(x0, t, eps, schedule)
    output = _checked(model(xt, t), xt)
    error = output - target(x0, eps, t, schedule, prediction)
    losses = _mean_square(error)
    if weights is None:
        return losses
    return losses * per_sample(weights, t, losses)


def _drawn(
    x0: Float[Tensor, "B *dims"],
    generator: torch.Generator | None,
    schedule: Schedule,
) -> tuple[Int64[Tensor, "B"], Float[Tensor, "B *dims"]]:
    """Return a step in 1..T and standard normal noise for each sample."""
    t = torch.randint(
        1,
        schedule.T + 1,
        x0.shape[:1],
        generator=generator,
        device=x0.device,
    )
    eps = torch.randn(
        x0.shape, generator=generator, dtype=x0.dtype, device=x0.device
    )
    return t, eps


def _mean_square(error: Float[Tensor, "B *dims"]) -> Float[Tensor, "B"]:
    """Return the mean square of each sample, in float32 at least."""
    wide = torch.promote_types(error.dtype, torch.float32)
    return error.to(wide).square().flatten(1).mean(1)


def min_snr_weights(schedule: Schedule, cap: float = 5.0) -> Table:
    """Return min(SNR_t, cap), the weights of squared errors in x_0.

    Raises:
        ValueError: if cap is not positive.

    Source: Hang et al. (2023).

    Implements prop-min-snr, eq-min-snr (book/diffusion/prediction.md).
    """
    if not cap > 0:
        raise ValueError(f"cap must be positive, got {cap}")
    return _none_at_0(schedule.snr.clamp(max=cap))


@lru_cache(maxsize=64)
def _log_bounds(schedule: Schedule) -> tuple[Table, Table]:
    """Return ln of the posterior's variances and of beta, t = 0..T.

    The posterior's at t = 1, which is 0, is replaced by that at t = 2.
    """
    low = posterior_var(schedule).clone()
    low[:2] = low[2] if schedule.T > 1 else schedule.beta[1]
    high = schedule.beta.clone()
    high[0] = high[1]
    return low.log(), high.log()


def learned_log_var(
    share: Float[Tensor, "B *dims"], t: Int64[Tensor, "B"], schedule: Schedule
) -> Float[Tensor, "B *dims"]:
    """Return ln sigma_t^2 between the posterior's (share 0) and ln beta_t (1).

    Source: Nichol and Dhariwal (2021), equation 15.

    Implements eq-learned-variance (book/diffusion/prediction.md).
    """
    low, high = (per_sample(x, t, share) for x in _log_bounds(schedule))
    return share * high + (1 - share) * low


def hybrid_losses(
    model: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    x0: Float[Tensor, "B *dims"],
    generator: torch.Generator | None,
    schedule: Schedule,
    prediction: str = Prediction.EPS,
    vlb_scale: float = 0.001,
) -> Float[Tensor, "B"]:
    """Return the simple loss and what the bound says about the variance.

    `model(xt, t)` returns the prediction and the share of `learned_log_var`,
    both of the shape of xt. No gradient of the bound reaches the prediction.
    Per sample, a mean over the dimensions; the bound's part in nats.

    Raises:
        ValueError: if one of the two has another shape than xt, or noise is
            predicted on a schedule that ends at SNR 0.

    Source: Nichol and Dhariwal (2021), section 3.1.

    Implements eq-hybrid-loss, eq-variance-cost
    (book/diffusion/prediction.md).
    """
    t, eps = _drawn(x0, generator, schedule)
    xt = diffuse(x0, t, eps, schedule)
    output, share = (_checked(part, xt) for part in model(xt, t))
    simple = output - target(x0, eps, t, schedule, prediction)
    guess = convert(
        output.detach(), xt, t, schedule, prediction, Prediction.X0
    )
    table = posterior_table(schedule)
    missed = per_sample(table.from_data, t, guess) * (x0 - guess)
    spread = per_sample(table.variance, t, guess) + missed**2
    log_var = learned_log_var(share.to(guess), t, schedule)
    cost = (spread * (-log_var).exp() + log_var).flatten(1).mean(1) / 2
    return _mean_square(simple) + vlb_scale * schedule.T * cost


def denoiser(
    model: nn.Module | Denoiser,
    schedule: Schedule,
    prediction: str = Prediction.EPS,
) -> Denoiser:
    """Return the guess of x_0 that a network's prediction amounts to.

    So that a network can be handed to the bound and the sampler of
    `tangled.diffusion.elbo`, which ask for x_0.

    Implements def-prediction (book/diffusion/prediction.md).
    """
    _check_told(prediction, schedule)

    def guess(xt: Tensor, t: Tensor) -> Tensor:
        output = model(xt, t)
        return convert(output, xt, t, schedule, prediction, Prediction.X0)

    return guess
