"""Time `tangled.diffusion.forward.diffuse` beside its bare formula.

    python benchmarks/diffuse.py [--device cuda]

The bare formula is `a[t] * x0 + s[t] * eps`, with tables of the data's dtype on its device, shaped
to broadcast. Both take turns, in rounds of some hundred calls each, on one thread; told is the
median over the rounds of the ratio of their times. The table is written to `benchmarks/results.md`.
"""

import argparse
import statistics
import sys
from functools import partial
from pathlib import Path
from timeit import timeit

import torch
from results import record

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(
    0, str(ROOT)
)  # the package beside this file, installed or not

from tangled.diffusion.forward import diffuse  # noqa: E402
from tangled.diffusion.schedule import Schedule  # noqa: E402

SHAPES = [(16, 3, 32, 32), (64, 1, 28, 28), (8, 4, 64, 64), (256, 3, 64, 64)]
CALLS = 200


def ratios(
    shape: tuple[int, ...], device: torch.device, rounds: int
) -> tuple[float, list[float]]:
    """Return microseconds of the bare formula and, per round, ours / bare."""
    schedule = Schedule.linear(1000).to(device)
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, *shape, generator=generator).to(device)
    t = torch.randint(1, 1001, shape[:1], generator=generator).to(device)
    ones = [1] * (len(shape) - 1)
    a = schedule.signal.float().reshape(-1, *ones)
    s = schedule.noise_std.float().reshape(-1, *ones)

    def bare() -> torch.Tensor:
        return a[t] * x0 + s[t] * eps

    def finished(call) -> None:
        for _ in range(CALLS):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    ours = partial(diffuse, x0, t, eps, schedule)
    times, found = [], []
    for number in range(rounds + 1):  # the first round warms up
        pair = (bare, ours) if number % 2 else (ours, bare)
        took = {
            call: timeit(partial(finished, call), number=1) for call in pair
        }
        times.append(1e6 * took[bare] / CALLS)
        found.append(took[ours] / took[bare])
    return statistics.median(times[1:]), found[1:]


def main() -> None:
    """Measure all shapes and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=31)
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(1)
    rows = []
    for shape in SHAPES:
        bare, found = ratios(shape, device, options.rounds)
        low, middle, high = statistics.quantiles(found, n=4)
        rows.append(
            f"| {list(shape)} | {bare:.0f} "
            f"| {middle:.2f} ± {(high - low) / 2:.2f} |\n"
        )
    where, kind = "one thread of the CPU", "CPU"
    if device.type == "cuda":
        where, kind = torch.cuda.get_device_name(), "GPU"
    record(f"""# The jump to a noisy picture ({kind})

float32, {where}, torch {torch.__version__}. Microseconds of the bare formula
`a[t] * x0 + s[t] * eps`; then the time of `diffuse` over it: median over {options.rounds} rounds in
which the two took turns, ± half of the interquartile range. By `python benchmarks/diffuse.py`.

| shape | bare, µs | ours / bare |
| --- | --: | --: |
{"".join(rows)}""")


if __name__ == "__main__":
    main()
