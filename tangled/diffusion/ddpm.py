"""A diffusion model from end to end: training, and sampling over any list of steps.

Tangled from book/diffusion/ddpm.md and book/diffusion/pictures.md.
"""

import importlib
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.optim import AdamW
from tqdm.auto import tqdm

from tangled.diffusion.checks import check_alike, check_order
from tangled.diffusion.elbo import Denoiser, posterior_mean, posterior_var
from tangled.diffusion.prediction import (
    Prediction,
    convert,
    denoising_losses,
    hybrid_losses,
    learned_log_var,
)
from tangled.diffusion.schedule import Schedule, Table
from tangled.diffusion.unet import UNet, UNetConfig, time_features
from tangled.foundations.training import (
    Losses,
    Run,
    Training,
    train,
    warmup_cosine,
)
from tangled.workshop.artifacts import recipe
from tangled.workshop.data import digits

__all__ = [
    "DIGITS_SCHEDULE",
    "Move",
    "PointNetwork",
    "ddpm_losses",
    "ddpm_move",
    "ddpm_sample",
    "digits_ddpm",
    "digits_unet",
    "evaluating",
    "fit",
    "guessed",
    "halves",
    "last",
    "respaced",
    "reverse_chain",
    "sampler_variances",
    "widened",
]


def respaced(schedule: Schedule, steps: Iterable[int]) -> Schedule:
    """Return the schedule of some steps alone, which must fall.

    Raises:
        TypeError: if a step is not a whole number.
        ValueError: unless the steps fall, within 1..T, one at least.

    Implements eq-respaced (book/diffusion/ddpm.md).
    """
    found = list(steps)
    for t in found:
        check_order(1, schedule.T, step=t)
    if not found or any(t <= s for t, s in pairwise(found)):
        raise ValueError(f"steps must fall, one at least, got {found[:9]}")
    power = schedule.alpha_bar[[0, *map(int, found[::-1])]]
    return Schedule.from_betas(1 - power[1:] / power[:-1])


# Makes x one step cleaner, from what the network said; i counts down to 1.
Move = Callable[[Tensor, Tensor, int], Tensor]


@torch.no_grad()
def reverse_chain(
    network: nn.Module | Denoiser,
    xT: Float[Tensor, "B *dims"],
    steps: list[int],
    move: Move,
    progress: bool = False,
) -> Iterator[Float[Tensor, "B *dims"]]:
    """Yield the samples after each step, on the way from noise to data.

    `network(xt, t)` sees them in the dtype of xT and `move(x, output, i)` in
    float64; i = len(steps)..1. A module is in evaluation mode meanwhile.

    Raises:
        TypeError: if xT is not floating.
        FloatingPointError: at the end, if the network returned a number that
            is not finite; the first such step is named.
    """
    check_alike(xT=xT)
    x, first_bad = widened(xT), torch.zeros((), device=xT.device)
    counted = zip(range(len(steps), 0, -1), map(int, steps), strict=True)
    with evaluating(network):
        for i, t in tqdm(
            counted, total=len(steps), disable=None if progress else True
        ):
            at = torch.full(x.shape[:1], t, device=x.device)
            output = network(x.to(xT.dtype), at)
            bad = ~output.isfinite().all() & (first_bad == 0)
            first_bad = torch.where(bad, t, first_bad)
            x = move(x, output, i)
            yield x
    if step := int(first_bad):
        raise FloatingPointError(f"network is not finite at t = {step}")


@contextmanager
def evaluating(network: nn.Module | Denoiser) -> Iterator[None]:
    """Keep a module in evaluation mode for a while."""
    training = isinstance(network, nn.Module) and network.training
    if training:
        network.eval()
    try:
        yield
    finally:
        if training:
            network.train()


def widened(x: Tensor) -> Tensor:
    """Return x in float64, or float32 where the device has no other."""
    return x.float() if x.device.type == "mps" else x.double()


def last(chain: Iterator[Tensor]) -> Tensor:
    """Return the last of the states of a chain."""
    return deque(chain, maxlen=1).pop()


