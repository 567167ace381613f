"""A small language model that has read Python's help texts, byte by byte.

Tangled from book/attention/pretrained.md.
"""

import pydoc_data.topics
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from tangled.attention.modern_block import (
    LanguageModel,
    ModernConfig,
    language_losses,
)
from tangled.foundations.training import Training, train, warmup_cosine
from tangled.workshop.artifacts import recipe

__all__ = ["CONTEXT", "WRITER", "help_texts", "topics_writer"]

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
    initial_std=0.05,
)


def help_texts() -> tuple[Int64[Tensor, "n"], Int64[Tensor, "m"]]:
    """Return the bytes of Python's help texts: to learn from, and to test."""
    told = "\n\n".join(pydoc_data.topics.topics.values()).encode()
    return torch.tensor([*told[:-20_000]]), torch.tensor([*told[-20_000:]])


@recipe(steps=900, batch_size=16, lr=0.01, seed=0)
def topics_writer(
    folder: Path, *, steps: int, batch_size: int, lr: float, seed: int
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Make a model that writes in the manner of the help texts."""
    torch.manual_seed(seed)
    model = LanguageModel(WRITER)
    run = train(
        model,
        language_losses,
        help_texts()[0].unfold(0, CONTEXT + 1, 16),
        torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95)),
        Training(steps, batch_size=batch_size, seed=seed),
        lr_factor=warmup_cosine(steps, 40),
        folder=folder,
        log_every=10,
    )
    return model, run.log
