"""The figures' numbers by the package: for each family, its readouts in a state."""

import base64
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from tangled.attention.scaled_dot_product import attention_weights, entropy
from tangled.diffusion.schedule import schedule_named

Readouts = dict[str, float]


def entry(t: int, *, schedule: str, T: int, table: str) -> float:
    return getattr(schedule_named(schedule, T), table)[t].item()


# What a `function-plot` draws: the script's functions, by the package.
FUNCTIONS: dict[str, Callable[..., float]] = {
    "diffusion.schedule.entry": entry,
}


def function_plot(
    props: Mapping[str, Any], state: Mapping[str, Any]
) -> Readouts:
    sliders = {s["key"]: state[s["key"]] for s in props.get("sliders", ())}
    return {
        f"{curve['key']}:{column['key']}": FUNCTIONS[column["function"]](
            state[props["x"]["key"]],
            **sliders,
            **column.get("args", {}),
            **curve.get("args", {}),
        )
        for curve in props["curves"]
        if state[curve["key"]]
        for column in props["columns"]
    }


def frame_strip(
    props: Mapping[str, Any], state: Mapping[str, Any]
) -> Readouts:
    schedule = schedule_named(state["schedule"], props["forward"]["T"])
    names = ("signal", "noise_std", "snr")
    return {
        name: getattr(schedule, name)[state["t"]].item() for name in names
    }


def matrix_view(
    props: Mapping[str, Any], state: Mapping[str, Any]
) -> Readouts:
    width, mask = state["width"], dict((m[0], m[2]) for m in props["masks"])
    q, k = (
        torch.from_numpy(array(props[name])).double()[None, None, :, :width]
        for name in "qk"
    )
    chosen = mask[state["mask"]]
    n, last = q.shape[2], chosen.get("last", q.shape[2])
    seen = torch.arange(k.shape[2]) < chosen.get("length", k.shape[2])
    weights = attention_weights(
        q[:, :, n - last :],
        k,
        seen,
        chosen.get("causal", False),
        window=chosen.get("window"),
        scale=None if state["scaled"] else 1.0,
    )
    p = weights[0, 0, max(state["row"] - (n - last), 0)]
    h = entropy(p).item()
    return {
        "keys": (p > 0).sum().item(),
        "largest": p.max().item(),
        "entropy": h,
        "read": math.exp(h),
    }


REFERENCES: dict[str, Callable[..., Readouts]] = {
    "function-plot": function_plot,
    "frame-strip": frame_strip,
    "matrix-view": matrix_view,
}


def array(packed: Mapping[str, Any]) -> np.ndarray:
    """An array as the page gets it."""
    data = base64.b64decode(packed["$array"])
    values = np.frombuffer(data, f"<{packed['dtype']}").reshape(
        packed["shape"]
    )
    if "step" in packed:
        return packed["lowest"] + packed["step"] * values.astype(np.float64)
    return values.copy()


def compare(found: Mapping[str, Any], wanted: Readouts) -> None:
    """Raise unless the figure reads what the package computes."""
    assert found.keys() == wanted.keys()
    for key, number in wanted.items():
        off = abs(found[key] - number)
        close = off <= 1e-9 * max(1.0, abs(number))
        assert close or found[key] == number, f"{key} is {found[key]!r}"
