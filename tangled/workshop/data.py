"""Labelled images, drawn shapes, points in the plane, and readers of known files.

Tangled from book/workshop/data.md.
"""

import gzip
import itertools
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

__all__ = [
    "COLOURS",
    "POSITIONS",
    "SHAPE_NAMES",
    "DataError",
    "DrawnShapes",
    "Images",
    "Points",
    "Splits",
    "caption",
    "checkerboard",
    "cifar10",
    "digits",
    "eight_gaussians",
    "fashion_mnist",
    "item_keys",
    "item_uniforms",
    "mnist",
    "moons",
    "read_caption",
    "rings",
    "shapes",
    "signed_distance",
    "spirals",
    "stratified_split",
    "swiss_roll",
]


class DataError(ValueError):
    """Data that cannot be used: one sentence names the file or the field."""


def _check_labels(where: object, labels: Tensor, classes: int) -> None:
    """Raise DataError if a label is not the number of a class."""
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        i = int(outside.nonzero()[0])
        raise DataError(
            f"{where} must lie in 0..{classes - 1}, "
            f"but that of item {i} is {labels[i].item()}"
        )


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images, kept as the whole numbers in which they come.

    A data set: `len(images)`, and `images[indices]` for a tensor of indices.

    Args:
        pixels: brightness [N, C, H, W], uint8, from 0 to `levels`.
        labels: numbers of classes [N], int64.
        classes: the name of each class.
        levels: the brightest value; 255 for bytes.

    Raises:
        DataError: if a dtype, a shape or a value is not as said.
    """

    pixels: UInt8[Tensor, "N C H W"]
    labels: Int64[Tensor, "N"]
    classes: tuple[str, ...]
    levels: int = 255

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.ndim != 4:
            raise DataError("pixels must be a uint8 tensor [N, C, H, W]")
        if self.labels.dtype != torch.int64:
            raise DataError("labels must be an int64 tensor [N]")
        if self.labels.shape != self.pixels.shape[:1]:
            raise DataError(
                f"{len(self.pixels)} images cannot have labels of shape "
                f"{list(self.labels.shape)}"
            )
        _check_labels("labels", self.labels, len(self.classes))
        if not 1 <= self.levels <= 255:
            raise DataError(f"levels must lie in 1..255, got {self.levels}")
        if (self.pixels > self.levels).any():
            raise DataError(
                f"pixels must lie in 0..{self.levels}, "
                f"got {self.pixels.max().item()}"
            )

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

    def _tensors(self) -> dict[str, Tensor]:
        """Return all tensors of the data set, by the names of their fields."""
        return {k: v for k, v in vars(self).items() if isinstance(v, Tensor)}

    def take(self, indices: Int64[Tensor, "M"]) -> "Images":
        """Return the images with these indices, as a data set of its own."""
        taken = {k: v[indices] for k, v in self._tensors().items()}
        return replace(self, **taken)

    def to(self, device: torch.device | str) -> "Images":
        """Return the same data set on `device`."""
        moved = {k: v.to(device) for k, v in self._tensors().items()}
        return replace(self, **moved)


def _joined(parts: Sequence[Images]) -> Images:
    """Return the images of all parts as one data set."""
    joined = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name in parts[0]._tensors()
    }
    return replace(parts[0], **joined)


class Splits(NamedTuple):
    """What a model learns from, is chosen by, and is judged on, once."""

    train: Images
    validation: Images
    test: Images


_GOLDEN = -0x61C8864680B583EB  # 2**64 / golden ratio, as a signed number


def _mixed(x: Int64[Tensor, "*dims"]) -> Int64[Tensor, "*dims"]:
    """Return 64 bits scrambled one-to-one, as SplitMix64 does it."""
    x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31 & 0x1FFFFFFFF)


def item_keys(seed: int, items: Int64[Tensor, "N"]) -> Int64[Tensor, "N"]:
    """Return a random-looking number for each item, different for each.

    It depends on the seed and on the number of the item, and on nothing else.

    Raises:
        ValueError: if the seed does not lie in 0..2**63 - 1.

    Source: Steele, Lea and Flood (2014), the generator SplitMix64.
    """
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must lie in 0..2**63 - 1, got {seed}")
    start = _mixed(torch.tensor(seed, device=items.device) + _GOLDEN)
    return _mixed(start + items + _GOLDEN)


def stratified_split(
    labels: Int64[Tensor, "N"], sizes: tuple[int, ...], seed: int
) -> tuple[Int64[Tensor, "_"], ...]:
    """Return disjoint index sets of these sizes, and one of all that is left.

    The first takes each class in proportion, with an error below one item;
    the next ones do so with what is left. Indices are in increasing order.

    Raises:
        ValueError: if a size is negative or the sizes exceed the items.

    Implements alg-split, prop-stratified (book/workshop/data.md).
    """
    if min(sizes, default=0) < 0 or sum(sizes) > len(labels):
        raise ValueError(
            f"sizes must not be negative or exceed {len(labels)} in all, "
            f"got {sizes}"
        )
    items = torch.arange(len(labels), device=labels.device)
    order = item_keys(seed, items).argsort()
    order = order[labels[order].argsort(stable=True)]  # class by class
    parts = []
    for size in sizes:
        places = torch.arange(len(order) + 1, device=labels.device)
        quota = places * size // max(len(order), 1)
        chosen = quota.diff() == 1
        parts.append(order[chosen].sort().values)
        order = order[~chosen]
    return *parts, order.sort().values


def digits() -> Splits:
    """Return scikit-learn's 1,797 digits, [1, 8, 8], in 17 grey levels.

    The split is fixed, by class: 1,097 train, 200 validation, 500 test.

    Raises:
        ModuleNotFoundError: if scikit-learn is not installed.

    Source: Alpaydin and Kaynak (1998), the test part of their collection.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ModuleNotFoundError(
            "the digits come with scikit-learn: "
            "pip install 'signal-from-noise[data]'"
        ) from None
    pixels, labels = map(torch.from_numpy, load_digits(return_X_y=True))
    images = Images(
        pixels.to(torch.uint8).reshape(-1, 1, 8, 8),
        labels.to(torch.int64),
        classes=tuple("0123456789"),
        levels=16,
    )
    test, validation, train = stratified_split(images.labels, (500, 200), 0)
    return Splits(*map(images.take, (train, validation, test)))


