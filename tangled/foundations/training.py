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
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import Dataset, IterableDataset, default_collate
from tqdm.auto import tqdm

from tangled.workshop.checkpoint import (
    load_checkpoint,
    locked,
    model_tensors,
    new_folder,
    read_config,
    read_tensors,
    save_checkpoint,
)

__all__ = [
    "Losses",
    "LRFactor",
    "Row",
    "Run",
    "Training",
    "TrainingError",
    "accumulate",
    "batch_indices",
    "checkpoints",
    "derived_seed",
    "interruptible",
    "moving_average",
    "process_group",
    "read_log",
    "train",
    "warmup_cosine",
]


def derived_seed(*numbers: int) -> int:
    """Return a seed below 2**64 that depends on numbers and their order."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


@lru_cache(maxsize=2)
def _epoch_order(n: int, epoch: int, seed: int) -> Int64[Tensor, "n"]:
    """Return the order of an epoch; the last two are kept."""
    generator = torch.Generator().manual_seed(derived_seed(seed, 0, epoch))
    return torch.randperm(n, generator=generator)


def batch_indices(
    n: int, batch_size: int, step: int, seed: int
) -> Int64[Tensor, "B"]:
    """Return which of n examples make the batch of a step, from step 0 on.

    Raises ValueError if the batch is larger than the data.

    Implements def-batches, eq-batch-order, prop-batch-gradient
    (book/foundations/training.md).
    """
    _require(
        1 <= batch_size <= n,
        f"batch_size must lie between 1 and the {n} examples of the data, "
        f"got {batch_size}",
    )
    epoch, batch = divmod(step, n // batch_size)
    order = _epoch_order(n, epoch, seed)
    return order[batch * batch_size : (batch + 1) * batch_size]


def _require(
    holds: bool, sentence: str, error: type[Exception] = ValueError
) -> None:
    """Raise an error with this sentence unless something holds."""
    if not holds:
        raise error(sentence)


# What a model is trained on: (model, batch, generator) -> losses [items].
Losses = Callable[[nn.Module, Any, torch.Generator], Float[Tensor, "items"]]


def _seeded(device: torch.device, seed: int) -> torch.Generator:
    """Seed what layers draw from, and return a generator for the loss."""
    # torch.manual_seed asks every backend that torch knows, at 75 us a call.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)
    return torch.Generator(device).manual_seed(seed)


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
    device = next(model.parameters()).device
    wide = torch.float32 if device.type == "mps" else torch.float64
    total, items = torch.zeros((), device=device, dtype=wide), 0
    low = precision == "bfloat16"
    for batch, seed in parts:
        generator = _seeded(device, seed)
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            each = losses(model, _moved(batch, device), generator)
        _require(
            each.ndim == 1,
            "losses must return one number for each item, "
            f"got shape {list(each.shape)}",
            TypeError,
        )
        each.sum().backward()
        total += each.detach().sum(dtype=wide)
        items += len(each)
    return total, items


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """Return an average of the weights that a model will have had.

    Call `update_parameters(model)` after each step. The attribute `module` is
    the averaged model in evaluation mode, with the newest buffers; `decay`
    in [0, 1) remembers about 1 / (1 - decay) steps.

    Implements eq-moving-average, prop-moving-average
    (book/foundations/training.md).
    """

    def towards(
        means: list[Tensor], weights: list[Tensor], _: Tensor
    ) -> None:
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
    batch_size: int = 64  # examples of a step, over all processes
    micro_batches: int = 1  # parts of a process's share of a batch
    max_norm: float | None = 1.0  # longer gradients are scaled down to it
    ema_decay: float | None = None  # of an average of the weights
    precision: str = "float32"  # or "bfloat16", for the layers that can
    seed: int = 0  # of the order of the examples and of all that is drawn

    def __post_init__(self) -> None:
        norm, decay = self.max_norm, self.ema_decay
        some, whole = range(1, 2**63), "a whole number from 1 on"
        precise = self.precision in ("float32", "bfloat16")
        bits = "float32 or bfloat16 (float16 needs loss scaling)"
        for name, holds, what in (
            ("steps", self.steps in some, whole),
            ("batch_size", self.batch_size in some, whole),
            ("micro_batches", self.micro_batches in some, whole),
            ("max_norm", norm is None or norm > 0, "positive or None"),
            ("ema_decay", not decay or 0 < decay < 1, "in [0, 1) or None"),
            ("precision", precise, bits),
            ("seed", self.seed in range(2**63), "a whole number from 0 on"),
        ):
            value = getattr(self, name)
            _require(holds, f"{name} must be {what}, got {value!r}")


# The factor of the learning rates in step 0, 1, 2, ...
LRFactor = Callable[[int], float]


def warmup_cosine(steps: int, warmup: int, final: float = 0.0) -> LRFactor:
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


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says why, and what is kept."""


