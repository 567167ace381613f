"""How rows are told their places.

Tangled from book/attention/transformer.md.
"""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from tangled.attention.multi_head import Rotate

__all__ = [
    "Learned",
    "Positions",
    "Sinusoidal",
    "check_indices",
    "frequencies",
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
