"""Time a training step of `tangled.foundations.training` beside the bare loop.

    python benchmarks/training.py [--device cuda]

The bare loop is what one writes without a library: draw a batch, compute the mean loss, `backward`,
clip, step, and look at the loss. Both loops take turns, in rounds of some steps each, on the same
model and the same data, on one thread; told is the median over the rounds of the ratio of their
times: of the processor, so that neighbours count little, or on a GPU by the clock. The ratio of
bfloat16 to float32 is measured in the same way, with our loop on both sides. The table is written
to `benchmarks/results.md`.
"""

import argparse
import gc
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from results import record
from torch import Tensor, nn
from torch.optim import AdamW
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(
    0, str(ROOT)
)  # the package beside this file, installed or not

from tangled.foundations.classifier import (  # noqa: E402
    Classifier,
    classification_losses,
)
from tangled.foundations.training import Training, train  # noqa: E402


class Pictures:
    """Random pictures of a size, in ten classes, on a device."""

    def __init__(
        self, size: int, channels: int, device: torch.device
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        x0 = torch.rand(1024, channels, size, size, generator=generator)
        self.x0 = (2 * x0 - 1).to(device)
        self.labels = torch.arange(1024, device=device) % 10

    def __len__(self) -> int:
        return 1024

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.x0[indices], self.labels[indices]


def bare(model: nn.Module, data: Pictures, steps: int) -> None:
    """Train in the plainest way."""
    model.train()
    optimizer = AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        x0, labels = data[torch.randint(len(data), (64,))]
        loss = F.cross_entropy(model(x0), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()


def ours(
    model: nn.Module, data: Pictures, steps: int, precision: str = "float32"
) -> None:
    """Train with `train`."""
    optimizer = AdamW(model.parameters(), lr=1e-3)
    config = Training(steps, batch_size=64, precision=precision)
    train(model, classification_losses, data, optimizer, config)


def seconds(loop: Callable[[], None], device: torch.device) -> float:
    """Return how long a loop takes."""
    clock = time.perf_counter
    if device.type == "cpu":
        clock = time.process_time
    gc.collect()
    began = clock()
    loop()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - began


def ratio(
    one: Callable[[], None],
    other: Callable[[], None],
    rounds: int,
    device: torch.device,
) -> tuple[float, float, float]:
    """Return the seconds of `one`, and the median and the spread of other / one."""
    ratios, times = [], []
    for number in range(rounds + 1):  # the first round warms up
        pair = (one, other) if number % 2 else (other, one)
        took = {loop: seconds(loop, device) for loop in pair}
        times.append(took[one])
        ratios.append(took[other] / took[one])
    low, middle, high = statistics.quantiles(ratios[1:], n=4)
    return statistics.median(times[1:]), middle, (high - low) / 2


def main() -> None:
    """Measure all sizes and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=31)
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(1)
    rows = []
    sizes = {
        "digits, 8 x 8": (8, 1, 16, 2, 40),
        "shapes, 32 x 32": (32, 3, 8, 3, 10),
        "wide, 32 x 32": (32, 3, 32, 3, 3),
    }
    if device.type == "cuda":
        # Steps are short there: more of them, and a model that is work for it.
        sizes = {name: (*size[:-1], 100) for name, size in sizes.items()}
        sizes["very wide, 32 x 32"] = (32, 3, 256, 3, 100)
    for name, (size, channels, width, levels, steps) in tqdm(
        sizes.items(), disable=None
    ):
        data = Pictures(size, channels, device)
        model = Classifier(channels, 10, width, levels).to(device)
        count = sum(p.numel() for p in model.parameters())
        plain = partial(bare, model, data, steps)
        full = partial(ours, model, data, steps)
        low = partial(ours, model, data, steps, "bfloat16")
        took, over, over_spread = ratio(plain, full, options.rounds, device)
        _, less, less_spread = ratio(full, low, options.rounds, device)
        rows.append(
            f"| {name}, {count:,} parameters | {1e3 * took / steps:.2f} "
            f"| {over:.3f} ± {over_spread:.3f} "
            f"| {less:.2f} ± {less_spread:.2f} |\n"
        )
    where = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else "one thread of the CPU"
    )
    kind = "GPU" if device.type == "cuda" else "CPU"
    spent = "" if device.type == "cuda" else " of the processor"
    record(f"""# A training step ({kind})

Batches of 64, AdamW, clipping; {where}, torch {torch.__version__}, Python
{platform.python_version()}. Milliseconds{spent} of a step of the bare loop; then the time
of ours over that of the bare loop; then the time in bfloat16 over that in float32, both
ours. Median over {options.rounds} rounds in which the two took turns, ± half of the
interquartile range. By `python benchmarks/training.py`.

| model | bare, ms | ours / bare | bfloat16 / float32 |
| --- | --: | --: | --: |
{"".join(rows)}""")


if __name__ == "__main__":
    main()
