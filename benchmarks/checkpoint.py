"""Load a sharded checkpoint of 1 GB with `tangled`, safetensors, torch and transformers.

    python benchmarks/checkpoint.py

Every measurement is a process of its own. It imports what it needs, builds the model, and tells by
how much its memory then grew at most while it loaded the numbers and added them all up, and in how
many seconds. The adding is there for those who map a file and read it only when its numbers are
used. The ways take turns; of the rounds, the median is told. Memory is divided by the size of the
checkpoint, time by that of reading the same files and adding up what they hold. All files are in
the page cache. The table is written to `benchmarks/results.md`.
"""

import argparse
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from results import record
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(
    0, str(ROOT)
)  # the package beside this file, installed or not
WIDTH, LAYERS, SHARD = 4096, 16, 300_000_000  # 16 matrices of 67 MB
SIZE = 4 * LAYERS * WIDTH**2


class Stack(nn.Module):
    """Square layers without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS))
        )


def built(where: str) -> Stack:
    """The model, with numbers on the CPU or without on meta."""
    with torch.device(where):
        return Stack()


def shards(folder: Path) -> list[Path]:
    """The files with tensors."""
    return sorted(folder.glob("*.safetensors"))


def total(model: nn.Module) -> float:
    """The sum of all parameters."""
    with torch.no_grad():
        return float(sum(p.sum() for p in model.parameters()))


# Each way prepares what is not measured and returns what is.
Way = Callable[[Path], Callable[[], object]]


def bare(folder: Path) -> Callable[[], object]:
    """Read the files, and add up what is in them."""

    def load() -> list[float]:
        buffers = []
        for file in shards(folder):
            buffer = torch.empty(file.stat().st_size, dtype=torch.uint8)
            with file.open("rb") as opened:
                opened.readinto(memoryview(buffer.numpy()))
            buffers.append(buffer)
        return [
            float(b[: len(b) // 4 * 4].view(torch.float32).sum())
            for b in buffers
        ]

    return load


def tangled_on(where: str, mmap: bool) -> Way:
    """Ours, into a model that has numbers or has none."""

    def prepare(folder: Path) -> Callable[[], object]:
        from tangled.workshop.checkpoint import load_checkpoint

        model = built(where)

        def load() -> float:
            load_checkpoint(model, folder, mmap=mmap)
            return total(model)

        return load

    return prepare


def safetensors_on(where: str, assign: bool) -> Way:
    """`load_file` of each shard, then a state dictionary of all."""

    def prepare(folder: Path) -> Callable[[], object]:
        from safetensors.torch import load_file

        model = built(where)

        def load() -> float:
            tensors = {}
            for file in shards(folder):
                tensors |= load_file(file)
            model.load_state_dict(tensors, assign=assign)
            return total(model)

        return load

    return prepare


def torch_on(where: str, mmap: bool) -> Way:
    """A pickle of the same numbers, in one file."""

    def prepare(folder: Path) -> Callable[[], object]:
        model = built(where)

        def load() -> float:
            tensors = torch.load(folder / "model.pt", mmap=mmap)
            model.load_state_dict(tensors, assign=where == "meta")
            return total(model)

        return load

    return prepare


def transformers(folder: Path) -> Callable[[], object]:
    """`from_pretrained`, which builds the model as well, on meta."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import PretrainedConfig, PreTrainedModel

    class Pretrained(PreTrainedModel):
        config_class = PretrainedConfig

        def __init__(self, config: PretrainedConfig) -> None:
            super().__init__(config)
            self.layers = Stack().layers
            self.post_init()

        def _init_weights(self, module: nn.Module) -> None:
            pass

    return lambda: total(Pretrained.from_pretrained(folder))


WAYS: dict[str, Way] = {
    "bare read": bare,
    "tangled, CPU": tangled_on("cpu", False),
    "load_file, load_state_dict, CPU": safetensors_on("cpu", False),
    "torch.load, load_state_dict, CPU": torch_on("cpu", False),
    "tangled, mmap=True, CPU": tangled_on("cpu", True),
    "load_file, assign=True, CPU": safetensors_on("cpu", True),
    "tangled, meta": tangled_on("meta", False),
    "tangled, mmap=True, meta": tangled_on("meta", True),
    "load_file, assign=True, meta": safetensors_on("meta", True),
    "torch.load, mmap=True, meta": torch_on("meta", True),
    "transformers, from_pretrained": transformers,
}


def status(field: str) -> int:
    """A number of bytes that Linux keeps about this process."""
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s+(\d+)", text)
    assert found
    return 1024 * int(found[1])


def measure(name: str, folder: Path) -> None:
    """Measure one way in this process, and print what was found."""
    torch.set_num_threads(1)
    load = WAYS[name](folder)
    Path("/proc/self/clear_refs").write_text("5")
    before, begin = status("VmRSS"), time.perf_counter()
    load()
    seconds = time.perf_counter() - begin
    print(json.dumps([status("VmHWM") - before, seconds]))


def run(name: str, folder: Path) -> tuple[int, float]:
    """Measure one way in a new process."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", name, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{name}\n{done.stderr}")
    memory, seconds = json.loads(done.stdout.splitlines()[-1])
    return memory, seconds


def write(folder: Path) -> None:
    """Write the checkpoint, and the same numbers as a pickle."""
    from tangled.workshop.checkpoint import save_checkpoint

    torch.manual_seed(0)
    tensors = built("cpu").state_dict()
    save_checkpoint(folder, tensors, {}, shard_bytes=SHARD)
    torch.save(tensors, folder / "model.pt")


def table(found: dict[str, list[tuple[int, float]]], rounds: int) -> str:
    """The section of results."""
    unit = statistics.median(seconds for _, seconds in found["bare read"])
    lines = [
        "# Loading a checkpoint of 1 GB",
        "",
        f"{LAYERS} matrices of {WIDTH} by {WIDTH} in float32, {SIZE / 1e9:.2f} GB, in"
        f" {-(-SIZE // SHARD)} shards (a single file",
        "for torch). Peak growth of the process over the size of the checkpoint, and time over"
        " that of a",
        f"bare read of the files ({unit:.2f} s); both include adding up all numbers once. Each"
        " load is a process",
        f"of its own, median of {rounds} rounds in which the ways took turns, one thread. By"
        " `python",
        "benchmarks/checkpoint.py`.",
        "",
        "|  | memory | time |",
        "| --- | --: | --: |",
    ]
    for name, pairs in found.items():
        memory = statistics.median(pair[0] for pair in pairs) / SIZE
        seconds = statistics.median(pair[1] for pair in pairs) / unit
        lines.append(f"| {name} | {memory:.2f} | {seconds:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", nargs=2, metavar=("WAY", "FOLDER"))
    options = parser.parse_args()
    if options.one:
        measure(options.one[0], Path(options.one[1]))
        return
    names = [
        name
        for name in WAYS
        if "transformers" not in name
        or importlib.util.find_spec("transformers")
    ]
    found: dict[str, list[tuple[int, float]]] = {name: [] for name in names}
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "checkpoint"
        write(folder)
        for _ in range(options.rounds):
            for name in names:
                found[name].append(run(name, folder))
    text = table(found, options.rounds)
    print(text)
    record(text)


if __name__ == "__main__":
    main()