def _disc(x: Tensor, y: Tensor, radius: float) -> Tensor:
    return torch.hypot(x, y) - radius


def _box(x: Tensor, y: Tensor, width: float, height: float) -> Tensor:
    return torch.maximum(x.abs() - width, y.abs() - height)


def _beyond(x: Tensor, y: Tensor, count: int, first: float) -> Tensor:
    """Return how far points lie along each of `count` directions."""
    angles = [first + 2 * math.pi * k / count for k in range(count)]
    return torch.stack([math.cos(a) * x + math.sin(a) * y for a in angles])


def _star(x: Tensor, y: Tensor) -> Tensor:
    second = _beyond(x, y, 5, -math.pi / 2).topk(2, dim=0).values[1]
    return second - math.cos(2 * math.pi / 5)


def _heart(x: Tensor, y: Tensor) -> Tensor:
    side = 0.8 / math.sqrt(2)  # half the side of a square on its corner
    square = (x.abs() + y.abs()) / math.sqrt(2) - side
    return torch.minimum(square, _disc(x.abs() - 0.4, y + 0.4, side))


# Each fits into a circle of radius 1 or little more; y points down.
_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": lambda x, y: _disc(x, y, 0.9),
    "ring": lambda x, y: _disc(x, y, 0.74).abs() - 0.22,
    "square": lambda x, y: _box(x, y, 0.75, 0.75),
    "diamond": lambda x, y: (
        (x.abs() / 0.6 + y.abs() - 1) / math.hypot(1 / 0.6, 1)
    ),
    "triangle": lambda x, y: _beyond(x, y, 3, math.pi / 2).amax(0) - 0.5,
    "star": _star,
    "cross": lambda x, y: torch.minimum(
        _box(x, y, 0.95, 0.3), _box(x, y, 0.3, 0.95)
    ),
    "bar": lambda x, y: _box(x, y, 0.95, 0.3),
    "crescent": lambda x, y: torch.maximum(
        _disc(x - 0.1, y, 0.9), -_disc(x - 0.55, y, 0.75)
    ),
    "heart": _heart,
}

