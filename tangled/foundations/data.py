"""Labelled images, drawn shapes, points in the plane, and readers of known files.

Tangled from book/foundations/data.md.
"""

import gzip
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

__all__ = [
    "BATCHES",
    "COLOURS",
    "POSITIONS",
    "SHAPES",
    "DataError",
    "Images",
    "Points",
    "Shapes",
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
            f"but number {i} is {labels[i].item()}"
        )


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images, held as the whole numbers in which they come.

    A data set: `len(images)`, and `images[indices]` for a tensor of indices.

    Args:
        pixels: brightness [N, C, H, W], uint8, from 0 to `levels`.
        labels: numbers of classes [N], int64.
        classes: the name of each class.
        levels: the brightest value; 255 for bytes.

    Raises:
        DataError: if a dtype, a shape, a label or a pixel is not as said.
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

        Implements eq-pixel-scale (book/foundations/data.md).
        """
        x0 = 2 * self.pixels[indices].float() / self.levels - 1
        return x0, self.labels[indices]

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Images":
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {k: v for k, v in values.items() if isinstance(v, Tensor)}
        changed = {name: change(value) for name, value in tensors.items()}
        return replace(self, **changed)

    def take(self, indices: Int64[Tensor, "M"]) -> "Images":
        """Return the images with these indices, as a data set of its own."""
        return self._each(lambda tensor: tensor[indices])

    def to(self, device: torch.device | str) -> "Images":
        """Return the same data set on `device`."""
        return self._each(lambda tensor: tensor.to(device))


def _joined(parts: Sequence[Images]) -> Images:
    """Return the images of all parts as one data set."""
    first = parts[0]
    tensors = {
        field.name: torch.cat([getattr(part, field.name) for part in parts])
        for field in fields(first)
        if isinstance(getattr(first, field.name), Tensor)
    }
    return replace(first, **tensors)


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
        ValueError: if the seed is not in 0..2**63 - 1.
    """
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must lie in 0..2**63 - 1, got {seed}")
    start = _mixed(torch.tensor(seed, device=items.device) + _GOLDEN)
    return _mixed(start + items + _GOLDEN)


def item_uniforms(
    seed: int, items: Int64[Tensor, "N"], draws: int
) -> Float64[Tensor, "N draws"]:
    """Return numbers in [0, 1) for each item: SplitMix64 from the item's key.

    Source: Steele, Lea and Flood (2014).
    """
    steps = torch.arange(1, draws + 1, device=items.device) * _GOLDEN
    bits = _mixed(item_keys(seed, items)[:, None] + steps)
    return (bits >> 11 & 0x1FFFFFFFFFFFFF) / 2**53


def stratified_split(
    labels: Int64[Tensor, "N"], sizes: tuple[int, ...], seed: int
) -> tuple[Int64[Tensor, "_"], ...]:
    """Return disjoint index sets of these sizes, and one of all that is left.

    Each holds every class in proportion, up to rounding; within a class the
    choice is random. The same labels, sizes and seed always give the same.

    Raises:
        ValueError: if a size is negative or the sizes exceed the items.

    Implements prop-stratified (book/foundations/data.md).
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
        quota = torch.arange(len(order) + 1, device=labels.device) * size
        chosen = (quota // max(len(order), 1)).diff() == 1
        parts.append(order[chosen].sort().values)
        order = order[~chosen]
    return *parts, order.sort().values


def digits() -> Splits:
    """Return scikit-learn's 1,797 digits, [1, 8, 8], in 17 grey levels.

    The split is fixed, by class: 1,097 train, 200 validation, 500 test.

    Raises:
        ModuleNotFoundError: if scikit-learn is not installed.

    Source: Alpaydin and Kaynak (1998), the test set of their collection.
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


def _lines(x: Tensor, y: Tensor, count: int, first: float) -> Tensor:
    """Return the distances beyond lines around 0, [count, ...]."""
    angles = [first + 2 * math.pi * k / count for k in range(count)]
    return torch.stack([math.cos(a) * x + math.sin(a) * y for a in angles])


def _star(x: Tensor, y: Tensor) -> Tensor:
    beyond = _lines(x, y, 5, -math.pi / 2).topk(2, dim=0).values
    return beyond[1] - math.cos(2 * math.pi / 5)  # beyond one line is inside


def _heart(x: Tensor, y: Tensor) -> Tensor:
    side = 0.8 / math.sqrt(2)
    point = (x.abs() + y.abs()) / math.sqrt(2) - side
    return torch.minimum(point, _disc(x.abs() - 0.4, y + 0.4, side))


