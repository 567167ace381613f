"""Laws of the data sets, and what the readers refuse: each with a real bad file."""

import cmath
import gzip
import itertools
import math
import struct
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb

from tangled.workshop.data import (
    COLOURS,
    POSITIONS,
    SHAPE_NAMES,
    DataError,
    DrawnShapes,
    Images,
    checkerboard,
    cifar10,
    digits,
    eight_gaussians,
    fashion_mnist,
    item_keys,
    item_uniforms,
    mnist,
    moons,
    read_caption,
    rings,
    shapes,
    signed_distance,
    spirals,
    stratified_split,
    swiss_roll,
)
from tangled.workshop.statistics import standard_score

SETS = (moons, rings, spirals, swiss_roll, checkerboard, eight_gaussians)


def images(n=4, levels=255, classes=3):
    pixels = torch.arange(n * 3 * 2 * 2).reshape(n, 3, 2, 2) % (levels + 1)
    names = tuple(f"class {k}" for k in range(classes))
    return Images(
        pixels.to(torch.uint8), torch.arange(n) % classes, names, levels
    )


# Images


@pytest.mark.verifies("eq-pixel-scale")
@given(st.integers(1, 255))
def test_pixels_come_in_order_from_minus_one_to_one(levels):
    pixels = torch.arange(levels + 1, dtype=torch.uint8)
    steps = Images(
        pixels.reshape(-1, 1, 1, 1),
        torch.zeros(levels + 1, dtype=torch.int64),
        ("grey",),
        levels,
    )
    x0, _ = steps[torch.arange(levels + 1)]
    flat = x0.flatten()
    assert (flat[0], flat[-1]) == (-1, 1)
    assert (flat.diff() > 0).all()
    back = ((flat + 1) / 2 * levels).round().to(torch.uint8)
    assert torch.equal(back, pixels)


def test_a_batch_keeps_the_order_of_its_indices():
    data = images()
    x0, labels = data[torch.tensor([3, 0, 3])]
    assert (x0.shape, x0.dtype) == ((3, 3, 2, 2), torch.float32)
    assert labels.tolist() == [0, 0, 0]
    assert torch.equal(x0[0], x0[2])
    assert not torch.equal(x0[0], x0[1])
    empty, none = data[torch.zeros(0, dtype=torch.int64)]
    assert (len(empty), len(none)) == (0, 0)


def test_taking_some_keeps_everything_else():
    data = images(levels=16)
    some = data.take(torch.tensor([2, 1]))
    assert (len(some), some.classes, some.levels) == (2, data.classes, 16)
    assert some.labels.tolist() == [2, 1]
    assert torch.equal(some.pixels[1], data.pixels[1])
    drawn = shapes(5, seed=0, size=8).take(torch.tensor([4]))
    assert isinstance(drawn, DrawnShapes)
    assert drawn.captions == shapes(5, seed=0, size=8).captions[4:]


def test_a_data_set_moves_as_a_whole():
    data = shapes(3, seed=0, size=8)
    moved = data.to("cpu")
    assert isinstance(moved, DrawnShapes)
    assert moved.captions == data.captions
    assert torch.equal(moved.pixels, data.pixels)


@pytest.mark.gpu
def test_batches_follow_the_device():
    data = shapes(3, seed=0, size=8).to("cuda")
    x0, labels = data[torch.tensor([0, 2], device="cuda")]
    assert x0.is_cuda
    assert labels.is_cuda
    here, _ = shapes(3, seed=0, size=8)[torch.tensor([0, 2])]
    assert torch.equal(x0.cpu(), here)