SHAPE_NAMES = tuple(_DISTANCES)


def signed_distance(
    shape: str, x: Float[Tensor, "*dims"], y: Float[Tensor, "*dims"]
) -> Float[Tensor, "*dims"]:
    """Return how far points lie outside a shape around 0; negative inside.

    Lengths are in units of the shape's radius, and y points down. The sign is
    right everywhere, the size near a straight or round edge.

    Raises:
        ValueError: if there is no such shape.

    Implements eq-shape-algebra (book/workshop/data.md).
    """
    if shape not in _DISTANCES:
        known = ", ".join(SHAPE_NAMES)
        raise ValueError(f"shape must be one of {known}, got {shape!r}")
    return _DISTANCES[shape](x, y)


def _covered(
    labels: Int64[Tensor, "N"],
    x: Float[Tensor, "N H W"],
    y: Float[Tensor, "N H W"],
    radius: Float[Tensor, "N 1 1"],
) -> Float[Tensor, "N H W"]:
    """Return the part of each pixel that its shape covers; radius in pixels.

    Implements eq-coverage (book/workshop/data.md).
    """
    distance = torch.empty_like(x)
    for k, name in enumerate(SHAPE_NAMES):
        mine = labels == k
        distance[mine] = signed_distance(name, x[mine], y[mine])
    return (0.5 - radius * distance).clamp(0, 1)


def item_uniforms(
    seed: int, items: Int64[Tensor, "N"], draws: int
) -> Float64[Tensor, "N draws"]:
    """Return numbers in [0, 1) for each item, `draws` of them.

    They are the outputs of SplitMix64 started at the item's key.
    """
    steps = torch.arange(1, draws + 1, device=items.device) * _GOLDEN
    bits = _mixed(item_keys(seed, items)[:, None] + steps)
    return (bits >> 11 & 0x1FFFFFFFFFFFFF).double() / 2**53


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


def caption(shape: int, colour: int, position: int) -> str:
    """Return the words for three attributes, given by their numbers."""
    words = f"{list(COLOURS)[colour]} {SHAPE_NAMES[shape]}"
    return f"a {words} at the {POSITIONS[position]}"


_READ = {
    caption(*numbers): numbers
    for numbers in itertools.product(
        range(len(SHAPE_NAMES)), range(len(COLOURS)), range(len(POSITIONS))
    )
}


def read_caption(text: str) -> tuple[int, int, int]:
    """Return the numbers of the shape, colour and position in a caption.

    Raises:
        ValueError: if `caption` does not write this text.
    """
    if text not in _READ:
        raise ValueError(f"{text!r} is not the caption of a shape")
    return _READ[text]


@dataclass(frozen=True, eq=False, kw_only=True)
class DrawnShapes(Images):
    """Drawn shapes: `Images` whose labels are shapes, and two attributes.

    Args:
        colours: numbers of `COLOURS` [N], int64.
        positions: numbers of `POSITIONS` [N], int64.
    """

    colours: Int64[Tensor, "N"]
    positions: Int64[Tensor, "N"]

    @property
    def captions(self) -> list[str]:
        """The sentence for each image."""
        rows = torch.stack([self.labels, self.colours, self.positions], 1)
        return [caption(*row) for row in rows.tolist()]


