"""Text from a model, token by token, with a cache of keys and values.

Tangled from book/attention/pretrained.md.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from tangled.attention.multi_head import MultiHeadAttention, Rotate

__all__ = [
    "Cache",
    "LayerCache",
    "MemoryCache",
    "choose",
    "generate",
    "places_of",
]


class LayerCache:
    """The keys and values of one attention that later places may read.

    Room for `capacity` places is taken at the first use. With a window the
    last `window` - 1 are kept, and no room is taken.

    Implements thm-cache-exact (book/attention/pretrained.md).
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self.k: Tensor | None = None
        self.v: Tensor | None = None

    def keys_values(
        self,
        layer: MultiHeadAttention,
        read: Float[Tensor, "B n d"],
        rotate: Rotate | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Add those of the new rows; return all that these may read.

        They are [B, h_kv, places, d_k], those of the new rows last. Raises
        ValueError if there is no room, or the batch is another.
        """
        k, v = layer.keys_values(read, rotate)
        begin, end = self.length, self.length + k.shape[2]
        if end > self.capacity:
            raise ValueError(
                f"the cache has {self.capacity} places, and {end} are needed"
            )
        if self.k is None or self.v is None:
            room = 0 if layer.window else self.capacity
            self.k = k.new_empty(*k.shape[:2], room, k.shape[3])
            self.v = v.new_empty(*v.shape[:2], room, v.shape[3])
        if len(k) != len(self.k):
            raise ValueError(
                f"the cache is of {len(self.k)} rows, and {len(k)} came"
            )
        self.length = end
        if layer.window:
            k, v = torch.cat([self.k, k], 2), torch.cat([self.v, v], 2)
            gone = max(0, k.shape[2] - layer.window + 1)
            self.k, self.v = k[:, :, gone:], v[:, :, gone:]
            return k, v
        self.k[:, :, begin:end], self.v[:, :, begin:end] = k, v
        return self.k[:, :, :end], self.v[:, :, :end]


class MemoryCache:
    """The keys and values of a memory, which never changes."""

    def __init__(self) -> None:
        self.kept: tuple[Tensor, Tensor] | None = None

    def keys_values(
        self,
        layer: MultiHeadAttention,
        read: Float[Tensor, "B m d"],
        rotate: Rotate | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the keys and values; they are made at the first call."""
        if self.kept is None:
            self.kept = layer.keys_values(read, rotate)
        return self.kept


class Cache(list[tuple[LayerCache, MemoryCache]]):
    """For each block the caches of its attention and its cross-attention."""

    def __init__(self, n_layers: int, capacity: int) -> None:
        super().__init__(
            (LayerCache(capacity), MemoryCache()) for _ in range(n_layers)
        )

    @property
    def length(self) -> int:
        """The number of places that have been read."""
        return self[0][0].length


def places_of(mask: Bool[Tensor, "B n"]) -> Int64[Tensor, "B n"]:
    """Return the place of each token: 0 at the first that is no padding.

    Implements prop-left-padding (book/attention/pretrained.md).
    """
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def choose(
    logits: Float[Tensor, "B vocab"],
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> Int64[Tensor, "B"]:
    """Return a token for each row: the likeliest, or one that is drawn.

    At temperature 0 it is the likeliest; else it has the distribution
    softmax(logits / temperature), computed in at least float32.
    """
    if temperature == 0:
        return logits.argmax(-1)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    p = (wide / temperature).softmax(-1)
    return torch.multinomial(p, 1, generator=generator).squeeze(-1)


def _check(
    model: nn.Module,
    tokens: Tensor,
    n_new: int,
    mask: Tensor | None,
    temperature: float,
    start: int | None,
) -> None:
    """Raise unless this text can be continued."""
    config = model.config
    if model.training:
        raise ValueError("the model is in training mode: call model.eval()")
    if n_new < 1 or tokens.shape[1] < 1:
        raise ValueError(
            "n_new and the length of a prompt must be at least 1"
        )
    if not temperature >= 0:
        raise ValueError(
            f"temperature must not be below 0, got {temperature}"
        )
    if (start is None) == hasattr(model, "encode"):
        raise ValueError("a model with an encoder, and no other, has a start")
    length = n_new + (0 if start is not None else tokens.shape[1] - 1)
    if config.positions == "learned" and length > config.max_length:
        raise ValueError(
            f"the model has {config.max_length} positions, and {length} are "
            "needed"
        )
    if mask is None or start is not None or mask.device.type != "cpu":
        return
    if not (mask[:, -1].all() and (mask[:, 1:] >= mask[:, :-1]).all()):
        raise ValueError("prompts must be padded on the left")


def generate(
    model: nn.Module,
    tokens: Int64[Tensor, "B n"],
    *,
    n_new: int,
    mask: Bool[Tensor, "B n"] | None = None,
    stop: Sequence[int] = (),
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    start: int | None = None,
) -> Iterator[Int64[Tensor, "B"]]:
    """Yield the next token of each row, up to `n_new` times.

    Args:
        model: a LanguageModel, or an EncoderDecoder, in eval mode.
        tokens: prompts, padded on the left; or the source of a translation.
        n_new: the most that is written.
        mask: True where `tokens` is no padding; None: nowhere.
        stop: tokens that end a row. It repeats its own until all rows have
            ended; without any, nothing is read back from an accelerator.
        temperature: 0 takes the likeliest token, 1 draws from the model.
        generator: of what is drawn.
        start: the token with which a translation begins.

    Raises:
        ValueError: if prompts are padded on the right (seen on the CPU), the
            model has no positions left, is in training mode, or an argument
            is out of range.
    """
    _check(model, tokens, n_new, mask, temperature, start)
    prompt = tokens.shape[1] if start is None else 1
    cache = Cache(model.config.n_layers, prompt + n_new - 1)
    if start is None:
        seen = None if mask is None else F.pad(mask, (0, n_new), value=True)
        source: tuple[Any, ...] = ()
        ask = partial(model, last=True)
    else:
        with torch.no_grad():
            source = (model.encode(tokens, mask), mask)
        seen, ask = None, model.decode
        tokens = tokens.new_full((len(tokens), 1), start)
    places = torch.arange(prompt, device=tokens.device)
    if seen is not None:
        places = places_of(seen[:, :prompt])
    stops = torch.tensor([*stop], device=tokens.device)
    done = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    for read in range(prompt, prompt + n_new):
        with torch.no_grad():
            known = None if seen is None else seen[:, :read]
            logits = ask(
                tokens, *source, mask=known, places=places, cache=cache
            )
            token = choose(logits[:, -1], temperature, generator)
        if stop:
            token = torch.where(done, tokens[:, -1], token)
            done = torch.isin(token, stops)
        yield token
        if stop and done.all():
            return
        tokens, places = token[:, None], places[..., -1:] + 1
