"""Checks of the chapter “Data, and how far to trust a score”.

Tangled from book/workshop/data.md.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from statistics import NormalDist

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from tangled.workshop.data import (
    COLOURS,
    DrawnShapes,
    Images,
    shapes,
    stratified_split,
)
from tangled.workshop.statistics import standard_score, wilson_interval


def check_score(score: Callable[..., float]) -> None:
    """Check a standard score by hand, and on 5,000 true claims."""
    four = torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert abs(score(four, 2.0) - 0.926) < 5e-4, "by hand it is 0.926"
    assert abs(score(four, 2.0, std=2.0) - 1) < 1e-6, "1 / (2 / 2) is 1"
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(5000, 100, generator=generator)
    z = torch.tensor([score(row, 0.5) for row in draws])
    assert abs(z.mean()) < 5 / 5000**0.5, "the mean is not 0"
    off = abs((z**2).mean() - 1)
    assert off < 5 * (2 / 5000) ** 0.5, "nor is 1 its square"


def test_scores_of_true_claims_are_standard():
    check_score(standard_score)


def divided_by_n(values: Tensor, expected: float, std=None) -> float:
    n = len(values)
    return standard_score(values, expected, std) * math.sqrt(n)  # WRONG


def biased(values: Tensor, expected: float, std=None) -> float:
    own = values.std(correction=0).item()  # WRONG: divides by n, not n - 1
    return standard_score(values, expected, std or own)


def deaf(values: Tensor, expected: float, std=None) -> float:
    return standard_score(values, expected)  # WRONG: forgets std


def test_wrong_scores_are_caught():
    for wrong in (divided_by_n, biased):
        with pytest.raises(AssertionError, match="by hand"):
            check_score(wrong)
    with pytest.raises(AssertionError, match="is 1"):
        check_score(deaf)


def grey_steps(levels: int) -> Images:
    """Return one picture that holds each level once."""
    pixels = torch.arange(levels + 1, dtype=torch.uint8).reshape(1, 1, 1, -1)
    return Images(pixels, torch.tensor([0]), ("steps",), levels)


def check_scale(convert: Callable[[Images], Tensor]) -> None:
    """Check that black, middle grey and white become -1, 0 and 1."""
    for levels in (16, 254, 255):
        x0 = convert(grey_steps(levels)).flatten()
        assert x0[0] == -1, "black is not -1"
        assert x0[-1] == 1, "white is not 1"
        assert (x0 + x0.flip(0)).abs().max() < 1e-6, "not centred"


def test_black_and_white_are_exact():
    check_scale(lambda images: images[torch.tensor([0])][0])


def scaled_as_bytes(images: Images) -> Tensor:
    # CORRECT: 2 * images.pixels / images.levels - 1
    return 2 * images.pixels / 255 - 1  # WRONG: white is 16 here


def test_the_wrong_white_is_caught():
    with pytest.raises(AssertionError, match="white is not 1"):
        check_scale(scaled_as_bytes)


def check_split(split: Callable[..., tuple[Tensor, ...]]) -> None:
    """Check that a split loses nothing and gives each class its share."""
    labels = torch.tensor(load_digits().target)
    for seed in range(3):
        test, rest = split(labels, (500,), seed)
        items = torch.cat([test, rest]).sort().values
        assert torch.equal(items, torch.arange(1797)), "not each item once"
        share = labels.bincount() * 500 / 1797
        off = (labels[test].bincount(minlength=10) - share).abs().max()
        assert off < 1, "a class lacks its share"
    again, _ = split(labels, (500,), 2)
    assert torch.equal(again, test), "the seed does not fix it"


def test_each_class_has_its_share():
    check_split(stratified_split)


def blind(labels: Tensor, sizes: tuple[int, ...], seed: int):
    nobody = torch.zeros_like(labels)  # WRONG: one class for all
    return stratified_split(nobody, sizes, seed)


def overlapping(labels: Tensor, sizes: tuple[int, ...], seed: int):
    test, _ = stratified_split(labels, sizes, seed)
    return test, torch.arange(len(labels))  # WRONG: trains on the test set


def test_wrong_splits_are_caught():
    with pytest.raises(AssertionError, match="lacks its share"):
        check_split(blind)
    with pytest.raises(AssertionError, match="each item once"):
        check_split(overlapping)


def check_accuracy(answers: Callable[[torch.Generator], Tensor]) -> None:
    """Check the shares of right answers in 4,000 test sets, for A = 0.97."""
    share = answers(torch.Generator().manual_seed(0)).double().mean(1)
    variance = 0.97 * 0.03 / 500
    z = standard_score(share, 0.97, std=variance**0.5)
    assert abs(z) < 5, "the share is biased"
    z = standard_score((share - 0.97) ** 2, variance)
    assert abs(z) < 5, "the variance is another"


def independent(generator: torch.Generator) -> Tensor:
    return torch.rand(4000, 500, generator=generator) < 0.97


def test_an_accuracy_has_the_stated_mean_and_variance():
    check_accuracy(independent)


def twice(generator: torch.Generator) -> Tensor:
    half = independent(generator)[:, :250]
    return torch.cat([half, half], 1)  # WRONG: every picture comes twice


def best_of_two(generator: torch.Generator) -> Tensor:
    first, second = independent(generator), independent(generator)
    better = first.sum(1) > second.sum(1)  # WRONG: chosen by the test
    return torch.where(better[:, None], first, second)


def test_broken_assumptions_are_caught():
    with pytest.raises(AssertionError, match="variance is another"):
        check_accuracy(twice)
    with pytest.raises(AssertionError, match="biased"):
        check_accuracy(best_of_two)


def check_interval(interval: Callable[[int, int], tuple]) -> None:
    """Check that both ends solve the score test with equality."""
    z = NormalDist().inv_cdf(0.975)
    for n in (1, 10, 500):
        for correct in {0, 1, n // 2, n - 1, n}:
            low, high = interval(correct, n)
            assert low <= correct / n <= high, "the share is outside"
            assert high - low > 0, "the interval is a point"
            for A in (low, high):
                allowed = z**2 * A * (1 - A) / n
                miss = (correct / n - A) ** 2 - allowed
                assert abs(miss) < 1e-14, "an end is not just allowed"


def test_the_ends_solve_the_score_test():
    check_interval(wilson_interval)


def wald_interval(correct: int, n: int) -> tuple[float, float]:
    # CORRECT: wilson_interval(correct, n)
    share = correct / n
    half = 1.96 * math.sqrt(share * (1 - share) / n)  # WRONG: measured error
    return share - half, share + half


def test_wald_is_caught():
    with pytest.raises(AssertionError, match=r"a point|not just allowed"):
        check_interval(wald_interval)
    assert wald_interval(485, 500) != wilson_interval(485, 500)


def check_captions(draw: Callable[..., DrawnShapes]) -> None:
    """Check places and colours in the pixels, and that items stand alone."""
    data = draw(600, seed=1)
    picture = (data[torch.arange(600)][0] + 1) / 2
    paper = picture.flatten(2).median(2).values[..., None, None]
    contrast = (picture - paper).abs().sum(1)  # [N, 32, 32]
    shown = (contrast > 0.5).double()
    weight = shown / shown.sum((1, 2), keepdim=True)
    third = (torch.arange(32).double() + 0.5) / 32 * 3
    column, row = (weight.sum(d) @ third for d in (1, 2))
    place = 3 * row.long() + column.long()
    assert torch.equal(place, data.positions), "a shape is elsewhere"
    clear = contrast.flatten(1).topk(10).indices[:, None].expand(-1, 3, -1)
    mean = picture.flatten(2).gather(2, clear).mean(2)
    paint = torch.tensor(list(COLOURS.values()))
    nearest = torch.cdist(mean, paint).argmin(1)
    assert torch.equal(nearest, data.colours), "a colour is another"
    part = draw(9, seed=1, first=490)
    same = torch.equal(part.pixels, data.pixels[490:499])
    assert same, "an item depends on those before it"


def test_captions_are_true():
    check_captions(shapes)


def mirrored(n: int, seed: int, **more) -> DrawnShapes:
    data = shapes(n, seed, **more)
    pixels = data.pixels.flip(3)  # WRONG: augmented, but not its caption
    return replace(data, pixels=pixels)


def restarted(n: int, seed: int, *, first: int = 0) -> DrawnShapes:
    return shapes(n, seed)  # WRONG: forgets where to begin


def test_wrong_captions_and_items_are_caught():
    with pytest.raises(AssertionError, match="elsewhere"):
        check_captions(mirrored)
    with pytest.raises(AssertionError, match="those before it"):
        check_captions(restarted)
