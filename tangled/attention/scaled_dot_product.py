"""Scaled dot-product attention: the equation, the library's fast path, and tiles.

Tangled from book/attention/scaled-dot-product.md.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = [
    "Partial",
    "absorb",
    "attention",
    "attention_scores",
    "attention_weights",
    "entropy",
    "softmax_jacobian",
    "tiled_attention",
    "visible",
]


def _per_head(x: Float[Tensor, "B h_kv m d"], h: int) -> Tensor:
    """Return a copy for each of h heads: head r has x of r // (h / h_kv)."""
    return x if x.shape[1] == h else x.repeat_interleave(h // x.shape[1], 1)


def _wide(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return x in at least float32, in which exponentials are safe."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def attention_scores(
    q: Float[Tensor, "B h n d_k"],
    k: Float[Tensor, "B h_kv m d_k"],
    *,
    scale: float | None = None,
) -> Float[Tensor, "B h n m"]:
    """Return the scores S = scale * Q K^T, with scale 1 / sqrt(d_k).

    In at least float32. Head r of the queries meets key head
    r // (h / h_kv).

    Implements eq-attention-scores, prop-score-variance
    (book/attention/scaled-dot-product.md).
    """
    if scale is None:
        scale = q.shape[-1] ** -0.5
    k = _per_head(k, q.shape[1])
    return scale * _wide(q) @ _wide(k).mT


def softmax_jacobian(
    p: Float[Tensor, "*B m"],
) -> Float[Tensor, "*B m m"]:
    """Return diag(p) - p p^T, the derivative of p = softmax(S) by S.

    Implements prop-softmax-jacobian, eq-softmax-jacobian
    (book/attention/scaled-dot-product.md).
    """
    return p.diag_embed() - p[..., :, None] * p[..., None, :]


def entropy(p: Float[Tensor, "*B m"]) -> Float[Tensor, "*B"]:
    """Return the entropy of each distribution, in nats; 0 ln 0 counts as 0.

    Implements eq-entropy (book/attention/scaled-dot-product.md).
    """
    return torch.special.entr(p).sum(-1)


def _check_reach(n: int, m: int, causal: bool, window: int | None) -> None:
    """Raise unless n queries can be the last of m places."""
    if causal and n > m:
        raise ValueError(
            "causal queries are the last n of m places, so n must not "
            f"exceed m, got n = {n}, m = {m}"
        )
    if window is not None and not causal:
        raise ValueError("a window needs causal=True")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1, got {window}")


def _check_parts(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise unless the keys fit the queries, and the values the keys."""
    shapes = f"got q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
    if not q.ndim == k.ndim == v.ndim == 4:
        raise ValueError(
            f"q, k and v must be [B, heads, places, width], {shapes}"
        )
    if k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0]:
        raise ValueError(
            "k and v must agree in batch, heads and places, and q in batch, "
            + shapes
        )
    if q.shape[3] != k.shape[3] or q.shape[3] == 0:
        raise ValueError(f"q and k must have one width, above 0, {shapes}")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"the heads of k must divide those of q, {shapes}")
    if not q.dtype == k.dtype == v.dtype or not q.is_floating_point():
        raise TypeError(
            "q, k and v must have one floating dtype, "
            f"got {q.dtype}, {k.dtype}, {v.dtype}"
        )


def _check_mask(mask: Tensor, full: tuple[int, ...]) -> None:
    """Raise unless the mask is Bool and broadcasts to `full`."""
    if mask.dtype != torch.bool:
        raise TypeError(
            "mask must be Bool, and True means that the key may be read, "
            f"got {mask.dtype}"
        )
    sizes = zip(reversed(mask.shape), reversed(full), strict=False)
    if mask.ndim > 4 or any(one not in (1, other) for one, other in sizes):
        raise ValueError(
            f"mask {list(mask.shape)} must broadcast to [B, h, n, m] = "
            f"{list(full)}"
        )


def _checked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    window: int | None,
) -> Tensor | None:
    """Return the mask in four dimensions; raise unless all parts fit."""
    _check_parts(q, k, v)
    (B, h, n, _), m = q.shape, k.shape[2]
    _check_reach(n, m, causal, window)
    if mask is None:
        return None
    _check_mask(mask, (B, h, n, m))
    return mask[(None,) * (4 - mask.ndim)]


def _reaches(
    query: Tensor, key: Tensor, window: int | None
) -> Bool[Tensor, "n m"]:
    """Return whether a query at a place may read the key at another."""
    seen = key <= query[:, None]
    return seen if window is None else seen & (key > query[:, None] - window)


def visible(
    n: int,
    m: int,
    *,
    causal: bool = False,
    window: int | None = None,
    device: torch.device | str | None = None,
) -> Bool[Tensor, "n m"]:
    """Return which of m keys each of n queries may read: True = may.

    With `causal` the queries are the last n of m places: query i stands at
    place m - n + i and reads the keys up to its own place, with `window` only
    the last `window` of them.

    Raises:
        ValueError: if causal and n > m, or if the window is below 1 or not
            causal.

    Implements def-visible, eq-visible (book/attention/scaled-dot-product.md).
    """
    _check_reach(n, m, causal, window)
    if not causal:
        return torch.ones(n, m, dtype=torch.bool, device=device)
    place = torch.arange(m, device=device)
    return _reaches(place[m - n :], place, window)


def _seen(
    n: int,
    m: int,
    mask: Tensor | None,
    causal: bool,
    window: int | None,
    device: torch.device,
) -> Tensor | None:
    """Return one mask for all that hides a key, or None if nothing does."""
    last = n == 1 and (window is None or window >= m)  # it reads everything
    if not causal or last:
        return mask
    seen = visible(n, m, causal=True, window=window, device=device)
    return seen if mask is None else mask & seen


def attention_weights(
    q: Float[Tensor, "B h n d_k"],
    k: Float[Tensor, "B h_kv m d_k"],
    mask: Bool[Tensor, "..."] | None = None,
    causal: bool = False,
    *,
    window: int | None = None,
    scale: float | None = None,
) -> Float[Tensor, "B h n m"]:
    """Return the weights A = softmax(S + M), in at least float32.

    Each row adds up to 1, or is exactly 0 if its query may read nothing.
    Arguments and errors are those of `attention`.

    Implements eq-attention-weights (book/attention/scaled-dot-product.md).
    """
    mask = _checked(q, k, k, mask, causal, window)
    scores = attention_scores(q, k, scale=scale)
    seen = _seen(*scores.shape[2:], mask, causal, window, q.device)
    if seen is None:
        return scores.softmax(-1)
    lowest = torch.finfo(scores.dtype).min  # a row of -inf would give NaN
    weights = scores.masked_fill(~seen, lowest).softmax(-1)
    return weights.masked_fill(~seen, 0)  # for rows that may read nothing


def attention(
    q: Float[Tensor, "B h n d_k"],
    k: Float[Tensor, "B h_kv m d_k"],
    v: Float[Tensor, "B h_kv m d_v"],
    mask: Bool[Tensor, "..."] | None = None,
    causal: bool = False,
    *,
    window: int | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    fast: bool = True,
) -> Float[Tensor, "B h n d_v"]:
    """Return softmax(scale * Q K^T + M) V for each head.

    Args:
        q: queries.
        k: keys. h_kv divides h, and head r reads key head r // (h / h_kv).
        v: values, one for each key.
        mask: broadcasts to [B, h, n, m]; True = may be read. A query that may
            read nothing gets exact zeros. Hidden keys and values must still
            be finite.
        causal: the queries are the last n of m places, and none reads a
            later place.
        window: each query reads only the last so many places up to its own;
            needs `causal`.
        scale: factor of the products, 1 / sqrt(d_k) if None.
        dropout: share of the weights set to 0 at random, the others growing
            by 1 / (1 - dropout); give 0 when nothing is trained.
        fast: use the library's fused function; otherwise the equation.

    Raises:
        TypeError: if the mask is not Bool, or q, k and v differ in dtype.
        ValueError: if shapes, mask, window or dropout do not fit.

    Source: Vaswani et al. (2017), equation 1.

    Implements def-attention, eq-attention
    (book/attention/scaled-dot-product.md).
    """
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout must lie in [0, 1], got {dropout}")
    mask = _checked(q, k, v, mask, causal, window)
    if fast:
        return _library(q, k, v, mask, causal, window, scale, dropout)
    weights = attention_weights(
        q, k, mask, causal, window=window, scale=scale
    )
    weights = F.dropout(weights, dropout)
    values = _wide(_per_head(v, q.shape[1]))
    return (weights @ values).to(v.dtype)


def _library(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    window: int | None,
    scale: float | None,
    dropout: float,
) -> Tensor:
    """Return attention by the library, with a mask only where one is due."""
    (h, n), m = q.shape[1:3], k.shape[2]
    whole = window is None or window >= m
    # Its is_causal hides with -inf before it scales: NaN if scale <= 0.
    alike = n == m and (scale is None or scale > 0)
    square = causal and mask is None and whole and alike
    seen = None if square else _seen(n, m, mask, causal, window, q.device)
    # Its fused functions share heads without a mask only, on a GPU in half
    # precision only. Else a copy for each head costs less than no fusion.
    shared = seen is None and (q.is_cpu or q.element_size() == 2)
    if not shared:
        k, v = _per_head(k, h), _per_head(v, h)
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        seen,
        dropout_p=dropout,
        is_causal=square,
        scale=scale,
        enable_gqa=k.shape[1] != h,
    )


class Partial(NamedTuple):
    """What each query has read so far.

    `top` is its largest score yet, `total` the sum of exp(score - top), and
    `output` the sum of exp(score - top) times value.
    """

    top: Float[Tensor, "*B n 1"]
    total: Float[Tensor, "*B n 1"]
    output: Float[Tensor, "*B n d_v"]


def absorb(
    part: Partial,
    scores: Float[Tensor, "*B n m"],
    values: Float[Tensor, "*B m d_v"],
) -> Partial:
    """Return the partial result after m >= 1 keys more.

    A score of -inf hides its key.

    Source: Milakov and Gimelshein (2018), algorithm 3.

    Implements thm-online-softmax, eq-online-softmax, eq-partial-sums
    (book/attention/scaled-dot-product.md).
    """
    # The outcome does not depend on top, so no gradient goes through it.
    top = part.top.maximum(scores.detach().amax(-1, keepdim=True))
    shrink = (part.top - top).exp()
    weights = (scores - top).exp()
    total = shrink * part.total + weights.sum(-1, keepdim=True)
    return Partial(top, total, shrink * part.output + weights @ values)


def _slices(begin: int, end: int, tile: int) -> list[slice]:
    """Return slices of at most `tile` places from begin to end."""
    return [slice(j, min(j + tile, end)) for j in range(begin, end, tile)]


def _tile_mask(
    mask: Tensor | None,
    rows: slice,
    columns: slice,
    first: int,
    causal: bool,
    window: int | None,
    device: torch.device,
) -> Tensor | None:
    """Return who may read whom in a tile, or None if all may read all.

    The first query of the tile stands at the place `first`.
    """
    seen = None if mask is None else mask[..., rows, columns]
    if window or (causal and columns.stop > first + 1):
        last = first + rows.stop - rows.start
        query = torch.arange(first, last, device=device)
        key = torch.arange(columns.start, columns.stop, device=device)
        reach = _reaches(query, key, window)
        seen = reach if seen is None else seen & reach
    return seen


def _nothing(q: Tensor, v: Tensor) -> Partial:
    """Return the partial result of queries that have read nothing."""
    wide = _wide(q[:0]).dtype
    lowest = torch.finfo(wide).min  # not -inf: -inf - (-inf) is NaN
    top = q.new_full((*q.shape[:3], 1), lowest, dtype=wide)
    output = q.new_zeros((*q.shape[:3], v.shape[3]), dtype=wide)
    return Partial(top, torch.zeros_like(top), output)


def tiled_attention(
    q: Float[Tensor, "B h n d_k"],
    k: Float[Tensor, "B h_kv m d_k"],
    v: Float[Tensor, "B h_kv m d_v"],
    mask: Bool[Tensor, "..."] | None = None,
    causal: bool = False,
    *,
    window: int | None = None,
    scale: float | None = None,
    tile: int = 256,
) -> Float[Tensor, "B h n d_v"]:
    """Return `attention` without ever holding all of its n times m weights.

    Scores exist for `tile` queries and `tile` keys at a time, and tiles that
    nobody may read are skipped. Other arguments and errors are those of
    `attention`. Under autograd the tiles are kept for the way back, so
    memory is saved in inference alone.

    Raises:
        ValueError: if tile is below 1.

    Source: Rabe and Staats (2021); Dao et al. (2022), algorithm 1.

    Implements alg-tiled-attention (book/attention/scaled-dot-product.md).
    """
    if tile < 1:
        raise ValueError(f"tile must be at least 1, got {tile}")
    mask = _checked(q, k, v, mask, causal, window)
    n, m = q.shape[2], k.shape[2]
    if mask is not None:
        mask = mask.expand(*mask.shape[:2], n, m)  # a view
    k, v = _per_head(k, q.shape[1]), _wide(_per_head(v, q.shape[1]))
    outputs = []
    for rows in _slices(0, n, tile) or [slice(0, 0)]:
        some, first = q[:, :, rows], m - n + rows.start
        begin = max(0, first - window + 1) if window else 0
        end = m - n + rows.stop if causal else m
        part = _nothing(some, v)
        for columns in _slices(begin, end, tile):
            scores = attention_scores(some, k[:, :, columns], scale=scale)
            seen = _tile_mask(
                mask, rows, columns, first, causal, window, q.device
            )
            if seen is not None:
                scores = scores.masked_fill(~seen, -math.inf)
            part = absorb(part, scores, v[:, :, columns])
        outputs.append(part.output / part.total.clamp(min=1))
    return torch.cat(outputs, 2).to(q.dtype)
