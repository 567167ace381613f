"""What the functions of this part ask of their arguments, in one place.

Tangled from book/diffusion/forward.md.
"""

import operator
from typing import SupportsIndex

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

__all__ = ["check_alike", "check_beta", "check_order", "check_steps"]


def check_alike(**tensors: Tensor) -> None:
    """Raise unless the tensors are floating, of one shape, dtype and device."""
    (first, model), *others = tensors.items()
    if not model.is_floating_point():
        raise TypeError(
            f"{first} must be a floating tensor, got {model.dtype}"
        )
    for name, tensor in others:
        for aspect in ("shape", "dtype", "device"):
            got, wanted = getattr(tensor, aspect), getattr(model, aspect)
            if got != wanted:
                raise ValueError(
                    f"{name} must have the {aspect} of {first}, "
                    f"got {got} and {wanted}"
                )


def check_steps(t: Int64[Tensor, "B"], like: Tensor) -> None:
    """Raise unless t has one int64 step for each sample of the batch `like`.

    The steps are not read: a GPU would have to wait for that.
    """
    kind = getattr(t, "dtype", type(t).__name__)
    if kind != torch.int64:
        raise TypeError(f"t must be an int64 tensor, got {kind}")
    if t.shape != like.shape[:1] or t.device != like.device:
        raise ValueError(
            f"t must have shape {list(like.shape[:1])} on {like.device}, "
            f"one step for each sample, got {list(t.shape)} on {t.device}"
        )


def check_order(
    lowest: int, highest: int | None = None, **steps: SupportsIndex
) -> None:
    """Raise unless lowest <= first <= ... <= last <= highest, all whole."""
    got = ", ".join(f"{name} = {step!r}" for name, step in steps.items())
    try:
        whole = [operator.index(step) for step in steps.values()]
    except TypeError:
        whole = []
    # True is 1 to Python, but as an index of a tensor it is a mask.
    if not whole or any(isinstance(step, bool) for step in steps.values()):
        raise TypeError(f"steps must be whole numbers, got {got}")
    above = [] if highest is None else [highest]
    values = [lowest, *whole, *above]
    if values != sorted(values):
        wanted = " <= ".join(map(str, [lowest, *steps, *above]))
        raise ValueError(f"steps must satisfy {wanted}, got {got}")


def check_beta(beta: Float64[Tensor, "T_plus_1"]) -> None:
    """Raise unless beta is a table of step variances, with 0 for the data.

    The last of them may be 1: then nothing of the data is left.
    """
    kind = getattr(beta, "dtype", type(beta).__name__)
    if kind != torch.float64 or beta.ndim != 1 or len(beta) < 2:
        raise TypeError(
            "beta must be a float64 table with an entry for the data and one "
            f"or more steps, got {kind} {list(getattr(beta, 'shape', []))}"
        )
    power = (1 - beta).cumprod(0)
    snr = power / (1 - power)
    left = snr[1:] > 0  # false for NaN
    left[-1] |= beta[-1] == 1
    wrong = ~torch.cat([beta[:1] == 0, (snr.diff() < 0) & left])
    if wrong.any():
        t = int(wrong.nonzero()[0])
        raise ValueError(
            "beta must be 0 at t = 0 and then let the SNR fall strictly and "
            "stay above 0 in float64, unless the last beta is 1, but at "
            f"t = {t} beta is {beta[t].item()} and the SNR {snr[t].item()}"
        )
