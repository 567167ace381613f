"""How good are samples? A judge, sliced Wasserstein distances, nearest neighbours.

Tangled from book/diffusion/ddpm.md.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from tangled.diffusion.ddpm import evaluating

__all__ = ["judge_accuracy", "nearest", "sliced_wasserstein"]


def sliced_wasserstein(
    x: Float[Tensor, "n *dims"],
    y: Float[Tensor, "n *dims"],
    generator: torch.Generator | None = None,
    directions: int = 256,
) -> float:
    """Return the mean distance of sorted projections, in units of x.

    Raises:
        ValueError: if the two samples differ in number or shape.

    Source: Bonneel, Rabin, Peyre and Pfister (2015).

    Implements eq-sliced-wasserstein, prop-sorted-pairs
    (book/diffusion/ddpm.md).
    """
    if x.shape != y.shape:
        raise ValueError(
            "x and y must be alike in number and shape, "
            f"got {list(x.shape)} and {list(y.shape)}"
        )
    rows = [sample.flatten(1).double() for sample in (x, y)]
    u = torch.empty(rows[0].shape[1], directions, dtype=torch.float64)
    u = F.normalize(u.normal_(generator=generator), dim=0).to(x.device)
    first, second = ((row @ u).sort(0).values for row in rows)
    return (first - second).abs().mean().item()


def nearest(
    x: Float[Tensor, "n *dims"], data: Float[Tensor, "N *dims"]
) -> tuple[Float[Tensor, "n"], Int64[Tensor, "n"]]:
    """Return the distance of each x to the nearest of the data, and which."""
    found = torch.cdist(x.flatten(1), data.flatten(1)).min(1)
    return found.values, found.indices


@torch.no_grad()
def judge_accuracy(
    judge: nn.Module,
    x0: Float[Tensor, "n C H W"],
    labels: Int64[Tensor, "n"],
) -> float:
    """Return the share of pictures that a classifier reads as these labels."""
    with evaluating(judge):
        answers = [judge(part).argmax(1) for part in x0.split(500)]
    return (torch.cat(answers) == labels).double().mean().item()
