"""A small convolutional classifier: the judge of generated pictures.

Tangled from book/foundations/training.md.
"""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.optim import AdamW

from tangled.foundations.training import Run, Training, train, warmup_cosine
from tangled.workshop.artifacts import recipe
from tangled.workshop.data import SHAPE_NAMES, Images, digits, shapes

__all__ = [
    "Classifier",
    "classification_losses",
    "digits_classifier",
    "digits_judge",
    "learn",
    "predictions",
    "shapes_classifier",
    "shapes_judge",
]


class Classifier(nn.Module):
    """A small convolutional network that says what a picture shows.

    Each of its levels halves the resolution and doubles the channels, which
    begin with `width`, a multiple of 8.
    """

    def __init__(
        self, channels: int, classes: int, width: int = 16, levels: int = 2
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        sizes = [channels, *(width * 2**level for level in range(levels))]
        for before, after in pairwise(sizes):
            for size in (before, after):  # the normalisation has the bias
                conv = nn.Conv2d(size, after, 3, padding=1, bias=False)
                layers += conv, nn.GroupNorm(8, after), nn.SiLU()
            layers.append(nn.MaxPool2d(2))
        self.body = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(sizes[-1], classes)

    def forward(self, x0: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Return the logits of pictures in [-1, 1]."""
        mean = self.body(x0).mean((2, 3))  # over the picture
        return self.head(self.dropout(mean))


def classification_losses(
    model: nn.Module,
    batch: tuple[Float[Tensor, "B C H W"], Int64[Tensor, "B"]],
    generator: torch.Generator,
) -> Float[Tensor, "B"]:
    """Return the cross-entropy of each picture, in nats; nothing is drawn."""
    x0, labels = batch
    return F.cross_entropy(model(x0), labels, reduction="none")


def learn(
    build: Callable[[], nn.Module],
    train_set: Images,
    steps: int,
    seed: int,
    device: torch.device | str = "cpu",
    micro_batches: int = 1,
    **options: Any,
) -> Run:
    """Build and train a classifier, in batches of 64, with options of `Run`.

    All follows from the seed: first weights, order and dropout.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = build().to(device)
    return train(
        model,
        classification_losses,
        train_set,
        AdamW(model.parameters(), lr=3e-3, weight_decay=0.01),
        Training(steps, micro_batches=micro_batches, seed=seed),
        lr_factor=warmup_cosine(steps, warmup=steps // 10),
        log_every=10,
        **options,
    )


@torch.no_grad()
def predictions(
    model: nn.Module, images: Images, batch_size: int = 500
) -> Int64[Tensor, "N"]:
    """Return the likeliest class of each picture, in evaluation mode."""
    device, training = next(model.parameters()).device, model.training
    model.eval()
    parts = torch.arange(len(images)).split(batch_size)
    logits = [model(images[part][0].to(device)).cpu() for part in parts]
    model.train(training)
    return torch.cat(logits).argmax(1)


def digits_classifier() -> Classifier:
    """Return an untrained classifier of scikit-learn's digits."""
    return Classifier(1, 10, width=16, levels=2)


def shapes_classifier() -> Classifier:
    """Return an untrained classifier of the coloured shapes."""
    return Classifier(3, len(SHAPE_NAMES), width=8, levels=3)


@recipe(steps=400, seed=0)
def digits_judge(
    folder: Path, *, steps: int, seed: int
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Make the judge of digits, a `digits_classifier`."""
    run = learn(digits_classifier, digits().train, steps, seed, folder=folder)
    return run.model, run.log


@recipe(steps=200, seed=0, pictures=4000)
def shapes_judge(
    folder: Path, *, steps: int, seed: int, pictures: int
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Make the judge of shapes; the first 1,000 pictures are for tests."""
    train_set = shapes(pictures, seed=0, first=1000)
    run = learn(shapes_classifier, train_set, steps, seed, folder=folder)
    return run.model, run.log
