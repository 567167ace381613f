"""The figures' numbers by the package: for each family, its readouts in a state."""

import base64
import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from tangled.attention.scaled_dot_product import attention_weights, entropy
from tangled.diffusion.ddim import ddim_mean, ddim_sigma
from tangled.diffusion.elbo import posterior
from tangled.diffusion.forward import diffuse, transition
from tangled.diffusion.schedule import Schedule, schedule_named, step_list

Readouts = dict[str, float]


def entry(t: int, *, schedule: str, T: int, table: str) -> float:
    return getattr(schedule_named(schedule, T), table)[t].item()


def bound_term(t: int, *, terms: Mapping[str, Any]) -> float:
    return array(terms)[t]


def bound_from(t: int, *, terms: Mapping[str, Any]) -> float:
    return array(terms)[t:].sum()


def bound_share(t: int, *, terms: Mapping[str, Any]) -> float:
    return array(terms)[t] / array(terms).sum()


# What a `function-plot` draws: the script's functions, by the package.
FUNCTIONS: dict[str, Callable[..., float]] = {
    "diffusion.elbo.bound_from": bound_from,
    "diffusion.elbo.bound_share": bound_share,
    "diffusion.elbo.bound_term": bound_term,
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
    width, mask = state["width"], {m[0]: m[2] for m in props["masks"]}
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


def ddim_path(props: Mapping[str, Any], state: Mapping[str, Any]) -> Readouts:
    schedule = schedule_named(props["schedule"], props["T"])
    n = state["steps"]
    levels = [*step_list(schedule.T, n, state["spacing"]), 0]

    def deviation(eta: float) -> float:
        variance, one = torch.ones(1).double(), torch.ones(1).double()
        for t, s in pairwise(levels):
            sigma = ddim_sigma(schedule, t, s, eta)
            guess = schedule.signal[t] * one
            mean = ddim_mean(guess, one, t, s, schedule, sigma)
            variance = mean**2 * variance + sigma**2
        return variance.sqrt().item()

    chosen, angles = deviation(float(state["eta"])), schedule.phi[levels]
    quiet = (angles[:-1] - angles[1:]).cos().prod().item()
    return {
        "deviation": chosen,
        "cosines": quiet,
        "equal": math.cos(math.pi / 2 / n) ** n,
        "ratio": (1 - chosen**2) / (1 - quiet**2),
    }


def posterior_bells(
    props: Mapping[str, Any], state: Mapping[str, Any]
) -> Readouts:
    schedule = Schedule.from_betas(torch.from_numpy(array(props["beta"])))
    t = state["t"]
    x0, xt = torch.tensor([[state["x0"]], [state["xt"]]], dtype=torch.float64)
    scale, variance = transition(schedule, t - 1, t)
    bells = {
        "data": (schedule.signal[t - 1] * x0, 1 - schedule.alpha_bar[t - 1]),
        "noisy": (xt / scale, variance / scale**2),
        "both": posterior(x0, xt, torch.tensor([t]), schedule),
    }
    return {
        f"{key}:{name}": number.item()
        for key, (mean, variance) in bells.items()
        for name, number in (
            ("mean", mean),
            ("variance", variance),
            ("precision", 1 / variance),
        )
    }


def parts_sum(props: Mapping[str, Any], state: Mapping[str, Any]) -> Readouts:
    schedule = schedule_named(state["schedule"], props["T"])
    x0, eps = (
        torch.from_numpy(array(props[name])).double()
        for name in ("x0", "eps")
    )
    x0, eps = (x / x.norm() for x in (x0, eps))
    t = torch.tensor([state["t"]])
    signal, noise = schedule.signal[t] * x0, schedule.noise_std[t] * eps
    parts = {
        "signal": signal.norm().item(),
        "noise": noise.norm().item(),
        "whole": diffuse(x0[None], t, eps[None], schedule).norm().item(),
    }
    return parts | {"squares": parts["signal"] ** 2 + parts["noise"] ** 2}


REFERENCES: dict[str, Callable[..., Readouts]] = {
    "ddim-path": ddim_path,
    "function-plot": function_plot,
    "frame-strip": frame_strip,
    "matrix-view": matrix_view,
    "parts-sum": parts_sum,
    "posterior-bells": posterior_bells,
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
