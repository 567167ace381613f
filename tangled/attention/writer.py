"""A small language model that has read Python's help texts, byte by byte.

Tangled from book/attention/pretrained.md.
"""

import pydoc_data.topics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from tangled.attention.modern_block import LanguageModel, ModernConfig
from tangled.foundations.training import Training, train, warmup_cosine
from tangled.workshop.artifacts import recipe

__all__ = ["CONTEXT", "WRITER", "help_texts", "surprise", "topics_writer"]

CONTEXT = 96
WRITER = ModernConfig(
    vocab=256,
    d_model=96,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    d_ff=256,
    max_length=CONTEXT,
    rotary_base=100.0,
    norm_eps=1e-5,
)


def help_texts() -> tuple[Int64[Tensor, "n"], Int64[Tensor, "m"]]:
    """Return the bytes of Python's help texts: to learn from, and to test."""
    told = "\n\n".join(pydoc_data.topics.topics.values()).encode()
    return torch.tensor([*told[:-20_000]]), torch.tensor([*told[-20_000:]])


def surprise(
    model: nn.Module,
    texts: Int64[Tensor, "B n"],
    generator: torch.Generator | None = None,
) -> Float[Tensor, "B"]:
    """Return how hard the next tokens of a text are, in nats a token."""
    logits = model(texts[:, :-1]).mT
    return F.cross_entropy(logits, texts[:, 1:], reduction="none").mean(1)


@recipe(steps=900, batch_size=16, lr=0.01, seed=0)
def topics_writer(
    folder: Path, *, steps: int, batch_size: int, lr: float, seed: int
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Make a model that writes in the manner of the help texts."""
    torch.manual_seed(seed)
    model = LanguageModel(WRITER)
    for p in model.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=0.05)
    run = train(
        model,
        surprise,
        help_texts()[0].unfold(0, CONTEXT + 1, 16),
        torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95)),
        Training(steps, batch_size=batch_size, seed=seed),
        lr_factor=warmup_cosine(steps, 40),
        folder=folder,
        log_every=10,
    )
    return model, run.log