def ddpm_move(
    schedule: Schedule,
    prediction: str = Prediction.EPS,
    variance: str = "small",
    clip: bool = False,
    generator: torch.Generator | None = None,
) -> Move:
    """Return the move of DDPM over the steps of a (respaced) schedule.

    Arguments and errors are those of `ddpm_sample`.

    Implements alg-ddpm (book/diffusion/ddpm.md).
    """
    std, learned = _deviations(schedule, variance), variance == "learned"

    def move(x: Tensor, output: Tensor, i: int) -> Tensor:
        at = torch.full(x.shape[:1], i, device=x.device)
        if learned:
            output, share = halves(output)
        guess = guessed(output, x, at, schedule, prediction, clip)
        mean = posterior_mean(guess, x, at, schedule)
        if i == 1:
            return mean
        xi = torch.empty_like(x).normal_(generator=generator)
        if learned:
            log_var = learned_log_var(share.to(x), at, schedule)
            return mean + (log_var / 2).exp() * xi
        return mean + std[i] * xi

    return move


def ddpm_sample(
    network: nn.Module | Denoiser,
    xT: Float[Tensor, "B *dims"],
    schedule: Schedule,
    steps: Iterable[int],
    *,
    prediction: str = Prediction.EPS,
    variance: str = "small",
    clip: bool = False,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Float[Tensor, "B *dims"]:
    """Return samples of x_0 from the noise xT, over decreasing steps.

    Args:
        network: (xt, t) -> what it predicts, of the shape of xt; with a
            learned variance twice as many channels.
        xT: standard normal noise.
        schedule: the one that the network was trained with.
        steps: at which the network is called, such as range(T, 0, -1).
        prediction: what the network predicts.
        variance: "small", the posterior's; "large", beta; or "learned".
        clip: whether guesses of x_0 are clipped to [-1, 1].
        generator: of the noise of each step.
        progress: whether a bar is shown.

    Raises:
        TypeError, ValueError: if an argument is not as said.
        FloatingPointError: if the network returned a number that is not
            finite; the first such step is named.

    Source: Ho, Jain and Abbeel (2020), algorithm 2.
    """
    steps = list(steps)
    short = respaced(schedule, steps)
    move = ddpm_move(short, prediction, variance, clip, generator)
    return last(reverse_chain(network, xT, steps, move, progress)).to(xT)


def guessed(
    output: Float[Tensor, "B *dims"],
    xt: Float[Tensor, "B *dims"],
    t: Int64[Tensor, "B"],
    schedule: Schedule,
    prediction: str,
    clip: bool,
) -> Float[Tensor, "B *dims"]:
    """Return the guess of x_0 in a network's output, clipped if wanted."""
    guess = convert(output, xt, t, schedule, prediction, Prediction.X0)
    return guess.clamp(-1, 1) if clip else guess


def halves(
    output: Float[Tensor, "B C2 *dims"],
) -> tuple[Float[Tensor, "B C *dims"], Float[Tensor, "B C *dims"]]:
    """Return the prediction and the share of `learned_log_var` in an output.

    The second half of the channels is -1 where the log variance is the
    posterior's, and 1 where it is that of beta; the share is 0 and 1 there.

    Raises:
        ValueError: if the number of channels is odd.
    """
    if output.shape[1] % 2:
        raise ValueError(
            "with a learned variance a network returns two channels for each "
            f"of a picture, got {output.shape[1]} in all"
        )
    said, share = output.chunk(2, 1)
    return said, (share + 1) / 2


def _deviations(schedule: Schedule, variance: str) -> list[Any]:
    """Return the deviations of the steps, for t = 0..T, on the host."""
    tables = {
        "small": posterior_var(schedule),
        "large": schedule.beta,
        "learned": schedule.beta,
    }
    if variance not in tables:
        names = ", ".join(tables)
        raise ValueError(f"variance must be one of {names}, got {variance!r}")
    return tables[variance].sqrt().tolist()


def sampler_variances(
    schedule: Schedule, sigma: Table, data_std: float
) -> Table:
    """Return the variances v_0..v_T of the sampler's state, from v_T = 1.

    For data N(0, data_std^2 I) and the best network; `sigma` [T+1] are the
    deviations of its steps.

    Implements prop-sampler-variance, eq-sampler-variance
    (book/diffusion/ddpm.md).
    """
    total = (schedule.signal * data_std) ** 2 + schedule.noise_std**2
    # m_t, since total_t = alpha_t total_(t-1) + beta_t
    slope = schedule.alpha.sqrt() * total.roll(1) / total
    found = [torch.ones((), dtype=torch.float64)]
    for t in range(schedule.T, 0, -1):
        fresh = sigma[t] ** 2 * (t > 1)
        found.append(slope[t] ** 2 * found[-1] + fresh)
    return torch.stack(found[::-1])


class PointNetwork(nn.Module):
    """Four layers for points [B, dim], with the step as waves beside them.

    It returns `outputs` numbers for each point; None: as many as come in.
    """

    def __init__(
        self, dim: int = 2, width: int = 128, outputs: int | None = None
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Linear(dim + 32, width), nn.SiLU()),
            *(nn.Linear(width, width), nn.SiLU()),
            *(nn.Linear(width, width), nn.SiLU()),
            nn.Linear(width, outputs or dim),
        )

    def forward(
        self, xt: Float[Tensor, "B dim"], t: Int64[Tensor, "B"]
    ) -> Float[Tensor, "B outputs"]:
        """Return the prediction at x_t."""
        return self.body(torch.cat([xt, time_features(t, 32).to(xt)], 1))