def _arranged(
    positions: Int64[Tensor, "N"], jitter: Float[Tensor, "N 4"], size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, y [N, H, W] seen from each shape, and its radius in pixels."""
    radius, angle, right, below = jitter.T[..., None, None]
    radius, angle = 0.35 + 0.1 * radius, 0.5 * angle  # of a half picture
    column, row = positions % 3 - 1, positions // 3 - 1
    middles = (2 * torch.arange(size) + 1) / size - 1  # of the pixels
    across = middles - (0.53 * column[:, None, None] + 0.1 * right)
    down = middles[:, None] - (0.53 * row[:, None, None] + 0.1 * below)
    x = (angle.cos() * across + angle.sin() * down) / radius
    y = (angle.cos() * down - angle.sin() * across) / radius
    return x, y, radius * size / 2


def _drawn(seed: int, items: Int64[Tensor, "N"], size: int) -> DrawnShapes:
    """Draw these items: 13 numbers for the scene, and one for each byte."""
    draws = item_uniforms(seed, items, 13 + 3 * size**2)
    counts = torch.tensor([len(SHAPE_NAMES), len(COLOURS), len(POSITIONS)])
    labels, colours, positions = (draws[:, :3] * counts).long().T
    jitter, grain = draws[:, 3:].float().sub(0.5).split([10, 3 * size**2], 1)
    grain = grain.reshape(-1, 3, size, size)

    x, y, radius = _arranged(positions, jitter[:, :4], size)
    cover = _covered(labels, x, y, radius)[:, None]
    paint = torch.tensor(list(COLOURS.values()))[colours]
    paint = (paint + 0.1 * jitter[:, 4:7])[..., None, None]
    paper = (0.1 + 0.2 * jitter[:, 7:10])[..., None, None]
    picture = cover * paint + (1 - cover) * paper + 0.15 * grain
    return DrawnShapes(
        pixels=(255 * picture.clamp(0, 1)).round().to(torch.uint8),
        labels=labels,
        classes=SHAPE_NAMES,
        colours=colours,
        positions=positions,
    )


def shapes(
    n: int, seed: int, *, first: int = 0, size: int = 32
) -> DrawnShapes:
    """Return n pictures of one shape each, [3, size, size], with captions.

    Item i depends on the seed and on i alone: these are the items `first` to
    `first + n - 1` of an endless sequence. Another seed is another sequence.

    Raises:
        ValueError: if an argument is out of range.

    Implements def-shapes (book/workshop/data.md).
    """
    if n < 0 or first < 0 or size < 8:
        raise ValueError(
            "n and first must not be negative and size must be at least 8, "
            f"got {n}, {first} and {size}"
        )
    items = torch.arange(first, first + n)
    return _joined([_drawn(seed, some, size) for some in items.split(500)])


# Points in the plane.
Points = Float[Tensor, "n 2"]


def _uniforms(
    n: int, generator: torch.Generator | None
) -> Float[Tensor, "2 n"]:
    """Return two uniform numbers for each of n points."""
    device = generator.device if generator is not None else "cpu"
    return torch.rand(2, n, generator=generator, device=device)


def _signs(u: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Return -1 for numbers below one half, and 1 for the others."""
    return 2 * (2 * u).floor() - 1


def _polar(radius: Tensor | float, angle: Tensor) -> Points:
    """Return the points with these polar coordinates."""
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)


def _blurred(
    points: Points, noise: float, generator: torch.Generator | None
) -> Points:
    """Return the points with noise, their mean square still 2.

    Raises:
        ValueError: if noise does not lie in 0..1.

    Implements eq-plane-noise (book/workshop/data.md).
    """
    if not 0 <= noise <= 1:
        raise ValueError(f"noise must lie in 0..1, got {noise}")
    eps = torch.randn(points.shape, generator=generator, device=points.device)
    return math.sqrt(1 - noise**2) * points + noise * eps