_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": lambda x, y: _disc(x, y, 0.9),
    "ring": lambda x, y: _disc(x, y, 0.74).abs() - 0.22,
    "square": lambda x, y: _box(x, y, 0.75, 0.75),
    "diamond": lambda x, y: (
        (x.abs() / 0.6 + y.abs() - 1) / math.hypot(1 / 0.6, 1)
    ),
    "triangle": lambda x, y: _lines(x, y, 3, math.pi / 2).amax(0) - 0.5,
    "star": _star,
    "cross": lambda x, y: torch.minimum(
        _box(x, y, 0.95, 0.3), _box(x, y, 0.3, 0.95)
    ),
    "bar": lambda x, y: _box(x, y, 0.95, 0.3),
    "crescent": lambda x, y: torch.maximum(
        _disc(x, y, 0.95), -_disc(x - 0.45, y, 0.8)
    ),
    "heart": _heart,
}

SHAPES = tuple(_DISTANCES)
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
POSITIONS = tuple(
    "top left,top,top right,left,centre,right,"
    "bottom left,bottom,bottom right".split(",")
)


def signed_distance(
    shape: str, x: Float[Tensor, "*dims"], y: Float[Tensor, "*dims"]
) -> Float[Tensor, "*dims"]:
    """Return how far points lie outside a shape of radius 1 around 0.

    Negative inside; y points down. Outside of a corner, or in one that bends
    inwards, it may be less than the distance in size, never in sign.

    Raises:
        ValueError: if there is no such shape.
    """
    if shape not in _DISTANCES:
        known = ", ".join(SHAPES)
        raise ValueError(f"shape must be one of {known}, got {shape!r}")
    return _DISTANCES[shape](x, y)


def caption(shape: int, colour: int, position: int) -> str:
    """Return the words for three attributes, by their numbers."""
    return (
        f"a {list(COLOURS)[colour]} {SHAPES[shape]} "
        f"at the {POSITIONS[position]}"
    )


def read_caption(text: str) -> tuple[int, int, int]:
    """Return the numbers of shape, colour and position that a caption names.

    Raises:
        ValueError: if `caption` would not have written this text.
    """
    subject, _, place = text.partition(" at the ")
    article, *words = subject.split(" ")
    known = (list(COLOURS), SHAPES)
    if (
        article != "a"
        or place not in POSITIONS
        or len(words) != 2
        or any(w not in k for w, k in zip(words, known, strict=True))
    ):
        raise ValueError(f"{text!r} is not a caption of shapes")
    colour, shape = (k.index(w) for w, k in zip(words, known, strict=True))
    return shape, colour, POSITIONS.index(place)


@dataclass(frozen=True, eq=False, kw_only=True)
class Shapes(Images):
    """Drawn shapes: `Images` whose labels are shapes, with two attributes.

    Args:
        colours: numbers of `COLOURS` [N], int64.
        positions: numbers of `POSITIONS` [N], int64, row by row.
    """

    colours: Int64[Tensor, "N"]
    positions: Int64[Tensor, "N"]

    @property
    def captions(self) -> list[str]:
        """The words for each image."""
        rows = torch.stack([self.labels, self.colours, self.positions], 1)
        return [caption(*row) for row in rows.tolist()]


def _coverage(
    labels: Int64[Tensor, "N"],
    x: Float[Tensor, "N H W"],
    y: Float[Tensor, "N H W"],
    unit: Float[Tensor, "N 1 1"],
) -> Float[Tensor, "N H W"]:
    """Return which part of each pixel its shape covers; `unit` in pixels.

    Implements eq-coverage (book/foundations/data.md).
    """
    distance = torch.empty_like(x)
    for k, name in enumerate(SHAPES):
        mine = labels == k
        distance[mine] = signed_distance(name, x[mine], y[mine])
    return (0.5 - unit * distance).clamp(0, 1)


