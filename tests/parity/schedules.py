"""What the comparisons with diffusers share: a schedule, ours and theirs."""

from typing import Any

import pytest

from tangled.diffusion.schedule import Schedule

SCHEDULES = {
    "linear": (Schedule.linear, "linear", (1e-4, 0.02)),
    "scaled_linear": (
        Schedule.scaled_linear,
        "scaled_linear",
        (0.00085, 0.012),
    ),
    "cosine": (Schedule.cosine, "squaredcos_cap_v2", (1e-4, 0.02)),
    "sigmoid": (Schedule.sigmoid, "sigmoid", (1e-4, 0.02)),
}


def pair(name: str, T: int = 1000, **options: Any) -> tuple[Schedule, Any]:
    """The schedule of a name with T steps, and the library's scheduler for it."""
    diffusers = pytest.importorskip("diffusers")
    ours, theirs, (start, end) = SCHEDULES[name]
    library = diffusers.DDPMScheduler(
        num_train_timesteps=T,
        beta_schedule=theirs,
        beta_start=start,
        beta_end=end,
        **options,
    )
    return ours(T), library
