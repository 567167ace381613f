"""One small figure of each family, as a chapter would make it."""

import numpy as np

from loom.figures import Figure, Quantised, picture, widget

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


def frame_grid(**changes: object) -> Figure:
    frames = [picture(np.full((4, 8, 3), level)) for level in (0.0, 0.5, 1)]
    row = {"label": "xₜ", "frames": frames}
    error = {"key": "error", "label": "error", "values": [0.1, 0.2, 0.3]}
    return widget(
        "frame-grid",
        **{
            "moments": {
                "label": "step",
                "texts": ["t = 9", "t = 5", "t = 1"],
            },
            "columns": 2,
            "views": [
                ("drawn", "drawn", {"rows": [row, row]}),
                ("given", "given", {"rows": [row], "numbers": [error]}),
            ],
            "stills": [("start", {}), ("end", {"moment": 2})],
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


def soft_lookup(**changes: object) -> Figure:
    return widget(
        "soft-lookup",
        **{
            "keys": [[1.0, 0.0], [0.5, 0.8], [0.0, -1.0]],
            "values": [[10], [20], [30]],
            "query": [2.0, 0.0],
            "reach": 2.5,
            "temperatures": [0.05, 1, 20],
            "stills": [("", {})],
            **WORDS,
            **changes,
        },
    )


def text_reader(**changes: object) -> Figure:
    draw, d = np.random.default_rng(0), 8
    shapes = {"letters": (27, d), "places": (9, d), "out": (27, d)}
    layers = [
        {f"w_{part}": draw.normal(size=(d, d)) for part in "qkvo"}
        for _ in range(2)
    ]
    weights = {name: draw.normal(size=s) for name, s in shapes.items()}
    weights["letters"] = Quantised(weights["letters"], -6, 6)
    return widget(
        "text-reader",
        **{
            "text": "a rose a ",
            "heads": 2,
            "model": {
                **weights,
                "bias": draw.normal(size=27),
                "layers": layers,
            },
            "stills": [("", {"row": 7})],
            **WORDS,
            **changes,
        },
    )


def projections(**changes: object) -> Figure:
    return widget(
        "projections",
        **{
            "words": ["dog", "bites", "the"],
            "x": [[2.0, 0.3], [0.2, 2.0], [-0.4, -1.9]],
            "reach": 2.5,
            "stills": [("", {"queries": -90})],
            **WORDS,
            **changes,
        },
    )


def attention_steps(**changes: object) -> Figure:
    return widget(
        "attention-steps",
        **{
            "q": [[0, 2, 0, 0], [2, 0, 1, 1]],
            "k": [[1, 0, 1, 1], [1, 1, 0, 0], [0, 1, 0, 0]],
            "v": [[10], [20], [40]],
            "stills": [("", {})],
            **WORDS,
            **changes,
        },
    )


def block_diagram(**changes: object) -> Figure:
    def block(key: str, x: float, **more: object) -> dict[str, object]:
        place = {"x": x, "y": 10, "width": 60, "height": 40}
        return {"key": key, "label": key, **place, **more}

    return widget(
        "block-diagram",
        **{
            "width": 300,
            "height": 60,
            "blocks": [
                block("in", 10, numbers=[("weights", 12)]),
                block(
                    "out",
                    120,
                    details=[("shape", "[B, 3]")],
                    numbers=[("weights", 30)],
                    link=("its code", "#out"),
                ),
            ],
            "arrows": [{"points": [[70, 30], [120, 30]]}],
            "stills": [("", {"block": "out"})],
            **WORDS,
            **changes,
        },
    )


def clock_rows(**changes: object) -> Figure:
    return widget(
        "clock-rows",
        **{
            "places": 12,
            "widths": [2, 4, 8],
            "stills": [("", {"place": 5})],
            **WORDS,
            **changes,
        },
    )


SAMPLES = {
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
