"""How rows are told their places.

Tangled from book/attention/transformer.md and book/attention/modern-block.md.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from tangled.attention.multi_head import Rotate

__all__ = [
    "Learned",
    "LinearScaling",
    "Llama3Scaling",
    "Positions",
    "Rotary",
    "Sinusoidal",
    "check_indices",
    "frequencies",
    "rotate",
    "sinusoidal",
]


def frequencies(
    width: int, base: float = 10_000.0
) -> Float64[Tensor, "hands"]:
    """Return how far each hand turns from a place to the next, in radians.

    The j-th of width/2 turns by base^(-2j/width). Raises ValueError if the
    width is odd.
    """
    if width % 2:
        raise ValueError(f"a hand has two numbers, and width is {width}")
    return base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)


def sinusoidal(
    places: Int64[Tensor, "*B n"],
    width: int,
    *,
    pairs: str = "neighbours",
    base: float = 10_000.0,
) -> Float[Tensor, "*B n width"]:
    """Return the sines and cosines of places, in float64.

    A pair lies side by side ("neighbours"), or all sines before all cosines
    ("halves"). On a device without float64 the numbers are float32.

    Raises:
        ValueError: if the width is odd, or the pairs have another name.

    Source: Vaswani et al. (2017), section 3.5.

    Implements eq-sinusoidal (book/attention/transformer.md).
    """
    if pairs not in ("neighbours", "halves"):
        raise ValueError(f"pairs must be neighbours or halves, got {pairs}")
    wide = torch.float32 if places.device.type == "mps" else torch.float64
    hands = frequencies(width, base).to(places.device, wide)
    angles = places[..., None] * hands
    waves = torch.stack([angles.sin(), angles.cos()], dim=-1)
    return (waves.mT if pairs == "halves" else waves).flatten(-2)


class Positions(nn.Module):
    """Tell rows their places: this one does not, and others override it.

    A kind of position adds something to the rows (`forward`), or turns
    queries and keys (`rotation`), or leaves either as it is.
    """

    def forward(
        self, x: Float[Tensor, "B n d"], places: Int64[Tensor, "*B n"]
    ) -> Float[Tensor, "B n d"]:
        """Return the rows, with their places added."""
        return x

    def rotation(
        self, places: Int64[Tensor, "*B n"], dtype: torch.dtype
    ) -> Rotate | None:
        """Return what turns the queries and keys at these places, if any."""
        return None


class Sinusoidal(Positions):
    """Add the hands of a clock; there is nothing to learn."""

    def __init__(self, pairs: str = "neighbours") -> None:
        super().__init__()
        self.pairs = pairs

    def forward(
        self, x: Float[Tensor, "B n d"], places: Int64[Tensor, "*B n"]
    ) -> Float[Tensor, "B n d"]:
        """Return the rows, with the waves of their places added."""
        return x + sinusoidal(places, x.shape[-1], pairs=self.pairs).to(x)


def check_indices(what: str, indices: Tensor, size: int) -> None:
    """Refuse whole numbers outside of 0..size-1 on the CPU, unread elsewhere.

    An accelerator would have to be waited for. Raises IndexError.
    """
    if indices.device.type != "cpu" or not indices.numel():
        return
    low, high = (int(x) for x in indices.aminmax())
    if low < 0 or high >= size:
        raise IndexError(
            f"{what} must lie in 0..{size - 1}, got {low}..{high}"
        )


class Learned(Positions):
    """Add a row of a table, which has no row beyond its length.

    Raises IndexError for such a place, on the CPU by the places, elsewhere
    only if there are more of them than rows.
    """

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(length, width)

    def forward(
        self, x: Float[Tensor, "B n d"], places: Int64[Tensor, "*B n"]
    ) -> Float[Tensor, "B n d"]:
        """Return the rows, with the learned rows of their places added."""
        length = self.table.num_embeddings
        if places.shape[-1] > length:
            raise IndexError(
                f"{places.shape[-1]} places, but the table has {length}"
            )
        check_indices("places", places, length)
        return x + self.table(places)


def rotate(
    x: Float[Tensor, "B h n d_k"],
    cos: Float[Tensor, "#B #h n half"],
    sin: Float[Tensor, "#B #h n half"],
    pairs: str = "halves",
) -> Float[Tensor, "B h n d_k"]:
    """Return each place with its pairs of coordinates turned by their angles.

    "halves" pairs coordinate j with j + d_k/2, "neighbours" 2j with 2j + 1.

    Implements def-rope, eq-rope (book/attention/modern-block.md).
    """
    if pairs == "halves":
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


class Rotary(Positions):
    """Turn queries and keys by angles in proportion to their places.

    Of each head the first `width` coordinates are turned, pair j by
    base^(-2j/width) from a place to the next, unless `scaling` changes that;
    the others stay. Angles are float64, or float32 on a device without it.
    Raises ValueError if the width is odd or the pairs have another name.

    Source: Su et al. (2021), section 3.2.

    Implements def-rope (book/attention/modern-block.md).
    """

    def __init__(
        self,
        width: int,
        base: float = 10_000.0,
        pairs: str = "halves",
        scaling: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if width < 2 or width % 2:
            raise ValueError(f"pairs need an even width, got {width}")
        if pairs not in ("neighbours", "halves"):
            raise ValueError(
                f"pairs must be neighbours or halves, got {pairs}"
            )
        self.width, self.base = width, base
        self.pairs, self.scaling = pairs, scaling

    def rotation(
        self, places: Int64[Tensor, "*B n"], dtype: torch.dtype
    ) -> Rotate:
        """Return what turns queries or keys that stand at these places."""
        exact = (
            torch.float32 if places.device.type == "mps" else torch.float64
        )
        wide = torch.promote_types(dtype, torch.float32)
        hands = frequencies(self.width, self.base)
        if self.scaling is not None:
            hands = self.scaling(hands)
        each = places.reshape(-1, 1, places.shape[-1], 1)  # a batch, one head
        angles = each * hands.to(places.device, exact)
        cos, sin = angles.cos().to(wide), angles.sin().to(wide)

        def turn(x: Float[Tensor, "B h n d_k"]) -> Float[Tensor, "B h n d_k"]:
            head, rest = x[..., : self.width], x[..., self.width :]
            turned = rotate(head.to(wide), cos, sin, self.pairs).to(x.dtype)
            return torch.cat([turned, rest], -1)

        return turn


@dataclass(frozen=True)
class LinearScaling:
    """Slow all hands down by one factor: place i turns like place i/factor.

    Source: Chen et al. (2023), position interpolation.
    """

    factor: float

    def __call__(
        self, hands: Float64[Tensor, "half"]
    ) -> Float64[Tensor, "half"]:
        """Return the slower frequencies."""
        return hands / self.factor


@dataclass(frozen=True)
class Llama3Scaling:
    """Slow the slow hands down, keep the fast ones, and blend between.

    A hand that turns `high` times or more within the `original` context
    keeps its frequency; one that turns `low` times or less is slowed by
    `factor`. Source: the configuration of Llama 3.1 (2024).
    """

    factor: float
    low: float
    high: float
    original: int

    def __call__(
        self, hands: Float64[Tensor, "half"]
    ) -> Float64[Tensor, "half"]:
        """Return the frequencies for the longer context."""
        turns = self.original * hands / (2 * math.pi)
        keep = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return hands * (keep + (1 - keep) / self.factor)
