"""The Transformer of 2017: blocks made of named parts, stacks of them, an encoder with a decoder.

Tangled from book/attention/transformer.md.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from tangled.attention.multi_head import MultiHeadAttention, Rotate
from tangled.attention.positions import (
    Learned,
    Positions,
    Sinusoidal,
    check_indices,
)

__all__ = [
    "PARTS",
    "Block",
    "Embedding",
    "EncoderDecoder",
    "FeedForward",
    "Stack",
    "TransformerConfig",
    "glorot",
    "inverse_sqrt",
    "keys_mask",
    "layer_norm",
    "modules",
    "part",
    "smoothed_cross_entropy",
]


@dataclass(frozen=True)
class TransformerConfig:
    """The sizes of a Transformer, and its parts by name.

    The defaults are the base model of 2017. Raises ValueError if a size is
    not a whole number from 1 on, or a dropout not in [0, 1).
    """

    vocab: int  # number of tokens
    d_model: int = 512  # width of a row of features
    n_layers: int = 6  # blocks in a stack
    n_heads: int = 8  # heads of an attention
    d_ff: int = 2048  # width inside of the feed-forward network
    max_length: int = 1024  # places in a table of positions
    positions: str = "sinusoidal"  # how rows are told their places
    norm: str = "layer"  # what keeps rows in their range
    norm_eps: float = 1e-5  # added to a variance
    norm_first: bool = False  # pre-norm; else post-norm, as in 2017
    block: str = "sequential"  # how attention and network are wired
    attention: str = "heads"  # what lets rows read each other
    feed_forward: str = "relu"  # the network of each row
    embedding: str = "tokens"  # how tokens become rows
    scale_embedding: bool = True  # multiply them by sqrt(d_model)
    attention_bias: bool = True  # in the four projections
    feed_forward_bias: bool = True  # in the two matrices
    tied: bool = True  # the head is the table of the tokens
    dropout: float = 0.1  # of each branch and of the embedding
    attention_dropout: float = 0.0  # of the attention weights

    def __post_init__(self) -> None:
        sizes = (
            "vocab",
            "d_model",
            "n_layers",
            "n_heads",
            "d_ff",
            "max_length",
        )
        for name in sizes:
            size = getattr(self, name)
            if type(size) is not int or size < 1:
                raise ValueError(
                    f"{name} must be a whole number from 1 on, got {size!r}"
                )
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1)")


@lru_cache
def modules(package: str = "tangled.attention") -> tuple[ModuleType, ...]:
    """Return all modules of a package, imported, in the order of names."""
    places = importlib.import_module(package).__path__
    names = sorted(m.name for m in pkgutil.iter_modules(places))
    return tuple(importlib.import_module(f"{package}.{n}") for n in names)


def part(
    kind: str, config: TransformerConfig, package: str = "tangled.attention"
) -> nn.Module:
    """Build the part of this kind that a configuration names.

    The tables `PARTS` of all modules of the package are looked through.

    Raises:
        ValueError: if no table has the name; the known ones are listed.
        RuntimeError: if two tables have it.
    """
    name, known = getattr(config, kind), {}
    for module in modules(package):
        for key, build in getattr(module, "PARTS", {}).get(kind, {}).items():
            if key in known:
                raise RuntimeError(f"two modules have a {kind} {key!r}")
            known[key] = build
    if name not in known:
        raise ValueError(
            f"no {kind} {name!r}, but {', '.join(sorted(known))}"
        )
    return known[name](config)


class Embedding(nn.Module):
    """Turn tokens into rows that know their places.

    Rows begin with unit variance, before their places are added. A token
    outside of the vocabulary raises IndexError on the CPU.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab, config.d_model)
        self.scale = config.d_model**0.5 if config.scale_embedding else 1.0
        nn.init.normal_(self.tokens.weight, std=1 / self.scale)
        self.positions = part("positions", config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, tokens: Int64[Tensor, "B n"], places: Int64[Tensor, "*B n"]
    ) -> Float[Tensor, "B n d"]:
        """Return the rows of tokens at their places."""
        check_indices("tokens", tokens, self.tokens.num_embeddings)
        x = self.tokens(tokens) * self.scale
        return self.dropout(self.positions(x, places))