def ddpm_losses(
    schedule: Schedule,
    prediction: str = Prediction.EPS,
    learned: bool = False,
    labelled: bool = False,
) -> Losses:
    """Return the losses that `train` asks for, of batches x_0 or (x_0, label).

    If `labelled`, the network is given the label too. If `learned`, it has
    twice the channels, and its variance is trained as well (`hybrid_losses`).

    Implements eq-simple-loss (book/diffusion/ddpm.md).
    """

    def losses(
        model: nn.Module, batch: Any, generator: torch.Generator
    ) -> Float[Tensor, "B"]:
        x0, *label = batch if isinstance(batch, tuple) else (batch,)
        label = label if labelled else []

        def network(xt: Tensor, t: Tensor) -> Tensor:
            return model(xt, t, *label)

        if learned:

            def both(xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
                return halves(network(xt, t))

            return hybrid_losses(both, x0, generator, schedule, prediction)
        return denoising_losses(network, x0, generator, schedule, prediction)

    return losses


@dataclass(frozen=True)
class _Denoising(Training):
    """A training run, with what its loss was made of.

    So that a checkpoint says it, and a run of another loss does not go on.
    """

    prediction: str = Prediction.EPS
    learned: bool = False
    labelled: bool = False
    schedule: str = ""  # its length, and its SNR at the ends


def fit(
    network: nn.Module,
    data: Any,
    schedule: Schedule,
    steps: int,
    *,
    prediction: str = Prediction.EPS,
    learned: bool = False,
    labelled: bool = False,
    lr: float = 1e-3,
    batch_size: int = 64,
    ema_decay: float = 0.99,
    warmup: int = 50,
    precision: str = "float32",
    seed: int = 0,
    folder: str | Path | None = None,
    save_every: int | None = None,
    log_every: int = 10,
) -> Run:
    """Train a network on clean samples, with AdamW, a warm-up and a cosine.

    The network to draw with is `run.averaged`. Arguments, errors, resuming
    and interrupting are those of `train`; a folder whose run has another
    prediction or schedule is refused.
    """
    first, last = schedule.snr[[1, -1]].tolist()
    return train(
        network,
        ddpm_losses(schedule, prediction, learned, labelled),
        data,
        AdamW(network.parameters(), lr=lr, weight_decay=0),
        _Denoising(
            steps,
            batch_size,
            ema_decay=ema_decay,
            precision=precision,
            seed=seed,
            prediction=Prediction(prediction),
            learned=learned,
            labelled=labelled,
            schedule=f"{schedule.T} steps, SNR {first:.6g} to {last:.6g}",
        ),
        lr_factor=warmup_cosine(steps, min(warmup, steps // 2)),
        folder=folder,
        save_every=save_every,
        log_every=log_every,
    )


def digits_unet() -> UNet:
    """Return an untrained U-Net for digits of 8 x 8, asked for by label."""
    return UNet(
        UNetConfig(
            widths=(32, 48),
            channels=1,
            blocks=1,
            attention=(1,),
            head_dim=16,
            classes=10,
            size=8,
            groups=8,
        )
    )


# In 400 steps, with as much noise at the end as 1,000 steps from 1e-4 to .02.
DIGITS_SCHEDULE = Schedule.linear(400, 2.5e-4, 0.05)


@recipe(steps=600, seed=0)
def digits_ddpm(
    folder: Path, *, steps: int, seed: int
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Make a network that draws digits: the average of its weights."""
    torch.manual_seed(seed)
    run = fit(
        digits_unet(),
        digits().train,
        DIGITS_SCHEDULE,
        steps=steps,
        lr=3e-3,
        labelled=True,
        seed=seed,
        folder=folder,
    )
    return run.averaged, run.log


if __name__ == "__main__":
    # DDIM, which `command` knows, imports this module.
    sys.exit(importlib.import_module("tangled.diffusion.pictures").command())
