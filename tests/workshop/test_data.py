"""Laws of the data sets, and what they refuse."""

import itertools
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb

from tangled.workshop.data import (
    COLOURS,
    POSITIONS,
    SHAPE_NAMES,
    SHAPES,
    DrawnShapes,
    Images,
    digits,
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


GOOD = {
    "pixels": torch.zeros(2, 1, 3, 3, dtype=torch.uint8),
    "labels": torch.tensor([0, 1]),
    "classes": ("a", "b"),
    "levels": 16,
}
BAD_IMAGES = {
    "real pixels": ({"pixels": torch.zeros(2, 1, 3, 3)}, "uint8"),
    "no channels": ({"pixels": GOOD["pixels"][:, 0]}, r"\[N, C, H, W\]"),
    "too bright": ({"pixels": GOOD["pixels"] + 17}, "in 0..16, got 17"),
    "a label too few": ({"labels": torch.tensor([0])}, r"tensor \[2\]"),
    "real labels": ({"labels": torch.zeros(2)}, "int64"),
    "a column": ({"labels": torch.tensor([[0], [1]])}, r"tensor \[2\]"),
    "no such class": ({"labels": torch.tensor([0, 2])}, "in 0..1, got 2"),
    "below 0": ({"labels": torch.tensor([-1, 0])}, "in 0..1, got -1"),
    "no levels": ({"levels": 0}, "in 1..255, got 0"),
    "too many levels": ({"levels": 256}, "in 1..255, got 256"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_images_refuse_what_does_not_fit_together(case, plain_errors):
    wrong, message = BAD_IMAGES[case]
    assert len(Images(**GOOD)) == 2
    with pytest.raises(ValueError, match=message):
        Images(**{**GOOD, **wrong})


# Splits


def test_digits_are_as_said():
    train, validation, test = digits()
    assert (len(train), len(validation), len(test)) == (1097, 200, 500)
    for part, again in zip(digits(), (train, validation, test), strict=True):
        assert part.pixels.shape[1:] == (1, 8, 8)
        assert part.levels == 16
        assert torch.equal(part.pixels, again.pixels)
        x0, _ = part[torch.arange(len(part))]
        assert (x0.min(), x0.max()) == (-1, 1)


def test_digits_carry_their_own_labels():
    train, _, test = digits()
    x0 = test.pixels.flatten(1).double()
    nearest = torch.cdist(x0, train.pixels.flatten(1).double()).argmin(1)
    right = (train.labels[nearest] == test.labels).double()
    assert right.mean() > 0.95  # by chance a tenth


def test_digits_are_split_without_a_leak():
    splits = digits()
    rows = torch.cat([part.pixels.flatten(1) for part in splits])
    assert len(rows) == 1797
    assert len(rows.unique(dim=0)) == 1797  # no drawing is in two parts
    counts = sum(part.labels.bincount() for part in splits)
    for part in splits:
        share = counts * len(part) / 1797
        assert (part.labels.bincount() - share).abs().max() < 2


@pytest.mark.verifies("def-split")
@settings(deadline=None)
@given(
    st.lists(st.integers(6, 40), min_size=2, max_size=5),
    st.floats(0.2, 0.8),
    st.integers(0, 2**32 - 1),
)
def test_a_split_is_a_partition_with_the_shares_of_the_classes(
    counts, fraction, seed
):
    labels = torch.repeat_interleave(
        torch.arange(len(counts)), torch.tensor(counts)
    )
    labels = labels[torch.randperm(len(labels))]
    size = round(fraction * len(labels))
    part, rest = stratified_split(labels, (size,), seed)
    assert (len(part), part.dtype) == (size, torch.int64)
    everything = torch.cat([part, rest]).sort().values
    assert torch.equal(everything, torch.arange(len(labels)))
    found = labels[part].bincount(minlength=len(counts))
    share = torch.tensor(counts) * size / len(labels)
    assert (found - share).abs().max() < 1


def test_further_sets_share_what_is_left():
    labels = torch.arange(100) % 4
    first, second, rest = stratified_split(labels, (40, 20), 3)
    assert labels[first].bincount().tolist() == [10] * 4
    assert labels[second].bincount().tolist() == [5] * 4
    everything = torch.cat([first, second, rest]).sort().values
    assert torch.equal(everything, torch.arange(100))
    (whole,) = stratified_split(labels, (), 3)
    assert torch.equal(whole, torch.arange(100))


@pytest.mark.verifies("def-split")
def test_every_choice_within_a_class_is_equally_likely():
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    chosen = [stratified_split(labels, (3,), s)[0] for s in range(1000)]
    sets = [tuple(sorted(c.tolist())) for c in chosen]
    pairs = itertools.combinations(range(4), 2)
    for pair, one in itertools.product(pairs, (4, 5)):
        hits = torch.tensor([float(s == (*pair, one)) for s in sets])
        std = (1 / 12 * 11 / 12) ** 0.5
        assert abs(standard_score(hits, 1 / 12, std)) < 5


@pytest.mark.parametrize("size", [0.1, 1.0, "3", None])
def test_a_fraction_is_no_size(size, plain_errors):
    with pytest.raises(TypeError, match="whole numbers of items"):
        stratified_split(torch.arange(20) % 2, (4, size), 0)


@pytest.mark.parametrize("size", [-1, 0, 1, 19, 20, 21])
def test_sizes_that_leave_a_class_out_are_refused(size):
    with pytest.raises(ValueError, match=r"test_size|train_size|classes"):
        stratified_split(torch.arange(20) % 2, (size,), 0)


def test_a_class_of_one_item_cannot_be_split():
    with pytest.raises(ValueError, match="least populated class"):
        stratified_split(torch.tensor([0, 0, 0, 0, 1]), (2,), 0)


def test_without_scikit_learn_the_digits_say_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match="sklearn"):
        digits()


# Shapes


@pytest.mark.verifies("def-shapes")
@settings(deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 30), st.integers(0, 12))
def test_any_slice_of_the_sequence_is_itself(seed, first, n):
    whole = shapes(42, seed, size=8)
    part = shapes(n, seed, first=first, size=8)
    same = whole.take(torch.arange(first, first + n))
    assert torch.equal(part.pixels, same.pixels)
    assert torch.equal(part.labels, same.labels)
    assert part.captions == same.captions


@pytest.mark.verifies("def-shapes")
def test_a_picture_alone_is_that_of_the_batch():
    batch = shapes(20, seed=4)
    for i in (0, 7, 19):
        alone = shapes(1, seed=4, first=i)
        assert torch.equal(alone.pixels[0], batch.pixels[i])
        assert alone.captions == batch.captions[i : i + 1]
    # Nor has another seed a picture of this one, at any place.
    other = shapes(20, seed=5)
    both = torch.cat([batch.pixels, other.pixels])
    assert len(both.unique(dim=0)) == 40


@pytest.mark.verifies("def-shapes")
def test_attributes_are_uniform_and_independent():
    data = shapes(4500, seed=0, size=8)
    numbers = {
        "shape": (data.labels, len(SHAPES)),
        "colour": (data.colours, len(COLOURS)),
        "position": (data.positions, len(POSITIONS)),
    }
    for values, count in numbers.values():
        hits = torch.nn.functional.one_hot(values, count).double()
        std = (1 / count * (1 - 1 / count)) ** 0.5
        assert all(
            abs(standard_score(row, 1 / count, std)) < 5 for row in hits.T
        )
    for (a, m), (b, n) in itertools.combinations(numbers.values(), 2):
        cells = torch.bincount(a * n + b, minlength=m * n).double()
        expected = 4500 / (m * n)
        chi2 = ((cells - expected) ** 2 / expected).sum().item()
        free = m * n - 1
        assert abs(chi2 - free) < 5 * (2 * free) ** 0.5


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_fits_into_its_place_and_measures_distance(name):
    line = np.linspace(-1.5, 1.5, 301)
    x, y = np.meshgrid(line, line)
    for angle in (-0.25, 0, 0.25):
        seen = (x + 1j * y) * np.exp(-1j * angle)
        inside = SHAPES[name](seen.real, seen.imag) < 0
        # The outermost centre is 0.58 from the middle, the largest radius
        # 0.4, so 0.42 / 0.4 of it is left; a fifteenth of a pixel may go.
        assert np.maximum(abs(x), abs(y))[inside].max() < 1.06
        assert inside.sum() > 1000
    distance = SHAPES[name](x, y)
    slope = np.hypot(*np.gradient(distance, line, line))
    assert abs(np.median(slope[abs(distance) < 0.05]) - 1) < 0.01


@pytest.mark.parametrize(
    ("name", "narrow"), [("triangle", 0), ("star", 0), ("heart", -1)]
)
def test_a_shape_stands_upright(name, narrow):
    line = np.linspace(-1, 1, 201)
    distance = SHAPES[name](*np.meshgrid(line, line))  # y points down
    assert np.allclose(distance, distance[:, ::-1])
    rows = (distance < -0.02)[(distance < -0.02).any(1)]
    off = np.where(rows, abs(line), 0).max(1)  # how far off the axis
    assert off[narrow] < 0.1
    assert off[-1 - narrow] > 0.3


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
    with pytest.raises(ValueError, match="it takes"):
        shapes(**{"n": 2, "seed": 0, **wrong})
