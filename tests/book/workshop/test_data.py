"""Checks of the chapter “Data, and how sure a score is”.

Tangled from book/workshop/data.md.
"""

import gzip
import itertools
import math
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist, fmean

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from tangled.workshop.data import (
    COLOURS,
    POSITIONS,
    SHAPE_NAMES,
    DataError,
    Images,
    _beyond,
    _covered,
    _parsed_idx,
    caption,
    checkerboard,
    cifar10,
    digits,
    eight_gaussians,
    item_keys,
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
from tangled.workshop.statistics import (
    binomial_law,
    coverage,
    sample_variance,
    standard_score,
    stratified_variance,
    wilson_interval,
)


def test_four_values_by_hand():
    four = torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert abs(standard_score(four, 2.0) - 0.926) < 5e-4


def test_true_claims_have_scores_of_variance_one():
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(5000, 100, generator=generator)
    scores = torch.tensor([standard_score(row, 0.5) for row in draws])
    assert abs(standard_score(scores, 0.0)) < 5
    assert abs(standard_score(scores**2, 1.0)) < 5
    assert scores.abs().max() < 5


def grey_steps(levels: int) -> Images:
    """Return one picture that holds each level once."""
    pixels = torch.arange(levels + 1, dtype=torch.uint8).reshape(1, 1, 1, -1)
    return Images(pixels, torch.tensor([0]), ("steps",), levels)


def test_black_middle_and_white_are_exact():
    for levels in (16, 255):
        x0, labels = grey_steps(levels)[torch.tensor([0])]
        assert (x0.dtype, labels.tolist()) == (torch.float32, [0])
        assert x0.min() == -1  # to the last bit
        assert x0.max() == 1
        assert (x0 + x0.flip(-1)).abs().max() < 1e-6  # centred
    assert grey_steps(16)[torch.tensor([0])][0].flatten()[8] == 0


def scaled_as_bytes(images: Images) -> Tensor:
    # CORRECT: 2 * images.pixels / images.levels - 1
    return 2 * images.pixels / 255 - 1  # WRONG: white is 16 here


def test_the_wrong_white_is_nearly_black():
    images = grey_steps(16)
    correct, _ = images[torch.tensor([0])]
    wrong = scaled_as_bytes(images)
    assert wrong.min() == -1
    assert wrong.max() < -0.87  # white has become black
    assert correct.var() / wrong.var() > 250  # (255 / 16) squared


def python_key(seed: int, item: int) -> int:
    """Return the item's number in unbounded integers, from 0 to 2**64 - 1."""

    def output(state: int) -> int:  # of SplitMix64, one step after `state`
        x = (state + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    assert output(1234567) == 6457827717110365317  # a published value
    return output((output(seed) + item) % 2**64)


def test_numbers_are_those_of_the_published_generator():
    items = torch.arange(1000, 1050)
    for seed in (0, 7, 2**63 - 1):
        keys = [key % 2**64 for key in item_keys(seed, items).tolist()]
        assert keys == [python_key(seed, item) for item in items.tolist()]


def test_parts_are_disjoint_complete_and_proportional():
    labels = torch.tensor(load_digits().target)
    parts = stratified_split(labels, (500, 200), seed=0)
    assert [len(part) for part in parts] == [500, 200, 1097]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(1797))
    share = labels.bincount() * 500 / 1797
    assert ((labels[parts[0]].bincount() - share).abs() < 1).all()
    six = torch.tensor([0, 1, 0, 0, 1, 0])  # the example above
    half, _ = stratified_split(six, (3,), seed=5)
    assert six[half].bincount().tolist() == [2, 1]


def test_digits_are_the_same_on_every_machine():
    train, validation, test = digits()
    assert (len(train), len(validation), len(test)) == (1097, 200, 500)
    assert test.labels[:8].tolist() == [7, 8, 2, 7, 1, 3, 2, 2]


def dice_score(
    train: Tensor, test: Tensor, at_train: Tensor, at_test: Tensor
):
    """Return z of naming dice by the nearest neighbour; items are given."""
    generator = torch.Generator().manual_seed(1)
    dice = torch.randint(10, (1797,), generator=generator)
    nearest = torch.cdist(test, train).argmin(1)
    right = dice[at_train][nearest] == dice[at_test]
    return standard_score(right.double(), 0.1)


def test_dice_stay_unlearnable():
    pictures = torch.tensor(load_digits().data)
    generator = torch.Generator().manual_seed(0)
    at_test, _, at_train = stratified_split(
        torch.tensor(load_digits().target), (500, 200), seed=0
    )
    noise = torch.randn(1097, 64, generator=generator, dtype=torch.float64)
    train = pictures[at_train]  # CORRECT: split first, then copy
    train = torch.cat([train, train + 2 * noise])
    z = dice_score(train, pictures[at_test], at_train.repeat(2), at_test)
    assert abs(z) < 5


def test_copies_before_the_split_are_caught():
    pictures = torch.tensor(load_digits().data)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1797, 64, generator=generator, dtype=torch.float64)
    copies = torch.cat([pictures, pictures + 2 * noise])  # WRONG: too early
    labels = torch.tensor(load_digits().target).repeat(2)
    test, train = stratified_split(labels, (1000,), seed=0)
    z = dice_score(copies[train], copies[test], train % 1797, test % 1797)
    assert z > 20