# One line of the log: what is known of a step.
Row = dict[str, float | int]


def _trained(
    model: nn.Module, optimizer: Optimizer
) -> dict[str, nn.Parameter]:
    """Return the trained parameters by name, in the optimiser's order."""
    weights = list(model.parameters())
    wrapped = isinstance(model, DataParallel | DistributedDataParallel)
    _require(
        not wrapped and not any(hasattr(p, "placements") for p in weights),
        "model must be neither wrapped nor sharded: train shares gradients",
        TypeError,
    )
    _require(
        torch.float16 not in {p.dtype for p in weights},
        "model has float16 parameters, which need loss scaling",
        TypeError,
    )
    trained = {p: n for n, p in model.named_parameters() if p.requires_grad}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    lacking = sorted(trained[p] for p in trained.keys() - set(held))
    _require(
        not lacking and len(held) == len(trained),
        "the optimizer must hold what the model trains: it lacks "
        f"{lacking} and has {len(held)} parameters for {len(trained)}",
    )
    return {trained[p]: p for p in held}


@dataclass(eq=False, repr=False)
class Run:
    """A training run between two steps; `train` describes the arguments.

    Its attributes: `step`, the number of steps done; `average`, the moving
    average, if any; `log`, a row for each logged step.

    Implements def-run-state (book/foundations/training.md).
    """

    model: nn.Module
    losses: Losses
    data: Any
    optimizer: Optimizer
    config: Training
    lr_factor: LRFactor = lambda step: 1.0
    folder: str | Path | None = None
    keep: int = 2

    def __post_init__(self) -> None:
        # A compiled model has the one that checkpoints know inside.
        self.core: nn.Module = getattr(self.model, "_orig_mod", self.model)
        self.device = next(self.model.parameters()).device
        self.rank, self.processes = 0, 1
        if dist.is_available() and dist.is_initialized():
            self.rank, self.processes = dist.get_rank(), dist.get_world_size()
        self.step, self.log = 0, list[Row]()
        self.trained = _trained(self.core, self.optimizer)
        self._indexed = _indexed(self.data, self.config, self.processes)
        self._batches, self._file = self._stream(), None
        decay = self.config.ema_decay
        self.average = (
            None if decay is None else moving_average(self.core, decay)
        )
        self._settings = self._remembered()[1]["settings"]
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self._exempt = self._not_finite()

    @property
    def averaged(self) -> nn.Module:
        """The average of the weights as a model; the model if there is none."""
        return self.core if self.average is None else self.average.module

    def gradient(self, stop: bool = False) -> Float[Tensor, "4"]:
        """Set the gradient of the mean loss of the next step, clipped.

        Returns the mean loss, the norm before clipping, the number of items
        and how many processes have `stop`. To look makes a GPU wait.

        Implements eq-shared-gradient, eq-clip (book/foundations/training.md).
        """
        self.optimizer.zero_grad()
        total, items = accumulate(
            self.model, self.losses, self.parts(), self.config.precision
        )
        sums = torch.stack([total, *total.new_tensor([items, stop])])
        for p in self.trained.values():  # 0 where no loss reaches
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        gradients = [p.grad for p in self.trained.values()]
        _exchange([sums, *gradients], add=True)
        norm = nn.utils.get_total_norm(map(_wide, gradients)) / sums[1]
        scale = 1 / sums[1]
        if self.config.max_norm is not None:
            # At norm 0 it is min(1, inf); the library's has an epsilon there.
            scale = scale * (self.config.max_norm / norm).clamp(max=1.0)
        torch._foreach_mul_(gradients, scale)
        return torch.stack([sums[0] / sums[1], norm.to(sums), *sums[1:]])

    def update(
        self, stop: bool = False, look: bool = True
    ) -> tuple[Row, bool]:
        """Make one step; return its row of the log, and whether to stop.

        If it may `look`, a loss or norm that is not finite is a TrainingError
        before a weight changes. If not, the row is empty, no GPU waits, and
        several processes do not stop.
        """
        told, factor, row = self.gradient(stop), self.lr_factor(self.step), {}
        if look:
            loss, norm, items, stops = told.tolist()  # the only wait
            _require(
                math.isfinite(loss) and math.isfinite(norm),
                f"step {self.step + 1}: the loss is {loss} over "
                f"{int(items)} items, with a gradient of norm {norm}",
                TrainingError,
            )
            row = {"step": self.step + 1, "lr": self._rates[0] * factor}
            row |= {"loss": loss, "norm": norm, "items": int(items)}
            stop = stops > 0
        groups = self.optimizer.param_groups
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.step()
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate
        self.step += 1
        _exchange(self.core.buffers())
        if self.average is not None:
            self.average.update_parameters(self.core)
        return row, stop and (look or self.processes == 1)

    def parts(self) -> Iterator[tuple[Any, int]]:
        """Yield what this process works on in the next step, and its seeds.

        Implements def-run-state (book/foundations/training.md).
        """
        seed, share = self.config.seed, self.config.micro_batches
        count, size = self.processes * share, self.config.batch_size
        if self._indexed:
            chosen = batch_indices(len(self.data), size, self.step, seed)
            cut = chosen.chunk(count)
        for j in range(count):
            mine, drawn = j // share == self.rank, (seed, 1, self.step, j)
            if not self._indexed:  # it has no other way to skip a part
                batch = next(self._batches)
            elif mine:
                torch.manual_seed(derived_seed(*drawn, 0))
                if isinstance(self.data, Dataset):  # gives one at a time
                    items = [self.data[i] for i in cut[j].tolist()]
                    batch = default_collate(items)
                else:
                    batch = self.data[cut[j]]
            if mine:
                yield batch, derived_seed(*drawn)

    def _stream(self) -> Iterator[Any]:
        """Yield the batches of an iterable from the next step on, for ever."""
        data, seed = self.data, self.config.seed
        start = self.step * self.processes * self.config.micro_batches
        length = operator.length_hint(data)
        first = start // length if length else 0
        number = first * length
        for epoch in itertools.count(first):
            fresh, began = derived_seed(seed, 2, epoch), number
            torch.manual_seed(fresh)
            for name in (None, "sampler", "batch_sampler"):
                owner = getattr(data, name, None) if name else data
                if getattr(owner, "generator", None) is not None:
                    owner.generator.manual_seed(fresh)
                if hasattr(owner, "set_epoch"):
                    owner.set_epoch(epoch)
            for batch in data:
                number += 1
                if number > start:
                    yield batch
                torch.manual_seed(derived_seed(seed, 3, number))
            found = number - began
            _require(
                found > 0 and found == (length or found),
                f"data had {found} batches in epoch {epoch}, expected "
                f"{length or 'some'}: it must be the same in every epoch",
                TrainingError,
            )

    def save(self) -> None:
        """Write the state into a new folder step-<number>, or nothing at all.

        What the log has goes first. Only the first process writes. Raises
        TrainingError if an entry is not finite that was at the start, and
        CheckpointError or OSError if the folder cannot be written.

        Implements thm-resume (book/foundations/training.md).
        """
        if self._file is None:
            return
        os.fsync(self._file)
        broken = sorted(self._not_finite() - self._exempt)
        what = f"step {self.step}: {broken} have entries that are not finite"
        _require(not broken, what, TrainingError)
        tensors, rest = self._remembered()
        size = os.fstat(self._file.fileno()).st_size
        told = {"step": self.step, "log": size, "optimizer": rest}
        told["setup"] = self._setup(self.step)
        with new_folder(self.folder / f"step-{self.step:08d}") as partial:
            save_checkpoint(partial / "model", model_tensors(self.core), told)
            save_checkpoint(partial / "optimizer", tensors, {})
            if self.average is not None:
                average = model_tensors(self.averaged)
                save_checkpoint(partial / "average", average, {})
        self._prune()

    def restore(self, checkpoint: Path) -> int:
        """Take over the state that `save` wrote; return the log's size.

        Raises CheckpointError if it cannot be read or is another model's, and
        TrainingError if it is the state of another run.
        """
        told, steps = read_config(checkpoint / "model"), self.config.steps
        known = {"step", "log", "optimizer", "setup"} <= told.keys()
        what = f"{checkpoint} is not the checkpoint of a run"
        _require(known, what, TrainingError)
        done, theirs = told["step"], told["setup"]
        what = f"{checkpoint}: its run has"
        ends = f"{what} done {done} steps, this one ends at {steps}"
        _require(done <= steps, ends, TrainingError)
        for name, mine in self._setup(done).items():
            other = f"{what} {name} {theirs.get(name)}, this one has {mine}"
            _require(theirs.get(name) == mine, other, TrainingError)
        load_checkpoint(self.core, checkpoint / "model")
        tensors = read_tensors(checkpoint / "optimizer")
        self._remember(tensors, told["optimizer"])
        self.step = done
        if self.average is not None:
            load_checkpoint(self.averaged, checkpoint / "average")
            self.average.n_averaged.fill_(done)
        return told["log"]

    def _remembered(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what the optimiser remembers: tensors, and the rest."""
        groups, state = self.optimizer.param_groups, self.optimizer.state
        entries = {
            f"{name}.{entry}": value
            for name, parameter in self.trained.items()
            for entry, value in state.get(parameter, {}).items()
        }
        tensors = {n: x for n, x in entries.items() if isinstance(x, Tensor)}
        rest = {
            "settings": [
                {name: x for name, x in group.items() if name != "params"}
                for group in groups
            ],
            "entries": {n: x for n, x in entries.items() if n not in tensors},
            "on the CPU": sorted(n for n, x in tensors.items() if x.is_cpu),
        }
        try:
            return tensors, json.loads(json.dumps(rest))
        except TypeError as error:
            what = f"a checkpoint cannot hold what the optimizer has: {error}"
            raise TypeError(what) from None

    def _remember(
        self, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]
    ) -> None:
        """Give the optimiser its state back, bit for bit."""
        groups = self.optimizer.param_groups
        for group, settings in zip(groups, rest["settings"], strict=True):
            group |= settings
        for name, value in (tensors | rest["entries"]).items():
            parameter, _, entry = name.rpartition(".")
            if name in tensors and name not in rest["on the CPU"]:
                value = value.to(self.device)
            self.optimizer.state[self.trained[parameter]][entry] = value

    def _not_finite(self) -> set[str]:
        """Return the names of what has entries that are not finite."""
        found = model_tensors(self.core).items()
        return {n for n, x in found if not x.isfinite().all()}

    def _setup(self, step: int) -> dict[str, Any]:
        """Return what must not change from one start to the next."""
        setup = asdict(self.config) | {
            "examples": operator.length_hint(self.data),
            "processes": self.processes,
            "optimizer": type(self.optimizer).__name__,
            "trained parameters": list(self.trained),
            "factor of the learning rate": self.lr_factor(max(step - 1, 0)),
        }
        del setup["steps"]
        for number, group in enumerate(self._settings):
            for name, value in group.items():
                setup[f"{name} of parameter group {number}"] = value
        return setup

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the folder; go on from its newest checkpoint, with its log."""
        with closing(self._batches), ExitStack() as stack:
            if self.folder is not None:
                self.folder = Path(self.folder)
                if self.rank == 0:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(locked(self.folder))
                found = checkpoints(self.folder)
                size = self.restore(found[-1]) if found else 0
                if self.rank == 0:
                    self.log = read_log(self.folder, size) if size else []
                    file = (self.folder / "log.jsonl").open("ab")
                    self._file = stack.enter_context(file)
                    file.truncate(size)
                    self._prune() if found else self.save()
            yield

    def add(self, row: Row) -> None:
        """Append a row to the log."""
        self.log.append(row)
        if self._file is not None:
            self._file.write(json.dumps(row).encode() + b"\n")
            self._file.flush()

    def _prune(self) -> None:
        """Remove all checkpoints but the newest ones, and parts of others."""
        for path in checkpoints(self.folder)[: -self.keep]:
            path.rename(path.with_name(f".{path.name}.old"))
        for path in self.folder.glob(".step-[0-9]*/"):
            shutil.rmtree(path, ignore_errors=True)


def _wide(x: Tensor) -> Tensor:
    """Return x in float32 at least: half the bits overflow in a norm."""
    low = x.is_floating_point() and x.dtype.itemsize < 4
    return x.float() if low else x


def _exchange(tensors: Iterable[Tensor], add: bool = False) -> None:
    """Give all processes the sums of their tensors, or those of the first."""
    if dist.is_available() and dist.is_initialized():
        for tensor in tensors:
            sent = _wide(tensor.detach()).contiguous()
            dist.all_reduce(sent) if add else dist.broadcast(sent, 0)
            tensor.detach().copy_(sent)


def _indexed(data: Any, config: Training, processes: int) -> bool:
    """Return whether data are taken by index; refuse what gives no batch."""
    count, size = processes * config.micro_batches, config.batch_size
    _require(
        size % count == 0,
        f"batch_size {size} cannot be cut into {processes} x "
        f"{config.micro_batches} equal parts (processes x micro_batches)",
    )
    mapped = hasattr(data, "__getitem__")
    other = isinstance(data, Mapping | IterableDataset)
    _require(
        not other and (mapped or hasattr(data, "__iter__")),
        "data must be a data set, or an iterable of batches like a "
        f"DataLoader, got {type(data).__name__}",
        TypeError,
    )
    if mapped and not isinstance(data, list | tuple):
        batch_indices(len(data), size, 0, config.seed)
        return True
    own = getattr(data, "batch_size", None) or size // count
    _require(own * count == size, f"batch_size {size} is not {count} x {own}")
    keeps = getattr(data, "persistent_workers", False)
    _require(not keeps, "data: persistent_workers keep state between epochs")
    return False


def checkpoints(folder: str | Path) -> list[Path]:
    """Return the checkpoints in the folder of a run, oldest first."""
    found = Path(folder).glob("step-" + "[0-9]" * 8)
    return sorted(path for path in found if path.is_dir())


def read_log(folder: str | Path, size: int | None = None) -> list[Row]:
    """Return the rows of a run's log, or of its first bytes, in order.

    Half a row at the end is none. Raises FileNotFoundError if there is no
    log, and TrainingError if it is shorter or one of its lines is no row.
    """
    log = Path(folder, "log.jsonl")
    content = log.read_bytes()[:size]
    what = f"{log} is shorter than its checkpoint says"
    _require(len(content) >= (size or 0), what, TrainingError)
    try:
        return [json.loads(line) for line in content.split(b"\n")[:-1]]
    except ValueError as error:
        what = f"{log} is not the log of a run: {error}"
        raise TrainingError(what) from None


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGINT or SIGTERM has come.

    The second one acts as ever. Outside of the main thread, where Python lets
    nobody handle signals, nothing is changed.
    """
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.signal(number, previous[number])

    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
    previous = {number: signal.signal(number, note) for number in numbers}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def train(
    model: nn.Module,
    losses: Losses,
    data: Any,
    optimizer: Optimizer,
    config: Training,
    *,
    lr_factor: LRFactor = lambda step: 1.0,
    folder: str | Path | None = None,
    save_every: int | None = None,
    keep: int = 2,
    evaluate: Callable[[Run], Mapping[str, float]] | None = None,
    evaluate_every: int | None = None,
    log_every: int = 1,
) -> Run:
    """Train a model; go on where the folder says that a run was stopped.

    On SIGINT or SIGTERM the run ends after the step, with a checkpoint. Under
    torchrun (`process_group`) the processes share each batch, and the first
    one writes. Random generators of the caller are left as they are.

    Args:
        model: trained in place, on its device; in training mode afterwards.
        losses: (model, batch, generator) -> one loss for each item.
        data: gives `data[indices]`, a batch; or a PyTorch Dataset; or a
            DataLoader or other iterable of batches, one for each part.
        optimizer: of exactly the parameters that need a gradient.
        config: number of steps, batch size, and so on.
        lr_factor: step -> factor of the learning rates.
        folder: of checkpoints and log.jsonl; None: nothing is written.
        save_every: steps between checkpoints; the last step has one anyway.
        keep: how many checkpoints stay.
        evaluate: run -> numbers for the log; called by every process.
        evaluate_every: steps between evaluations; the last step has one.
        log_every: steps between rows; evaluations have one anyway.

    Raises:
        ValueError, TypeError: if an argument is not as said.
        TrainingError: if the loss is not finite, or the folder another run's.
        CheckpointError, OSError: if the folder is in use or out of reach.
        KeyboardInterrupt: after SIGINT or SIGTERM, when all is saved.
    """
    rhythm = {
        "log": log_every,
        "save": save_every,
        "evaluate": evaluate_every,
    }
    whole = {"keep": keep} | {f"{n}_every": x for n, x in rhythm.items()}
    for name, value in whole.items():
        what = f"{name} must be at least 1, got {value}"
        _require(value is None or value >= 1, what)
    run = Run(model, losses, data, optimizer, config, lr_factor, folder, keep)
    devices = [run.device] if run.device.type == "cuda" else []
    silent = True if run.rank else None  # None: a bar on a terminal only
    with (
        run.opened(),
        torch.random.fork_rng(devices),
        interruptible() as asked,
        tqdm(total=config.steps, initial=run.step, disable=silent) as bar,
    ):
        _exchange((*run.core.parameters(), *run.core.buffers()))
        stopped = _steps(run, asked, bar, evaluate, rhythm)
        if run.processes > 1:
            dist.barrier()  # none ends before the checkpoint is there
    if stopped or asked():
        kept = "nothing" if folder is None else checkpoints(folder)[-1]
        raise KeyboardInterrupt(
            f"stopped after step {run.step}; kept: {kept}"
        )
    return run


def _steps(
    run: Run,
    asked: Callable[[], bool],
    bar: Any,
    evaluate: Callable[[Run], Mapping[str, float]] | None,
    rhythm: Mapping[str, int | None],
) -> bool:
    """Make the steps of a run; return whether it was stopped."""
    first = since = run.step
    began, stopped, last = time.perf_counter(), False, run.config.steps
    run.model.train()
    while run.step < last and not stopped:
        step = run.step + 1
        due = {
            n: step == last or step % (x or last) == 0
            for n, x in rhythm.items()
        }
        judged = due["evaluate"] and evaluate is not None
        logged = due["log"] or judged
        row, stopped = run.update(asked(), logged or due["save"])
        bar.update()
        if step == first + 1:
            run._remembered()  # better a TypeError now than at a save
        if logged:
            row["seconds"] = (time.perf_counter() - began) / (step - since)
            row |= _evaluated(run, evaluate, row) if judged else {}
            bar.set_postfix_str(f"loss {row['loss']:.4g}", refresh=False)
            run.add(row)
        if stopped or due["save"]:
            run.save()
        if logged:  # what evaluating and saving took is no step's time
            since, began = step, time.perf_counter()
    return stopped


def _evaluated(
    run: Run, evaluate: Callable[[Run], Mapping[str, float]], row: Row
) -> Row:
    """Return what an evaluation finds, made in evaluation mode."""
    run.model.eval()
    with torch.no_grad():
        found = {name: float(x) for name, x in evaluate(run).items()}
    run.model.train()
    clash = sorted(found.keys() & row.keys())
    what = f"evaluate must use other names than the log's own, got {clash}"
    _require(not clash, what)
    return found


@contextmanager
def process_group() -> Iterator[torch.device]:
    """Yield the device of this process; under torchrun, join the others.

    It is the process's own GPU, with NCCL, or the CPU, with gloo.
    """
    cuda = torch.cuda.is_available()
    if "WORLD_SIZE" not in os.environ:
        yield torch.device("cuda" if cuda else "cpu")
        return
    number = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", number) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()
