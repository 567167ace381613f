"""Rotary positions: turns keep lengths, see offsets only, and refuse what has no pairs."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from tangled.attention.modern_block import LanguageModel, ModernConfig
from tangled.attention.positions import (
    LinearScaling,
    Llama3Scaling,
    Rotary,
    frequencies,
    rotate,
)

PAIRS = ["halves", "neighbours"]


def rows(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def turned(rotary, x, places):
    return rotary.rotation(torch.as_tensor(places), x.dtype)(x)


@pytest.mark.verifies("thm-rope-relative")
@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("width", [2, 6, 12])
def test_a_common_shift_changes_no_score(pairs, width):
    q, k = rows(2, 2, 3, 5, 12)
    rotary, places = Rotary(width, 100.0, pairs), torch.arange(5)
    scores = [
        turned(rotary, q, places + s) @ turned(rotary, k, places + s).mT
        for s in (0, 1, 5000)
    ]
    assert_close(scores[1], scores[0], atol=1e-12, rtol=0)
    assert_close(scores[2], scores[0], atol=1e-11, rtol=0)


@pytest.mark.verifies("thm-rope-relative")
@given(
    i=st.integers(0, 10_000),
    j=st.integers(0, 10_000),
    pairs=st.sampled_from(PAIRS),
)
def test_turning_there_and_back_is_the_turn_of_the_offset(i, j, pairs):
    q, k = rows(2, 1, 1, 1, 8, seed=i)
    rotary = Rotary(8, pairs=pairs)
    both = (turned(rotary, q, [i]) * turned(rotary, k, [j])).sum()
    one = (q * turned(rotary, k, [j - i])).sum()
    assert abs(both - one) < 1e-10


@pytest.mark.parametrize("pairs", PAIRS)
def test_the_turn_is_multiplication_by_complex_numbers(pairs):
    x, places = rows(1, 1, 7, 6), torch.arange(7)
    if pairs == "halves":
        number = torch.complex(x[..., :3], x[..., 3:])
    else:
        number = torch.view_as_complex(x.unflatten(-1, (3, 2)))
    angle = places[:, None] * 50.0 ** (-torch.arange(3).double() * 2 / 6)
    number = number * torch.polar(torch.ones_like(angle), angle)
    found = turned(Rotary(6, 50.0, pairs), x, places)
    parts = (found[..., :3], found[..., 3:])
    if pairs == "neighbours":
        parts = found[..., ::2], found[..., 1::2]
    assert_close(torch.complex(*parts), number, atol=1e-12, rtol=0)


@pytest.mark.parametrize("pairs", PAIRS)
def test_lengths_stay_and_coordinates_beyond_the_width_too(pairs):
    x = rows(2, 3, 4, 10)
    found = turned(Rotary(6, pairs=pairs), x, [3, 8, 900, 17])
    assert_close(found.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(found[..., 6:], x[..., 6:])
    assert not torch.allclose(found[..., :6], x[..., :6])


def test_each_row_of_a_batch_may_have_places_of_its_own():
    x, rotary = rows(2, 3, 4, 8), Rotary(8)
    places = torch.tensor([[0, 1, 2, 3], [5, 6, 7, 8]])
    found = turned(rotary, x, places)
    for b in range(2):
        assert torch.equal(
            found[b : b + 1], turned(rotary, x[b : b + 1], places[b])
        )


def test_half_precision_is_turned_in_float32_and_handed_back():
    x, places = rows(1, 2, 3, 8), torch.tensor([0, 4000, 8191])
    exact = turned(Rotary(8, 500_000.0), x, places)
    for dtype, bound in ((torch.float32, 1e-6), (torch.bfloat16, 2e-2)):
        found = turned(Rotary(8, 500_000.0), x.to(dtype), places)
        assert found.dtype == dtype
        assert (found - exact).abs().max() < bound


def test_angles_far_out_are_those_of_float64():
    place = 1_000_003
    found = turned(Rotary(2), torch.tensor([[[[1.0, 0.0]]]]), [place])
    assert abs(found[..., 0].item() - math.cos(place)) < 1e-6


def test_linear_scaling_is_a_slower_walk():
    x = rows(1, 1, 3, 8)
    slow = Rotary(8, scaling=LinearScaling(4.0))
    assert_close(
        turned(slow, x, [0, 4, 40]), turned(Rotary(8), x, [0, 1, 10])
    )


def test_llama_scaling_keeps_fast_hands_slows_slow_ones_and_never_reverses():
    hands = frequencies(128, 500_000.0)
    found = Llama3Scaling(8.0, 1.0, 4.0, 8192)(hands)
    turns = 8192 * hands / (2 * math.pi)
    assert torch.equal(found[turns > 4], hands[turns > 4])
    assert_close(found[turns < 1], hands[turns < 1] / 8)
    between = (turns > 1) & (turns < 4)
    assert between.any()
    ratio = found[between] / hands[between]
    assert ((ratio > 1 / 8) & (ratio < 1)).all()
    assert (found.diff() < 0).all()


def test_no_table_ends_as_that_of_learned_positions_does():
    torch.manual_seed(0)
    config = ModernConfig(
        vocab=11, d_model=12, n_layers=2, n_heads=2, d_ff=7, max_length=4
    )
    tokens = torch.arange(20)[None] % 11
    assert LanguageModel(config)(tokens).isfinite().all()
    with pytest.raises(IndexError, match="table has 4"):
        LanguageModel(replace(config, positions="learned"))(tokens)


@pytest.mark.parametrize("pairs", PAIRS)
def test_a_model_does_not_know_where_a_text_begins(pairs):
    torch.manual_seed(0)
    config = ModernConfig(
        vocab=11,
        d_model=12,
        n_layers=2,
        n_heads=2,
        d_ff=7,
        rotary_pairs=pairs,
    )
    model = LanguageModel(config).double()
    tokens, places = torch.arange(9)[None], torch.arange(9)
    here, there = model(tokens), model(tokens, places=places + 777)
    assert_close(here, there, atol=1e-10, rtol=0)
    still = LanguageModel(replace(config, positions="none")).double()
    still.load_state_dict(model.state_dict())
    assert (still(tokens) - here).abs().max() > 1e-3


@pytest.mark.parametrize("width", [0, 7])
def test_a_width_without_pairs_is_refused(width):
    with pytest.raises(ValueError, match=f"even width, got {width}"):
        Rotary(width)


def test_an_unknown_pairing_is_refused():
    with pytest.raises(ValueError, match="neighbours or halves, got thirds"):
        Rotary(8, pairs="thirds")


def test_rotate_by_nothing_is_nothing():
    x, one, nil = (
        rows(1, 1, 2, 4),
        torch.ones(1, 1, 2, 2),
        torch.zeros(1, 1, 2, 2),
    )
    for pairs in PAIRS:
        assert torch.equal(rotate(x, one.double(), nil.double(), pairs), x)