@pytest.mark.usefixtures("plain_errors")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixels": torch.zeros(2, 1, 2, 2)}, "pixels must be a uint8"),
        (
            {"pixels": torch.zeros(2, 2, 2, dtype=torch.uint8)},
            r"pixels must be a uint8 tensor \[N, C, H, W\]",
        ),
        (
            {"labels": torch.zeros(2)},
            r"labels must be an int64 tensor \[N\]",
        ),
        (
            {"labels": torch.zeros(3, dtype=torch.int64)},
            r"2 images cannot have labels of shape \[3\]",
        ),
        (
            {"labels": torch.zeros(1, dtype=torch.int64)},
            r"2 images cannot have labels of shape \[1\]",
        ),
        (
            {"labels": torch.tensor([0, 2])},
            r"labels must lie in 0..1, but that of item 1 is 2",
        ),
        (
            {"labels": torch.tensor([-1, 0])},
            r"labels must lie in 0..1, but that of item 0 is -1",
        ),
        ({"levels": 7}, r"pixels must lie in 0..7, got 9"),
        ({"levels": 0}, r"levels must lie in 1..255, got 0"),
        ({"levels": 256}, r"levels must lie in 1..255, got 256"),
    ],
)
def test_what_does_not_fit_together_is_refused(change, message):
    good = {
        "pixels": torch.full((2, 1, 2, 2), 9, dtype=torch.uint8),
        "labels": torch.tensor([0, 1]),
        "classes": ("a", "b"),
    }
    with pytest.raises(DataError, match=message):
        Images(**{**good, **change})


# Splits


def test_digits_are_the_same_everywhere():
    train, validation, test = digits()
    assert (len(train), len(validation), len(test)) == (1097, 200, 500)
    assert train.pixels.shape[1:] == (1, 8, 8)
    assert train.levels == 16
    x0, _ = test[torch.arange(500)]
    assert (x0.min(), x0.max()) == (-1, 1)
    weights = torch.arange(1, 501)
    assert (test.labels * weights).sum() == 561_453
    assert (validation.labels * weights[:200]).sum() == 87_641


def test_digits_are_split_without_a_leak():
    splits = digits()
    rows = torch.cat([part.pixels.flatten(1) for part in splits])
    assert len(rows) == 1797
    assert len(rows.unique(dim=0)) == 1797  # no drawing is in two parts
    counts = sum(part.labels.bincount() for part in splits)
    for part in splits:
        share = counts * len(part) / 1797
        assert (part.labels.bincount() - share).abs().max() < 2


@pytest.mark.verifies("alg-split")
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60),
    st.integers(0, 2**63 - 1),
    st.data(),
)
def test_a_split_is_a_partition_by_class(classes, seed, data):
    labels = torch.tensor(classes)
    total = len(labels)
    first = data.draw(st.integers(0, total))
    second = data.draw(st.integers(0, total - first))
    parts = stratified_split(labels, (first, second), seed)
    assert [len(p) for p in parts] == [first, second, total - first - second]
    assert torch.cat(parts).sort().values.tolist() == list(range(total))
    assert all(p.tolist() == sorted(p.tolist()) for p in parts)
    for c in labels.unique():
        share = (labels == c).sum() * first / total
        assert abs((labels[parts[0]] == c).sum() - share) < 1


def test_every_choice_within_a_class_is_equally_likely():
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    chosen = [stratified_split(labels, (3,), s)[0] for s in range(3000)]
    sets = [tuple(c.tolist()) for c in chosen]
    pairs = itertools.combinations(range(4), 2)
    for pair, one in itertools.product(pairs, (4, 5)):
        hits = torch.tensor([float(s == (*pair, one)) for s in sets])
        assert abs(standard_score(hits, 1 / 12)) < 5


def test_keys_are_different_and_follow_no_pattern():
    keys = item_keys(0, torch.arange(100_000))
    assert len(keys.unique()) == 100_000
    assert not torch.equal(keys[:9], item_keys(1, torch.arange(9)))
    for bit in (0, 17, 40, 63):
        ones = (keys >> bit & 1).double()
        assert abs(standard_score(ones, 0.5)) < 5
        assert abs(standard_score(ones[1:] * ones[:-1], 0.25)) < 5


def test_a_split_does_not_depend_on_later_items_keys():
    assert torch.equal(
        item_keys(3, torch.arange(5, 9)), item_keys(3, torch.arange(9))[5:]
    )


@pytest.mark.parametrize("sizes", [(3,), (1, 2), (-1,)])
def test_sizes_that_do_not_fit_are_refused(sizes):
    with pytest.raises(ValueError, match="sizes must not be negative or"):
        stratified_split(torch.tensor([0, 1]), sizes, seed=0)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_is_refused(seed):
    message = rf"seed must lie in 0..2\*\*63 - 1, got {seed}"
    with pytest.raises(ValueError, match=message):
        item_keys(seed, torch.arange(2))


def test_without_scikit_learn_the_digits_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match="pip install 'signal-from"):
        digits()


