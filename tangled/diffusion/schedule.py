"""Noise schedules: tables of signal and noise for the steps 0..T.

Tangled from book/diffusion/forward.md and book/diffusion/ddim.md and
book/diffusion/pictures.md.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from tangled.diffusion.checks import check_beta, check_order, check_steps

__all__ = [
    "Schedule",
    "Table",
    "per_sample",
    "schedule_from_config",
    "schedule_named",
    "schedule_to_config",
    "step_list",
    "to_index",
    "zero_terminal_snr",
]

# One entry for every step t = 0..T; entry 0 is the data.
Table = Float64[Tensor, "T_plus_1"]


@dataclass(frozen=True, eq=False)
class Schedule:
    """The tables of a forward process, each with one entry for t = 0..T.

    A schedule *is* its step variances `beta` [T+1], float64, with 0 for the
    data. The other tables are computed from it, once.

    Raises:
        TypeError: if `beta` is not such a table.
        ValueError: unless the SNR falls strictly and stays above 0; the last
            of the variances may be 1, and then it ends at 0.

    Source: Ho, Jain and Abbeel (2020), section 2.
    """

    beta: Table

    def __post_init__(self) -> None:
        check_beta(self.beta)
        for name, member in vars(type(self)).items():
            if isinstance(member, cached_property):
                getattr(self, name)  # once, here: torch.compile reads it only

    @classmethod
    def from_betas(
        cls, beta: Sequence[float] | np.ndarray | Tensor
    ) -> "Schedule":
        """Return the schedule with step variances beta_1..beta_T, [T]."""
        steps = torch.as_tensor(beta, dtype=torch.float64)
        return cls(F.pad(steps, (1, 0)))

    def to(self, device: torch.device | str) -> "Schedule":
        """Return the same schedule with its tables on `device`, in float64."""
        return type(self)(self.beta.to(device))

    @property
    def T(self) -> int:
        """The number of diffusion steps."""
        return len(self.beta) - 1

    @cached_property
    def keeps_signal(self) -> bool:
        """Whether anything of the data is left at t = T."""
        return bool(self.beta[-1] < 1)

    @cached_property
    def alpha(self) -> Table:
        """Step signal powers alpha_t = 1 - beta_t."""
        return 1 - self.beta

    @cached_property
    def alpha_bar(self) -> Table:
        """Cumulative signal powers, the products of alpha_1..alpha_t.

        Implements eq-alpha-bar (book/diffusion/forward.md).
        """
        return self.alpha.cumprod(0)

    @cached_property
    def signal(self) -> Table:
        """Signal amplitudes a_t = sqrt(alpha_bar_t)."""
        return self.alpha_bar.sqrt()

    @cached_property
    def noise_std(self) -> Table:
        """Noise standard deviations sqrt(1 - alpha_bar_t) given the data."""
        return (1 - self.alpha_bar).sqrt()

    @classmethod
    def linear(
        cls, T: int, start: float = 1e-4, end: float = 0.02
    ) -> "Schedule":
        """Return beta equally spaced from `start` to `end` (Ho et al. 2020).

        The default range belongs to T = 1000; for another T multiply it by
        1000 / T.

        Implements eq-linear-schedule (book/diffusion/forward.md).
        """
        check_order(1, T=T)
        ramp = torch.linspace(start, end, T, dtype=torch.float64)
        return cls.from_betas(ramp)

    @cached_property
    def snr(self) -> Table:
        """Ratios of signal power to noise power; infinite at t = 0.

        Implements eq-snr (book/diffusion/forward.md).
        """
        return self.alpha_bar / (1 - self.alpha_bar)

    @cached_property
    def rho(self) -> Table:
        """Noise-to-signal ratios rho_t = noise_std_t / signal_t."""
        return self.noise_std / self.signal

    @cached_property
    def half_log_snr(self) -> Table:
        """Half log-SNR, lambda_t = ln(SNR_t) / 2, in nats."""
        return self.snr.log() / 2

    @cached_property
    def phi(self) -> Table:
        """Angles with signal_t = cos(phi_t), noise_std_t = sin(phi_t)."""
        return self.rho.atan()

    @classmethod
    def cosine(
        cls, T: int, offset: float = 0.008, max_beta: float = 0.999
    ) -> "Schedule":
        """Return a squared cosine in alpha_bar, beta capped at `max_beta`.

        Source: Nichol and Dhariwal (2021), section 3.2.

        Implements eq-cosine-schedule (book/diffusion/forward.md).
        """
        check_order(1, T=T)
        u = torch.arange(T + 1, dtype=torch.float64) / T
        f = ((u + offset) / (1 + offset) * math.pi / 2).cos() ** 2
        return cls.from_betas((1 - f[1:] / f[:-1]).clamp(max=max_beta))

    @classmethod
    def sigmoid(
        cls, T: int, start: float = 1e-4, end: float = 0.02
    ) -> "Schedule":
        """Return a logistic curve in beta, as the library diffusers has it.

        Not that of Jabri et al. (2023), which is logistic in alpha_bar.

        Implements eq-sigmoid-schedule (book/diffusion/forward.md).
        """
        check_order(1, T=T)
        ramp = torch.linspace(-6, 6, T, dtype=torch.float64)
        return cls.from_betas(start + (end - start) * ramp.sigmoid())

    @classmethod
    def scaled_linear(
        cls, T: int, start: float = 0.00085, end: float = 0.012
    ) -> "Schedule":
        """Return sqrt(beta) equally spaced (Rombach et al. 2022)."""
        root = cls.linear(T, start**0.5, end**0.5).beta[1:]
        return cls.from_betas(root**2)

    def shifted(self, b: float) -> "Schedule":
        """Return the schedule whose SNR is b^2 times as large at each t.

        The log-SNR moves by 2 ln b. Take b = 1 / s for pictures that are s
        times as wide (Hoogeboom, Heek and Salimans 2023).

        Implements eq-resolution-shift (book/diffusion/forward.md).
        """
        signal, noise = b**2 * self.alpha_bar, 1 - self.alpha_bar
        power = signal / (signal + noise)
        return self.from_betas(1 - power[1:] / power[:-1])


def per_sample(
    table: Table, t: Int64[Tensor, "B"], like: Float[Tensor, "B *dims"]
) -> Float[Tensor, "B *ones"]:
    """Return `table[t]` as [B, 1, ..., 1], in the dtype and device of `like`.

    A step outside 0..T is refused by torch itself, without a look at t here:
    `gather`, unlike an index, does not count a negative step from the end.

    Raises:
        TypeError: if t is not an int64 tensor.
        ValueError: if t has another shape or device than the batch.
        RuntimeError: if a step lies outside 0..T (on a GPU, when the device
            gets there).
    """
    check_steps(t, like)
    if table.device != like.device:
        # Cast before the move: some devices have no float64.
        table = table.to(like.dtype).to(like.device)
    entries = table.gather(0, t).to(like.dtype)
    return entries.reshape(-1, *[1] * (like.ndim - 1))


def schedule_named(name: str, T: int) -> Schedule:
    """Return the schedule called `name`, with its default range, in T steps.

    Raises:
        TypeError: if T is not a whole number.
        ValueError: if there is no schedule of that name, or T is below 1.
    """
    makers = {
        "linear": Schedule.linear,
        "scaled_linear": Schedule.scaled_linear,
        "cosine": Schedule.cosine,
        "sigmoid": Schedule.sigmoid,
    }
    if name not in makers:
        names = ", ".join(makers)
        raise ValueError(f"name must be one of {names}, got {name!r}")
    return makers[name](T)


def to_index(t: int | Int64[Tensor, "*B"]) -> int | Int64[Tensor, "*B"]:
    """Return the 0-based array index t - 1 that other libraries have for t.

    Raises:
        TypeError: if t is not whole.
        ValueError: if t is below 1; the data end t = 0 has no entry there.
    """
    steps = torch.as_tensor(t)
    if steps.dtype != torch.int64:
        raise TypeError(f"t must be an int or an int64 tensor, got {t!r}")
    if (steps < 1).any():
        raise ValueError(f"t must be at least 1, got {t}")
    return t - 1


def step_list(T: int, n: int, spacing: str = "linspace") -> list[int]:
    """Return n decreasing steps of 1..T, as equal as whole numbers allow.

    "linspace" runs from T to 1; "trailing" from T down in strides of T / n;
    "leading" from 1 up in strides of T // n: it sees T only if n = T. The
    names, and the strides, are those of the library diffusers.

    Raises:
        TypeError: if T or n is not a whole number.
        ValueError: unless 1 <= n <= T, or if the spacing is unknown.
    """
    check_order(1, n=n, T=T)
    if spacing == "linspace":
        parts = max(n - 1, 1)
        found = [1 + round((T - 1) * i / parts) for i in reversed(range(n))]
        found[0] = T
    elif spacing == "trailing":
        found = [round(T - i * T / n) for i in range(n)]
    elif spacing == "leading":
        found = [1 + i * (T // n) for i in reversed(range(n))]
    else:
        raise ValueError(
            f"spacing must be linspace, trailing or leading, got {spacing!r}"
        )
    return found


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """Return a schedule that begins like this one and ends at SNR 0.

    For networks that predict v or x_0, and samplers that begin at T. One that
    ends there already is returned as it is.

    Raises:
        ValueError: if it has one step only, which cannot do both.

    Source: Lin et al. (2024), algorithm 1.

    Implements eq-zero-terminal-snr (book/diffusion/pictures.md).
    """
    if not schedule.keeps_signal:
        return schedule
    check_order(2, T=schedule.T)
    a = schedule.signal[1:]
    power = ((a - a[-1]) * a[0] / (a[0] - a[-1])) ** 2
    power = F.pad(power, (1, 0), value=1.0)
    return Schedule.from_betas(1 - power[1:] / power[:-1])


_MAKERS = {
    "linear": Schedule.linear,
    "scaled_linear": Schedule.scaled_linear,
    "sigmoid": Schedule.sigmoid,
}
# Keys of scheduler_config.json that do not change the forward process.
_SAMPLER_KEYS = {
    "clip_sample",
    "clip_sample_range",
    "dynamic_thresholding_ratio",
    "prediction_type",
    "sample_max_value",
    "set_alpha_to_one",
    "steps_offset",
    "thresholding",
    "timestep_spacing",
    "variance_type",
}


def schedule_from_config(config: Mapping[str, Any]) -> Schedule:
    """Return the schedule in a scheduler_config.json of diffusers.

    Raises:
        TypeError: if a number is not one.
        ValueError: if a key or the name of the schedule is not known, or
            there are more betas than steps, or less.
    """
    own = {
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "beta_start": 1e-4,
        "num_train_timesteps": 1000,
        "rescale_betas_zero_snr": False,
        "trained_betas": None,
    }
    known = own.keys() | _SAMPLER_KEYS
    given = {k: v for k, v in config.items() if not k.startswith("_")}
    if strange := sorted(given.keys() - known):
        raise ValueError(f"unknown keys of a schedule: {', '.join(strange)}")
    own |= given
    T, name = own["num_train_timesteps"], own["beta_schedule"]
    if own["trained_betas"] is not None:
        schedule = Schedule.from_betas(own["trained_betas"])
        if given.get("num_train_timesteps", schedule.T) != schedule.T:
            raise ValueError(
                f"num_train_timesteps is {T}, but there are {schedule.T} "
                "trained_betas"
            )
    elif name == "squaredcos_cap_v2":
        schedule = Schedule.cosine(T)
    elif name in _MAKERS:
        schedule = _MAKERS[name](T, own["beta_start"], own["beta_end"])
    else:
        raise ValueError(f"unknown beta_schedule {name!r}")
    zero = own["rescale_betas_zero_snr"]
    return zero_terminal_snr(schedule) if zero else schedule


def schedule_to_config(schedule: Schedule) -> dict[str, Any]:
    """Return what a scheduler_config.json says of a schedule: its betas.

    One that ends at SNR 0 asks for steps that begin there.
    """
    own = {
        "num_train_timesteps": schedule.T,
        "trained_betas": schedule.beta[1:].tolist(),
        "rescale_betas_zero_snr": not schedule.keeps_signal,
    }
    if schedule.keeps_signal:
        return own
    return own | {"timestep_spacing": "trailing"}