def test_a_split_that_is_blind_to_classes_misses_the_shares():
    labels = torch.tensor(load_digits().target)
    nobody = torch.zeros_like(labels)  # WRONG: one class for all
    test, _ = stratified_split(nobody, (500,), seed=0)
    share = labels.bincount() * 500 / 1797
    assert (labels[test].bincount() - share).abs().max() > 3


def mean_and_variance(law: Tensor) -> tuple[Tensor, Tensor]:
    """Return both for K / n, where `law` holds the probabilities of K."""
    share = torch.linspace(0, 1, len(law), dtype=law.dtype)
    mean = law @ share
    return mean, law @ (share - mean) ** 2


def test_the_law_counts_all_outcomes_of_eight_trials():
    p = torch.tensor([0.0, 0.3, 0.97, 1.0], dtype=torch.float64)
    counted = torch.zeros(4, 9).double()
    for outcome in itertools.product((0, 1), repeat=8):
        k = sum(outcome)
        counted[:, k] += p**k * (1 - p) ** (8 - k)
    torch.testing.assert_close(
        binomial_law(8, p), counted, rtol=0, atol=1e-14
    )


def test_an_accuracy_is_unbiased_with_the_stated_variance():
    p = torch.tensor([0.1, 0.5, 0.97, 0.999], dtype=torch.float64)
    for row, q in zip(binomial_law(500, p), p, strict=True):
        mean, variance = mean_and_variance(row)
        assert abs(mean - q) < 1e-12
        assert abs(variance - q * (1 - q) / 500) < 1e-14


def test_pictures_that_come_twice_double_the_variance():
    p = torch.tensor([0.97], dtype=torch.float64)
    law = binomial_law(250, p)[0]  # WRONG: 500 pictures, but 250 and 250
    mean, variance = mean_and_variance(law)
    assert abs(mean - 0.97) < 1e-12  # nothing to see here
    assert abs(variance / (0.97 * 0.03 / 500) - 2) < 1e-9


def test_the_best_of_twenty_is_biased():
    p = torch.tensor([0.5], dtype=torch.float64)  # all of them guess
    below = binomial_law(500, p)[0].cumsum(0)
    best = (below**20).diff(prepend=torch.zeros(1).double())
    mean, _ = mean_and_variance(best)  # WRONG: reported as an accuracy
    assert mean > 0.54