class FeedForward(nn.Module):
    """Widen each row, bend it, and narrow it again: two matrices.

    Implements eq-feed-forward (book/attention/transformer.md).
    """

    def __init__(
        self, config: TransformerConfig, act: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        d, d_ff, bias = config.d_model, config.d_ff, config.feed_forward_bias
        self.up, self.down = (
            nn.Linear(d, d_ff, bias),
            nn.Linear(d_ff, d, bias),
        )
        self.act = act

    def forward(self, x: Float[Tensor, "*B d"]) -> Float[Tensor, "*B d"]:
        """Return a new row for each row, from that row alone."""
        return self.down(self.act(self.up(x)))


def layer_norm(config: TransformerConfig) -> nn.LayerNorm:
    """Return the norm of 2017, with a gain and a shift for each entry.

    Source: Ba, Kiros and Hinton (2016).

    Implements eq-layer-norm (book/attention/transformer.md).
    """
    return nn.LayerNorm(config.d_model, config.norm_eps)


class Block(nn.Module):
    """Let rows read each other, then let each think alone.

    With `cross` they also read a memory in between. The three branches are
    added to their input, with the norm before the branch (pre-norm) or after
    the sum (post-norm). Source: Vaswani et al. (2017), section 3.1.

    Implements eq-post-norm, eq-pre-norm (book/attention/transformer.md).
    """

    def __init__(
        self, config: TransformerConfig, cross: bool = False
    ) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.attention = part("attention", config)
        self.attention_norm = part("norm", config)
        self.cross = part("attention", config) if cross else None
        self.cross_norm = part("norm", config) if cross else None
        self.feed_forward = part("feed_forward", config)
        self.feed_forward_norm = part("norm", config)
        self.dropout = nn.Dropout(config.dropout)

    def add(
        self,
        x: Float[Tensor, "B n d"],
        branch: Callable[[Tensor], Tensor],
        norm: nn.Module,
    ) -> Float[Tensor, "B n d"]:
        """Return the rows with what a branch makes of them added."""
        if self.norm_first:
            return x + self.dropout(branch(norm(x)))
        return norm(x + self.dropout(branch(x)))

    def forward(
        self,
        x: Float[Tensor, "B n d"],
        memory: Float[Tensor, "B m d"] | None = None,
        mask: Bool[Tensor, "..."] | None = None,
        memory_mask: Bool[Tensor, "..."] | None = None,
        causal: bool = False,
        *,
        rotate: Rotate | None = None,
        cache: Any = None,
    ) -> Float[Tensor, "B n d"]:
        """Return the rows of the next layer.

        Args:
            x: the rows.
            memory: what the cross-attention reads, and no other block.
            mask: which rows may be read (True), broadcast to [B, h, n, n].
            memory_mask: which memory may be read, to [B, h, n, m].
            causal: whether rows read no later ones.
            rotate: turns queries and keys, if positions do.
            cache: of this block, for attention and cross-attention.

        Raises ValueError if a memory is missing, or nothing can read it.
        """
        if (memory is None) != (self.cross is None):
            raise ValueError("a memory belongs to a block with cross=True")
        own, other = cache or (None, None)
        x = self.add(
            x,
            lambda y: self.attention(
                y, None, mask, causal, rotate=rotate, cache=own
            ),
            self.attention_norm,
        )
        if memory is not None:
            x = self.add(
                x,
                lambda y: self.cross(y, memory, memory_mask, cache=other),
                self.cross_norm,
            )
        return self.add(x, self.feed_forward, self.feed_forward_norm)


def glorot(module: nn.Module) -> None:
    """Draw all matrices of a module anew, and put its biases to zero.

    The entries are uniform with variance 2 / (inputs + outputs).
    Source: Glorot and Bengio (2010), equation 16.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class Stack(nn.Module):
    """Blocks, one after another; pre-norm ends with a norm of its own.

    Without `cross` the configuration names the block, and with it the block
    is `Block`. A causal stack lets no row read a later one.
    """

    def __init__(
        self,
        config: TransformerConfig,
        cross: bool = False,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.causal = causal
        self.blocks = nn.ModuleList(
            Block(config, cross=True) if cross else part("block", config)
            for _ in range(config.n_layers)
        )
        self.norm = (
            part("norm", config) if config.norm_first else nn.Identity()
        )

    def forward(
        self,
        x: Float[Tensor, "B n d"],
        memory: Float[Tensor, "B m d"] | None = None,
        mask: Bool[Tensor, "..."] | None = None,
        memory_mask: Bool[Tensor, "..."] | None = None,
        *,
        rotate: Rotate | None = None,
        cache: Any = None,
    ) -> Float[Tensor, "B n d"]:
        """Return the rows after the last block; arguments as of `Block`.

        The cache is a sequence with that of each block.
        """
        for i, block in enumerate(self.blocks):
            x = block(
                x,
                memory,
                mask,
                memory_mask,
                self.causal,
                rotate=rotate,
                cache=None if cache is None else cache[i],
            )
        return self.norm(x)


def keys_mask(
    mask: Bool[Tensor, "B m"] | None,
) -> Bool[Tensor, "B 1 1 m"] | None:
    """Return a mask of keys in the shape that attention broadcasts."""
    return None if mask is None else mask[:, None, None, :]


class EncoderDecoder(nn.Module):
    """The Transformer of 2017: it reads one sequence and writes another.

    One table of tokens serves the encoder, the decoder and, if tied, the
    head. Masks are Bool [B, m], True where a token may be read.
    Source: Vaswani et al. (2017).

    Implements def-masks, eq-next-token (book/attention/transformer.md).
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Embedding(config)
        self.encoder = Stack(config)
        self.decoder = Stack(config, cross=True, causal=True)
        glorot(self.encoder)
        glorot(self.decoder)
        self.head = nn.Linear(config.d_model, config.vocab)
        if config.tied:
            self.head.weight = self.embed.tokens.weight

    def encode(
        self,
        source: Int64[Tensor, "B m"],
        mask: Bool[Tensor, "B m"] | None = None,
    ) -> Float[Tensor, "B m d"]:
        """Return the memory: a row for each token of the source."""
        places = torch.arange(source.shape[1], device=source.device)
        x = self.embed(source, places)
        rotate = self.embed.positions.rotation(places, x.dtype)
        return self.encoder(x, mask=keys_mask(mask), rotate=rotate)

    def decode(
        self,
        tokens: Int64[Tensor, "B n"],
        memory: Float[Tensor, "B m d"],
        memory_mask: Bool[Tensor, "B m"] | None = None,
        mask: Bool[Tensor, "B keys"] | None = None,
        *,
        places: Int64[Tensor, "*B n"] | None = None,
        cache: Any = None,
    ) -> Float[Tensor, "B n vocab"]:
        """Return the logits of the token after each token.

        With a cache, `tokens` are the new ones and `places` says where they
        stand; else they stand at 0, 1, 2, ...
        """
        if places is None:
            places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.embed(tokens, places)
        x = self.decoder(
            x,
            memory,
            keys_mask(mask),
            keys_mask(memory_mask),
            rotate=self.embed.positions.rotation(places, x.dtype),
            cache=cache,
        )
        return self.head(x)

    def forward(
        self,
        source: Int64[Tensor, "B m"],
        tokens: Int64[Tensor, "B n"],
        source_mask: Bool[Tensor, "B m"] | None = None,
    ) -> Float[Tensor, "B n vocab"]:
        """Return the logits after each token, given the whole source."""
        memory = self.encode(source, source_mask)
        return self.decode(tokens, memory, source_mask)


# Kind of part, name -> what builds it from a configuration.
PARTS: dict[str, dict[str, Callable[[Any], nn.Module]]] = {
    "attention": {
        "heads": lambda c: MultiHeadAttention(
            c.d_model,
            c.n_heads,
            bias=c.attention_bias,
            dropout=c.attention_dropout,
        )
    },
    "norm": {"layer": layer_norm},
    "feed_forward": {
        "relu": lambda c: FeedForward(c, F.relu),
        "gelu": lambda c: FeedForward(c, F.gelu),
        "gelu_tanh": lambda c: FeedForward(c, nn.GELU("tanh")),
    },
    "positions": {
        "none": lambda c: Positions(),
        "sinusoidal": lambda c: Sinusoidal(),
        "sinusoidal_halves": lambda c: Sinusoidal("halves"),
        "learned": lambda c: Learned(c.max_length, c.d_model),
    },
    "embedding": {"tokens": Embedding},
    "block": {"sequential": Block},
}


def smoothed_cross_entropy(
    logits: Float[Tensor, "*B vocab"],
    target: Int64[Tensor, "*B"],
    smoothing: float = 0.0,
) -> Float[Tensor, "*B"]:
    """Return the cross-entropy of each prediction, in nats, at least float32.

    The target is a token with probability 1 - smoothing, and otherwise any
    token of the vocabulary, the right one too, with equal odds.
    Raises ValueError unless smoothing lies in [0, 1).

    Source: Szegedy et al. (2016), section 7.

    Implements eq-label-smoothing (book/attention/transformer.md).
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must lie in [0, 1), got {smoothing}")
    wide = torch.promote_types(logits.dtype, torch.float32)
    log_p = logits.log_softmax(-1, dtype=wide)
    right = log_p.gather(-1, target[..., None]).squeeze(-1)
    return -(1 - smoothing) * right - smoothing * log_p.mean(-1)


def inverse_sqrt(warmup: int) -> Callable[[int], float]:
    """Return a factor: up in a line to 1, then down as 1 / sqrt(step).

    Times (d_model * warmup)^-1/2 it is the rate of 2017.
    Raises ValueError if the warm-up is not a step at least.

    Source: Vaswani et al. (2017), section 5.3.

    Implements eq-inverse-sqrt (book/attention/transformer.md).
    """
    if warmup < 1:
        raise ValueError(f"warmup must be a step at least, got {warmup}")

    def factor(step: int) -> float:
        done = (step + 1) / warmup
        return min(done, done**-0.5)

    return factor
