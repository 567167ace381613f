"""Train the judge's network on the real MNIST, which the project does not bring along.

    python benchmarks/mnist.py FOLDER [--device cuda]

FOLDER holds the four files of MNIST, unpacked, with their original names. Told are the accuracy on
the test pictures over five seeds and, to show that the files were read rightly, the mean and the
standard deviation of the pixels. The table is written to `benchmarks/results.md`.
"""

import argparse
import platform
import statistics
import struct
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
from tangled.workshop.data import Images, stratified_split  # noqa: E402
from tangled.workshop.statistics import wilson_interval  # noqa: E402

STEPS, SEEDS = 1500, 5


def network() -> Classifier:
    """Return the network, one level deeper than for 8 by 8 pixels."""
    return Classifier(1, 10, levels=3)


def read(folder: Path, part: str) -> Images:
    """Return one of the two parts of the set."""
    held = []
    for kind, dims in (("images-idx3", 3), ("labels-idx1", 1)):
        data = (folder / f"{part}-{kind}-ubyte").read_bytes()
        sizes = struct.unpack_from(f">{dims}I", data, 4)
        values = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        held.append(values[4 + 4 * dims :].reshape(sizes))
    return Images(held[0][:, None], held[1].long(), tuple("0123456789"))


def main() -> None:
    """Train over all seeds and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    try:
        whole, test_set = (read(options.folder, p) for p in ("train", "t10k"))
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    _, at_train = stratified_split(whole.labels, (len(whole) // 10,), 0)
    train_set = whole.take(at_train)
    device = torch.device(options.device)
    pixels = whole.pixels.double() / 255
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
