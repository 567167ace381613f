"""The figures of attention: the script beside the package, and slips in it that are caught."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.figures import SCRIPT, Engine, engine
from tangled.attention.multi_head import (
    MultiHeadAttention,
    induction_score,
    previous_score,
)
from tangled.attention.recurrence import lookup_weights, soft_lookup
from tests.widgets.test_parity import check_figure, close


def drawn(seed: int, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator).double() for s in shapes]


def check_lookup(
    script: Engine, seed: int, n: int, m: int, tau: float
) -> None:
    scores, values = drawn(seed, (n, m), (m, 3))
    place = "attention.recurrence."
    for row, p in zip(scores, lookup_weights(scores, tau), strict=True):
        found = script.call(f"{place}lookup_weights", row.tolist(), tau)
        assert close(found, p), "other weights"
    found = script.call(
        f"{place}soft_lookup", scores.tolist(), values.tolist(), tau
    )
    assert close(found, soft_lookup(scores, values, tau)), "another answer"


def check_heads(script: Engine, seed: int, n: int, heads: int) -> None:
    torch.manual_seed(seed)
    layer = MultiHeadAttention(3 * heads, heads, bias=False).double()
    names = ("w_q", "w_k", "w_v", "w_o")
    weights = {name: getattr(layer, name).weight for name in names}
    (x,) = drawn(seed, (1, n, 3 * heads))
    tokens = torch.randint(3, (1, n))
    place = "attention.multi_head."
    for causal in (True, False):
        found = script.call(
            f"{place}multi_head", weights, heads, x[0].tolist(), causal
        )
        maps = layer.weights(x, causal=causal).detach()
        assert close(found["weights"], maps[0]), "other weights"
        output = layer(x, causal=causal)[0].detach()
        assert close(found["output"], output), "another output"
        for name, exact, more in (
            ("previous_score", previous_score, ()),
            ("induction_score", induction_score, (tokens,)),
        ):
            given = [maps[0, 0].tolist(), *(t[0].tolist() for t in more)]
            score = script.call(place + name, *given)
            wanted = exact(maps[:, :1], *more).item()
            same = math.isnan(score) and math.isnan(wanted)
            assert same or math.isclose(score, wanted, abs_tol=1e-9), name


def check_patterns(script: Engine) -> None:
    """What is said of a head, of the sample's first two, is said by its scores."""
    for scores, said in (
        ((0.9, 0.2), "letter before"),
        ((0.9, math.nan), "letter before"),
        ((0.5, 0.6), "what followed"),
        ((math.nan, math.nan), "mixed"),
        ((0.4, 0.4), "mixed"),
    ):
        given = [None if math.isnan(score) else score for score in scores]
        place = "attention.multi_head.pattern"
        assert script.call(place, *given) == said, "another pattern"


seeds, sizes = st.integers(0, 99), st.integers(1, 9)


@given(seeds, sizes, sizes, st.floats(0.01, 100))
@settings(max_examples=40)
def test_lookups_are_those_of_the_package(seed, n, m, tau):
    check_lookup(engine(), seed, n, m, tau)


@given(seeds, sizes, st.integers(1, 4))
@settings(max_examples=30)
def test_heads_are_those_of_the_package(seed, n, heads):
    check_heads(engine(), seed, n, heads)


def test_a_pattern_has_half_of_the_weight():
    check_patterns(engine())


@given(st.text(max_size=12))
def test_a_letter_has_its_number_and_the_rest_is_space(text):
    """As `encoded` of the chapter has it."""
    signs = [c.lower() for c in text or " "]
    wanted = [
        ord(c) - 96 if c in "abcdefghijklmnopqrstuvwxyz" else 0 for c in signs
    ]
    assert engine().call("attention.multi_head.encode", text, 12) == wanted


# A slip: what the script says (a pattern), what it says instead, a check that must notice it.
SLIPS = [
    (
        r"Math\.exp\(\((\w+)-(\w+)\)/(\w+)\)",
        r"Math.exp((\1-\2)*\3)",
        check_lookup,
        (0, 2, 3, 0.5),
    ),
    (
        r"slice\(1\)\.map\(\((\w+),(\w+)\)=>\1\[\2\]\)",
        r"slice(1).map((\1,\2)=>\1[\2+1])",
        check_heads,
        (0, 4, 2),
    ),
    (r"\+=(\w+)\[(\w+)\+1\]", r"+=\1[\2]", check_heads, (0, 6, 2)),
    (
        r"\.slice\((\w+)\*(\w+),\(\1\+1\)\*\2\)",
        r".slice(0,\2)",
        check_heads,
        (0, 4, 2),
    ),
    (r">=\.5&&!\(", ">=.4&&!(", check_patterns, ()),
    (
        r"(\w+)\[(\w+)\]\+=(\w+)\[(\w+)\]\*(\w+)\[\4\]\[\2\]",
        r"\1[\2]+=\3[0]*\5[\4][\2]",
        check_figure,
        ("attention-steps", {"part": "output"}),
    ),
    (
        r"Math\.PI/180",
        "Math.PI/181",
        check_figure,
        ("projections", {"queries": -90}),
    ),
]


@pytest.mark.parametrize(
    ("right", "wrong", "check", "arguments"),
    SLIPS,
    ids=[f"{wrong}" for _, wrong, *_ in SLIPS],
)
def test_a_slip_in_the_script_is_caught(right, wrong, check, arguments):
    script = SCRIPT.read_text("utf-8")
    check(engine(), *arguments)
    slipped, times = re.subn(right, wrong, script)
    assert times
    with pytest.raises(AssertionError):
        check(Engine(slipped), *arguments)