def moons(
    n: int, generator: torch.Generator | None = None, noise: float = 0.05
) -> Points:
    """Return two half circles, each through the opening of the other."""
    u, side = _uniforms(n, generator)
    middle = torch.tensor([0.5, 0.25], device=u.device)  # of the whole
    arc = (_polar(1.0, math.pi * u) - middle) * _signs(side)[:, None]
    square = 21 / 16 - 1 / math.pi  # the mean square of `arc`
    return _blurred(math.sqrt(2 / square) * arc, noise, generator)


def rings(
    n: int, generator: torch.Generator | None = None, noise: float = 0.05
) -> Points:
    """Return three circles around 0, with radii as 1 to 2 to 3."""
    u, which = _uniforms(n, generator)
    radius = math.sqrt(3 / 7) * (1 + (3 * which).floor())
    return _blurred(_polar(radius, 2 * math.pi * u), noise, generator)


def spirals(
    n: int, generator: torch.Generator | None = None, noise: float = 0.05
) -> Points:
    """Return two arms of one and a half turns, at an angle 3/2 pi radius."""
    u, side = _uniforms(n, generator)
    radius = 2 * u.sqrt()
    points = _polar(_signs(side) * radius, 1.5 * math.pi * radius)
    return _blurred(points, noise, generator)


def swiss_roll(
    n: int, generator: torch.Generator | None = None, noise: float = 0.05
) -> Points:
    """Return one arm, its radius as its angle, from 3/2 pi to 9/2 pi."""
    u, _ = _uniforms(n, generator)
    angle = 1.5 * math.pi * (1 + 2 * u)
    mean = torch.tensor([2, 2 / (3 * math.pi)], device=u.device)
    square = 9.75 * math.pi**2 - mean.square().sum()
    points = (_polar(angle, angle) - mean) * (2 / square).sqrt()
    return _blurred(points, noise, generator)


def checkerboard(
    n: int, generator: torch.Generator | None = None, noise: float = 0.0
) -> Points:
    """Return points on the eight dark squares of a board of four by four."""
    u, v = 4 * _uniforms(n, generator)
    row = 2 * (v / 2).floor() + u.floor() % 2  # even columns, even rows
    points = torch.stack([u, row + v / 2 % 1], 1) / 2 - 1
    return _blurred(math.sqrt(3) * points, noise, generator)


def eight_gaussians(
    n: int, generator: torch.Generator | None = None, noise: float = 0.1
) -> Points:
    """Return eight round clouds, evenly spaced on a circle."""
    which, _ = _uniforms(n, generator)
    angle = math.pi / 4 * (8 * which).floor()
    return _blurred(_polar(math.sqrt(2), angle), noise, generator)