# Shapes


@pytest.mark.verifies("def-shapes")
@given(st.integers(0, 2**40), st.integers(0, 30), st.integers(0, 12))
def test_any_slice_of_the_sequence_is_itself(seed, first, n):
    whole = shapes(42, seed, size=8)
    part = shapes(n, seed, first=first, size=8)
    same = whole.take(torch.arange(first, first + n))
    assert torch.equal(part.pixels, same.pixels)
    assert torch.equal(part.labels, same.labels)
    assert part.captions == same.captions


def drawn_slowly(seed, item, size):
    """Return the bytes of one item, worked out pixel by pixel."""
    numbers = item_uniforms(seed, torch.tensor([item]), 13 + 3 * size**2)
    shape, colour, place, *rest = numbers[0].tolist()
    place = int(9 * place)
    radius, turn, right, below, *rest = [u - 0.5 for u in rest]
    tint, paper, grain = rest[:3], rest[3:6], iter(rest[6:])
    radius, turn = 0.35 + 0.1 * radius, cmath.exp(-0.5j * turn)
    middle = complex(
        0.53 * (place % 3 - 1) + 0.1 * right,
        0.53 * (place // 3 - 1) + 0.1 * below,
    )
    line = [(2 * k + 1) / size - 1 for k in range(size)]
    seen = [
        (complex(x, y) - middle) * turn / radius for y in line for x in line
    ]
    x, y = torch.tensor([[z.real, z.imag] for z in seen]).double().T
    distance = signed_distance(SHAPE_NAMES[int(10 * shape)], x, y)
    cover = [
        min(max(0.5 - radius * size / 2 * d, 0), 1) for d in distance.tolist()
    ]
    pure = list(COLOURS.values())[int(8 * colour)]
    return [
        255
        * (
            c * (pure[k] + 0.1 * tint[k])
            + (1 - c) * (0.1 + 0.2 * paper[k])
            + 0.15 * next(grain)
        )
        for k in range(3)
        for c in cover
    ]


@pytest.mark.verifies("def-shapes")
def test_pictures_are_those_that_are_worked_out_pixel_by_pixel():
    data = shapes(40, seed=2, size=12)
    assert len(data.labels.unique()) == 10
    for item, picture in enumerate(data.pixels):
        slow = torch.tensor(drawn_slowly(2, item, 12)).clamp(0, 255)
        assert (picture.flatten() - slow).abs().max() < 0.51  # rounding


@pytest.mark.parametrize("size", [8, 20, 64])
def test_sizes_of_pictures(size):
    data = shapes(3, seed=0, size=size)
    assert data.pixels.shape == (3, 3, size, size)
    assert data.classes == SHAPE_NAMES
    # The same scene at another size: attributes do not change.
    assert data.captions == shapes(3, seed=0).captions


def test_no_pictures_are_a_data_set_too():
    assert len(shapes(0, seed=0)) == 0


def test_each_shape_is_its_own():
    line = torch.linspace(-1.2, 1.2, 121)
    y, x = torch.meshgrid(line, line, indexing="ij")
    inside = [signed_distance(name, x, y) < 0 for name in SHAPE_NAMES]
    assert len(SHAPE_NAMES) == 10
    for one, other in itertools.combinations(inside, 2):
        overlap = (one & other).sum() / (one | other).sum()
        assert overlap < 0.81
    for one in inside:
        assert one.any()
        assert not one[0].any()  # a margin on all sides
        assert not one[:, 0].any()


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("diamond", (0.0, 0.8), (0.8, 0.0)),
        ("triangle", (0.6, 0.4), (0.6, -0.4)),
        ("star", (0.0, -0.9), (0.0, 0.9)),
        ("bar", (0.8, 0.0), (0.0, 0.8)),
        ("crescent", (-0.5, 0.0), (0.5, 0.0)),
        ("heart", (0.5, -0.5), (0.5, 0.5)),
    ],
)
def test_shapes_stand_upright(name, inside, outside):
    assert signed_distance(name, *torch.tensor(inside)) < 0
    assert signed_distance(name, *torch.tensor(outside)) > 0


