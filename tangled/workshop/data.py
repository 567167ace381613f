"""Labelled images, honest splits, and drawn shapes.

Tangled from book/workshop/data.md.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

__all__ = [
    "COLOURS",
    "POSITIONS",
    "SHAPE_NAMES",
    "SHAPES",
    "DrawnShapes",
    "Images",
    "Splits",
    "digits",
    "shapes",
    "stratified_split",
]


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images, kept as the whole numbers in which they come.

    A data set: `len(images)`, and `images[indices]` for a tensor of indices.
    Raises ValueError if a dtype, a shape or a value is not as said here.
    """

    pixels: UInt8[Tensor, "N C H W"]  # brightness, from 0 to `levels`
    labels: Int64[Tensor, "N"]  # numbers of classes
    classes: tuple[str, ...]  # the name of each class
    levels: int = 255  # the brightest level; 255 for bytes

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.ndim != 4:
            raise ValueError("pixels must be a uint8 tensor [N, C, H, W]")
        n = len(self.pixels)
        if self.labels.dtype != torch.int64 or self.labels.shape != (n,):
            raise ValueError(f"labels must be an int64 tensor [{n}]")
        if not 1 <= self.levels <= 255:
            raise ValueError(f"levels must lie in 1..255, got {self.levels}")
        for name, values, top in (
            ("labels", self.labels, len(self.classes) - 1),
            ("pixels", self.pixels, self.levels),
        ):
            wrong = values[(values < 0) | (values > top)]
            if len(wrong):
                told = f"{name} must lie in 0..{top}, got {wrong[0]}"
                raise ValueError(told)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(
        self, indices: Int64[Tensor, "B"]
    ) -> tuple[Float[Tensor, "B C H W"], Int64[Tensor, "B"]]:
        """Return images as float32 in [-1, 1], and their labels.

        Implements eq-pixel-scale (book/workshop/data.md).
        """
        x0 = 2 * self.pixels[indices].float() / self.levels - 1
        return x0, self.labels[indices]

    def take(self, indices: Int64[Tensor, "M"]) -> "Images":
        """Return the images with these indices, as a data set of its own."""
        fields = vars(self).items()
        taken = {k: v[indices] for k, v in fields if isinstance(v, Tensor)}
        return replace(self, **taken)


def stratified_split(
    labels: Int64[Tensor, "N"], sizes: Sequence[int], seed: int
) -> tuple[Int64[Tensor, "_"], ...]:
    """Return disjoint index sets of these sizes, and one of all that is left.

    The first takes each class in proportion, with an error below one item;
    each further set does so with what is left. A fraction is no size
    (TypeError), and no set may have too few items for its classes
    (ValueError).

    Implements def-split (book/workshop/data.md).
    """
    from sklearn.model_selection import train_test_split

    if not all(isinstance(size, int) for size in sizes):
        raise TypeError(f"sizes must be whole numbers of items, got {sizes}")
    classes, rest, parts = labels.cpu().numpy(), np.arange(len(labels)), []
    for size in sizes:
        rest, part = train_test_split(
            rest, test_size=size, stratify=classes[rest], random_state=seed
        )
        parts.append(part)
    return tuple(map(torch.from_numpy, (*parts, rest)))


class Splits(NamedTuple):
    """What a model learns from, is chosen by, and is judged on, once."""

    train: Images
    validation: Images
    test: Images


