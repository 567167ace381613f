"""A decoder-only language model made of named parts: norms, gates, rotary positions, grouped heads.

Tangled from book/attention/modern-block.md.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from tangled.attention.multi_head import MultiHeadAttention, Rotate
from tangled.attention.positions import Rotary
from tangled.attention.transformer import (
    Stack,
    TransformerConfig,
    keys_mask,
    part,
)

__all__ = [
    "LLAMA",
    "MODELS",
    "PARTS",
    "Costs",
    "LanguageModel",
    "ModernConfig",
    "ParallelBlock",
    "RMSNorm",
    "SwiGLU",
    "costs",
    "grouped",
    "initialise",
    "language_losses",
    "next_token_losses",
]


def next_token_losses(
    logits: Float[Tensor, "B n vocab"],
    tokens: Int64[Tensor, "B n"],
    mask: Bool[Tensor, "B n"] | None = None,
) -> Float[Tensor, "B rest"]:
    """Return -ln p(next token) at all places but the last, in nats.

    In at least float32. Where the mask is False at a place or at the next
    one, there is nothing to predict: the loss is 0.

    Implements eq-language-loss (book/attention/modern-block.md).
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    log_p = logits[:, :-1].log_softmax(-1, dtype=wide)
    losses = -log_p.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    if mask is None:
        return losses
    return losses.masked_fill(~(mask[:, 1:] & mask[:, :-1]), 0)


@dataclass(frozen=True)
class ModernConfig(TransformerConfig):
    """The sizes and parts of a language model; the defaults are Llama's.

    Only the head is tied, and Llama's is not. Raises ValueError as
    `TransformerConfig` does, for a size here too, or if more coordinates are
    to be turned than a head has.
    """

    norm_first: bool = True
    positions: str = "rotary"
    norm: str = "rms"
    feed_forward: str = "swiglu"
    attention: str = "grouped"
    attention_bias: bool = False
    feed_forward_bias: bool = False
    scale_embedding: bool = False
    dropout: float = 0.0
    n_kv_heads: int | None = None  # heads of keys and values; else n_heads
    d_head: int | None = None  # width of a head; else d_model / n_heads
    qk_norm: bool = False  # normalise queries and keys, head by head
    window: int | None = None  # how many last places each place reads
    rotary_base: float = 10_000.0  # the larger, the slower the slow hands
    rotary_pairs: str = "halves"  # or "neighbours"
    rotary_width: int | None = None  # turned coordinates of a head; else all
    rotary_scaling: Callable[[Tensor], Tensor] | None = None
    head_bias: bool = False  # in the map from rows to logits
    initial_std: float | None = None  # of matrices; else 1 / sqrt(columns)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("n_kv_heads", "d_head", "window", "rotary_width"):
            size = getattr(self, name)
            if size is not None and (type(size) is not int or size < 1):
                raise ValueError(
                    f"{name} must be a whole number from 1 on, got {size!r}"
                )
        if (self.rotary_width or 0) > self.d_k:
            raise ValueError(
                f"rotary_width must be at most the width of a head, "
                f"{self.d_k}, got {self.rotary_width}"
            )

    @property
    def d_k(self) -> int:
        """The width of a query."""
        return self.d_head or self.d_model // self.n_heads


