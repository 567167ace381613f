"""Clocks that the benchmarks share: works that take turns, and ratios of their times."""

import statistics
from collections.abc import Callable
from time import perf_counter, process_time

import torch


def turns(
    works: dict[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Return seconds of each, in rounds in which they take turns.

    Seconds of the processor on a CPU, where one thread works and others may be at work as well,
    and on the clock on a GPU. A first round warms up and is not told.
    """
    clock = perf_counter if device.type == "cuda" else process_time
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            began = clock()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:
                found[name].append(clock() - began)
    return found


def ratio(over: list[float], under: list[float]) -> str:
    """Return the median of the ratios of the rounds, and half of their interquartile range."""
    each = [a / b for a, b in zip(over, under, strict=True)]
    low, middle, high = statistics.quantiles(each, n=4)
    return f"{middle:.2f} ± {(high - low) / 2:.2f}"