def _drawn(seed: int, items: Int64[Tensor, "N"], size: int) -> Shapes:
    """Draw these items, from 13 numbers for the scene and one a byte."""
    draws = item_uniforms(seed, items, 13 + 3 * size**2).float()
    scene, noise = draws.split([13, 3 * size**2], dim=1)
    counts = torch.tensor([len(SHAPES), len(COLOURS), len(POSITIONS)])
    labels, colours, positions = (scene[:, :3] * counts).long().T
    jitter = scene[:, 3:, None, None] - 0.5  # [N, 10, 1, 1] in [-1/2, 1/2)
    radius, angle = 0.35 + 0.1 * jitter[:, 0], 0.5 * jitter[:, 1]
    place = torch.stack([positions % 3, positions // 3], 1)[..., None, None]
    centre = 0.55 * (place - 1) + 0.1 * jitter[:, 2:4]

    grid = (2 * torch.arange(size) + 1) / size - 1  # centres of pixels
    across = (grid[None, None, :] - centre[:, 0]) / radius
    down = (grid[None, :, None] - centre[:, 1]) / radius
    x = angle.cos() * across + angle.sin() * down
    y = angle.cos() * down - angle.sin() * across
    cover = _coverage(labels, x, y, radius * size / 2)[:, None]

    paint = torch.tensor(list(COLOURS.values()))[colours, :, None, None]
    paper = 0.125 + 0.25 * jitter[:, 7:10]
    colour = cover * (paint + 0.1 * jitter[:, 4:7]) + (1 - cover) * paper
    grain = 0.15 * (noise.reshape(-1, 3, size, size) - 0.5)
    pixels = (255 * (colour + grain).clamp(0, 1)).round().to(torch.uint8)
    return Shapes(
        pixels=pixels,
        labels=labels,
        classes=SHAPES,
        colours=colours,
        positions=positions,
    )


def shapes(n: int, seed: int, *, first: int = 0, size: int = 32) -> Shapes:
    """Return n pictures of one shape each, [3, size, size], with captions.

    Item i depends on the seed and on i alone: these are the items `first` to
    `first + n - 1` of an endless sequence.

    Raises:
        ValueError: if an argument is out of range.
    """
    for name, value, least in (("n", n, 0), ("first", first, 0)):
        if value < least:
            raise ValueError(f"{name} must not be negative, got {value}")
    if size < 8:
        raise ValueError(f"size must be at least 8 pixels, got {size}")
    items = torch.arange(first, first + n)
    return _joined([_drawn(seed, some, size) for some in items.split(500)])


# A set of points in the plane.
Points = Float[Tensor, "n 2"]


def _uniforms(
    n: int, generator: torch.Generator | None
) -> Float[Tensor, "2 n"]:
    """Return two uniform numbers for each of n points."""
    device = generator.device if generator is not None else "cpu"
    return torch.rand(2, n, generator=generator, device=device)


def _blurred(
    x: Tensor, y: Tensor, noise: float, generator: torch.Generator | None
) -> Points:
    """Return the points with noise added and their mean square kept at 2.

    Raises:
        ValueError: if noise does not lie in 0..1.
    """
    if not 0 <= noise <= 1:
        raise ValueError(f"noise must lie in 0..1, got {noise}")
    points = torch.stack([x, y], 1)
    eps = torch.randn(
        points.shape, generator=generator, device=points.device
    )
    return math.sqrt(1 - noise**2) * points + noise * eps


def moons(
    n: int, generator: torch.Generator | None = None, noise: float = 0.05
) -> Points:
    """Return two half circles that reach into each other."""
    u, side = _uniforms(n, generator)
    scale = math.sqrt(2 / (21 / 16 - 1 / math.pi)) * (side - 0.5).sign()
    x, y = (math.pi * u).cos() - 0.5, (math.pi * u).sin() - 0.25
    return _blurred(scale * x, scale * y, noise, generator)


def rings(
    n: int, generator: torch.Generator | None = None, noise: float = 0.05
) -> Points:
    """Return three circles around 0, with radii as 1 to 2 to 3."""
    u, which = _uniforms(n, generator)
    radius = math.sqrt(3 / 7) * (1 + (3 * which).floor())
    angle = 2 * math.pi * u
    return _blurred(
        radius * angle.cos(), radius * angle.sin(), noise, generator
    )


def spirals(
    n: int, generator: torch.Generator | None = None, noise: float = 0.05
) -> Points:
    """Return two arms of one and a half turns, the angle 3/2 pi radius."""
    u, side = _uniforms(n, generator)
    radius, arm = 2 * u.sqrt(), (side - 0.5).sign()
    angle = 1.5 * math.pi * radius
    x, y = radius * angle.cos(), radius * angle.sin()
    return _blurred(arm * x, arm * y, noise, generator)


def swiss_roll(
    n: int, generator: torch.Generator | None = None, noise: float = 0.05
) -> Points:
    """Return one arm whose radius is its angle, from 3/2 pi to 9/2 pi."""
    u, _ = _uniforms(n, generator)
    angle = 1.5 * math.pi * (1 + 2 * u)
    middle = (2, 2 / (3 * math.pi))  # the exact mean
    square = 9.75 * math.pi**2 - middle[0] ** 2 - middle[1] ** 2
    scale = math.sqrt(2 / square)
    x = scale * (angle * angle.cos() - middle[0])
    y = scale * (angle * angle.sin() - middle[1])
    return _blurred(x, y, noise, generator)


def checkerboard(
    n: int, generator: torch.Generator | None = None, noise: float = 0.0
) -> Points:
    """Return points on the eight dark squares of a board of four by four."""
    u, v = 4 * _uniforms(n, generator)
    row = 2 * (v / 2).floor() + u.floor() % 2
    x, y = u / 2 - 1, (row + v / 2 % 1) / 2 - 1
    return _blurred(3**0.5 * x, 3**0.5 * y, noise, generator)


def eight_gaussians(
    n: int, generator: torch.Generator | None = None, noise: float = 0.1
) -> Points:
    """Return eight round clouds, evenly spaced on a circle."""
    which, _ = _uniforms(n, generator)
    angle = math.pi / 4 * (8 * which).floor()
    radius = math.sqrt(2)
    return _blurred(
        radius * angle.cos(), radius * angle.sin(), noise, generator
    )


def _content(folder: Path | str, name: str, packed: bool) -> tuple[Path, bytes]:
    """Return the path and the bytes of a file, or of its `.gz`, unpacked."""
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
    """Return the array in an IDX file: magic number, sizes, bytes."""
    start = 4 + 4 * (magic & 0xFF)  # the last byte counts the dimensions
    if len(data) < start:
        raise DataError(f"{path} ends within its header of {start} bytes")
    found, *sizes = struct.unpack_from(f">{start // 4}I", data)
    if found != magic:
        raise DataError(
            f"{path} begins with 0x{found:08x} instead of 0x{magic:08x}"
        )
    if len(data) - start != math.prod(sizes) or not len(data) > start:
        raise DataError(
            f"{path} announces {' x '.join(map(str, sizes))} bytes after "
            f"its header and has {len(data) - start}"
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
    _check_labels(where, labels, len(classes))
    return Images(pixels[:, None], labels, classes)


def _with_validation(train: Images, test: Images) -> Splits:
    """Carve a tenth of the training images for validation, always the same."""
    sizes = (len(train) // 10,)
    validation, rest = stratified_split(train.labels, sizes, seed=0)
    return Splits(train.take(rest), train.take(validation), test)


def mnist(folder: Path | str) -> Splits:
    """Return MNIST, [1, 28, 28], from a folder with its four IDX files.

    The files are those of the original, plain or gzipped. A tenth of the
    training images becomes the validation set.

    Raises:
        DataError: if a file is missing or is not what it should be.

    Source: LeCun, Bottou, Bengio and Haffner (1998).
    """
    classes = tuple("0123456789")
    train, test = (_idx_images(folder, p, classes) for p in ("train", "t10k"))
    return _with_validation(train, test)


def fashion_mnist(folder: Path | str) -> Splits:
    """Return Fashion-MNIST, [1, 28, 28]: files and errors as for `mnist`.

    The file names are those of MNIST too: keep the two in separate folders.

    Source: Xiao, Rasul and Vollgraf (2017).
    """
    names = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker"
    classes = (*names.split(","), "Bag", "Ankle boot")
    train, test = (_idx_images(folder, p, classes) for p in ("train", "t10k"))
    return _with_validation(train, test)


BATCHES = tuple(f"data_batch_{k}.bin" for k in range(1, 6))


def _cifar_batch(
    folder: Path | str, name: str, classes: tuple[str, ...]
) -> Images:
    """Return one file of records: a label, then 32 x 32 reds, greens, blues."""
    path, data = _content(folder, name, packed=False)
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

    A tenth of the training images becomes the validation set.

    Raises:
        DataError: if a file is missing or is not what it should be.

    Source: Krizhevsky (2009).
    """
    path, data = _content(folder, "batches.meta.txt", packed=False)
    classes = tuple(data.decode("ascii", "replace").split())
    if len(classes) != 10:
        raise DataError(f"{path} names {len(classes)} classes, not 10")
    *train, test = (
        _cifar_batch(folder, name, classes)
        for name in (*BATCHES, "test_batch.bin")
    )
    return _with_validation(_joined(train), test)
