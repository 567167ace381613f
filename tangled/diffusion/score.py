"""Walks along a score.

Tangled from book/diffusion/score.md.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["langevin"]


def langevin(
    score: Callable[[Tensor], Tensor],
    x: Float[Tensor, "B *dims"],
    step_size: float,
    steps: int,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "B *dims"]:
    """Return where walks along a score have come after a number of steps.

    For small steps and many of them the result is distributed nearly as the
    density of the score, if the walk can reach all of it.

    Raises:
        ValueError: if step_size is not positive.

    Implements alg-langevin, eq-langevin (book/diffusion/score.md).
    """
    if not step_size > 0:
        raise ValueError(f"step_size must be positive, got {step_size}")
    for _ in range(steps):
        xi = torch.empty_like(x).normal_(generator=generator)
        x = x + step_size * score(x) + math.sqrt(2 * step_size) * xi
    return x