@pytest.mark.verifies("eq-shape-algebra")
@pytest.mark.parametrize("name", SHAPE_NAMES)
def test_a_distance_grows_no_faster_than_you_walk(name):
    generator = torch.Generator().manual_seed(0)
    a, b = 3 * torch.rand(2, 2, 5000, generator=generator).double() - 1.5
    near = b * 0.01 + a
    change = signed_distance(name, *near) - signed_distance(name, *a)
    walked = (near - a).norm(dim=0)
    assert (change.abs() <= walked * (1 + 1e-9)).all()


def test_colours_have_their_usual_names():
    ours = torch.tensor(list(COLOURS.values()))
    usual = torch.tensor([to_rgb(name) for name in COLOURS])
    assert torch.cdist(ours, usual).argmin(1).tolist() == list(range(8))


def test_captions_are_words_in_a_fixed_form():
    data = shapes(200, seed=0, size=8)
    for i, text in enumerate(data.captions):
        shape, colour, position = read_caption(text)
        expected = (data.labels[i], data.colours[i], data.positions[i])
        assert (shape, colour, position) == tuple(map(int, expected))
        words = f"a {list(COLOURS)[colour]} {SHAPE_NAMES[shape]} at the "
        assert text == words + POSITIONS[position]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle",
        "a red circle at the side",
        "a mauve circle at the top",
        "A red circle at the top",
        "a red circle at the top ",
    ],
)
def test_other_words_are_refused(text):
    with pytest.raises(ValueError, match="is not the caption of a shape"):
        read_caption(text)


def test_an_unknown_shape_is_refused_with_the_names_that_exist():
    zero = torch.zeros(1)
    with pytest.raises(ValueError, match=r"one of circle, .*, got 'blob'"):
        signed_distance("blob", zero, zero)


@pytest.mark.parametrize(
    "wrong", [{"n": -1}, {"first": -1}, {"size": 7}, {"seed": -1}]
)
def test_shapes_refuse_arguments_out_of_range(wrong):
    with pytest.raises(ValueError, match="must"):
        shapes(**{"n": 2, "seed": 0, **wrong})


def test_uniforms_are_the_published_generator():
    (key,) = item_keys(5, torch.tensor([9])).tolist()
    state, expected = key % 2**64, []
    for _ in range(4):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        x = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        expected.append(((x ^ x >> 31) >> 11) / 2**53)
    found = item_uniforms(5, torch.tensor([9]), 4)
    assert found.tolist() == [expected]


def test_numbers_are_uniform_and_unrelated():
    u = item_uniforms(0, torch.arange(20_000), 3)
    for one in u.T:
        assert abs(standard_score(one, 1 / 2)) < 5
        assert abs(standard_score(one**2, 1 / 3)) < 5
    neighbours = (u[1:, 0] - 0.5) * (u[:-1, 0] - 0.5)
    assert abs(standard_score(neighbours, 0.0)) < 5
    assert abs(standard_score((u[:, 0] - 0.5) * (u[:, 1] - 0.5), 0.0)) < 5


# Points in the plane


@pytest.mark.parametrize("points", SETS)
def test_points_follow_their_generator(points):
    first = points(50, torch.Generator().manual_seed(1))
    again = points(50, torch.Generator().manual_seed(1))
    other = points(50, torch.Generator().manual_seed(2))
    assert (first.shape, first.dtype) == ((50, 2), torch.float32)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert points(0).shape == (0, 2)
    assert points(3).isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("points", SETS)
def test_points_are_made_where_their_generator_is(points):
    assert points(5, torch.Generator("cuda").manual_seed(0)).is_cuda


@pytest.mark.parametrize("points", SETS)
def test_noise_alone_is_a_standard_normal(points):
    x = points(20_000, torch.Generator().manual_seed(0), 1.0).double()
    assert all(abs(standard_score(one, 0.0)) < 5 for one in x.T)
    assert all(abs(standard_score(one**2, 1.0)) < 5 for one in x.T)
    assert all(abs(standard_score(one**4, 3.0)) < 5 for one in x.T)


@pytest.mark.parametrize("noise", [-0.1, 1.5, math.nan])
@pytest.mark.parametrize("points", SETS)
def test_noise_out_of_range_is_refused(points, noise):
    with pytest.raises(ValueError, match=r"noise must lie in 0..1, got"):
        points(3, noise=noise)


# Folders: MNIST and Fashion-MNIST


