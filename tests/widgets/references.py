"""The figures' numbers by the package: for each family, its readouts in a state."""

import base64
import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from tangled.attention import recurrence
from tangled.attention.multi_head import (
    MultiHeadAttention,
    induction_score,
    previous_score,
)
from tangled.attention.positions import sinusoidal
from tangled.attention.scaled_dot_product import (
    attention,
    attention_scores,
    attention_weights,
    entropy,
    visible,
)
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


def gradient_norm(
    layer: int, *, norms: Mapping[str, Any], kind: int, depth: int
) -> float:
    if layer > depth:
        return math.inf
    return array(norms[str(depth)])[kind, layer - 1].item()


# What a `function-plot` draws: the script's functions, by the package.
FUNCTIONS: dict[str, Callable[..., float]] = {
    "diffusion.elbo.bound_from": bound_from,
    "diffusion.elbo.bound_share": bound_share,
    "diffusion.elbo.bound_term": bound_term,
    "diffusion.schedule.entry": entry,
    "attention.transformer.gradient_norm": gradient_norm,
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


def frame_grid(
    props: Mapping[str, Any], state: Mapping[str, Any]
) -> Readouts:
    """What the cell recorded of this moment."""
    view = {key: view for key, _, view in props["views"]}[state["view"]]
    return {
        number["key"]: number["values"][state["moment"]]
        for number in view.get("numbers", ())
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


def soft_lookup(
    props: Mapping[str, Any], state: Mapping[str, Any]
) -> Readouts:
    keys, values = (
        torch.tensor(props[name], dtype=torch.float64)
        for name in ("keys", "values")
    )
    query = torch.tensor([[state["x"], state["y"]]], dtype=torch.float64)
    scores, tau = query @ keys.T, float(state["temperature"])
    weights = recurrence.lookup_weights(scores, tau)[0]
    answer = recurrence.soft_lookup(scores, values, tau)
    named = {f"weight:{j}": p.item() for j, p in enumerate(weights)}
    return {**named, "sum": 1.0, "answer": answer.item()}


LETTERS = "\u2423abcdefghijklmnopqrstuvwxyz"


def text_reader(
    props: Mapping[str, Any], state: Mapping[str, Any]
) -> Readouts:
    model, heads = props["model"], props["heads"]
    wide = {
        name: torch.from_numpy(array(model[name])).double()
        for name in ("letters", "places", "out", "bias")
    }
    signs = (state["text"] or " ")[: len(wide["places"])]
    tokens = torch.tensor([[max(LETTERS.find(s.lower()), 0) for s in signs]])
    n, causal = tokens.shape[1], state["causal"]
    x, maps = wide["letters"][tokens] + wide["places"][:n], []
    for weights in model["layers"]:
        layer = MultiHeadAttention(x.shape[2], heads, bias=False).double()
        state_dict = {
            f"{name}.weight": torch.from_numpy(array(matrix)).double()
            for name, matrix in weights.items()
        }
        layer.load_state_dict(state_dict)
        with torch.no_grad():
            maps += layer.weights(x, causal=causal)[0]
            x = x + layer(x, causal=causal)
    number, head = (int(part) - 1 for part in state["head"].split("."))
    shown = maps[number * heads + head][None, None]
    at = min(state["row"], n) - 1
    guesses = (x[0] @ wide["out"].T + wide["bias"]).softmax(-1)
    read = {
        "previous": previous_score(shown).item(),
        "induction": induction_score(shown, tokens).item(),
        "later": shown.triu(1).sum(-1).mean().item(),
        "read": entropy(shown[0, 0, at]).exp().item(),
        "guess": guesses[at].max().item(),
    }
    return {key: value for key, value in read.items() if value == value}


def projections(
    props: Mapping[str, Any], state: Mapping[str, Any]
) -> Readouts:
    x = torch.tensor(props["x"], dtype=torch.float64)
    q, k = (
        turned(x, math.radians(state[name])) for name in ("queries", "keys")
    )
    weights = attention_weights(q[None, None], k[None, None])[0, 0]
    read = weights[state["word"]].tolist()
    return {f"weight:{j}": weight for j, weight in enumerate(read)}


def turned(x: torch.Tensor, angle: float) -> torch.Tensor:
    """Turn the rows of x to the left."""
    across = x @ x.new_tensor([math.cos(angle), -math.sin(angle)])
    up = x @ x.new_tensor([math.sin(angle), math.cos(angle)])
    return torch.stack([across, up], 1)


def attention_steps(
    props: Mapping[str, Any], state: Mapping[str, Any]
) -> Readouts:
    q, k, v = (
        torch.tensor(props[name], dtype=torch.float64)[None, None]
        for name in "qkv"
    )
    causal, scores = state["causal"], attention_scores(q, k)
    seen = visible(q.shape[2], k.shape[2], causal=causal)
    matrices = {
        "q": q,
        "k": k.mT,
        "product": attention_scores(q, k, scale=1.0),
        "root": scores,
        "mask": scores.masked_fill(~seen, -math.inf),
        "softmax": attention_weights(q, k, causal=causal),
        "v": v,
        "output": attention(q, k, v, causal=causal),
    }
    rows = matrices[state["part"]][0, 0].tolist()
    return {
        f"{i}:{j}": value
        for i, row in enumerate(rows)
        for j, value in enumerate(row)
    }


def block_diagram(
    props: Mapping[str, Any], state: Mapping[str, Any]
) -> Readouts:
    """What the cell recorded of this block."""
    blocks = {block["key"]: block for block in props["blocks"]}
    return dict(blocks[state["block"]].get("numbers", ()))


def clock_rows(
    props: Mapping[str, Any], state: Mapping[str, Any]
) -> Readouts:
    places = state["place"] + torch.tensor([0, 1, 2, 6, 20])
    row, *others = sinusoidal(places, state["width"])
    return {
        f"offset{offset}": (row @ other / row.square().sum()).item()
        for offset, other in zip((1, 2, 6, 20), others, strict=True)
    }


REFERENCES: dict[str, Callable[..., Readouts]] = {
    "ddim-path": ddim_path,
    "function-plot": function_plot,
    "frame-strip": frame_strip,
    "matrix-view": matrix_view,
    "frame-grid": frame_grid,
    "parts-sum": parts_sum,
    "posterior-bells": posterior_bells,
    "attention-steps": attention_steps,
    "projections": projections,
    "soft-lookup": soft_lookup,
    "text-reader": text_reader,
    "block-diagram": block_diagram,
    "clock-rows": clock_rows,
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
