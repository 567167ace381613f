"""Attention: one equation, three ways to compute it, all variants, all refusals."""

import ast
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tangled.attention.scaled_dot_product import (
    Partial,
    absorb,
    attention,
    attention_scores,
    attention_weights,
    entropy,
    softmax_jacobian,
    tiled_attention,
    visible,
)

WIDE = torch.float64


def draw(
    *shapes: tuple[int, ...], seed: int = 0, dtype: torch.dtype = WIDE
) -> list[Tensor]:
    """Return standard normal tensors of these shapes."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator, dtype=WIDE).to(dtype)
        for shape in shapes
    ]


def some(*shape: int, share: float = 0.5, seed: int = 1) -> Tensor:
    """Return a random mask in which this share may be read."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator) < share


def by_loops(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    *,
    window: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """Return attention from its definition, one number at a time."""
    (B, h, n, d), (h_kv, m) = q.shape, k.shape[1:3]
    if mask is not None:
        mask = mask.broadcast_to(B, h, n, m)
    out = q.new_zeros(B, h, n, v.shape[3])
    for b in range(B):
        for r in range(h):
            g = r // (h // h_kv)
            for i in range(n):
                place, terms = m - n + i, []
                for j in range(m):
                    if mask is not None and not mask[b, r, i, j]:
                        continue
                    if causal and j > place:
                        continue
                    if window is not None and j <= place - window:
                        continue
                    s = (q[b, r, i] @ k[b, g, j]).item()
                    s *= 1 / math.sqrt(d) if scale is None else scale
                    terms.append((math.exp(s), v[b, g, j]))
                total = sum(weight for weight, _ in terms)
                for weight, value in terms:
                    out[b, r, i] += weight / total * value
    return out


@st.composite
def cases(drawer: st.DrawFn) -> tuple[list[Tensor], dict]:
    """Return (q, k, v) and options of any variant."""
    small = st.integers(1, 3)
    B, h_kv, group = drawer(small), drawer(small), drawer(small)
    m, d_k, d_v = drawer(st.integers(1, 9)), drawer(small), drawer(small)
    causal = drawer(st.booleans())
    n = drawer(st.integers(1, m if causal else 9))
    options: dict = {"causal": causal}
    if causal and drawer(st.booleans()):
        options["window"] = drawer(st.integers(1, m + 1))
    if drawer(st.booleans()):
        options["scale"] = drawer(st.sampled_from([0.3, 1.0, -0.5]))
    seed = drawer(st.integers(0, 999))
    h = h_kv * group
    if drawer(st.booleans()):
        full = (B, h, n, m)
        kept = [drawer(st.sampled_from([1, size])) for size in full]
        dims = drawer(st.integers(1, 4))
        share = drawer(st.sampled_from([0.2, 0.7]))
        options["mask"] = some(*kept[4 - dims :], share=share, seed=seed)
    shapes = (B, h, n, d_k), (B, h_kv, m, d_k), (B, h_kv, m, d_v)
    return draw(*shapes, seed=seed), options


@pytest.mark.verifies("def-attention", "eq-attention", "def-visible")
@given(cases())
def test_all_three_ways_are_the_definition(case):
    parts, options = case
    expected = by_loops(*parts, **options)
    ways = (
        attention(*parts, **options),
        attention(*parts, **options, fast=False),
        tiled_attention(*parts, **options, tile=3),
        tiled_attention(*parts, **options),
    )
    for found in ways:
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < 1e-12


@given(cases())
def test_all_three_ways_agree_in_float32(case):
    parts, options = case
    expected = attention(*parts, **options, fast=False)
    narrow = [part.float() for part in parts]
    ways = (
        attention(*narrow, **options),
        attention(*narrow, **options, fast=False),
        tiled_attention(*narrow, **options, tile=3),
    )
    for found in ways:
        assert found.dtype == torch.float32
        assert torch.allclose(found.double(), expected, atol=2e-6, rtol=1e-6)


@given(cases())
def test_all_three_ways_have_one_gradient(case):
    parts, options = case
    each = []
    for way in (
        attention,
        lambda *a, **o: attention(*a, **o, fast=False),
        lambda *a, **o: tiled_attention(*a, **o, tile=3),
    ):
        leaves = [part.clone().requires_grad_() for part in parts]
        way(*leaves, **options).sin().sum().backward()
        each.append([leaf.grad for leaf in leaves])
    for other in each[1:]:
        for one, two in zip(each[0], other, strict=True):
            assert (one - two).abs().max() < 1e-11


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loses_no_more_than_its_rounding(dtype):
    exact = draw((2, 4, 33, 16), (2, 2, 33, 16), (2, 2, 33, 16), dtype=dtype)
    expected = attention(*[part.double() for part in exact], causal=True)
    unit = torch.finfo(dtype).eps
    for found in (
        attention(*exact, causal=True, fast=False),
        tiled_attention(*exact, causal=True, tile=8),
    ):
        assert found.dtype == dtype
        error = (found.double() - expected).abs()
        assert (error <= unit * expected.abs() + 1e-6).all()
    found = attention(*exact, causal=True)
    assert found.dtype == dtype
    assert (found.double() - expected).abs().max() < 8 * unit


@pytest.mark.parametrize("way", ["library", "equation", "tiles"])
def test_a_half_precision_score_may_exceed_its_largest_number(way):
    q = torch.full((1, 1, 2, 64), 60.0, dtype=torch.float16)
    v = torch.tensor([[1.0, 2.0]], dtype=torch.float16)
    v = v.reshape(1, 1, 2, 1)
    found = WAYS[way](q, q, v, scale=1.0)  # scores of 230,400
    assert (found - 1.5).abs().max() < 1e-3


WAYS = {
    "library": attention,
    "equation": lambda *a, **o: attention(*a, **o, fast=False),
    "tiles": tiled_attention,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [5, 70])
@pytest.mark.parametrize("way", WAYS)
def test_a_query_that_may_read_nothing_gets_zeros(way, size, dtype):
    q, k, v = draw(*[(2, 2, size, 8)] * 3, dtype=dtype)
    mask = some(2, 1, size, size)
    mask[0, 0, 2] = False
    mask[1] = False
    leaves = [part.requires_grad_() for part in (q, k, v)]
    found = WAYS[way](*leaves, mask)
    assert (found[0, :, 2] == 0).all()
    assert (found[1] == 0).all()
    found.square().sum().backward()
    for leaf in leaves:
        assert leaf.grad.isfinite().all()
        assert (leaf.grad[1] == 0).all()
    assert (q.grad[0, :, 2] == 0).all()
    assert q.grad[0].abs().max() > 0


@pytest.mark.parametrize("way", WAYS)
def test_no_keys_give_zeros_and_no_queries_nothing(way):
    q, k, v = draw((1, 2, 3, 4), (1, 2, 0, 4), (1, 2, 0, 5))
    assert torch.equal(WAYS[way](q, k, v), torch.zeros(1, 2, 3, 5).double())
    q, k, v = draw((1, 2, 0, 4), (1, 2, 3, 4), (1, 2, 3, 5))
    assert WAYS[way](q, k, v, causal=True).shape == (1, 2, 0, 5)


@pytest.mark.verifies("eq-attention-weights")
def test_weights_are_the_values_that_unit_vectors_return():
    q, k = draw((1, 4, 5, 3), (1, 2, 5, 3))
    mask = some(1, 4, 5, 5)
    weights = attention_weights(q, k, mask, causal=True, window=3)
    one = torch.eye(5).double().expand(1, 2, 5, 5)
    assert torch.allclose(
        weights, by_loops(q, k, one, mask, True, window=3), atol=1e-12
    )
    assert weights.dtype == WIDE
    assert (weights[~mask.expand_as(weights)] == 0).all()


def test_weights_and_scores_are_wide():
    q, k = draw((1, 2, 3, 4), (1, 1, 5, 4), dtype=torch.bfloat16)
    assert attention_weights(q, k).dtype == torch.float32
    assert attention_scores(q, k).dtype == torch.float32


@pytest.mark.verifies("def-visible", "eq-visible")
@given(st.integers(0, 6), st.integers(0, 9), st.integers(1, 10))
def test_visible_is_its_definition(n, more, window):
    m = n + more
    for causal, w in ((False, None), (True, None), (True, window)):
        found = visible(n, m, causal=causal, window=w)
        assert found.shape == (n, m)
        for i in range(n):
            for j in range(m):
                place = m - n + i
                may = not causal or j <= place
                may = may and (w is None or j > place - w)
                assert found[i, j] == may


@pytest.mark.parametrize("window", [None, 2, 4])
@pytest.mark.parametrize("way", WAYS)
def test_step_by_step_is_all_at_once(way, window):
    q, k, v = draw(*[(1, 2, 9, 4)] * 3)
    options = {"causal": True, "window": window}
    whole = attention(q, k, v, **options)
    for chunks in ([9], [1] * 9, [4, 1, 3, 1]):
        end, found = 0, []
        for size in chunks:
            end += size
            part = q[:, :, end - size : end]
            keys, values = k[:, :, :end], v[:, :, :end]
            found.append(WAYS[way](part, keys, values, **options))
        assert (torch.cat(found, 2) - whole).abs().max() < 1e-12


@pytest.mark.parametrize("way", WAYS)
def test_a_later_token_changes_nothing_before_it(way):
    q, k, v = draw(*[(1, 2, 9, 4)] * 3)
    before = WAYS[way](q, k, v, causal=True)
    k[:, :, 5], v[:, :, 5] = 7.0, -3.0
    after = WAYS[way](q, k, v, causal=True)
    assert torch.equal(before[:, :, :5], after[:, :, :5])
    assert (before[:, :, 5:] - after[:, :, 5:]).abs().min() > 0


@pytest.mark.parametrize("way", WAYS)
def test_a_permutation_of_the_keys_changes_nothing(way):
    q, k, v = draw((1, 2, 5, 4), (1, 2, 9, 4), (1, 2, 9, 4))
    order = torch.tensor([3, 0, 8, 1, 7, 2, 6, 5, 4])
    mask = some(1, 2, 5, 9)
    found = WAYS[way](q, k[:, :, order], v[:, :, order], mask[..., order])
    assert (found - WAYS[way](q, k, v, mask)).abs().max() < 1e-12


def test_dropout_keeps_the_mean():
    q, k, v = draw((1, 1, 1, 4), (1, 1, 6, 4), (1, 1, 6, 1))
    torch.manual_seed(0)
    many = [part.expand(4000, -1, -1, -1) for part in (q, k, v)]
    for fast in (True, False):
        found = attention(*many, dropout=0.3, fast=fast).flatten()
        exact = attention(q, k, v).item()
        weights = attention_weights(q, k).flatten()
        variance = (weights * v.flatten()).square().sum() * 0.3 / 0.7
        z = (found.mean() - exact) / (variance / 4000) ** 0.5
        assert abs(z) < 5
        assert found.var() / variance == pytest.approx(1, abs=0.15)
        gone = attention(*many, dropout=1.0, fast=fast)
        assert (gone == 0).all()


def counted(way, *parts, **options):
    """Return how many scores a way computes, through the matrix product."""
    seen = []

    class Count(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func is torch.Tensor.exp and out.shape[-1] > 1:
                seen.append(out.shape[-2] * out.shape[-1])
            return out

    with Count():
        way(*parts, **options)
    return seen


def test_tiles_that_nobody_may_read_are_skipped():
    parts = draw(*[(1, 1, 64, 4)] * 3)
    full = counted(tiled_attention, *parts, tile=8)
    assert full == [64] * 64
    causal = counted(tiled_attention, *parts, causal=True, tile=8)
    assert causal == [64] * 36  # 1 + 2 + ... + 8
    window = counted(tiled_attention, *parts, causal=True, window=8, tile=8)
    assert sum(window) < 20 * 64


@pytest.mark.verifies("thm-online-softmax", "eq-online-softmax")
@given(st.integers(0, 999), st.lists(st.integers(1, 5), min_size=1))
def test_any_split_of_the_keys_gives_the_softmax(seed, sizes):
    m = sum(sizes)
    scores, values = draw((3, m), (m, 2), seed=seed)
    scores = 30 * scores
    part = Partial(
        torch.full((3, 1), torch.finfo(WIDE).min, dtype=WIDE),
        torch.zeros(3, 1).double(),
        torch.zeros(3, 2).double(),
    )
    pieces = zip(scores.split(sizes, 1), values.split(sizes, 0), strict=True)
    for piece, their in pieces:
        part = absorb(part, piece, their)
    expected = scores.softmax(1) @ values
    assert (part.output / part.total - expected).abs().max() < 1e-12
    assert torch.equal(part.top, scores.amax(1, keepdim=True))
    assert (part.total >= 1).all()


@pytest.mark.verifies("prop-softmax-jacobian")
def test_the_jacobian_is_that_of_autograd():
    (scores,) = draw((7,))
    exact = torch.autograd.functional.jacobian(lambda s: s.softmax(0), scores)
    found = softmax_jacobian(scores.softmax(0))
    assert (found - exact).abs().max() < 1e-15
    batch = softmax_jacobian(scores.softmax(0).expand(2, 3, 7))
    assert torch.equal(batch[1, 2], found)


@pytest.mark.verifies("eq-entropy")
def test_entropy_of_known_distributions():
    p = torch.tensor([[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]])
    expected = torch.tensor([math.log(4), 0.0, math.log(2)])
    assert torch.allclose(entropy(p), expected)


def parts_of(q=(1, 4, 3, 8), k=(1, 2, 5, 8), v=(1, 2, 5, 8)):
    return draw(q, k, v, dtype=torch.float32)


REFUSALS = {
    "three dimensions": (parts_of(q=(4, 3, 8)), {}, "B, heads, places"),
    "width": (parts_of(q=(1, 4, 3, 7)), {}, "one width"),
    "heads": (parts_of(q=(1, 5, 3, 8)), {}, "must divide"),
    "values": (parts_of(v=(1, 2, 4, 8)), {}, "must agree"),
    "batch": (parts_of(q=(2, 4, 3, 8)), {}, "must agree"),
    "window alone": (parts_of(), {"window": 2}, "needs causal"),
    "window of 0": (parts_of(), {"causal": True, "window": 0}, "at least 1"),
    "more queries": (
        parts_of(q=(1, 4, 6, 8)),
        {"causal": True},
        "n = 6, m = 5",
    ),
    "mask shape": (
        parts_of(),
        {"mask": torch.ones(3, 4).bool()},
        r"\[3, 4\] must broadcast to \[B, h, n, m\] = \[1, 4, 3, 5\]",
    ),
    "mask batch": (
        parts_of(),
        {"mask": torch.ones(2, 1, 3, 5).bool()},
        "must broadcast",
    ),
    "mask dimensions": (
        parts_of(),
        {"mask": torch.ones(1, 1, 1, 3, 5).bool()},
        "must broadcast",
    ),
}


@pytest.mark.usefixtures("plain_errors")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", REFUSALS)
def test_what_does_not_fit_is_refused(name, way):
    parts, options, words = REFUSALS[name]
    with pytest.raises(ValueError, match=words):
        WAYS[way](*parts, **options)


@pytest.mark.usefixtures("plain_errors")
@pytest.mark.parametrize("way", WAYS)
def test_a_mask_that_is_not_bool_is_refused(way):
    for dtype in (torch.float32, torch.int64, torch.uint8):
        with pytest.raises(TypeError, match="True means that the key may"):
            WAYS[way](*parts_of(), torch.ones(3, 5, dtype=dtype))


@pytest.mark.usefixtures("plain_errors")
@pytest.mark.parametrize("way", WAYS)
def test_dtypes_that_differ_are_refused(way):
    q, k, v = parts_of()
    for parts in ((q.double(), k, v), (q, k, v.double()), (q.long(),) * 3):
        with pytest.raises(TypeError, match="one floating dtype"):
            WAYS[way](*[part[:, :2] for part in parts])


@pytest.mark.usefixtures("plain_errors")
def test_shares_tiles_and_reaches_are_refused():
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="dropout must lie"):
            attention(*parts_of(), dropout=share)
    with pytest.raises(ValueError, match="tile must be at least 1"):
        tiled_attention(*parts_of(), tile=0)
    with pytest.raises(ValueError, match="n = 3, m = 2"):
        visible(3, 2, causal=True)
    with pytest.raises(ValueError, match="needs causal"):
        visible(2, 3, window=1)


def test_everything_runs_on_the_meta_device():
    """Nothing reads a tensor's values, so nothing waits for a device."""
    q, k, v = (
        torch.empty(2, heads, 8, 4, device="meta") for heads in (4, 2, 2)
    )
    mask = torch.empty(2, 1, 8, 8, dtype=torch.bool, device="meta")
    for way in WAYS.values():
        assert way(q, k, v, mask, causal=True, window=3).shape == q.shape


def test_the_first_implementation_is_numpy_alone():
    root = Path(__file__).parents[2]
    chapter = root / "book/attention/scaled-dot-product.md"
    cells = re.findall(
        r"```\{code-cell\} python\n(.*?)\n```", chapter.read_text(), re.DOTALL
    )
    (cell,) = [cell for cell in cells if cell.startswith("q = np.array(")]
    tree = ast.parse(cell)
    made = {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert used - made == {"np", "print"}
    shapes = [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    assert len(shapes) == 5


@pytest.mark.verifies("prop-score-variance")
def test_variance_of_a_score_is_the_trace_of_both_covariances():
    a, b = draw((6, 6), (6, 6))
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 200_000, 6, generator=generator, dtype=WIDE)
    q, k = z[0] @ a, z[1] @ b
    scores = attention_scores(q[:, None, None], k[:, None, None], scale=1.0)
    exact = ((a.T @ a) @ (b.T @ b)).trace()
    squares = scores.flatten() ** 2
    z = (squares.mean() - exact) / (squares.var() / len(squares)) ** 0.5
    assert abs(z) < 5


CALLS = {  # (n, m, h_kv, options): (a mask, is_causal, heads of keys)
    "plain": ((4, 4, 4, {}), (False, False, 4)),
    "square": ((4, 4, 4, {"causal": True}), (False, True, 4)),
    "one query": ((1, 4, 4, {"causal": True}), (False, False, 4)),
    "last two": ((2, 4, 4, {"causal": True}), (True, False, 4)),
    "wide window": (
        (4, 4, 4, {"causal": True, "window": 4}),
        (False, True, 4),
    ),
    "window": ((4, 4, 4, {"causal": True, "window": 3}), (True, False, 4)),
    "one with window": (
        (1, 4, 4, {"causal": True, "window": 3}),
        (True, False, 4),
    ),
    "shared heads": ((4, 4, 2, {"causal": True}), (False, True, 2)),
    "shared, masked": (
        (4, 4, 2, {"mask": torch.ones(4, 4).bool()}),
        (True, False, 4),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_library_receives_a_mask_and_copies_only_where_due(
    name, monkeypatch
):
    (n, m, h_kv, options), expected = CALLS[name]
    library, calls = F.scaled_dot_product_attention, []

    def record(q, k, v, mask, **rest):
        calls.append((mask is not None, rest["is_causal"], k.shape[1]))
        assert rest["enable_gqa"] == (k.shape[1] != q.shape[1])
        return library(q, k, v, mask, **rest)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    attention(
        *draw((1, 4, n, 8), (1, h_kv, m, 8), (1, h_kv, m, 8)), **options
    )
    assert calls == [expected]


@pytest.mark.parametrize("scale", [-0.5, 0.0])
@pytest.mark.parametrize("way", WAYS)
def test_a_scale_may_be_negative_or_zero(way, scale):
    parts = draw(*[(1, 2, 5, 3)] * 3)
    for options in ({}, {"causal": True}, {"mask": some(5, 5)}):
        found = WAYS[way](*parts, **options, scale=scale)
        expected = by_loops(*parts, **options, scale=scale)
        assert (found - expected).abs().max() < 1e-12