def idx(values, sizes, code=8):
    header = bytes([0, 0, code, len(sizes)]) + struct.pack(
        f">{len(sizes)}I", *sizes
    )
    return header + bytes(values)


def write(path, data):
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture(params=["", ".gz"])
def folder(request, tmp_path):
    """A folder as MNIST's, with 27 pictures for training and 2 for the test."""
    for part, n in (("train", 27), ("t10k", 2)):
        pixels = [i % 256 for i in range(n * 784)]
        write(
            tmp_path / f"{part}-images-idx3-ubyte{request.param}",
            idx(pixels, (n, 28, 28)),
        )
        write(
            tmp_path / f"{part}-labels-idx1-ubyte{request.param}",
            idx([i % 10 for i in range(n)], (n,)),
        )
    return tmp_path


FASHION = (
    "T-shirt/top, Trouser, Pullover, Dress, Coat, "
    "Sandal, Shirt, Sneaker, Bag, Ankle boot"
)


@pytest.mark.parametrize(
    ("read", "names"),
    [(mnist, tuple("0123456789")), (fashion_mnist, (*FASHION.split(", "),))],
)
def test_a_folder_comes_back(folder, read, names):
    train, validation, test = read(folder)
    assert (len(train), len(validation), len(test)) == (25, 2, 2)
    assert test.pixels.flatten().tolist() == [i % 256 for i in range(1568)]
    assert test.labels.tolist() == [0, 1]
    assert train.classes == test.classes == names
    again = read(str(folder))
    assert torch.equal(again.validation.pixels, validation.pixels)


def test_the_plain_file_is_read_where_both_are(folder):
    other = idx([7, 8], (2,))
    write(folder / "t10k-labels-idx1-ubyte", other)
    assert mnist(folder).test.labels.tolist() == [7, 8]


def replaced(folder, name, data):
    """Write `data` in place of the file, plain or packed as it was."""
    (path,) = folder.glob(f"{name}*")
    write(path, data)
    return path


BAD_FILES = {
    "wrong magic number": (
        "train-images",
        idx([0] * 3, (3,)),
        "begins with 00000801, not 00000803",
    ),
    "floats": (
        "t10k-labels",
        idx([0] * 8, (2,), code=13),
        "begins with 00000d01, not 00000801",
    ),
    "empty": ("t10k-images", b"", "begins with nothing, not 00000803"),
    "cut in the header": (
        "t10k-images",
        idx([], (2, 28, 28))[:10],
        "ends within its header of 16 bytes",
    ),
    "cut off": (
        "t10k-images",
        idx([0] * 1567, (2, 28, 28)),
        "announces 2 x 28 x 28 values and holds 1567",
    ),
    "too long": (
        "t10k-labels",
        idx([0] * 3, (2,)),
        "announces 2 values and holds 3",
    ),
    "another size": (
        "t10k-images",
        idx([0] * 1512, (2, 27, 28)),
        "holds images of 27 x 28, not of 28 x 28",
    ),
    "a label too many": (
        "t10k-labels",
        idx([0] * 3, (3,)),
        r"holds 2 images and t10k-labels-idx1-ubyte\S* 3 labels",
    ),
    "label out of range": (
        "train-labels",
        idx([0] * 26 + [10], (27,)),
        r"train-labels-idx1-ubyte\S* must lie in 0..9, "
        "but that of item 26 is 10",
    ),
}


@pytest.mark.refutes("def-idx")
@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_named_with_what_is_wrong(folder, case):
    name, data, message = BAD_FILES[case]
    path = replaced(folder, name, data)
    with pytest.raises(DataError, match=message) as caught:
        mnist(folder)
    sentence = str(caught.value)
    assert str(folder) in sentence
    assert path.name in sentence or "labels" in sentence
    assert "\n" not in sentence


def test_a_missing_folder_and_a_missing_file_are_named(folder):
    with pytest.raises(DataError, match=r"there is no folder .*nowhere"):
        mnist(folder / "nowhere")
    (path,) = folder.glob("t10k-labels*")
    path.unlink()
    message = (
        "does not hold t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz"
    )
    with pytest.raises(DataError, match=message):
        mnist(folder)
    with pytest.raises(DataError, match="there is no folder"):
        mnist(path.with_name(next(folder.iterdir()).name))  # a file


