"""Train the small language model of the modern block, one change at a time, over several seeds.

    python benchmarks/modern_block.py [--seeds 4] [--steps 200]

Two layers of width 64 read windows of 64 letters of Python's help texts. Each rung changes fields
of the one before; each branch changes fields of the last rung. With one seed all see the same
windows in the same order. The losses on held-out text go to
`book/attention/modern-block/ladder.json`, where the chapter reads them, and to
`benchmarks/results.md`.
"""

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from time import process_time
from typing import Any

import torch
from results import record
from torch.optim import AdamW

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(
    0, str(ROOT)
)  # the package beside this file, installed or not

from tangled.attention.modern_block import (  # noqa: E402
    LanguageModel,
    ModernConfig,
    language_losses,
)
from tangled.foundations.training import (  # noqa: E402
    Training,
    train,
    warmup_cosine,
)

FOLDER = ROOT / "book/attention/modern-block"
FIRST = ModernConfig(
    vocab=128,
    d_model=64,
    n_layers=2,
    n_heads=4,
    d_ff=256,
    max_length=64,
    norm_first=False,
    positions="learned",
    norm="layer",
    feed_forward="gelu_tanh",
    attention_bias=True,
    feed_forward_bias=True,
)
NO_BIAS = {"attention_bias": False, "feed_forward_bias": False}
RUNGS: dict[str, dict[str, Any]] = {
    "2018": {},
    "pre-norm": {"norm_first": True},
    "RMSNorm, no biases": {"norm": "rms", **NO_BIAS},
    "rotary": {"positions": "rotary"},
    "SwiGLU": {"feed_forward": "swiglu", "d_ff": 171},
}
BRANCHES: dict[str, dict[str, Any]] = {
    "2 key/value heads": {"n_kv_heads": 2},
    "query-key norm": {"qk_norm": True},
    "window of 16": {"window": 16},
    "a head of its own": {"tied": False},
    "parallel": {"block": "parallel"},
    "deviation 0.02": {"initial_std": 0.02},
}


def configurations() -> dict[str, ModernConfig]:
    """Return each rung, and each branch of the last one."""
    found, config = {}, FIRST
    for name, change in RUNGS.items():
        config = replace(config, **change)
        found[name] = config
    branches = {n: replace(config, **c) for n, c in BRANCHES.items()}
    return found | branches


def measured(config: ModernConfig, steps: int, seed: int) -> float:
    """Return the loss on held-out text after some steps, in nats a letter."""
    text = "\n".join(topics[name] for name in sorted(topics))
    letters = torch.tensor(list(text.encode("ascii", "ignore")))
    cut = 9 * len(letters) // 10
    learned = letters[:cut].unfold(0, 64, 64)
    unseen = letters[cut:].unfold(0, 64, 64)
    torch.manual_seed(seed)
    model = LanguageModel(config)
    train(
        model,
        language_losses,
        learned,
        AdamW(model.parameters(), lr=5e-3, weight_decay=0),
        Training(steps, batch_size=16, seed=seed),
        lr_factor=warmup_cosine(steps, 30),
        log_every=None,
    )
    with torch.no_grad():
        return language_losses(model, unseen, torch.Generator()).mean().item()


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description="Train the ladder.")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    began, losses = process_time(), {}
    for seed in range(options.seeds):
        for name, config in configurations().items():
            loss = measured(config, options.steps, seed)
            losses.setdefault(name, []).append(round(loss, 4))
            print(
                f"{process_time() - began:6.0f} s  {seed}  {name}: {loss:.3f}"
            )
    FOLDER.mkdir(exist_ok=True)
    told = {"steps": options.steps, "losses": losses}
    (FOLDER / "ladder.json").write_text(json.dumps(told, indent=1) + "\n")
    rows = [
        f"| {name} | {statistics.mean(each):.3f} | "
        f"{statistics.stdev(each) / len(each) ** 0.5:.3f} |"
        for name, each in losses.items()
    ]
    record(
        f"""# The modern block, one change at a time

Two layers of width 64 on Python's help texts, windows of 64 letters, {options.steps} steps of
16 windows, torch {torch.__version__}, {options.seeds} seeds. Nats a letter on the last tenth of the
text, mean and standard error. The first five change what they say in the line before,
the others in the fifth. By `python benchmarks/modern_block.py`.

| | loss | error |
| --- | --: | --: |
"""
        + "\n".join(rows)
    )


if __name__ == "__main__":
    main()
