"""One small figure of each family, as a chapter would make it."""

import numpy as np

from loom.figures import Figure, Quantised, widget

WORDS = {
    "alt": "what is seen",
    "question": "What is asked?",
    "origin": "All of it is computed live.",
}
T = {"key": "t", "label": "step t", "min": 0, "max": 200, "step": 1}


def function_plot(**changes: object) -> Figure:
    tables = (
        "alpha_bar",
        "signal",
        "noise_std",
        "rho",
        "half_log_snr",
        "phi",
    )
    return widget(
        "function-plot",
        **{
            "x": T,
            "panels": [
                {
                    "function": "diffusion.schedule.entry",
                    "args": {"table": "half_log_snr"},
                    "label": "half log-SNR",
                    "y": [-8, 8],
                }
            ],
            "curves": [
                {
                    "key": name,
                    "label": name,
                    "colour": "blue",
                    "args": {"schedule": name, "T": 200},
                }
                for name in ("linear", "scaled_linear", "cosine", "sigmoid")
            ],
            "columns": [
                {
                    "key": table,
                    "label": table,
                    "function": "diffusion.schedule.entry",
                    "args": {"table": table},
                }
                for table in tables
            ],
            "stills": [("", {"t": 100})],
            **WORDS,
            **changes,
        },
    )


def frame_strip(**changes: object) -> Figure:
    draw = np.random.default_rng(0)
    return widget(
        "frame-strip",
        **{
            "t": {"label": "step t", "min": 0, "max": 200, "step": 1},
            "moments": [0, 50, 100, 200],
            "forward": {
                "x0": Quantised(draw.uniform(-1, 1, (3, 8, 8)), -1, 1),
                "eps": Quantised(draw.normal(size=(3, 8, 8)), -6, 6, bits=16),
                "T": 200,
                "schedules": [("linear", "linear"), ("cosine", "cosine")],
                "lowest": -1.5,
                "highest": 1.5,
            },
            "stills": [("", {"t": 100})],
            **WORDS,
            **changes,
        },
    )


def matrix_view(**changes: object) -> Figure:
    draw = np.random.default_rng(0)
    return widget(
        "matrix-view",
        **{
            "q": draw.normal(size=(5, 64)),
            "k": draw.normal(size=(5, 64)),
            "widths": [2, 16, 64],
            "masks": [
                ("none", "none", {}),
                ("causal", "causal", {"causal": True}),
                ("last", "last two", {"causal": True, "last": 2}),
                ("window", "window", {"causal": True, "window": 2}),
                ("padding", "padding", {"length": 3}),
            ],
            "stills": [("none", {"row": 4}), ("causal", {"mask": "causal"})],
            **WORDS,
            **changes,
        },
    )


def ddim_path(**changes: object) -> Figure:
    return widget(
        "ddim-path",
        **{
            "T": 200,
            "schedule": "linear",
            "counts": {"label": "steps", "min": 1, "max": 40},
            "spacings": [("trailing", "trailing"), ("linspace", "linspace")],
            "stills": [("", {"eta": 1, "steps": 10})],
            **WORDS,
            **changes,
        },
    )


def parts_sum(**changes: object) -> Figure:
    draw = np.random.default_rng(0)
    return widget(
        "parts-sum",
        **{
            "x0": Quantised(draw.uniform(-1, 1, (3, 8, 8)), -1, 1),
            "eps": Quantised(draw.normal(size=(3, 8, 8)), -6, 6),
            "T": 200,
            "schedules": [("linear", "linear"), ("cosine", "cosine")],
            "stills": [("", {"t": 100})],
            **WORDS,
            **changes,
        },
    )


def posterior_bells(**changes: object) -> Figure:
    return widget(
        "posterior-bells",
        **{
            "beta": np.array([0.05, 0.3, 0.9, 0.01]),
            "x": [-4, 5],
            "stills": [("", {"t": 3, "xt": 0.5, "x0": 2})],
            **WORDS,
            **changes,
        },
    )


SAMPLES = {
    "ddim-path": ddim_path,
    "function-plot": function_plot,
    "frame-strip": frame_strip,
    "matrix-view": matrix_view,
    "parts-sum": parts_sum,
    "posterior-bells": posterior_bells,
}
