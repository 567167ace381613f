"""Laws of sinusoidal and learned positions, and what they refuse."""

import math

import pytest
import torch
from torch.testing import assert_close

from tangled.attention.positions import (
    Learned,
    Positions,
    Sinusoidal,
    check_indices,
    frequencies,
    sinusoidal,
)


def test_the_slowest_hand_is_named_by_the_base():
    for width, base in ((2, 10_000.0), (8, 10_000.0), (64, 500.0)):
        hands = frequencies(width, base)
        assert hands.dtype == torch.float64
        assert hands[0] == 1
        assert_close(
            hands[1:] / hands[:-1], hands[1:] * 0 + base ** (-2 / width)
        )
        assert len(hands) == width // 2


@pytest.mark.verifies("eq-sinusoidal")
def test_each_entry_is_the_sine_or_cosine_that_the_formula_says():
    found = sinusoidal(torch.tensor([[0, 3], [17, 5000]]), 6, base=100.0)
    for place, row in zip((0, 3, 17, 5000), found.flatten(0, 1), strict=True):
        for j in range(3):
            angle = place * 100.0 ** (-2 * j / 6)
            pair = torch.tensor(
                [math.sin(angle), math.cos(angle)], dtype=torch.float64
            )
            assert_close(row[2 * j : 2 * j + 2], pair, rtol=0, atol=1e-12)


@pytest.mark.verifies("prop-shift-rotation")
@pytest.mark.parametrize("pairs", ["neighbours", "halves"])
def test_products_depend_on_the_offset_alone(pairs):
    rows = sinusoidal(torch.arange(300), 32, pairs=pairs)
    products = rows @ rows.T
    for offset in (0, 1, 17, 200):
        found = products.diagonal(offset)
        expected = (frequencies(32) * offset).cos().sum()
        assert_close(found, expected.expand_as(found), rtol=0, atol=1e-10)


def test_the_two_orders_are_a_permutation():
    side = sinusoidal(torch.arange(40), 10)
    halves = sinusoidal(torch.arange(40), 10, pairs="halves")
    assert torch.equal(halves[:, :5], side[:, ::2])
    assert torch.equal(halves[:, 5:], side[:, 1::2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_waves_are_cast_last(dtype):
    """A late place in float32 has lost the step to its neighbour."""
    places = torch.tensor([3_000_001, 3_000_002])
    x = torch.zeros(1, 2, 8, dtype=dtype)
    for pairs in ("neighbours", "halves"):
        found = Sinusoidal(pairs)(x, places)
        assert found.dtype == dtype
        exact = sinusoidal(places, 8, pairs=pairs)
        assert torch.equal(found[0], exact.to(dtype))


def test_positions_are_added_to_what_is_there():
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    places = torch.tensor([[0, 1, 2], [5, 6, 7]])
    waves = sinusoidal(places, 4).float()
    assert torch.equal(Sinusoidal()(x, places), x + waves)
    assert torch.equal(Positions()(x, places), x)
    learned = Learned(8, 4)
    assert torch.equal(learned(x, places), x + learned.table.weight[places])
    for kind in (Positions(), Sinusoidal(), learned):
        assert kind.rotation(places, torch.float32) is None


def test_a_place_beyond_the_table_is_refused():
    learned, x = Learned(8, 4), torch.zeros(1, 2, 4)
    learned(x, torch.tensor([6, 7]))
    with pytest.raises(
        IndexError, match=r"places must lie in 0..7, got 7..8"
    ):
        learned(x, torch.tensor([7, 8]))
    with pytest.raises(IndexError, match=r"places must lie in 0..7, got -1"):
        learned(x, torch.tensor([-1, 0]))
    with pytest.raises(IndexError, match="9 places, but the table has 8"):
        learned.to("meta")(
            torch.zeros(1, 9, 4, device="meta"),
            torch.arange(9, device="meta"),
        )


def test_indices_are_read_on_the_cpu_only():
    check_indices("tokens", torch.tensor([], dtype=torch.long), 3)
    check_indices("tokens", torch.arange(9, device="meta"), 3)
    check_indices("tokens", torch.tensor([0, 2]), 3)
    with pytest.raises(
        IndexError, match=r"tokens must lie in 0..2, got 0..3"
    ):
        check_indices("tokens", torch.tensor([0, 3]), 3)


def test_bad_widths_and_pairs_are_refused():
    with pytest.raises(ValueError, match="width is 5"):
        frequencies(5)
    with pytest.raises(ValueError, match="neighbours or halves, got half"):
        sinusoidal(torch.arange(3), 4, pairs="half")