def digits() -> Splits:
    """Return scikit-learn's 1,797 digits, [1, 8, 8], in 17 levels of grey.

    The split is fixed, by class: 1,097 train, 200 validation, 500 test.

    Source: Alpaydin and Kaynak (1998), the test part of their collection.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = torch.from_numpy(found.images).to(torch.uint8)[:, None]
    labels = torch.from_numpy(found.target).to(torch.int64)
    images = Images(pixels, labels, tuple("0123456789"), levels=16)
    test, validation, train = stratified_split(labels, (500, 200), 0)
    return Splits(*map(images.take, (train, validation, test)))


# The grid x, y of a picture; y points down.
_Grid = Float[np.ndarray, "H W"]


def _box(x: _Grid, y: _Grid, width: float, height: float) -> _Grid:
    return np.maximum(abs(x) - width, abs(y) - height)


def _lines(x: _Grid, y: _Grid, count: int, first: float) -> np.ndarray:
    """Return how far points lie along `count` directions, in rising order."""
    angles = [first + 2 * math.pi * k / count for k in range(count)]
    along = [math.cos(a) * x + math.sin(a) * y for a in angles]
    return np.sort(along, axis=0)


# How far points lie outside of each shape, in units of its radius.
SHAPES: dict[str, Callable[[_Grid, _Grid], _Grid]] = {
    "circle": lambda x, y: np.hypot(x, y) - 0.9,
    "ring": lambda x, y: abs(np.hypot(x, y) - 0.74) - 0.22,
    "square": lambda x, y: _box(x, y, 0.75, 0.75),
    "diamond": lambda x, y: (abs(x) / 0.6 + abs(y) - 1) * 0.6 / 1.36**0.5,
    "triangle": lambda x, y: _lines(x, y, 3, math.pi / 2)[-1] - 0.5,
    "star": lambda x, y: _lines(x, y, 5, -math.pi / 2)[-2] - 0.309,
    "cross": lambda x, y: np.minimum(
        _box(x, y, 0.95, 0.3), _box(x, y, 0.3, 0.95)
    ),
    "bar": lambda x, y: _box(x, y, 0.95, 0.3),
    "crescent": lambda x, y: np.maximum(
        np.hypot(x - 0.1, y) - 0.9, 0.75 - np.hypot(x - 0.55, y)
    ),
    "heart": lambda x, y: np.minimum(
        (abs(x) + abs(y) - 0.8) / 2**0.5,
        np.hypot(abs(x) - 0.4, y + 0.4) - 0.8 / 2**0.5,
    ),
}
SHAPE_NAMES = tuple(SHAPES)

COLOURS = {
    "red": (0.90, 0.15, 0.15),
    "yellow": (0.95, 0.85, 0.15),
    "green": (0.20, 0.70, 0.25),
    "cyan": (0.20, 0.85, 0.90),
    "blue": (0.20, 0.35, 0.95),
    "purple": (0.60, 0.20, 0.80),
    "pink": (1.00, 0.60, 0.75),
    "white": (0.95, 0.95, 0.95),
}
POSITIONS = (
    *("top left", "top", "top right"),
    *("left", "centre", "right"),
    *("bottom left", "bottom", "bottom right"),
)


@dataclass(frozen=True, eq=False, kw_only=True)
class DrawnShapes(Images):
    """Images of shapes, with the numbers of their colours and positions."""

    colours: Int64[Tensor, "N"]
    positions: Int64[Tensor, "N"]

    @property
    def captions(self) -> list[str]:
        """The sentence for each image."""
        rows = torch.stack([self.colours, self.labels, self.positions], 1)
        return [
            f"a {list(COLOURS)[c]} {SHAPE_NAMES[k]} at the {POSITIONS[p]}"
            for c, k, p in rows.tolist()
        ]


def _drawn(
    seed: int, item: int, size: int
) -> tuple[UInt8[np.ndarray, "3 H W"], list[int]]:
    """Return a picture, and the numbers of its shape, colour and position."""
    rng = np.random.default_rng((seed, item))
    counts = len(SHAPES), len(COLOURS), len(POSITIONS)
    shape, colour, position = rng.integers(counts).tolist()
    radius, angle = rng.uniform([0.3, -0.25], [0.4, 0.25])  # of half a side
    right, below = rng.uniform(-0.05, 0.05, 2)
    right += 0.53 * (position % 3 - 1)
    below += 0.53 * (position // 3 - 1)

    line = (2 * np.arange(size) + 1) / size - 1  # the centres of pixels
    seen = (line - right) + 1j * (line[:, None] - below)
    seen *= np.exp(-1j * angle) / radius
    distance = SHAPES[SHAPE_NAMES[shape]](seen.real, seen.imag)
    cover = (0.5 - distance * radius * size / 2).clip(0, 1)

    paint = list(COLOURS.values())[colour] + rng.uniform(-0.05, 0.05, 3)
    paper = rng.uniform(0, 0.2, 3)
    picture = np.multiply.outer(paint, cover)
    picture += np.multiply.outer(paper, 1 - cover)
    picture += rng.uniform(-0.075, 0.075, picture.shape)
    levels = (255 * picture.clip(0, 1)).round().astype(np.uint8)
    return levels, [shape, colour, position]


def shapes(
    n: int, seed: int, *, first: int = 0, size: int = 32
) -> DrawnShapes:
    """Return n pictures of one shape each, [3, size, size], with captions.

    Item i depends on the seed and on i alone: these are the items `first` to
    `first + n - 1` of an endless sequence. Another seed is another sequence.

    Implements def-shapes (book/workshop/data.md).
    """
    if min(n, seed, first) < 0 or size < 8:
        raise ValueError("it takes n, seed, first >= 0 and size >= 8")
    pixels = torch.empty(n, 3, size, size, dtype=torch.uint8)
    numbers = torch.empty(n, 3, dtype=torch.int64)
    for i in range(n):
        picture, drawn = _drawn(seed, first + i, size)
        pixels[i], numbers[i] = map(torch.as_tensor, (picture, drawn))
    labels, colours, positions = numbers.T.contiguous()
    return DrawnShapes(
        *(pixels, labels, SHAPE_NAMES), colours=colours, positions=positions
    )