@pytest.mark.parametrize(
    "data",
    [
        b"plain text",
        gzip.compress(b"x" * 9999)[:-12],
        gzip.compress(bytes(range(256)))[:12] + b"\xff" * 40,
    ],
    ids=["not gzip", "cut off", "damaged"],
)
def test_what_cannot_be_unpacked_is_named(folder, data):
    for path in list(folder.glob("t10k-images*")):
        path.unlink()
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz cannot"):
        mnist(folder)


def test_a_folder_in_place_of_a_file_is_named(folder):
    for path in list(folder.glob("train-labels*")):
        path.unlink()
    (folder / "train-labels-idx1-ubyte").mkdir()
    with pytest.raises(DataError, match="train-labels-idx1-ubyte cannot be"):
        mnist(folder)


# Folders: CIFAR-10

NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


def records(labels, first=0):
    return b"".join(
        bytes([label]) + bytes((first + i + j) % 256 for j in range(3072))
        for i, label in enumerate(labels)
    )


@pytest.fixture
def cifar(tmp_path):
    """A folder as CIFAR-10's binary version, four records in each file."""
    (tmp_path / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    for k in range(1, 6):
        data = records([k, k + 1, k + 2, k + 3], first=10 * k)
        (tmp_path / f"data_batch_{k}.bin").write_bytes(data)
    (tmp_path / "test_batch.bin").write_bytes(records([9, 8, 7, 6]))
    return tmp_path


@pytest.mark.verifies("def-cifar")
def test_records_come_back_as_planes(cifar):
    train, validation, test = cifar10(cifar)
    assert (len(train), len(validation), len(test)) == (18, 2, 4)
    assert test.labels.tolist() == [9, 8, 7, 6]
    assert test.classes == NAMES
    red, green, blue = test.pixels[0].flatten(1).tolist()
    assert red == [j % 256 for j in range(1024)]
    assert green == [(1024 + j) % 256 for j in range(1024)]
    assert blue == [(2048 + j) % 256 for j in range(1024)]
    assert test.pixels[1, 0, 1, 0] == 33  # the second row follows the first
    everything = torch.cat([train.labels, validation.labels])
    assert everything.bincount().tolist()[1:] == [1, 2, 3, 4, 4, 3, 2, 1]


BAD_CIFAR = {
    "cut off": (
        "data_batch_3.bin",
        records([0] * 4)[:-1],
        "data_batch_3.bin has 12291 bytes, not whole records of 3073",
    ),
    "too long": (
        "test_batch.bin",
        records([0]) + b"\0",
        "test_batch.bin has 3074 bytes",
    ),
    "empty": ("test_batch.bin", b"", "test_batch.bin has 0 bytes"),
    "a record is missing": (
        "data_batch_5.bin",
        records([0] * 3),
        "data_batch_5.bin holds 3 records, not 4 like the longest",
    ),
    "a record of the test is missing": (
        "test_batch.bin",
        records([9, 8, 7]),
        "test_batch.bin holds 3 records, not 4 like the longest",
    ),
    "a record too many": (
        "data_batch_1.bin",
        records([0] * 5),
        "data_batch_2.bin holds 4 records, not 5 like the longest",
    ),
    "label out of range": (
        "data_batch_2.bin",
        records([0, 1, 10, 3]),
        r"data_batch_2.bin must lie in 0..9, but that of item 2 is 10",
    ),
    "nine classes": (
        "batches.meta.txt",
        " ".join(NAMES[1:]).encode(),
        "batches.meta.txt names 9 classes, not 10",
    ),
    "not a text": (
        "batches.meta.txt",
        b"\xff\xfe\x00",
        "batches.meta.txt names 1 classes, not 10",
    ),
}


@pytest.mark.refutes("def-cifar")
@pytest.mark.parametrize("case", BAD_CIFAR)
def test_a_bad_cifar_file_is_named_with_what_is_wrong(cifar, case):
    name, data, message = BAD_CIFAR[case]
    (cifar / name).write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        cifar10(cifar)
    assert str(cifar) in str(caught.value)


@pytest.mark.parametrize(
    "name", ["batches.meta.txt", "data_batch_4.bin", "test_batch.bin"]
)
def test_a_missing_cifar_file_is_named(cifar, name):
    (cifar / name).unlink()
    with pytest.raises(DataError, match=f"does not hold {name}"):
        cifar10(cifar)
