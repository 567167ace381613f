"""Noise schedules: tables of signal and noise for the steps 0..T.

Tangled from book/diffusion/forward.md.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

__all__ = ["Schedule", "Table", "per_sample", "schedule_named", "to_index"]

# One entry for every step t = 0..T; entry 0 is the data end.
Table = Float64[Tensor, "T_plus_1"]


def _kind(value: object) -> str:
    """Name the dtype of a tensor, or the type of anything else."""
    return str(getattr(value, "dtype", type(value).__name__))


@dataclass(frozen=True, eq=False)
class Schedule:
    """The tables of a forward process, each with one entry for t = 0..T.

    A schedule *is* its table of step variances. The other tables are computed
    from it when first asked for, in float64, and kept.

    Args:
        beta: step variances [T+1], float64; `beta[0]` is 0 and belongs to the
            data, the others lie strictly between 0 and 1.

    Raises:
        TypeError: if `beta` is not a float64 tensor.
        ValueError: if it is not such a table.

    Source: Ho, Jain and Abbeel (2020), section 2.
    """

    beta: Table

    def __post_init__(self) -> None:
        beta = self.beta
        if not isinstance(beta, Tensor) or beta.dtype != torch.float64:
            raise TypeError(
                f"beta must be a float64 tensor, got {_kind(beta)}"
            )
        if beta.ndim != 1 or len(beta) < 2:
            raise ValueError(
                "beta must be a table [T+1] with T at least 1, "
                f"got shape {list(beta.shape)}"
            )
        if beta[0] != 0:
            raise ValueError(
                f"beta[0] belongs to the data and must be 0, got {beta[0]}"
            )
        outside = ~((beta[1:] > 0) & (beta[1:] < 1))  # true for NaN as well
        if outside.any():
            t = int(outside.nonzero()[0]) + 1
            raise ValueError(
                "beta must lie strictly between 0 and 1, "
                f"but beta[{t}] = {beta[t].item()}"
            )

    @classmethod
    def from_betas(cls, beta: Float[Tensor, "T"]) -> "Schedule":
        """Return the schedule with step variances beta_1..beta_T, [T]."""
        if not isinstance(beta, Tensor) or not beta.is_floating_point():
            raise TypeError(
                f"beta must be a floating tensor, got {_kind(beta)}"
            )
        if beta.ndim != 1 or len(beta) < 1:
            raise ValueError(
                "beta must have shape [T] with T at least 1, "
                f"got {list(beta.shape)}"
            )
        steps = beta.to(torch.float64)
        return cls(torch.cat([steps.new_zeros(1), steps]))

    def to(self, device: torch.device | str) -> "Schedule":
        """Return the same schedule with its tables on `device`."""
        return type(self)(self.beta.to(device))

    @property
    def T(self) -> int:
        """The number of diffusion steps."""
        return len(self.beta) - 1

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
        """Marginal noise standard deviations sqrt(1 - alpha_bar_t)."""
        return (1 - self.alpha_bar).sqrt()

    @classmethod
    def linear(
        cls, T: int, start: float = 1e-4, end: float = 0.02
    ) -> "Schedule":
        """Return beta equally spaced from `start` to `end` (Ho et al. 2020).

        The default range belongs to T = 1000; for other T see the chapter's
        pitfall on short chains.

        Implements eq-linear-schedule (book/diffusion/forward.md).
        """
        steps = torch.linspace(start, end, _checked(T), dtype=torch.float64)
        return cls.from_betas(steps)

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
    def scaled_linear(
        cls, T: int, start: float = 0.00085, end: float = 0.012
    ) -> "Schedule":
        """Return sqrt(beta) equally spaced (Rombach et al. 2022)."""
        root = cls.linear(T, start**0.5, end**0.5).beta[1:]
        return cls.from_betas(root**2)

    @classmethod
    def cosine(
        cls, T: int, offset: float = 0.008, max_beta: float = 0.999
    ) -> "Schedule":
        """Return a squared cosine in alpha_bar, beta capped at `max_beta`.

        Source: Nichol and Dhariwal (2021), section 3.2.

        Implements eq-cosine-schedule (book/diffusion/forward.md).
        """
        u = torch.arange(_checked(T) + 1, dtype=torch.float64) / T
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
        ramp = torch.linspace(-6, 6, _checked(T), dtype=torch.float64)
        return cls.from_betas(start + (end - start) * ramp.sigmoid())


def _checked(T: int) -> int:
    """Return T if it is a whole number of steps, at least 1."""
    if not isinstance(T, int) or T < 1:
        raise ValueError(f"T must be a whole number, at least 1, got {T!r}")
    return T


def per_sample(
    table: Table, t: Int64[Tensor, "B"], like: Float[Tensor, "B *dims"]
) -> Float[Tensor, "B *ones"]:
    """Return `table[t]` as [B, 1, ..., 1], in the dtype and device of `like`.

    Raises:
        TypeError: if t is not an int64 tensor.
        ValueError: if t has another shape or device than the batch, or an
            entry outside 0..T (a negative one would count from the end).
    """
    if not isinstance(t, Tensor) or t.dtype != torch.int64:
        raise TypeError(f"t must be an int64 tensor, got {_kind(t)}")
    if t.shape != like.shape[:1]:
        raise ValueError(
            f"t must have shape {list(like.shape[:1])}, one step for each "
            f"sample, got {list(t.shape)}"
        )
    if t.device != like.device:
        raise ValueError(f"t is on {t.device}, the samples on {like.device}")
    last = len(table) - 1
    if ((t < 0) | (t > last)).any():
        raise ValueError(
            f"t must lie in 0..{last}, got {int(t.min())}..{int(t.max())}"
        )
    entries = table.to(like.device)[t].to(like.dtype)
    return entries.reshape(-1, *[1] * (like.ndim - 1))


def schedule_named(name: str, T: int) -> Schedule:
    """Return the schedule called `name`, with its default range, in T steps.

    Raises:
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
        ValueError: if t is below 1; the data end t = 0 has no entry there.
    """
    steps = t.flatten().tolist() if isinstance(t, Tensor) else [t]
    lowest = min(steps, default=1)
    if lowest < 1:
        raise ValueError(f"t must be at least 1, got {lowest}")
    return t - 1
