"""Laws of the data sets, and what the readers refuse: each with a real bad file."""

import gzip
import itertools
import struct
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb

from tangled.workshop.data import (
    COLOURS,
    SHAPE_NAMES,
    DataError,
    DrawnShapes,
    Images,
    cifar10,
    digits,
    mnist,
    shapes,
    stratified_split,
)
from tangled.workshop.statistics import standard_score


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


# Splits


def test_digits_are_the_same_everywhere():
    train, validation, test = digits()
    assert (len(train), len(validation), len(test)) == (1097, 200, 500)
    assert train.pixels.shape[1:] == (1, 8, 8)
    assert train.levels == 16
    x0, _ = test[torch.arange(500)]
    assert (x0.min(), x0.max()) == (-1, 1)
    weights = torch.arange(1, 501)
    assert (test.labels * weights).sum() == 563_572
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


def test_every_choice_within_a_class_is_equally_likely():
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    chosen = [stratified_split(labels, (3,), s)[0] for s in range(3000)]
    sets = [tuple(sorted(c.tolist())) for c in chosen]
    pairs = itertools.combinations(range(4), 2)
    for pair, one in itertools.product(pairs, (4, 5)):
        hits = torch.tensor([float(s == (*pair, one)) for s in sets])
        assert abs(standard_score(hits, 1 / 12)) < 5


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


@pytest.mark.parametrize("size", [8, 20, 64])
def test_sizes_of_pictures(size):
    data = shapes(3, seed=0, size=size)
    assert data.pixels.shape == (3, 3, size, size)
    assert data.classes == SHAPE_NAMES
    # The same scene at another size: attributes do not change.
    assert data.captions == shapes(3, seed=0).captions


def test_no_pictures_are_a_data_set_too():
    assert len(shapes(0, seed=0)) == 0


def test_colours_have_their_usual_names():
    ours = torch.tensor(list(COLOURS.values()))
    usual = torch.tensor([to_rgb(name) for name in COLOURS])
    assert torch.cdist(ours, usual).argmin(1).tolist() == list(range(8))


@pytest.mark.parametrize(
    "wrong", [{"n": -1}, {"first": -1}, {"size": 7}, {"seed": -1}]
)
def test_shapes_refuse_arguments_out_of_range(wrong):
    with pytest.raises(ValueError, match="must"):
        shapes(**{"n": 2, "seed": 0, **wrong})


# Points in the plane


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