def test_the_ends_solve_the_score_test_with_equality():
    for n in (1, 10, 500):
        for correct in {0, 1, n // 2, n - 1, n}:
            for confidence in (0.5, 0.95, 0.999):
                z = NormalDist().inv_cdf((1 + confidence) / 2)
                for p in wilson_interval(correct, n, confidence):
                    allowed = z**2 * p * (1 - p) / n
                    assert abs((correct / n - p) ** 2 - allowed) < 1e-14


def test_wilson_by_hand_and_mirrored():
    low, high = wilson_interval(9, 10)
    assert abs(low - 0.5958) < 1e-4
    assert abs(high - 0.9821) < 1e-4
    mirrored = wilson_interval(1, 10)
    assert abs(1 - high - mirrored[0]) < 1e-15
    assert wilson_interval(0, 10)[0] == 0  # exactly
    assert wilson_interval(10, 10)[1] == 1


def test_wilson_keeps_its_promise_for_scores_from_ninety_percent():
    p = torch.linspace(0.90, 0.995, 500, dtype=torch.float64)
    found = coverage(wilson_interval, 500, p)
    assert found.min() > 0.92
    assert abs(found.mean() - 0.95) < 0.01


def wald_interval(correct: int, n: int) -> tuple[float, float]:
    # CORRECT: wilson_interval(correct, n)
    share = correct / n
    half = 1.96 * math.sqrt(share * (1 - share) / n)  # WRONG: measured error
    return share - half, share + half


def test_wald_breaks_its_promise_near_one():
    p = torch.tensor([0.99], dtype=torch.float64)
    assert coverage(wald_interval, 500, p) < 0.88
    assert coverage(wilson_interval, 500, p) > 0.95


def test_wald_is_not_the_score_test():
    assert wald_interval(9, 10)[1] > 1
    low, high = wald_interval(10, 10)
    assert low == high == 1  # ten right answers prove nothing of the kind
    low, _ = wald_interval(485, 500)
    allowed = 1.96**2 * low * (1 - low) / 500
    assert abs((0.97 - low) ** 2 - allowed) > 1e-5


rooms = torch.tensor([0] * 6 + [1] * 3 + [2] * 3)
marks = torch.tensor([0, 0, 1, 0, 0, 1, 1, 1, 0, 3, 2, 2]).double()


def all_means(by_class: bool) -> Tensor:
    """Return the mean of every test set of four items."""
    sets = torch.tensor(list(itertools.combinations(range(12), 4)))
    if by_class:
        counts = torch.stack([(rooms[sets] == c).sum(1) for c in range(3)])
        sets = sets[(counts == torch.tensor([[2], [1], [1]])).all(0)]
    return marks[sets].mean(1)


def test_every_simple_sample_of_a_small_example():
    means = all_means(by_class=False)
    assert len(means) == 495
    assert abs(means.mean() - marks.mean()) < 1e-14
    variance = means.var(correction=0)
    assert abs(variance - sample_variance(marks, 4)) < 1e-14


def test_every_split_by_class_of_a_small_example():
    means = all_means(by_class=True)
    assert len(means) == 135
    assert abs(means.mean() - marks.mean()) < 1e-14
    variance = means.var(correction=0)
    assert abs(variance - stratified_variance(marks, rooms, 4)) < 1e-14


def test_the_gain_is_the_stated_one():
    gain = sample_variance(marks, 4) - stratified_variance(marks, rooms, 4)
    parts = [marks[rooms == c] for c in range(3)]
    between = sum(len(y) * (y.mean() - marks.mean()) ** 2 for y in parts)
    price = sum((1 - len(y) / 12) * y.var() for y in parts)
    stated = (1 - 4 / 12) / 4 * (between - price) / 11
    assert gain > 0
    assert abs(gain - stated) < 1e-14


def split_score(labels: Tensor, claimed: Tensor) -> float:
    """Return z of the variance of the test mean over 2,000 seeds."""
    tests = [stratified_split(labels, (4,), seed)[0] for seed in range(2000)]
    squares = (marks[torch.stack(tests)].mean(1) - marks.mean()) ** 2
    return standard_score(squares, claimed.item())


def test_the_code_that_splits_has_the_promised_variance():
    nobody = torch.zeros_like(rooms)
    assert abs(split_score(nobody, sample_variance(marks, 4))) < 5
    by_class = stratified_variance(marks, rooms, 4)
    assert abs(split_score(rooms, by_class)) < 5


def test_drawing_with_replacement_is_another_law():
    pairs = torch.cartesian_prod(*[torch.arange(12)] * 2)
    variance = marks[pairs].mean(1).var(correction=0)  # WRONG: put back
    assert variance > 1.05 * sample_variance(marks, 2)


def test_a_blind_split_does_not_have_the_smaller_variance():
    nobody = torch.zeros_like(rooms)  # WRONG: one class for all
    by_class = stratified_variance(marks, rooms, 4)
    assert split_score(nobody, by_class) > 10


def test_equal_class_means_make_the_split_by_class_worse():
    labels, values = rooms[:9], torch.tensor([0.0, 2, 1] * 3).double()
    by_class = stratified_variance(values, labels, 3)
    assert by_class > sample_variance(values, 3)  # no free lunch


def test_equal_numbers_from_each_class_are_biased():
    parts = [marks[rooms == c] for c in range(3)]
    mean = sum(part.mean() for part in parts) / 3  # WRONG: not the shares
    assert abs(mean - marks.mean()) > 0.15


def enlarged(size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the ten shapes' labels, a grid x, y and a radius of size / 4."""
    line = (2 * torch.arange(size) + 1) * 2 / size - 2
    x = line.expand(10, size, size)
    radius = torch.full((10, 1, 1), size / 4)
    return torch.arange(10), x, x.mT, radius


def test_signs_follow_the_algebra():
    _, x, y, _ = enlarged(199)
    x, y = x[0], y[0]
    inside = {name: signed_distance(name, x, y) < 0 for name in SHAPE_NAMES}
    bars = inside["bar"] | inside["bar"].T
    assert torch.equal(inside["cross"], bars)
    disc = torch.hypot(x - 0.1, y) < 0.9
    bite = torch.hypot(x - 0.55, y) < 0.75
    assert torch.equal(inside["crescent"], disc & ~bite)
    lines = _beyond(x, y, 5, -math.pi / 2) < math.cos(2 * math.pi / 5)
    assert torch.equal(inside["star"], lines.sum(0) >= 4)


def test_areas_are_those_of_geometry():
    area = _covered(*enlarged(400)).sum((1, 2)) / 100**2
    exact = {
        "circle": math.pi * 0.81,
        "ring": math.pi * (0.96**2 - 0.52**2),
        "square": 2.25,
        "diamond": 1.2,
        "triangle": 3**1.5 / 4,
        "star": 5 * math.sin(math.pi / 5) * (3 - math.sqrt(5)) / 2,
        "cross": 4 * 0.57 - 0.36,
        "bar": 4 * 0.285,
        "heart": 2 * 0.64 + math.pi * 0.32,
    }
    for name, value in exact.items():
        assert abs(area[SHAPE_NAMES.index(name)] - value) < 5e-4


def coverage_error(paint: Callable[..., Tensor]) -> Tensor:
    """Return the mean error over pixels on edges, against 400 points each."""
    fine = _covered(*enlarged(640)) > 0.5  # 32 pixels of 20 by 20 points
    exact = fine.double().reshape(10, 32, 20, 32, 20).mean((2, 4))
    edge = (exact > 0) & (exact < 1)
    return (paint(*enlarged(32)) - exact)[edge].abs().mean()


def test_coverage_on_edges():
    assert coverage_error(_covered) < 0.03


def test_painting_by_the_middle_of_the_pixel_makes_stairs():
    def middle(*scene):
        return (_covered(*scene) > 0.5).double()  # WRONG: all or nothing

    assert coverage_error(middle) > 0.2


def test_an_item_depends_on_seed_and_number_alone():
    whole, part = shapes(620, seed=3), shapes(20, seed=3, first=490)
    same = whole.take(torch.arange(490, 510))
    assert torch.equal(part.pixels, same.pixels)
    assert part.captions == same.captions
    assert not torch.equal(part.pixels, shapes(20, seed=4, first=490).pixels)


def test_every_attribute_has_its_share():
    data = shapes(3000, seed=0, size=8)
    for numbers, count in (
        (data.labels, len(SHAPE_NAMES)),
        (data.colours, len(COLOURS)),
        (data.positions, len(POSITIONS)),
    ):
        for k in range(count):
            hits = (numbers == k).double()
            assert abs(standard_score(hits, 1 / count)) < 5


def test_captions_read_back():
    for numbers in itertools.product(range(10), range(8), range(9)):
        assert read_caption(caption(*numbers)) == numbers


def test_captions_are_true():
    data = shapes(600, seed=1)
    images, _ = data[torch.arange(600)]
    picture = (images + 1) / 2
    paper = picture.flatten(2).median(2).values[..., None, None]
    contrast = (picture - paper).abs().sum(1)  # [N, 32, 32]
    shown = (contrast > 0.5).double()
    weight = shown / shown.sum((1, 2), keepdim=True)
    middle = (torch.arange(32).double() + 0.5) / 32 * 3
    columns, rows = weight.sum(1) @ middle, weight.sum(2) @ middle
    for words, row, column in zip(data.captions, rows, columns, strict=True):
        place = ("top ", "", "bottom ")[int(row)]
        place += ("left", "", "right")[int(column)]
        assert words.endswith(f"at the {place.strip() or 'centre'}")
    clear = contrast.flatten(1).topk(10).indices[:, None].expand(-1, 3, -1)
    mean = picture.flatten(2).gather(2, clear).mean(2)
    paint = torch.tensor(list(COLOURS.values()))
    assert torch.equal(torch.cdist(mean, paint).argmin(1), data.colours)


ALL_SETS = (
    *(moons, rings, spirals),
    *(swiss_roll, checkerboard, eight_gaussians),
)


def scale_scores(points: Tensor) -> list[float]:
    """Return z of both means and of the mean square."""
    x = points.double()
    square = x.square().sum(1)
    means = [standard_score(one, 0.0) for one in x.T]
    return [*means, standard_score(square, 2.0)]


def test_mean_zero_and_mean_square_two():
    for points in ALL_SETS:
        for noise in (0.01, 0.1, 0.8):
            generator = torch.Generator().manual_seed(0)
            scores = scale_scores(points(20_000, generator, noise))
            assert max(map(abs, scores)) < 5


def clean(points: Callable[..., Tensor]) -> Tensor:
    """Return 9,000 points of a set without noise, in float64."""
    return points(9000, torch.Generator().manual_seed(0), 0.0).double()


def shares_are_equal(which: Tensor, count: int) -> bool:
    """Tell whether the numbers 0..count-1 occur equally often."""
    hits = [(which == k).double() for k in range(count)]
    return all(abs(standard_score(hit, 1 / count)) < 5 for hit in hits)


def test_round_sets_lie_on_their_circles():
    radius = clean(rings).norm(dim=1) / math.sqrt(3 / 7)
    assert (radius - radius.round()).abs().max() < 1e-5
    assert shares_are_equal(radius.round() - 1, 3)
    x, y = clean(eight_gaussians).T
    eighth = torch.atan2(y, x) / (math.pi / 4)
    assert (eighth - eighth.round()).abs().max() < 1e-5
    assert shares_are_equal(eighth.round() % 8, 8)
    x = clean(moons) * math.sqrt((21 / 16 - 1 / math.pi) / 2)
    middle = torch.tensor([0.5, 0.25], dtype=torch.float64)
    upper, lower = x + middle, middle - x  # one of them is on its arc
    on = torch.stack([upper.norm(dim=1), lower.norm(dim=1)]) - 1
    arc = (on.abs() < 1e-5) & (torch.stack([upper, lower])[..., 1] > -1e-5)
    assert arc.any(0).all()
    assert shares_are_equal(arc[1], 2)


def test_arms_keep_angle_and_radius_in_step():
    x, y = clean(spirals).T
    radius = torch.hypot(x, y)
    turn = (torch.atan2(y, x) - 1.5 * math.pi * radius) / math.pi
    assert (turn - turn.round()).abs().max() < 1e-4
    assert shares_are_equal(turn.round() % 2, 2)
    assert abs(standard_score(radius**4, 16 / 3)) < 5
    mean = torch.tensor([2, 2 / (3 * math.pi)], dtype=torch.float64)
    scale = math.sqrt(2 / (9.75 * math.pi**2 - mean.square().sum()))
    x, y = (clean(swiss_roll) / scale + mean).T
    radius = torch.hypot(x, y)
    turn = (radius - torch.atan2(y, x)) / (2 * math.pi)
    assert (turn - turn.round()).abs().max() < 1e-5
    assert abs(standard_score(radius, 3 * math.pi)) < 5


def test_the_board_has_points_on_dark_squares_only():
    column, row = ((clean(checkerboard) / math.sqrt(3) + 1) * 2).floor().T
    assert ((column + row) % 2 == 0).all()
    assert shares_are_equal(2 * column + (row // 2), 8)


def test_noise_that_is_simply_added_changes_the_scale():
    generator = torch.Generator().manual_seed(0)
    points = rings(20_000, generator, noise=0.0)
    eps = torch.randn(points.shape, generator=generator)
    wrong = points + 0.3 * eps  # WRONG: the mean square is 2.18
    assert max(map(abs, scale_scores(wrong))) > 10


def idx_bytes(values: Tensor) -> bytes:
    """Return the IDX file of an array of bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    body = values.to(torch.uint8).numpy().tobytes()
    return bytes([0, 0, 8, values.ndim]) + sizes + body


def write_mnist(folder: Path, packed: bool) -> None:
    """Write a tiny MNIST: ten pictures for training, three for the test."""
    for part, n in (("train", 10), ("t10k", 3)):
        pixels = torch.arange(n * 784).reshape(n, 28, 28) % 251
        for name, values in (
            ("images-idx3", pixels),
            ("labels-idx1", torch.arange(n)),
        ):
            data = idx_bytes(values)
            path = folder / f"{part}-{name}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(data) if packed else data)


def test_idx_files_come_back_plain_and_packed():
    start = bytes.fromhex("00000803 0000ea60 0000001c 0000001c")
    many = torch.zeros(60_000, 28, 28, dtype=torch.uint8)
    assert idx_bytes(many)[:16] == start  # as printed
    for packed in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            write_mnist(Path(folder), packed)
            train, validation, test = mnist(folder)
        assert (len(train), len(validation), len(test)) == (9, 1, 3)
        expected = torch.arange(3 * 784).reshape(3, 1, 28, 28) % 251
        assert torch.equal(test.pixels.long(), expected)
        assert test.labels.tolist() == [0, 1, 2]


def record(label: int, picture: Tensor) -> bytes:
    """Return the CIFAR-10 record of a picture [3, 32, 32]."""
    red, green, blue = (plane.numpy().tobytes() for plane in picture)
    return bytes([label]) + red + green + blue


def test_cifar_records_come_back():
    data = shapes(12, seed=0)
    records = [record(i % 10, data.pixels[i]) for i in range(12)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "batches.meta.txt").write_text("\n".join("abcdefghij\n"))
        names = [f"data_batch_{k}.bin" for k in range(1, 6)]
        for k, file in enumerate([*names, "test_batch.bin"]):
            pair = records[2 * k : 2 * k + 2]
            (folder / file).write_bytes(b"".join(pair))
        train, validation, test = cifar10(folder)
    assert (len(train), len(validation)) == (9, 1)
    assert torch.equal(test.pixels, data.pixels[10:])
    assert test.labels.tolist() == [0, 1]
    both = torch.cat([train.labels, validation.labels])
    assert sorted(both.tolist()) == list(range(10))


def interleaved(record: bytes) -> Tensor:
    values = torch.tensor(list(record[1:]), dtype=torch.uint8)
    # CORRECT: values.reshape(3, 32, 32)
    return values.reshape(32, 32, 3).permute(2, 0, 1)  # WRONG: no planes


def neighbour_correlation(picture: Tensor) -> float:
    """Return the correlation of each pixel with the one on its right."""
    x = picture.double() - picture.double().mean((1, 2), keepdim=True)
    both = (x[..., 1:] * x[..., :-1]).mean()
    return (both / x.square().mean()).item()


def plane_correlations() -> tuple[float, float]:
    """Return its mean over 200 pictures, read rightly and wrongly."""
    pictures = shapes(200, seed=0).pixels
    damaged = [interleaved(record(0, picture)) for picture in pictures]
    right = fmean(map(neighbour_correlation, pictures))
    return right, fmean(map(neighbour_correlation, damaged))


def test_interleaved_planes_break_the_picture():
    right, wrong = plane_correlations()
    assert right - wrong > 0.15


def test_little_endian_sizes_are_absurd_and_refused():
    data = idx_bytes(torch.zeros(2, 28, 28))
    (count,) = struct.unpack_from("<I", data, offset=4)  # WRONG: CORRECT is >
    assert count == 2 * 256**3
    turned = data[:4] + struct.pack("<3I", 2, 28, 28) + data[16:]
    with pytest.raises(DataError, match="announces 33554432 x"):
        _parsed_idx(Path("turned"), turned, magic=0x00000803)
