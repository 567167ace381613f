"""Self-attention and many heads: one layer for every kind of attention.

Tangled from book/attention/multi-head.md.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from tangled.attention.scaled_dot_product import attention, attention_weights

__all__ = [
    "Cache",
    "MultiHeadAttention",
    "Rotate",
    "induction_score",
    "merge",
    "previous_score",
    "self_attention",
    "split",
    "without_heads",
]


def self_attention(
    x: Float[Tensor, "B n d"],
    w_q: Float[Tensor, "d d_k"],
    w_k: Float[Tensor, "d d_k"],
    w_v: Float[Tensor, "d d_v"],
    mask: Bool[Tensor, "..."] | None = None,
    causal: bool = False,
) -> Float[Tensor, "B n d_v"]:
    """Return one head of self-attention: every place asks every place.

    `mask` broadcasts to [B, 1, n, n]; True = may be read.

    Implements def-self-attention, eq-self-attention
    (book/attention/multi-head.md).
    """
    q, k, v = ((x @ w)[:, None] for w in (w_q, w_k, w_v))
    return attention(q, k, v, mask, causal)[:, 0]


def split(
    x: Float[Tensor, "B n width"], heads: int
) -> Float[Tensor, "B heads n d_head"]:
    """Cut each row into heads: [B, n, heads d_head] to [B, heads, n, d_head]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge(
    x: Float[Tensor, "B heads n d_head"],
) -> Float[Tensor, "B n width"]:
    """Put the heads of each place side by side; undo `split`."""
    return x.transpose(1, 2).flatten(2)


