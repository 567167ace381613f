"""Recurrent networks, soft lookup, and a translator that may look back.

Tangled from book/attention/recurrence.md.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.func import jacrev

__all__ = [
    "PAD",
    "START",
    "SYMBOLS",
    "AdditiveScore",
    "Elman",
    "LuongScore",
    "Seq2Seq",
    "copy_task",
    "lag_norms",
    "lookup_weights",
    "reverse_task",
    "sequence_losses",
    "shifted",
    "soft_lookup",
]


class Elman(nn.Module):
    """A recurrent layer: each state is made of the last one and an input.

    `w_x` holds the weights of the input and the bias, `w_h` those of the
    state. Both begin uniform within 1/sqrt(d), as in nn.RNN.

    Source: Elman (1990).

    Implements def-elman, eq-elman (book/attention/recurrence.md).
    """

    def __init__(self, d_in: int, d: int) -> None:
        super().__init__()
        self.w_x = nn.Linear(d_in, d)
        self.w_h = nn.Linear(d, d, bias=False)
        for weights in self.parameters():
            nn.init.uniform_(weights, -(d**-0.5), d**-0.5)

    def step(
        self, x: Float[Tensor, "*B d_in"], h: Float[Tensor, "*B d"]
    ) -> Float[Tensor, "*B d"]:
        """Return the state after an input x, from the state h before it."""
        return torch.tanh(self.w_h(h) + self.w_x(x))

    def forward(
        self,
        x: Float[Tensor, "B n d_in"],
        h: Float[Tensor, "B d"] | None = None,
    ) -> Float[Tensor, "B n d"]:
        """Return the states of all places, from the state h or from 0."""
        if h is None:
            h = x.new_zeros(len(x), self.w_h.in_features)
        states = [h := self.step(x_i, h) for x_i in x.unbind(1)]
        return torch.stack(states, 1)


@torch.no_grad()
def lag_norms(
    step: Callable[[Tensor, Tensor], Tensor],
    x: Float[Tensor, "n d_in"],
    h: Float[Tensor, "d"],
) -> Float[Tensor, "n_plus_1"]:
    """Return how strongly h_n feels h_n, h_{n-1}, ..., h_0, by lag.

    These are the spectral norms of the derivatives of the last state.
    `step(x_i, h)` returns the state after h, which is the first.

    Implements eq-recurrent-jacobian (book/attention/recurrence.md).
    """
    jacobians = []
    for x_i in x:
        jacobians.append(jacrev(step, 1)(x_i, h))
        h = step(x_i, h)
    chain = torch.eye(len(h), dtype=h.dtype, device=h.device)
    norms = [torch.linalg.matrix_norm(chain, ord=2)]
    for jacobian in reversed(jacobians):
        chain = chain @ jacobian
        norms.append(torch.linalg.matrix_norm(chain, ord=2))
    return torch.stack(norms)


# Two tokens with a meaning of their own; the symbols of a task come after.
PAD = 0
START = 1
SYMBOLS = 2


def copy_task(
    n: int,
    length: int,
    vocab: int,
    generator: torch.Generator | None = None,
) -> tuple[Int64[Tensor, "n length"], Int64[Tensor, "n length"]]:
    """Return n random sequences, and what to write: the same again.

    The symbols are SYMBOLS..vocab-1. Raises ValueError if there are none.
    """
    if vocab <= SYMBOLS:
        raise ValueError(f"vocab must be more than {SYMBOLS}, got {vocab}")
    source = torch.randint(SYMBOLS, vocab, (n, length), generator=generator)
    return source, source.clone()


def reverse_task(
    n: int,
    length: int,
    vocab: int,
    generator: torch.Generator | None = None,
) -> tuple[Int64[Tensor, "n length"], Int64[Tensor, "n length"]]:
    """Return n random sequences, and what to write: the last symbol first.

    Arguments and errors are those of `copy_task`.
    """
    source, target = copy_task(n, length, vocab, generator)
    return source, target.flip(1)


class Seq2Seq(nn.Module):
    """A GRU that reads and a GRU that writes; with a score, it looks back.

    A source holds a symbol at least, and PAD only after its symbols.

    Args:
        vocab: number of tokens, PAD and START among them.
        d: width of embeddings and states.
        score: a module that scores queries [B, n, d] against keys [B, m, d],
            such as `AdditiveScore`. Without it, the decoder has its first
            state only.

    Implements def-seq2seq, eq-seq2seq (book/attention/recurrence.md).
    """

    def __init__(
        self, vocab: int, d: int, score: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, d)
        self.encoder = nn.GRU(d, d, batch_first=True)
        self.decoder = nn.GRU(d, d, batch_first=True)
        self.output = nn.Linear(d, vocab)
        self.score = score
        self.mix = None if score is None else nn.Linear(2 * d, d, bias=False)

    def encode(
        self, source: Int64[Tensor, "B m"]
    ) -> tuple[Float[Tensor, "B m d"], Float[Tensor, "1 B d"]]:
        """Return the states of all places, and that of the last symbol."""
        states, _ = self.encoder(self.embed(source))
        last = (source != PAD).sum(1) - 1
        rows = torch.arange(len(source), device=source.device)
        return states, states[rows, last][None]

    def decode(
        self,
        written: Int64[Tensor, "B n"],
        state: Float[Tensor, "1 B d"],
        keys: Float[Tensor, "B m d"],
        source: Int64[Tensor, "B m"],
    ) -> tuple[Float[Tensor, "B n vocab"], Float[Tensor, "1 B d"]]:
        """Return logits of what follows each token, and the last state."""
        queries, state = self.decoder(self.embed(written), state)
        if self.score is not None:
            queries = self.look_back(queries, keys, source)
        return self.output(queries), state

    def forward(
        self, source: Int64[Tensor, "B m"], target: Int64[Tensor, "B n"]
    ) -> Float[Tensor, "B n vocab"]:
        """Return logits of the target's tokens, the true ones before given."""
        keys, state = self.encode(source)
        return self.decode(shifted(target), state, keys, source)[0]

    @torch.no_grad()
    def generate(
        self, source: Int64[Tensor, "B m"], length: int
    ) -> Int64[Tensor, "B length"]:
        """Write tokens, each time the most probable after those before."""
        keys, state = self.encode(source)
        token = torch.full_like(source[:, :1], START)
        written = []
        for _ in range(length):
            logits, state = self.decode(token, state, keys, source)
            written.append(token := logits.argmax(-1))
        return torch.cat(written, 1)

    def look_back(
        self,
        queries: Float[Tensor, "B n d"],
        keys: Float[Tensor, "B m d"],
        source: Int64[Tensor, "B m"],
    ) -> Float[Tensor, "B n d"]:
        """Return the queries, each mixed with what it found in the source.

        Implements eq-context (book/attention/recurrence.md).
        """
        context = soft_lookup(self.scores(queries, keys, source), keys)
        return torch.tanh(self.mix(torch.cat([context, queries], -1)))

    def scores(
        self,
        queries: Float[Tensor, "B n d"],
        keys: Float[Tensor, "B m d"],
        source: Int64[Tensor, "B m"],
    ) -> Float[Tensor, "B n m"]:
        """Return the scores, -inf where the source is only padding."""
        padding = (source == PAD)[:, None]
        return self.score(queries, keys).masked_fill(padding, -math.inf)

    @torch.no_grad()
    def alignment(
        self, source: Int64[Tensor, "B m"], target: Int64[Tensor, "B n"]
    ) -> Float[Tensor, "B n m"]:
        """Return where the decoder looks while it writes the target."""
        keys, state = self.encode(source)
        queries, _ = self.decoder(self.embed(shifted(target)), state)
        return lookup_weights(self.scores(queries, keys, source))


