"""Time attention: the equation, tiles, and the library's fused function.

    python benchmarks/attention.py [--device cuda]

One sequence with eight heads of width 64, all of it at once, with and without a causal mask. The
ways take turns, on one thread of the CPU; told is the median over the rounds of the ratio of
their times. The peak is that of a product of two square matrices in the same run, and the work is
the 4 n^2 d operations of a head, half of it if the mask is causal. The table is written to
`benchmarks/results.md`.
"""

import argparse
import platform
import statistics
import sys
from pathlib import Path

import torch
from results import record
from turns import ratio, turns

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(
    0, str(ROOT)
)  # the package beside this file, installed or not

from tangled.attention.scaled_dot_product import (  # noqa: E402
    attention,
    tiled_attention,
)

HEADS, WIDTH, SIDE = 8, 64, 2048


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description="Time attention.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[1024, 4096]
    )
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    square = torch.randn(SIDE, SIDE, device=device)
    rows = []
    with torch.inference_mode():
        for n in options.lengths:
            for causal in (False, True):
                q, k, v = torch.randn(3, 1, HEADS, n, WIDTH, device=device)
                found = turns(
                    {
                        "peak": lambda: square @ square,
                        "equation": lambda q=q, k=k, v=v, c=causal: attention(
                            q, k, v, causal=c, fast=False
                        ),
                        "tiles": lambda q=q, k=k, v=v, c=causal: (
                            tiled_attention(q, k, v, causal=c)
                        ),
                        "library": lambda q=q, k=k, v=v, c=causal: attention(
                            q, k, v, causal=c
                        ),
                    },
                    options.rounds,
                    device,
                )
                work = 4 * HEADS * n**2 * WIDTH / (2 if causal else 1)
                share = {
                    name: statistics.median(
                        work / 2 / SIDE**3 * peak / each
                        for peak, each in zip(
                            found["peak"], found[name], strict=True
                        )
                    )
                    for name in ("equation", "tiles", "library")
                }
                rows.append(
                    f"| {n}, {'causal' if causal else 'full'} "
                    f"| {1000 * statistics.median(found['library']):.1f} "
                    f"| {ratio(found['equation'], found['library'])} "
                    f"| {ratio(found['tiles'], found['library'])} "
                    f"| {ratio(found['equation'], found['tiles'])} | "
                    + " | ".join(f"{part:.0%}" for part in share.values())
                    + " |"
                )
    name = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else "one thread of the CPU"
    )
    kind = "GPU" if device.type == "cuda" else "CPU"
    record(
        f"# Attention ({kind})\n\n"
        f"One sequence, {HEADS} heads of width {WIDTH}, float32, {name}, torch "
        f"{torch.__version__}, Python {platform.python_version()}.\nMilliseconds of the library"
        f"{'' if device.type == 'cuda' else ' on the processor'}, ratios of times, and the "
        "share of the peak of a product of two\nsquare matrices, for the "
        f"work that the mask leaves. Medians of {options.rounds} rounds in which\nall took turns, "
        "± half of the interquartile range. By `python benchmarks/attention.py`.\n\n"
        "| places | library, ms | equation / library | tiles / library | equation / tiles | "
        "peak: equation | tiles | library |\n"
        "| --- | --: | --: | --: | --: | --: | --: | --: |\n"
        + "\n".join(rows)
        + "\n"
    )


if __name__ == "__main__":
    main()
