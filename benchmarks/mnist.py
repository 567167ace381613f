"""Train the judge's network on the real MNIST, which the project does not bring along.

    python benchmarks/mnist.py FOLDER [--device cuda]

FOLDER holds the four files of MNIST, with their original names. Told are the accuracy on the test
pictures over five seeds and, to show that the files were read rightly, the mean and the standard
deviation of the pixels. The table is written to `benchmarks/results.md`.
"""

import argparse
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
from results import record
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(
    0, str(ROOT)
)  # the package beside this file, installed or not

from tangled.foundations.classifier import (  # noqa: E402
    Classifier,
    learn,
    predictions,
)
from tangled.workshop.data import DataError, mnist  # noqa: E402
from tangled.workshop.statistics import wilson_interval  # noqa: E402

STEPS, SEEDS = 1500, 5


def network() -> Classifier:
    """Return the network, one level deeper than for 8 by 8 pixels."""
    return Classifier(1, 10, levels=3)


def main() -> None:
    """Train over all seeds and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    try:
        train_set, validation, test_set = mnist(options.folder)
    except DataError as error:
        sys.exit(str(error))
    device = torch.device(options.device)
    pixels = torch.cat([train_set.pixels, validation.pixels]).double() / 255
    parameters = sum(p.numel() for p in network().parameters())
    correct, took = [], []
    for seed in tqdm(range(SEEDS), disable=None):
        began = time.perf_counter()
        run = learn(network, train_set, STEPS, seed, device=device)
        took.append(time.perf_counter() - began)
        answers = predictions(run.model.eval(), test_set)
        correct.append(int((answers == test_set.labels).sum()))
    shares = [100 * right / len(test_set) for right in correct]
    spread = statistics.stdev(shares)
    low, high = wilson_interval(correct[0], len(test_set))
    where = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{torch.get_num_threads()} threads of the CPU"
    )
    record(f"""# The judge's network on MNIST

{STEPS:,} batches of 64 from {len(train_set):,} pictures, three levels, {parameters:,} parameters;
tested on the {len(test_set):,} test pictures, in percent right, over {SEEDS} seeds. The interval is
Wilson's, of the first. {where}, torch {torch.__version__}, Python {platform.python_version()}. The
{len(pixels):,} training pictures have pixels of mean {pixels.mean():.4f} and standard deviation
{pixels.std():.4f} in [0, 1]. By `python benchmarks/mnist.py FOLDER`.

| mean | least | most | standard deviation | interval | seconds to train |
| --: | --: | --: | --: | --: | --: |
| {statistics.mean(shares):.2f} | {min(shares):.2f} | {max(shares):.2f} | {spread:.2f} \
| {100 * low:.2f} to {100 * high:.2f} | {statistics.median(took):.0f} |
""")


if __name__ == "__main__":
    main()