def shifted(
    target: Int64[Tensor, "B n"], start: int = START
) -> Int64[Tensor, "B n"]:
    """Return what a decoder reads in training: a start, all but the last."""
    return F.pad(target[:, :-1], (1, 0), value=start)


def sequence_losses(
    model: nn.Module,
    batch: tuple[Int64[Tensor, "B m"], Int64[Tensor, "B n"]],
    generator: torch.Generator | None = None,
) -> Float[Tensor, "B"]:
    """Return the mean of -ln p over the tokens of each target, in nats.

    PAD in a target does not count.

    Implements eq-seq2seq-loss (book/attention/recurrence.md).
    """
    source, target = batch
    logits = model(source, target)
    each = F.cross_entropy(
        logits.mT, target, ignore_index=PAD, reduction="none"
    )
    return each.sum(1) / (target != PAD).sum(1)


def lookup_weights(
    scores: Float[Tensor, "*B m"], temperature: float = 1.0
) -> Float[Tensor, "*B m"]:
    """Return the weight of each of m entries: a softmax of their scores.

    Raises ValueError if the temperature is not positive.

    Implements def-soft-lookup, eq-soft-lookup (book/attention/recurrence.md).
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    return (scores / temperature).softmax(-1)


def soft_lookup(
    scores: Float[Tensor, "*B n m"],
    values: Float[Tensor, "*B m d_v"],
    temperature: float = 1.0,
) -> Float[Tensor, "*B n d_v"]:
    """Return for each of n queries the mean of the values, by its weights.

    Errors are those of `lookup_weights`.
    """
    return lookup_weights(scores, temperature) @ values


class AdditiveScore(nn.Module):
    """Bahdanau's score: a small network sees the query and the key.

    Source: Bahdanau et al. (2015).

    Implements eq-additive-score (book/attention/recurrence.md).
    """

    def __init__(self, d: int) -> None:
        super().__init__()
        self.w_q = nn.Linear(d, d, bias=False)
        self.w_k = nn.Linear(d, d, bias=False)
        self.u = nn.Linear(d, 1, bias=False)

    def forward(
        self, q: Float[Tensor, "B n d"], k: Float[Tensor, "B m d"]
    ) -> Float[Tensor, "B n m"]:
        """Return the score of each query against each key."""
        pairs = self.w_q(q)[:, :, None] + self.w_k(k)[:, None]
        return self.u(torch.tanh(pairs))[..., 0]


class LuongScore(nn.Module):
    """One of Luong's three scores: "dot", "general" or "concat".

    Raises ValueError if it is another one. Source: Luong et al. (2015).

    Implements eq-luong-scores (book/attention/recurrence.md).
    """

    def __init__(self, d: int, kind: str = "general") -> None:
        super().__init__()
        widths = {"dot": 0, "general": d, "concat": 2 * d}
        if kind not in widths:
            raise ValueError(f"kind must be one of {[*widths]}, got {kind!r}")
        self.kind, width = kind, widths[kind]
        self.w = nn.Linear(width, d, bias=False) if width else None
        self.u = nn.Linear(d, 1, bias=False) if kind == "concat" else None

    def forward(
        self, q: Float[Tensor, "B n d"], k: Float[Tensor, "B m d"]
    ) -> Float[Tensor, "B n m"]:
        """Return the score of each query against each key."""
        if self.kind == "dot":
            return q @ k.mT
        if self.kind == "general":
            return q @ self.w(k).mT
        shape = (-1, q.shape[1], k.shape[1], -1)
        pairs = q[:, :, None].expand(shape), k[:, None].expand(shape)
        return self.u(torch.tanh(self.w(torch.cat(pairs, -1))))[..., 0]