def _check_layer(
    d_model: int,
    n_heads: int,
    n_kv_heads: int,
    d_head: int | None,
    d_context: int | None,
    dropout: float,
    window: int | None,
) -> None:
    """Raise unless the sizes of a layer fit each other."""
    for name, count in (
        ("d_model", d_model),
        ("n_heads", n_heads),
        ("n_kv_heads", n_kv_heads),
        ("d_head", d_head),
        ("d_context", d_context),
        ("window", window),
    ):
        if count is not None and (type(count) is not int or count < 1):
            raise ValueError(
                f"{name} must be a whole number from 1 on, got {count!r}"
            )
    if d_head is None and d_model % n_heads:
        raise ValueError(
            f"n_heads must divide d_model unless d_head is given, "
            f"got {n_heads} and {d_model}"
        )
    if n_heads % n_kv_heads:
        raise ValueError(
            f"n_kv_heads must divide n_heads, got {n_kv_heads} and {n_heads}"
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")


# Turns the queries or the keys [B, h, n, d_k] by an angle for each place.
Rotate = Callable[[Tensor], Tensor]


@runtime_checkable
class Cache(Protocol):
    """What answers for the keys and values of a layer instead of it."""

    def keys_values(
        self, layer: "MultiHeadAttention", read: Tensor, rotate: Rotate | None
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values of all places so far, those of `read` last."""
        ...


class MultiHeadAttention(nn.Module):
    """Attention with many heads: self or cross, causal, grouped, windowed.

    Args:
        d_model: width of the rows that ask, and of the output.
        n_heads: number of heads.
        n_kv_heads: number of heads of keys and values, n_heads by default;
            head r reads the keys and values r // (n_heads / n_kv_heads).
        d_head: width of a head, d_model / n_heads by default.
        d_context: width of the rows that are read, d_model by default.
        bias: whether the four projections have one.
        dropout: share of the weights set to 0 in training.
        window: a causal layer reads only the last so many places.
        norm: makes a module from a width, for queries and keys of a head.

    Raises:
        ValueError: if the sizes do not fit each other.

    Source: Vaswani et al. (2017), section 3.2.2; grouped heads by Ainslie et
    al. (2023).

    Implements def-multi-head (book/attention/multi-head.md).
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        n_kv_heads: int | None = None,
        d_head: int | None = None,
        d_context: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        window: int | None = None,
        norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        kv = n_heads if n_kv_heads is None else n_kv_heads
        _check_layer(d_model, n_heads, kv, d_head, d_context, dropout, window)
        self.n_heads, self.n_kv_heads = n_heads, kv
        self.d_head = d_head = d_head or d_model // n_heads
        self.dropout, self.window = dropout, window
        d_context = d_context or d_model
        self.w_q = nn.Linear(d_model, n_heads * d_head, bias)
        self.w_k = nn.Linear(d_context, kv * d_head, bias)
        self.w_v = nn.Linear(d_context, kv * d_head, bias)
        self.w_o = nn.Linear(n_heads * d_head, d_model, bias)
        self.q_norm = norm(d_head) if norm else nn.Identity()
        self.k_norm = norm(d_head) if norm else nn.Identity()

    def queries(
        self, x: Float[Tensor, "B n d"], rotate: Rotate | None = None
    ) -> Float[Tensor, "B h n d_k"]:
        """Return the queries of all heads."""
        q = self.q_norm(split(self.w_q(x), self.n_heads))
        return q if rotate is None else rotate(q)

    def keys_values(
        self, read: Float[Tensor, "B m d"], rotate: Rotate | None = None
    ) -> tuple[Float[Tensor, "B h_kv m d_k"], Float[Tensor, "B h_kv m d_k"]]:
        """Return keys and values, once for each head of theirs."""
        k = self.k_norm(split(self.w_k(read), self.n_kv_heads))
        v = split(self.w_v(read), self.n_kv_heads)
        return (k if rotate is None else rotate(k)), v

    def forward(
        self,
        x: Float[Tensor, "B n d"],
        context: Float[Tensor, "B m d_context"] | None = None,
        mask: Bool[Tensor, "..."] | None = None,
        causal: bool = False,
        *,
        rotate: Rotate | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "B n d"]:
        """Return what each place of x receives.

        Args:
            x: the rows that ask.
            context: the rows that are read, x itself if None.
            mask: broadcasts to [B, h, n, m]; True = may be read.
            causal: the rows of x are the last n of the m places read, and
                none reads a later one.
            rotate: applied to queries and keys.
            cache: answers for keys and values instead of the layer.

        Raises:
            TypeError: if the mask is not Bool.
            ValueError: if a width, the mask or the window does not fit.

        Implements def-multi-head, eq-multi-head
        (book/attention/multi-head.md).
        """
        heads = self.heads(x, context, mask, causal, rotate, cache)
        return self.w_o(merge(heads))

    def heads(
        self,
        x,
        context=None,
        mask=None,
        causal=False,
        rotate=None,
        cache=None,
    ) -> Float[Tensor, "B h n d_k"]:
        """Return the heads before `w_o`; the arguments are those of a call."""
        read = x if context is None else context
        _check_widths(self, x, read)
        if cache is None:
            k, v = self.keys_values(read, rotate)
        else:
            k, v = cache.keys_values(self, read, rotate)
        q = self.queries(x, rotate)
        dropout = self.dropout if self.training else 0.0
        return attention(
            q, k, v, mask, causal, window=self.window, dropout=dropout
        )

    def weights(
        self,
        x: Float[Tensor, "B n d"],
        context: Float[Tensor, "B m d_context"] | None = None,
        mask: Bool[Tensor, "..."] | None = None,
        causal: bool = False,
        *,
        rotate: Rotate | None = None,
    ) -> Float[Tensor, "B h n m"]:
        """Return the weights of each head; arguments are those of a call."""
        read = x if context is None else context
        _check_widths(self, x, read)
        q, (k, _) = self.queries(x, rotate), self.keys_values(read, rotate)
        return attention_weights(q, k, mask, causal, window=self.window)

    def contributions(
        self,
        x: Float[Tensor, "B n d"],
        context: Float[Tensor, "B m d_context"] | None = None,
        mask: Bool[Tensor, "..."] | None = None,
        causal: bool = False,
        *,
        rotate: Rotate | None = None,
    ) -> Float[Tensor, "B h n d"]:
        """Return what each head adds; their sum and the bias are the output.

        Implements prop-head-decomposition, eq-head-sum
        (book/attention/multi-head.md).
        """
        heads = self.heads(x, context, mask, causal, rotate)
        blocks = self.w_o.weight.T.unflatten(0, (self.n_heads, -1))
        return heads @ blocks  # [B, h, n, d_k] @ [h, d_k, d]


def _check_widths(layer: MultiHeadAttention, x: Tensor, read: Tensor) -> None:
    """Raise unless rows have the widths that a layer was made for."""
    for name, rows, linear in (
        ("x", x, layer.w_q),
        ("what is read", read, layer.w_k),
    ):
        if rows.ndim != 3 or rows.shape[-1] != linear.in_features:
            raise ValueError(
                f"{name} must be [B, n, {linear.in_features}], "
                f"got {list(rows.shape)}"
            )
    if len(x) != len(read):
        raise ValueError(
            f"x and context must have one batch, got {len(x)} and {len(read)}"
        )


def previous_score(
    weights: Float[Tensor, "B h n n"],
) -> Float[Tensor, "h"]:
    """Return each head's mean weight on the place before, from place 2 on.

    NaN if there is one place only.

    Implements eq-head-scores (book/attention/multi-head.md).
    """
    return weights.diagonal(-1, 2, 3).mean((0, 2))


def induction_score(
    weights: Float[Tensor, "B h n n"], tokens: Int64[Tensor, "B n"]
) -> Float[Tensor, "h"]:
    """Return each head's mean weight on what followed the token before.

    Of the places whose token has occurred before; NaN if there are none.

    Implements eq-head-scores (book/attention/multi-head.md).
    """
    same = (tokens[:, :, None] == tokens[:, None, :]).tril(-1)
    after = F.pad(same, (1, -1))  # [B, i, j]: token j - 1 is token i
    found = (weights * after[:, None]).sum(-1)  # [B, h, n]
    again = same.any(-1)
    return (found * again[:, None]).sum((0, 2)) / again.sum()


@contextmanager
def without_heads(layer: MultiHeadAttention, *heads: int) -> Iterator[None]:
    """Silence some heads of a layer for a while: what they add is 0.

    Raises:
        IndexError: if the layer has no such head.
    """
    columns = layer.w_o.weight.data.unflatten(1, (layer.n_heads, -1))
    for head in heads:
        if not 0 <= head < layer.n_heads:
            raise IndexError(
                f"head must lie in 0..{layer.n_heads - 1}, got {head}"
            )
    kept = columns.clone()
    columns[:, list(heads)] = 0  # a view of the weights themselves
    try:
        yield
    finally:
        columns.copy_(kept)