def _content(
    folder: Path | str, name: str, *, packed: bool = False
) -> tuple[Path, bytes]:
    """Return the path and bytes of a file; `packed`: or of its .gz, unpacked.

    Raises:
        DataError: if the folder or the file is missing or cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    names = [name, f"{name}.gz"] if packed else [name]
    path = next((folder / n for n in names if (folder / n).exists()), None)
    if path is None:
        raise DataError(f"{folder} does not hold {' or '.join(names)}")
    try:
        data = path.read_bytes()
        return path, gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def _parsed_idx(
    path: Path, data: bytes, magic: int
) -> UInt8[Tensor, "*dims"]:
    """Return the array in the bytes of an IDX file.

    Raises:
        DataError: if the magic number is another or the length is wrong.

    Implements def-idx (book/workshop/data.md).
    """
    if data[:4] != magic.to_bytes(4, "big"):
        found = data[:4].hex() or "nothing"
        raise DataError(f"{path} begins with {found}, not {magic:08x}")
    start = 4 + 4 * (magic & 0xFF)  # the last byte counts dimensions
    if len(data) < start:
        raise DataError(f"{path} ends within its header of {start} bytes")
    sizes = struct.unpack_from(f">{magic & 0xFF}I", data, offset=4)
    if len(data) - start != math.prod(sizes):
        raise DataError(
            f"{path} announces {' x '.join(map(str, sizes))} values "
            f"and holds {len(data) - start}"
        )
    values = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return values[start:].reshape(sizes)


def _idx_images(
    folder: Path | str, part: str, classes: tuple[str, ...]
) -> Images:
    """Return the images and labels of one part, "train" or "t10k"."""
    path, data = _content(folder, f"{part}-images-idx3-ubyte", packed=True)
    pixels = _parsed_idx(path, data, magic=0x00000803)
    if pixels.shape[1:] != (28, 28):
        size = " x ".join(map(str, pixels.shape[1:]))
        raise DataError(f"{path} holds images of {size}, not of 28 x 28")
    where, data = _content(folder, f"{part}-labels-idx1-ubyte", packed=True)
    labels = _parsed_idx(where, data, magic=0x00000801).long()
    if len(labels) != len(pixels):
        raise DataError(
            f"{path} holds {len(pixels)} images and {where.name} "
            f"{len(labels)} labels"
        )
    _check_labels(f"the labels of {where}", labels, len(classes))
    return Images(pixels[:, None], labels, classes)


def _with_validation(train: Images, test: Images) -> Splits:
    """Set a tenth of the training images apart, always the same tenth."""
    validation, rest = stratified_split(train.labels, (len(train) // 10,), 0)
    return Splits(train.take(rest), train.take(validation), test)


def _idx_splits(folder: Path | str, classes: tuple[str, ...]) -> Splits:
    """Return the four files of a folder as data sets."""
    train, test = (_idx_images(folder, p, classes) for p in ("train", "t10k"))
    return _with_validation(train, test)


def mnist(folder: Path | str) -> Splits:
    """Return MNIST, [1, 28, 28], from a folder that holds its four files.

    The files have their original names (`train-images-idx3-ubyte` and so on),
    with or without `.gz`. A tenth of the training images is for validation.

    Raises:
        DataError: if a file is missing or is not what it should be.

    Source: LeCun, Bottou, Bengio and Haffner (1998).
    """
    return _idx_splits(folder, tuple("0123456789"))


def fashion_mnist(folder: Path | str) -> Splits:
    """Return Fashion-MNIST, [1, 28, 28]: files and errors are as for `mnist`.

    The names of the files are the same too: keep the two sets apart.

    Source: Xiao, Rasul and Vollgraf (2017).
    """
    classes = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )
    return _idx_splits(folder, classes)


def _cifar_images(
    folder: Path | str, name: str, classes: tuple[str, ...]
) -> Images:
    """Return the records of one file.

    Implements def-cifar (book/workshop/data.md).
    """
    path, data = _content(folder, name)
    if not data or len(data) % 3073:
        raise DataError(
            f"{path} has {len(data)} bytes, not whole records of 3073"
        )
    values = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    records = values.reshape(-1, 3073)
    labels = records[:, 0].long()
    _check_labels(f"the labels of {path}", labels, len(classes))
    return Images(records[:, 1:].reshape(-1, 3, 32, 32), labels, classes)


def cifar10(folder: Path | str) -> Splits:
    """Return CIFAR-10, [3, 32, 32], from a folder with its binary version.

    That is `data_batch_1.bin` to `data_batch_5.bin`, `test_batch.bin` and
    `batches.meta.txt`. A tenth of the training images is for validation.

    Raises:
        DataError: if a file is missing or is not what it should be.

    Source: Krizhevsky (2009).
    """
    path, data = _content(folder, "batches.meta.txt")
    classes = tuple(data.decode("ascii", "replace").split())
    if len(classes) != 10:
        raise DataError(f"{path} names {len(classes)} classes, not 10")
    names = [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]
    parts = [_cifar_images(folder, name, classes) for name in names]
    longest = max(map(len, parts))
    for name, part in zip(names, parts, strict=True):
        if len(part) < longest:
            raise DataError(
                f"{path.with_name(name)} holds {len(part)} records, "
                f"not {longest} like the longest of the six files"
            )
    *train, test = parts
    return _with_validation(_joined(train), test)
