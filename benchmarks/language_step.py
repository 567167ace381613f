"""Time a training step of our language models beside those of transformers.

    python benchmarks/language_step.py [--device cuda] [--rounds 15]

GPT-2 and Llama, small and with equal weights: both begin from one folder. A step is the forward
pass, the mean loss of the next token, the backward pass, clipping and AdamW. Then the loss of the
first step is compared. The table is written to `benchmarks/results.md`.
"""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from results import record
from turns import ratio, turns

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(
    0, str(ROOT)
)  # the package beside this file, installed or not

from tangled.attention.modern_block import (  # noqa: E402
    MODELS,
    LanguageModel,
    next_token_losses,
)
from tangled.attention.pretrained import (  # noqa: E402
    load_pretrained,
    save_pretrained,
)

SIZES = {
    "vocab": 8000,
    "d_model": 384,
    "n_layers": 6,
    "n_heads": 6,
    "d_ff": 1024,
    "max_length": 256,
}
CONFIGS = {
    "GPT-2": replace(MODELS["GPT-2"], **SIZES),
    "Llama": replace(MODELS["Llama 3 8B"], **SIZES, n_kv_heads=2),
}


def step_of(
    model: torch.nn.Module, loss: Callable[[], torch.Tensor]
) -> Callable[[], float]:
    """Return a training step, which returns its loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return value.item()

    return step


def compare(
    name: str, shape: tuple[int, int], rounds: int, device: torch.device
) -> str:
    """Return the row of one architecture and one shape of a batch."""
    torch.manual_seed(0)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch, "model")
        save_pretrained(LanguageModel(CONFIGS[name]), folder)
        ours = load_pretrained(folder).to(device).train()
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    theirs = theirs.to(device).train()
    for part in theirs.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    tokens = torch.randint(SIZES["vocab"], shape, device=device)
    works = {
        "ours": step_of(
            ours, lambda: next_token_losses(ours(tokens), tokens).mean()
        ),
        "theirs": step_of(theirs, lambda: theirs(tokens, labels=tokens).loss),
    }
    first = [work() for work in works.values()]
    torch.testing.assert_close(first[0], first[1], rtol=1e-5, atol=0)
    found = turns(works, rounds, device)
    return (
        f"| {name} | {shape[0]} x {shape[1]} "
        f"| {1000 * median(found['ours']):.0f} "
        f"| {ratio(found['ours'], found['theirs'])} |"
    )


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description="Time a training step.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    device = torch.device(options.device)
    rows = [
        compare(name, shape, options.rounds, device)
        for name in CONFIGS
        for shape in ((1, 128), (8, 128))
    ]
    kind, where = (
        ("GPU", torch.cuda.get_device_name())
        if device.type == "cuda"
        else ("CPU", "one thread of the CPU")
    )
    record(
        f"# A training step of a language model ({kind})\n\n"
        "6 layers of width 384, 6 heads (Llama: 2 of keys and values), 8,000 tokens, float32;\n"
        "forward, loss, backward, clipping, AdamW; equal weights, no dropout; "
        f"{where},\ntorch {torch.__version__}, transformers {transformers.__version__}. "
        f"Median of {options.rounds} rounds in which the two\ntook turns, ± half of the "
        "interquartile range. By `python benchmarks/language_step.py`.\n\n"
        "| model | texts x tokens | ms | ours / theirs |\n| --- | --: | --: | --: |\n"
        + "\n".join(rows)
        + "\n"
    )


if __name__ == "__main__":
    main()
