"""Time the writing of text, and the opening of a folder, beside transformers.

    python benchmarks/generation.py [--device cuda] [--only decoding]

A Llama of 22 million parameters with random weights writes greedy text after a prompt of 32
tokens: ours with a cache and without, and the `generate` of transformers, with equal weights and
equal tokens. All take turns, on one thread of the CPU. The limit is that of reading: the bandwidth,
measured on a large tensor, over the bytes of the weights that a token needs. Then a folder of 1 GB
is written, and opened by both in processes of their own; told are the peak growth of memory over
its size and the seconds until all numbers have been added up. The tables are written to
`benchmarks/results.md`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from checkpoint import status, total
from results import record
from turns import ratio, turns

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(
    0, str(ROOT)
)  # the package beside this file, installed or not

from tangled.attention.generation import generate  # noqa: E402
from tangled.attention.modern_block import (  # noqa: E402
    LanguageModel,
    ModernConfig,
)
from tangled.attention.pretrained import (  # noqa: E402
    load_pretrained,
    save_pretrained,
)

PROMPT, NEW = 32, 96
SMALL = ModernConfig(
    16_000, 384, 6, 6, 1024, n_kv_heads=2, tied=False, norm_eps=1e-6
)
LARGE = ModernConfig(32_000, 1536, 8, 12, 4096, n_kv_heads=4, tied=False)


def bandwidth(device: torch.device) -> float:
    """Bytes a second that can be read, the best of five."""
    numbers = torch.ones(2**27, device=device)
    times = []
    for _ in range(6):
        begin = perf_counter()
        numbers.sum().item()
        times.append(perf_counter() - begin)
    return numbers.nbytes / min(times)


def plain(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Write without a cache."""
    with torch.no_grad():
        for _ in range(NEW):
            best = model(tokens)[:, -1:].argmax(-1)
            tokens = torch.cat([tokens, best], 1)
    return tokens[:, PROMPT:]


def decoding(device: torch.device, rounds: int) -> list[str]:
    """The rows of the table of decoding."""
    torch.manual_seed(0)
    ours = LanguageModel(SMALL)
    for p in ours.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.05)
    with TemporaryDirectory() as scratch:
        save_pretrained(ours, Path(scratch, "m"))
        theirs = transformers.LlamaForCausalLM.from_pretrained(
            Path(scratch, "m")
        ).eval()
        ours = load_pretrained(Path(scratch, "m"))
    ours, theirs = ours.to(device).eval(), theirs.to(device)
    weights = sum(
        p.nbytes for n, p in ours.named_parameters() if "embed" not in n
    )
    limit = bandwidth(device) / weights
    rows = []
    for batch in (1, 8):
        tokens = torch.randint(16_000, (batch, PROMPT), device=device)
        ways: dict[str, Callable[[], torch.Tensor]] = {
            "ours": lambda t=tokens: torch.stack(
                [*generate(ours, t, n_new=NEW)], 1
            ),
            "no cache": lambda t=tokens: plain(ours, t),
            "theirs": lambda t=tokens: theirs.generate(
                t,
                attention_mask=torch.ones_like(t),
                max_new_tokens=NEW,
                min_new_tokens=NEW,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )[:, PROMPT:],
        }
        texts = [way() for way in ways.values()]
        assert all(torch.equal(text, texts[0]) for text in texts)
        found = turns(ways, rounds, device)
        speed = batch * NEW / statistics.median(found["ours"])
        rows.append(
            f"| {batch} | {speed:.0f} | {ratio(found['theirs'], found['ours'])} "
            f"| {ratio(found['no cache'], found['ours'])} "
            f"| {speed / (batch * limit):.0%} |"
        )
    return rows


def open_one(way: str, folder: str) -> None:
    """Open a folder in this process, and print memory and seconds."""
    torch.set_num_threads(1)
    Path("/proc/self/clear_refs").write_text("5")
    before, begin = status("VmRSS"), perf_counter()
    if way == "transformers":
        model = transformers.LlamaForCausalLM.from_pretrained(folder)
    else:
        model = load_pretrained(folder, mmap="mmap" in way)
    total(model)
    seconds = perf_counter() - begin
    print(json.dumps([status("VmHWM") - before, seconds]))


def opening(rounds: int) -> tuple[list[str], int]:
    """The rows of the table of loading, and the bytes of the folder."""
    ways = ("tangled", "tangled, mmap=True", "transformers")
    found: dict[str, list[tuple[int, float]]] = {way: [] for way in ways}
    with TemporaryDirectory() as scratch:
        folder = Path(scratch, "m")
        model = LanguageModel(LARGE)
        size = sum(p.nbytes for p in model.parameters())
        save_pretrained(model, folder, shard_bytes=300_000_000)
        del model
        for _ in range(rounds):
            for way in ways:
                done = subprocess.run(
                    [sys.executable, __file__, "--one", way, str(folder)],
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    capture_output=True,
                    text=True,
                )
                if done.returncode:
                    raise SystemExit(f"{way}\n{done.stderr}")
                found[way].append(
                    tuple(json.loads(done.stdout.splitlines()[-1]))
                )
    rows = []
    for way, pairs in found.items():
        memory = statistics.median(one for one, _ in pairs) / size
        seconds = statistics.median(one for _, one in pairs)
        rows.append(f"| {way} | {memory:.2f} | {seconds:.2f} |")
    return rows, size


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description="Time the writing of text.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=("decoding", "opening"))
    parser.add_argument("--one", nargs=2, metavar=("WAY", "FOLDER"))
    options = parser.parse_args()
    if options.one:
        open_one(*options.one)
        return
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    device = torch.device(options.device)
    where = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else "one thread of the CPU"
    )
    kind = "GPU" if device.type == "cuda" else "CPU"
    versions = (
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )
    if options.only != "opening":
        rows = decoding(device, options.rounds)
        record(
            f"# Writing text ({kind})\n\n"
            "A Llama of 6 layers of 384 and 16,000 tokens, float32; "
            f"{PROMPT} tokens are read and\n{NEW} written, greedily and the "
            f"same by all; {where}, {versions}.\n"
            f"Medians of {options.rounds} rounds in which all took turns. The "
            "limit is one reading of the\nweights for each token, at the "
            "bandwidth of a large sum. By `python\n"
            "benchmarks/generation.py`.\n\n"
            "| texts | tokens a second | theirs / ours | no cache / ours | share of the limit |\n"
            "| --: | --: | --: | --: | --: |\n" + "\n".join(rows) + "\n"
        )
    if device.type == "cuda" or options.only == "decoding":
        return
    loading, size = opening(options.rounds)
    record(
        "# Opening a folder of 1 GB\n\n"
        f"A Llama of {size / 1e9:.2f} GB in float32, in shards of 0.3 GB. Peak growth of the\n"
        "process over the size of the weights, and seconds; both include building the model and\n"
        f"adding up all numbers once. Median of {options.rounds} rounds in which the ways took\n"
        f"turns, one thread; {versions}. By `python\nbenchmarks/generation.py`.\n\n"
        "|  | memory | seconds |\n| --- | --: | --: |\n"
        + "\n".join(loading)
        + "\n"
    )


if __name__ == "__main__":
    main()
