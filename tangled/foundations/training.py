"""The training loop of every model in the book, on one process or many, resumed bit for bit.

Tangled from book/foundations/training.md.
"""

import hashlib
import itertools
import json
import math
import operator
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from filelock import FileLock
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import Dataset, IterableDataset, default_collate
from tqdm.auto import tqdm

from tangled.workshop.checkpoint import (
    load_checkpoint,
    model_tensors,
    new_folder,
    read_config,
    read_tensors,
    save_checkpoint,
)

__all__ = [
    "Losses",
    "Run",
    "Training",
    "TrainingError",
    "accumulate",
    "checkpoints",
    "epoch_batches",
    "moving_average",
    "process_group",
    "train",
    "warmup_cosine",
]


def _derived_seed(*numbers: int) -> int:
    """Return a seed below 2**64 that depends on numbers and their order."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def epoch_batches(
    n: int, batch_size: int, epoch: int, seed: int
) -> Int64[Tensor, "batches B"]:
    """Return which of n examples make each batch of an epoch, from 0 on.

    Raises ValueError if a batch is larger than the data.

    Implements def-batches, eq-batch-order, prop-batch-gradient
    (book/foundations/training.md).
    """
    what = f"batch_size must lie in 1..{n}, the examples, got {batch_size}"
    _require(1 <= batch_size <= n, what)
    generator = torch.Generator().manual_seed(_derived_seed(seed, 0, epoch))
    order = torch.randperm(n, generator=generator)
    return order[: n - n % batch_size].reshape(-1, batch_size)


def _require(holds: bool, what: str, error: Any = ValueError) -> None:
    """Raise an error that says what is wrong unless something holds."""
    if not holds:
        raise error(what)


# What a model is trained on: (model, batch, generator) -> losses [items].
Losses = Callable[[nn.Module, Any, torch.Generator], Float[Tensor, "items"]]


def _moved(batch: Any, device: torch.device) -> Any:
    """Return a batch on a device: a tensor, or what tensors are nested in."""
    if isinstance(batch, Mapping):
        return {name: _moved(x, device) for name, x in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(_moved(x, device) for x in batch)
    move = getattr(batch, "to", None)
    return batch if move is None else move(device, non_blocking=True)


def accumulate(
    model: nn.Module,
    losses: Losses,
    parts: Iterable[tuple[Any, int]],
    precision: str = "float32",
) -> tuple[Float[Tensor, ""], int]:
    """Add the gradients of the summed losses of the parts, (batch, seed).

    Returns the sum of the losses, in their units, and their number. Raises
    TypeError if `losses` returns something else than one loss per item.

    Implements eq-mean-gradient, prop-weighted-parts
    (book/foundations/training.md).
    """
    device, low = next(model.parameters()).device, precision == "bfloat16"
    wide = torch.float32 if device.type == "mps" else torch.float64
    total, items = torch.zeros((), device=device, dtype=wide), 0
    for batch, seed in parts:
        # Layers draw from default generators. torch.manual_seed is slow.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.default_generators[device.index].manual_seed(seed)
        generator = torch.Generator(device).manual_seed(_derived_seed(seed))
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            each = losses(model, _moved(batch, device), generator)
        what = "losses must return one number for each item, got shape "
        _require(each.ndim == 1, f"{what}{list(each.shape)}", TypeError)
        each.sum().backward()
        total += each.detach().sum(dtype=wide)
        items += len(each)
    return total, items


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """Return an average of the weights that a model will have had.

    Call `update_parameters(model)` after each step. Its `module` is the
    averaged model in evaluation mode, with the newest buffers.

    Implements eq-moving-average, prop-moving-average
    (book/foundations/training.md).
    """

    def towards(means: list[Tensor], weights: list[Tensor], _: Any) -> None:
        share = max(1 - decay, 1 / (int(average.n_averaged) + 1))
        new = [w.to(m.dtype) for w, m in zip(weights, means, strict=True)]
        torch._foreach_lerp_(means, new, share)

    average = AveragedModel(model, multi_avg_fn=towards)
    if any(p.dtype.itemsize < 4 for p in model.parameters()):
        average.module.float()
    return average.requires_grad_(False).eval()


@dataclass(frozen=True)
class Training:
    """What a run does, apart from its model, loss, data and optimiser.

    Raises ValueError if a field is out of its range.
    """

    steps: int  # of the whole run
    batch_size: int = 64  # examples of a step; a loader has its own
    micro_batches: int = 1  # parts of a process's share of a batch
    max_norm: float | None = 1.0  # longer gradients are scaled down to it
    ema_decay: float | None = None  # of an average of the weights
    precision: str = "float32"  # or "bfloat16", for the layers that can
    seed: int = 0  # of the order of the examples and of all that is drawn

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "micro_batches"):
            count = getattr(self, name)
            what = f"{name} must be a whole number from 1 on, got {count!r}"
            _require(type(count) is int and count > 0, what)
        norm, decay, bits = self.max_norm, self.ema_decay, self.precision
        what = f"max_norm must be positive or None, got {norm}"
        _require(norm is None or norm > 0, what)
        what = f"ema_decay must lie in [0, 1) or be None, got {decay}"
        _require(decay is None or 0 <= decay < 1, what)
        what = f"precision must be float32 or bfloat16, got {bits}"
        _require(bits in ("float32", "bfloat16"), what)


def warmup_cosine(
    steps: int, warmup: int, final: float = 0.0
) -> Callable[[int], float]:
    """Return a factor: up in a line to 1, down along a cosine to `final`.

    Raises ValueError if the warm-up is not shorter than the run.

    Implements eq-warmup-cosine (book/foundations/training.md).
    """
    what = f"warmup must lie in 0..{steps - 1}, got {warmup}"
    _require(0 <= warmup < steps, what)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / (steps - warmup))
        return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2

    return factor


@dataclass(eq=False, repr=False)
class Run:
    """A training run between two steps, with all that it takes to go on.

    Its attributes: `step`, the number of steps done; `log`, a row for each
    logged step; `averaged`, the model with the average of its weights, or the
    model itself. Raises ValueError if an argument is not as said here.

    Implements def-run-state (book/foundations/training.md).
    """

    model: nn.Module  # trained in place, on its device
    losses: Losses  # (model, batch, generator) -> one loss for each item
    data: Any  # gives `data[indices]`; or a Dataset, or iterable of batches
    optimizer: Optimizer  # of exactly the parameters that need a gradient
    config: Training
    lr_factor: Callable[[int], float] = lambda step: 1.0  # of the rates
    folder: str | Path | None = None  # of checkpoints and log.jsonl
    save_every: int | None = None  # steps; the last one is saved anyway
    keep: int = 2  # how many checkpoints stay; 0: all of them
    evaluate: Callable[["Run"], Mapping[str, float]] | None = None  # to log
    evaluate_every: int | None = None  # steps; and after the last one
    log_every: int | None = 1  # steps; what is evaluated is logged anyway

    def __post_init__(self) -> None:
        # A compiled model has the one that checkpoints know inside.
        self.core: nn.Module = getattr(self.model, "_orig_mod", self.model)
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.processes = dist.get_world_size() if dist.is_initialized() else 1
        self.step, self.log = 0, list[dict[str, Any]]()
        self._settings = self.optimizer.state_dict()["param_groups"]
        kept = model_tensors(self.core).items()  # a mask may have infinities
        self._finite = [n for n, x in kept if x.isfinite().all()]
        names = {p: n for n, p in self.core.named_parameters()}
        wanted = {p for p in names if p.requires_grad}
        held = [p for g in self.optimizer.param_groups for p in g["params"]]
        lacking = sorted(names[p] for p in wanted - set(held))
        what = f"the optimizer lacks {lacking} of what the model trains, and "
        what += f"has {len(held)} parameters for {len(wanted)}"
        _require(not lacking and len(held) == len(wanted), what)
        self.trained = {names[p]: p for p in held}  # in its order
        self.parts, self.average = self._parts(), None
        self.averaged = self.core
        if self.config.ema_decay is not None:
            self.average = moving_average(self.core, self.config.ema_decay)
            self.averaged = self.average.module

    def update(
        self, stop: bool = False, look: bool = True
    ) -> tuple[dict[str, Any], bool]:
        """Make one step; return its row of the log, and whether to stop.

        If it may `look`, a loss or norm that is not finite is a TrainingError
        before a weight changes. If not, the row is empty, no GPU waits, and
        several processes do not stop.

        Implements eq-shared-gradient, eq-clip (book/foundations/training.md).
        """
        config, weights = self.config, list(self.trained.values())
        self.optimizer.zero_grad()
        parts = itertools.islice(self.parts, config.micro_batches)
        total, items = accumulate(
            self.model, self.losses, parts, config.precision
        )
        sums = torch.stack([total, *total.new_tensor([items, stop])])
        for p in weights:  # 0 where no loss reaches
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        gradients = [p.grad for p in weights]
        _exchange([sums, *gradients], add=True)  # over all processes
        torch._foreach_mul_(gradients, 1 / sums[1])  # now of the mean loss
        norm = nn.utils.clip_grad_norm_(weights, config.max_norm or math.inf)
        groups, row = self.optimizer.param_groups, {}
        rates, factor = [g["lr"] for g in groups], self.lr_factor(self.step)
        if look:
            told = torch.stack([sums[0] / sums[1], norm.to(sums), *sums[1:]])
            loss, norm, items, stops = told.tolist()  # the only wait
            row = {"step": self.step + 1, "lr": rates[0] * factor}
            row |= {"loss": loss, "norm": norm, "items": int(items)}
            what = f"step {self.step + 1}: loss or norm is not finite: {row}"
            _require(math.isfinite(loss + norm), what, TrainingError)
            stop = stops > 0
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.step()
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
        self.step += 1
        _exchange(self.core.buffers())
        if self.average is not None:
            self.average.update_parameters(self.core)
        return row, stop and (look or self.processes == 1)

    def _parts(self) -> Iterator[tuple[Any, int]]:
        """Return this process's parts from the next step on, with seeds."""
        data, seed, size = self.data, self.config.seed, self.config.batch_size
        share = self.config.micro_batches
        count, length = self.processes * share, operator.length_hint(data)
        listed = isinstance(data, list | tuple | IterableDataset)
        indexed = hasattr(data, "__getitem__") and not listed
        if indexed:
            what = f"batch_size {size} cannot be cut into {count} equal parts"
            _require(size % count == 0, what)
            length = len(epoch_batches(length, size, 0, seed)) * count
        keeps = getattr(data, "persistent_workers", False)
        _require(not keeps, "persistent_workers keep state between epochs")

        def fetch(part: Any) -> Any:
            if indexed and isinstance(data, Dataset):  # gives one at a time
                return default_collate([data[i] for i in part.tolist()])
            return data[part] if indexed else part

        def endless() -> Iterator[tuple[Any, int]]:
            start = self.step * count
            first = start // length if length else 0
            number = first * length
            for epoch in itertools.count(first):
                source, began = data, number
                if indexed:
                    source = epoch_batches(len(data), size, epoch, seed)
                    source = source.reshape(-1, size // count)
                fresh = _derived_seed(seed, 2, epoch)  # of a loader's shuffle
                torch.default_generator.manual_seed(fresh)
                for owner in (data, getattr(data, "sampler", None)):
                    if getattr(owner, "generator", None) is not None:
                        owner.generator.manual_seed(fresh)
                for part in source:
                    mine = number % count // share == self.rank
                    if mine and number >= start:
                        yield fetch(part), _derived_seed(seed, 1, number)
                    number += 1
                    fresh = _derived_seed(seed, 3, number)  # of a fetch
                    torch.default_generator.manual_seed(fresh)
                found = number - began
                what = f"epoch {epoch} of the data had {found} batches"
                _require(found == (length or found or 1), what, TrainingError)

        return endless()

    def save(self) -> None:
        """Write the state into a new folder step-<number>, or nothing at all.

        Raises TrainingError if an entry is not finite that was at the start.
        """
        if self.folder is None or self.rank > 0:
            return
        kept = model_tensors(self.core)
        broken = [n for n in self._finite if not kept[n].isfinite().all()]
        what = f"step {self.step}: {broken} have entries that are not finite"
        _require(not broken, what, TrainingError)
        memory, tensors, rest = self.optimizer.state_dict(), {}, {}
        for index, entries in memory["state"].items():
            for name, x in entries.items():
                kind = tensors if isinstance(x, Tensor) else rest
                kind[f"{index}.{name}"] = x
        told = {"step": self.step, "log": self.log, "entries": rest}
        told |= {"groups": memory["param_groups"], "setup": self._setup()}
        with new_folder(self.folder / f"step-{self.step:08d}") as partial:
            save_checkpoint(partial / "model", kept, told)
            save_checkpoint(partial / "optimizer", tensors, {})
            if self.average is not None:
                average = model_tensors(self.averaged)
                save_checkpoint(partial / "average", average, {})
        self._prune()

    def restore(self, checkpoint: Path) -> None:
        """Take over the state that `save` wrote.

        Raises TrainingError or CheckpointError if it is not of this run.
        """
        told = read_config(checkpoint / "model")
        self.step, theirs = told.get("step", 0), told.get("setup", {})
        steps = f"{self.step} steps, this one ends at {self.config.steps}"
        what = f"{checkpoint}: its run has done {steps}"
        _require(self.step <= self.config.steps, what, TrainingError)
        for name, mine in self._setup().items():
            other = f"{name} {theirs.get(name)}, this one has {mine}"
            what = f"{checkpoint}: its run has {other}"
            _require(theirs.get(name) == mine, what, TrainingError)
        load_checkpoint(self.core, checkpoint / "model")
        if self.average is not None:
            load_checkpoint(self.averaged, checkpoint / "average")
            self.average.n_averaged.fill_(self.step)
        state: dict[int, dict[str, Any]] = {}
        entries = read_tensors(checkpoint / "optimizer") | told["entries"]
        for path, x in entries.items():
            index, _, name = path.partition(".")
            state.setdefault(int(index), {})[name] = x
        memory = {"state": state, "param_groups": told["groups"]}
        self.optimizer.load_state_dict(memory)
        self.log = told["log"]

    def _setup(self) -> dict[str, str]:
        """Return what must not change from one start to the next."""
        setup = asdict(self.config) | {
            "examples": operator.length_hint(self.data),
            "processes": self.processes,
            "optimizer": type(self.optimizer).__name__,
            "trained parameters": list(self.trained),
            "factor of the rates": self.lr_factor(max(self.step - 1, 0)),
        }
        del setup["steps"]  # there may be more
        for number, group in enumerate(self._settings):
            for name, value in group.items():
                setup[f"{name} of parameter group {number}"] = value
        return {name: str(value) for name, value in setup.items()}

    @contextmanager
    def _opened(self) -> Iterator[None]:
        """Hold the folder, if any; go on from its newest checkpoint."""
        with closing(self.parts), ExitStack() as stack:
            if self.folder is not None:
                self.folder = Path(self.folder)
                if self.rank == 0:
                    lock = FileLock(self.folder / ".lock", timeout=0)
                    stack.enter_context(lock)  # makes the folder, too
                if found := checkpoints(self.folder):
                    self.restore(found[-1])
                if self.rank == 0:
                    rows = [json.dumps(row) + "\n" for row in self.log]
                    (self.folder / "log.jsonl").write_text("".join(rows))
                    self._prune() if found else self.save()
            yield

    def _prune(self) -> None:
        """Remove all checkpoints but the newest ones, and parts of others."""
        for path in checkpoints(self.folder)[: -self.keep]:
            path.rename(path.with_name(f".{path.name}.old"))
        for path in self.folder.glob(".step-[0-9]*/"):
            shutil.rmtree(path, ignore_errors=True)

    def _note(self, row: dict[str, Any], judge: bool) -> None:
        """Append a row to the log, with an evaluation if it is due."""
        if judge and self.evaluate is not None:
            self.model.eval()
            with torch.no_grad():
                found = {n: float(x) for n, x in self.evaluate(self).items()}
            self.model.train()
            what = f"evaluate must use other names than {list(row)}"
            _require(not found.keys() & row.keys(), what)
            row |= found
        self.log.append(row)
        if self.folder is not None and self.rank == 0:
            with (self.folder / "log.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")

    def fit(self) -> None:
        """Make the steps that are left, in the folder if there is one.

        SIGINT or SIGTERM end it after a step, with a checkpoint and then a
        KeyboardInterrupt. Raises TrainingError if a number is not finite or
        the folder another run's, and OSError if another run holds it.
        """
        last, stop = self.config.steps, False
        every = self.log_every, self.save_every, self.evaluate_every
        device = next(self.core.parameters()).device
        silent = self.rank > 0 or None  # None: a bar on a terminal only
        with (
            self._opened(),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            _interruptible() as signals,
            tqdm(total=last, initial=self.step, disable=silent) as bar,
        ):
            _exchange((*self.core.parameters(), *self.core.buffers()))
            self.model.train()
            began = time.perf_counter()
            while self.step < last and not stop:
                now = self.step + 1
                log, save, judge = (
                    now == last or now % (n or last) == 0 for n in every
                )
                row, stop = self.update(bool(signals), log or save or judge)
                bar.update()
                if log or judge:
                    bar.set_postfix_str(f"loss {row['loss']:.4g}", False)
                    row["seconds"] = time.perf_counter() - began
                    self._note(row, judge)
                if save or stop:
                    self.save()
            if self.processes > 1:
                dist.barrier()  # none ends before the checkpoint is there
        if stop or signals:
            kept = self.folder and checkpoints(self.folder)[-1]
            done = f"stopped after step {self.step}; kept: "
            raise KeyboardInterrupt(f"{done}{kept or 'nothing'}")


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says why."""


def _exchange(tensors: Iterable[Tensor], add: bool = False) -> None:
    """Give all processes the sums of their tensors, or those of the first."""
    if dist.is_initialized():
        for tensor in tensors:
            sent = tensor.detach().contiguous()
            dist.all_reduce(sent) if add else dist.broadcast(sent, 0)
            tensor.detach().copy_(sent)


def checkpoints(folder: str | Path) -> list[Path]:
    """Return the checkpoints in the folder of a run, oldest first."""
    return sorted(Path(folder).glob("step-" + "[0-9]" * 8))


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Yield a list into which the first SIGINT or SIGTERM is put.

    The second one acts as ever, as both do outside of the main thread.
    """
    came: list[int] = []

    def note(number: int, _: Any) -> None:
        came.append(number)
        signal.signal(number, previous[number])

    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
    previous = {number: signal.signal(number, note) for number in numbers}
    try:
        yield came
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def train(model, losses, data, optimizer, config, **options: Any) -> Run:
    """Train a model; go on where its folder says that a run was stopped.

    The arguments are the fields of `Run`, which this makes, fits and returns.
    """
    run = Run(model, losses, data, optimizer, config, **options)
    run.fit()
    return run


@contextmanager
def process_group() -> Iterator[torch.device]:
    """Yield this process's GPU or the CPU; under torchrun, join the others."""
    cuda, rank = torch.cuda.is_available(), os.environ.get("LOCAL_RANK")
    device = torch.device(f"cuda:{rank or 0}" if cuda else "cpu")
    if cuda:
        torch.cuda.set_device(device)
    if rank is not None:
        dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield device
    finally:
        if rank is not None:
            dist.destroy_process_group()
