"""A small convolutional classifier: the judge of generated pictures.

Tangled from book/foundations/training.md.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.optim import AdamW

from tangled.foundations.training import (
    Row,
    Run,
    Training,
    TrainingError,
    process_group,
    train,
    warmup_cosine,
)
from tangled.workshop.artifacts import recipe
from tangled.workshop.checkpoint import CheckpointError
from tangled.workshop.data import SHAPE_NAMES, Images, digits, shapes
from tangled.workshop.statistics import wilson_interval

__all__ = [
    "Classifier",
    "classification_losses",
    "command",
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
        sizes = [channels, *(width * 2**level for level in range(levels))]
        self.body = nn.Sequential(
            *(_level(before, after) for before, after in pairwise(sizes))
        )
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(sizes[-1], classes)

    def features(
        self, x0: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B features"]:
        """Return what the classifier sees in pictures, before it decides."""
        return self.body(x0).mean((2, 3))

    def forward(
        self, x0: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B classes"]:
        """Return the logits of pictures in [-1, 1]."""
        return self.head(self.dropout(self.features(x0)))


def _level(before: int, after: int) -> nn.Sequential:
    """Return two convolutions and a pooling that halves height and width."""
    layers: list[nn.Module] = []
    for channels in (before, after):  # the normalisation has its own bias
        layers.append(nn.Conv2d(channels, after, 3, padding=1, bias=False))
        layers += nn.GroupNorm(8, after), nn.SiLU()
    return nn.Sequential(*layers, nn.MaxPool2d(2))


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
    folder: Path | None = None,
    save_every: int | None = None,
    micro_batches: int = 1,
    device: torch.device | str = "cpu",
) -> Run:
    """Build and train a classifier, in batches of 64; see `train`.

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
        folder=folder,
        save_every=save_every,
        log_every=10,
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
) -> tuple[nn.Module, list[Row]]:
    """Make the judge of digits, a `digits_classifier`."""
    train_set = digits().train
    run = learn(digits_classifier, train_set, steps, seed, folder, 100)
    return run.model, run.log


@recipe(steps=200, seed=0, pictures=4000)
def shapes_judge(
    folder: Path, *, steps: int, seed: int, pictures: int
) -> tuple[nn.Module, list[Row]]:
    """Make the judge of shapes; the first 1,000 pictures are for tests."""
    train_set = shapes(pictures, seed=0, first=1000)
    run = learn(shapes_classifier, train_set, steps, seed, folder, 50)
    return run.model, run.log


def command(arguments: Sequence[str] | None = None) -> int:
    """Train a classifier and test it; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tangled.foundations.classifier",
        description="Train a classifier; go on if it was stopped before.",
    )
    parser.add_argument("folder", type=Path, help="of checkpoints and log")
    sets = ("digits", "shapes")
    parser.add_argument("--data", choices=sets, default="digits")
    numbers = {"steps": 400, "seed": 0, "save-every": 50, "micro-batches": 1}
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = vars(parser.parse_args(arguments))
    if options.pop("data") == "digits":
        build, (train_set, _, test_set) = digits_classifier, digits()
    else:
        build, train_set = shapes_classifier, shapes(4000, 0, first=1000)
        test_set = shapes(1000, 0)
    try:
        with process_group() as device:
            run = learn(build, train_set, device=device, **options)
            answers = predictions(run.model, test_set)
    except KeyboardInterrupt as stop:
        print(str(stop) or "interrupted", file=sys.stderr)
        return 130
    except (TrainingError, CheckpointError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    if run.rank == 0:
        correct = int((answers == test_set.labels).sum())
        low, high = wilson_interval(correct, len(test_set))
        print(
            f"{run.step} steps: {correct} of {len(test_set)} right "
            f"(95% interval {low:.1%} to {high:.1%})"
        )
    return 0


if __name__ == "__main__":
    # Under its own name, so that there is one class of each kind.
    sys.exit(
        importlib.import_module("tangled.foundations.classifier").command()
    )