class LanguageModel(nn.Module):
    """Predict the next token at each place of a sequence.

    It is an embedding, a causal stack and a head, and the configuration names
    what they are made of.

    Implements eq-tied-gradient (book/attention/modern-block.md).
    """

    def __init__(self, config: ModernConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = part("embedding", config)
        self.stack = Stack(config, causal=True)
        self.head = nn.Linear(config.d_model, config.vocab, config.head_bias)
        if config.tied:
            self.head.weight = self.embed.tokens.weight
        initialise(self, config.n_layers, config.initial_std)

    def forward(
        self,
        tokens: Int64[Tensor, "B n"],
        mask: Bool[Tensor, "B m"] | None = None,
        *,
        places: Int64[Tensor, "*B n"] | None = None,
        cache: Any = None,
        last: bool = False,
    ) -> Float[Tensor, "B n_or_1 vocab"]:
        """Return the logits of the token after each token.

        Args:
            tokens: whole numbers below `vocab`.
            mask: which tokens may be read, those in a cache first; all, if
                there is none.
            places: where the tokens stand; else at 0, 1, 2, ...
            cache: for each block, what keeps earlier keys and values.
            last: only those after the last token, [B, 1, vocab].

        Raises IndexError on the CPU if a token is not in the vocabulary.
        """
        if places is None:
            places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.embed(tokens, places)
        rotate = self.embed.positions.rotation(places, x.dtype)
        if mask is not None and cache is not None and self.config.window:
            reach = tokens.shape[1] + self.config.window - 1
            mask = mask[:, -reach:]  # a cache keeps no more
        x = self.stack(x, mask=keys_mask(mask), rotate=rotate, cache=cache)
        return self.head(x[:, -1:] if last else x)


def language_losses(
    model: nn.Module, tokens: Int64[Tensor, "B n"], generator: torch.Generator
) -> Float[Tensor, "items"]:
    """Return the loss of each next token: what `train` trains on."""
    return next_token_losses(model(tokens), tokens).flatten()


@torch.no_grad()
def initialise(
    model: nn.Module,
    n_layers: int,
    std: float | None = None,
    generator: torch.Generator | None = None,
) -> None:
    """Draw matrices from N(0, std^2), by default std = 1 / sqrt(columns).

    The last matrix of each branch is smaller by sqrt(2 n_layers), so that
    the stream's size does not depend on the depth. Biases are 0; the
    parameters of norms stay. Source: Radford et al. (2019), section 2.3.

    Implements eq-residual-scale (book/attention/modern-block.md).
    """
    depth = math.sqrt(2 * n_layers)
    for name, p in model.named_parameters():
        if p.ndim > 1 and not p.is_meta:  # slow there, and without effect
            last = name.endswith(("w_o.weight", "down.weight"))
            size = p.shape[1] ** -0.5 if std is None else std
            p.normal_(0, size / depth if last else size, generator=generator)
        elif name.endswith("bias"):
            p.zero_()


class RMSNorm(nn.Module):
    """Divide each row by the root of its mean square; a gain, no shift.

    In at least float32; the row is rounded to its dtype before the gain.
    Source: Zhang and Sennrich (2019), equation 4.

    Implements eq-rms-norm (book/attention/modern-block.md).
    """

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*B d"]) -> Float[Tensor, "*B d"]:
        """Return rows whose mean square is 1, times the gain."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        square = wide.square().mean(-1, keepdim=True)
        return self.gain * (wide * torch.rsqrt(square + self.eps)).to(x.dtype)


class SwiGLU(nn.Module):
    """Widen each row twice, let one copy gate the other, narrow the product.

    Source: Shazeer (2020), equation 6.

    Implements eq-swiglu (book/attention/modern-block.md).
    """

    def __init__(self, config: ModernConfig) -> None:
        super().__init__()
        d, d_ff, bias = config.d_model, config.d_ff, config.feed_forward_bias
        self.gate = nn.Linear(d, d_ff, bias)
        self.up = nn.Linear(d, d_ff, bias)
        self.down = nn.Linear(d_ff, d, bias)

    def forward(self, x: Float[Tensor, "*B d"]) -> Float[Tensor, "*B d"]:
        """Return a new row for each row, from that row alone."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


def grouped(config: ModernConfig) -> MultiHeadAttention:
    """Return attention with the heads, window and norms of a configuration.

    Implements prop-score-bound, prop-window-reach
    (book/attention/modern-block.md).
    """

    def norm(width: int) -> RMSNorm:
        return RMSNorm(width, config.norm_eps)

    return MultiHeadAttention(
        config.d_model,
        config.n_heads,
        n_kv_heads=config.n_kv_heads,
        d_head=config.d_head,
        bias=config.attention_bias,
        dropout=config.attention_dropout,
        window=config.window,
        norm=norm if config.qk_norm else None,
    )


class ParallelBlock(nn.Module):
    """Let attention and network read the same normalised rows.

    Raises ValueError for a post-norm: there is one norm, and it comes first.
    Source: Wang and Komatsuzaki (2021), GPT-J.

    Implements eq-parallel (book/attention/modern-block.md).
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        if not config.norm_first:
            raise ValueError("a parallel block needs norm_first=True")
        self.norm = part("norm", config)
        self.attention = part("attention", config)
        self.feed_forward = part("feed_forward", config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "B n d"],
        memory: None = None,
        mask: Bool[Tensor, "..."] | None = None,
        memory_mask: None = None,
        causal: bool = False,
        *,
        rotate: Rotate | None = None,
        cache: Any = None,
    ) -> Float[Tensor, "B n d"]:
        """Return the rows of the next layer; arguments as of `Block`."""
        y, (own, _) = self.norm(x), cache or (None, None)
        read = self.attention(y, None, mask, causal, rotate=rotate, cache=own)
        return x + self.dropout(read) + self.dropout(self.feed_forward(y))


# Kind of part, name -> what builds it from a configuration.
PARTS: dict[str, dict[str, Callable[[Any], nn.Module]]] = {
    "norm": {"rms": lambda c: RMSNorm(c.d_model, c.norm_eps)},
    "feed_forward": {"swiglu": SwiGLU},
    "attention": {"grouped": grouped},
    "positions": {
        "rotary": lambda c: Rotary(
            c.rotary_width or c.d_k,
            c.rotary_base,
            c.rotary_pairs,
            c.rotary_scaling,
        )
    },
    "block": {"parallel": ParallelBlock},
}


class Costs(NamedTuple):
    """What a language model costs, in numbers of two bytes or so each."""

    parameters: int
    flops: int  # of one token that reads `context` tokens, forward
    cache: int  # keys and values of the tokens that it reads


def costs(config: ModernConfig, context: int) -> Costs:
    """Count parameters, arithmetic and cache without making any weight."""
    with torch.device("meta"):
        model = LanguageModel(config)
    matrices = [m for m in model.modules() if isinstance(m, nn.Linear)]
    read = min(context, config.window or context)
    heads = config.n_layers * config.d_k
    return Costs(
        sum(p.numel() for p in model.parameters()),
        2 * sum(m.weight.numel() for m in matrices)
        + 4 * heads * config.n_heads * read,
        2 * heads * (config.n_kv_heads or config.n_heads) * read,
    )


LLAMA = ModernConfig(
    vocab=128256,
    d_model=4096,
    n_layers=32,
    n_heads=32,
    n_kv_heads=8,
    d_ff=14336,
    max_length=8192,
    rotary_base=500_000.0,
    tied=False,
)
MODELS = {
    "GPT-2": ModernConfig(
        vocab=50257,
        d_model=768,
        n_layers=12,
        n_heads=12,
        d_ff=3072,
        max_length=1024,
        positions="learned",
        norm="layer",
        feed_forward="gelu_tanh",
        attention_bias=True,
        feed_forward_bias=True,
        initial_std=0.02,
    ),
    "Llama 3 8B": LLAMA,
    "Mistral 7B": replace(
        LLAMA,
        vocab=32000,
        max_length=32768,
        rotary_base=10_000.0,
        window=4096,
    ),
    "Qwen3 0.6B": replace(
        LLAMA,
        vocab=151936,
        d_model=1024,
        n_layers=28,
        n_heads=16,
        d_head=128,
        d_ff=3072,
        max_length=40960,
        norm_eps=1e-6,
        rotary_base=1_000_000.0,
        qk_norm=True,
        tied=True,
    ),
}
