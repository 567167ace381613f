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
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import IO, Any

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
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
    """Return one seed for several whole numbers, below 2**64.

    Other numbers, or the same ones in another order, give an unrelated seed.
    """
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

    Raises:
        ValueError: if the batch is larger than the data.

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


def _require(holds: bool, sentence: str) -> None:
    """Raise a ValueError with this sentence unless something holds."""
    if not holds:
        raise ValueError(sentence)


# What a model is trained on: (model, batch, generator) -> losses [items].
Losses = Callable[[nn.Module, Any, torch.Generator], Float[Tensor, "items"]]


def _seeded(device: torch.device, seed: int) -> torch.Generator:
    """Seed what layers draw from, and return a generator for the loss."""
    # torch.manual_seed asks every backend that torch knows, at 75 us a call.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)
    return torch.Generator(device).manual_seed(seed)


def accumulate(
    model: nn.Module,
    losses: Losses,
    parts: Iterable[tuple[Any, int]],
    precision: str = "float32",
) -> tuple[Float[Tensor, ""], int]:
    """Add the gradients of the summed losses of the parts, (batch, seed).

    Returns:
        The sum of the losses, in the units of `losses`, and their number.

    Raises:
        TypeError: if `losses` returns something else than one loss per item.

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
        if each.ndim != 1:
            raise TypeError(
                "losses must return one number for each item, [items], "
                f"got shape {list(each.shape)}"
            )
        each.sum().backward()
        total += each.detach().sum(dtype=wide)
        items += len(each)
    return total, items


def _moved(batch: Any, device: torch.device) -> Any:
    """Return a batch on a device: a tensor, or what tensors are nested in."""
    if isinstance(batch, Mapping):
        return {name: _moved(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(_moved(value, device) for value in batch)
    return (
        batch.to(device, non_blocking=True) if hasattr(batch, "to") else batch
    )


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """Return an average of the weights that a model will have had.

    Call `update_parameters(model)` after each step: at first it is the plain
    mean of all weights so far, later their exponential moving average. What
    the model is now does not count; buffers are copied.

    Args:
        model: its copy, in evaluation mode, is the attribute `module`.
        decay: in [0, 1); it remembers about 1 / (1 - decay) steps.

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

    Args:
        steps: number of steps of the whole run.
        batch_size: examples of a step, over all processes.
        micro_batches: parts into which a process cuts its share of a batch.
        max_norm: longer gradients are scaled down to this; None: never.
        ema_decay: decay of the average of the weights; None: no average.
        precision: "float32", or "bfloat16" for the layers that can.
        seed: of the order of the examples and of all that is drawn.

    Raises:
        ValueError: if an argument is out of its range.
    """

    steps: int
    batch_size: int = 64
    micro_batches: int = 1
    max_norm: float | None = 1.0
    ema_decay: float | None = None
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        norm, decay = self.max_norm, self.ema_decay
        some, whole = range(1, 2**63), "a whole number from 1 on"
        rules = {
            "steps": (self.steps in some, whole),
            "batch_size": (self.batch_size in some, whole),
            "micro_batches": (self.micro_batches in some, whole),
            "max_norm": (norm is None or norm > 0, "positive or None"),
            "ema_decay": (
                decay is None or 0 <= decay < 1,
                "in [0, 1) or None",
            ),
            "precision": (
                self.precision in ("float32", "bfloat16"),
                "float32 or bfloat16 (float16 needs loss scaling)",
            ),
            "seed": (self.seed in range(2**63), "a whole number from 0 on"),
        }
        for name, (holds, what) in rules.items():
            _require(
                holds, f"{name} must be {what}, got {getattr(self, name)!r}"
            )


# The factor of the learning rates in step 0, 1, 2, ...
LRFactor = Callable[[int], float]


def warmup_cosine(steps: int, warmup: int, final: float = 0.0) -> LRFactor:
    """Return a factor: up in a line to 1, down along a cosine to `final`.

    Raises:
        ValueError: if the warm-up is not shorter than the run.

    Implements eq-warmup-cosine (book/foundations/training.md).
    """
    _require(
        0 <= warmup < steps,
        f"warmup must lie in 0..{steps - 1} for {steps} steps, got {warmup}",
    )

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


def _place() -> tuple[int, int]:
    """Return the number of this process, and of how many."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _trained(
    model: nn.Module, optimizer: Optimizer
) -> dict[str, nn.Parameter]:
    """Return the trained parameters by name, in the optimiser's order."""
    wrapped = isinstance(model, DataParallel | DistributedDataParallel)
    if wrapped or any(hasattr(p, "placements") for p in model.parameters()):
        raise TypeError(
            "model must be the model itself, not wrapped and not sharded: "
            "train shares its gradients among the processes"
        )
    if any(p.dtype == torch.float16 for p in model.parameters()):
        raise TypeError(
            "model has float16 parameters, which need loss scaling"
        )
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"model: a checkpoint holds tensors, and '{name}' is of type "
                f"{type(value).__name__}"
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


def _settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return the settings of each parameter group, as JSON gives them back."""
    groups = [
        {name: value for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]
    return _plain(groups, "the optimizer's settings")


def _plain(value: Any, what: str) -> Any:
    """Return a value as JSON gives it back, if JSON can hold it."""
    try:
        return json.loads(json.dumps(value))
    except TypeError as error:
        raise TypeError(f"a checkpoint cannot hold {what}: {error}") from None


class Run:
    """A training run between two steps; `train` describes the arguments.

    Attributes:
        step: how many steps are done.
        average: the moving average of the weights, if there is one.
        log: a row for each of these steps, or for some; in the first process
            also those of earlier starts.

    Implements def-run-state (book/foundations/training.md).
    """

    def __init__(
        self,
        model: nn.Module,
        losses: Losses,
        data: Any,
        optimizer: Optimizer,
        config: Training,
        lr_factor: LRFactor = lambda step: 1.0,
    ) -> None:
        self.model, self.losses, self.data = model, losses, data
        self.optimizer, self.config = optimizer, config
        self.lr_factor = lr_factor
        # A compiled model has the one that checkpoints know inside.
        self.core: nn.Module = getattr(model, "_orig_mod", model)
        self.device = next(model.parameters()).device
        self.rank, self.processes = _place()
        self.step, self.log = 0, list[Row]()
        self.trained = _trained(self.core, optimizer)
        self._indexed = _indexed(data, config, self.processes)
        self._batches: Iterator[Any] | None = None
        decay = config.ema_decay
        self.average = (
            None if decay is None else moving_average(self.core, decay)
        )
        self._settings = _settings(optimizer)
        self._rates = [group["lr"] for group in optimizer.param_groups]
        self._exempt = self._not_finite()

    @property
    def averaged(self) -> nn.Module:
        """The average of the weights as a model; the model if there is none."""
        return self.core if self.average is None else self.average.module

    def gradient(self, stop: bool = False) -> Float[Tensor, "4"]:
        """Set the gradient of the mean loss of the next step, clipped.

        A parameter that no loss reaches has the gradient 0.

        Args:
            stop: whether this process was asked to stop.

        Returns:
            The mean loss, the norm of its gradient before clipping, the
            number of items, and how many processes were asked to stop. Only
            to look at them makes an accelerator wait.

        Implements eq-shared-gradient, eq-clip (book/foundations/training.md).
        """
        self.optimizer.zero_grad()
        total, items = accumulate(
            self.model, self.losses, self.parts(), self.config.precision
        )
        sums = torch.stack([total, *total.new_tensor([items, stop])])
        parameters = self.trained.values()
        for p in parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        gradients = [p.grad for p in parameters]
        if self.processes > 1:
            _exchange([sums, *gradients], dist.all_reduce)
        norm = (
            nn.utils.get_total_norm([_wide(g) for g in gradients]) / sums[1]
        )
        scale = 1 / sums[1]
        if self.config.max_norm is not None:
            # At norm 0 it is min(1, inf); the library's has an epsilon there.
            scale = scale * (self.config.max_norm / norm).clamp(max=1.0)
        torch._foreach_mul_(gradients, scale)
        return torch.stack([sums[0] / sums[1], norm.to(sums), *sums[1:]])

    def agree(self, tensors: Iterable[Tensor] | None = None) -> None:
        """Give all processes the tensors of the first; else the model's."""
        if self.processes > 1:
            everything = (*self.core.parameters(), *self.core.buffers())
            tensors = everything if tensors is None else tensors
            _exchange(tensors, lambda x: dist.broadcast(x, 0))

    def update(
        self, stop: bool = False, look: bool = True
    ) -> tuple[Row, bool]:
        """Make one step; return its row of the log, and whether to stop.

        Args:
            stop: whether this process was asked to stop.
            look: whether to read loss and norm. Without it the row is empty,
                an accelerator need not wait, and several processes stop only
                at a step that looks.

        Raises:
            TrainingError: if what is read is not finite; the weights are then
                as they were.
        """
        told, factor, row = self.gradient(stop), self.lr_factor(self.step), {}
        if look:
            loss, norm, items, stops = told.tolist()  # the only wait
            if not math.isfinite(loss) or not math.isfinite(norm):
                raise TrainingError(
                    f"step {self.step + 1}: the loss is {loss} over "
                    f"{int(items)} items, with a gradient of norm {norm}"
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
        self.agree(self.core.buffers())
        if self.average is not None:
            self.average.update_parameters(self.core)
        return row, stop and (look or self.processes == 1)

    def parts(self) -> Iterator[tuple[Any, int]]:
        """Yield what this process works on in the next step, and its seeds.

        Implements def-run-state (book/foundations/training.md).
        """
        seed, share = self.config.seed, self.config.micro_batches
        count = self.processes * share
        if self._indexed:
            size, n = self.config.batch_size, len(self.data)
            cut = batch_indices(n, size, self.step, seed).chunk(count)
        elif self._batches is None:
            self._batches = _stream(self.data, seed, self.step * count)
        for j in range(count):
            mine, drawn = j // share == self.rank, (seed, 1, self.step, j)
            if not self._indexed:  # it has no other way to skip a part
                batch = next(self._batches)
            elif mine:
                torch.manual_seed(derived_seed(*drawn, 0))
                batch = _batch(self.data, cut[j])
            if mine:
                yield batch, derived_seed(*drawn)

    def close(self) -> None:
        """Let the workers of a data loader go."""
        if self._batches is not None:
            self._batches.close()

    def save(self, folder: Path, log: int = 0) -> Path:
        """Write the state into a new folder step-<number>, or nothing at all.

        Args:
            folder: that of the run.
            log: size of its log, in bytes.

        Raises:
            TrainingError: if an entry is not finite that was at the start.
            CheckpointError: if the folder exists or cannot be written.

        Implements thm-resume (book/foundations/training.md).
        """
        for name in sorted(self._not_finite() - self._exempt):
            raise TrainingError(
                f"step {self.step}: {name} has an entry that is not finite"
            )
        tensors, rest = self._remembered()
        told = {"step": self.step, "log": log, "optimizer": rest}
        target = Path(folder) / f"step-{self.step:08d}"
        with new_folder(target) as partial:
            model, setup = model_tensors(self.core), self._setup(self.step)
            save_checkpoint(partial / "model", model, told | {"setup": setup})
            save_checkpoint(partial / "optimizer", tensors, {})
            if self.average is not None:
                average = model_tensors(self.averaged)
                save_checkpoint(partial / "average", average, {})
        return target

    def restore(self, checkpoint: Path) -> int:
        """Take over the state that `save` wrote; return the log's size.

        Raises:
            CheckpointError: if it cannot be read or is another model's.
            TrainingError: if it is the state of another run.
        """
        told = read_config(checkpoint / "model")
        self._compare(checkpoint, told)
        load_checkpoint(self.core, checkpoint / "model")
        tensors = read_tensors(checkpoint / "optimizer")
        self._remember(tensors, told["optimizer"])
        self.step = told["step"]
        if self.average is not None:
            load_checkpoint(self.averaged, checkpoint / "average")
            self.average.n_averaged.fill_(self.step)
        return told["log"]

    def _remembered(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what the optimiser remembers: tensors, and the rest."""
        entries = {
            f"{name}.{entry}": value
            for name, parameter in self.trained.items()
            for entry, value in self.optimizer.state.get(
                parameter, {}
            ).items()
        }
        tensors = {n: x for n, x in entries.items() if isinstance(x, Tensor)}
        rest = {
            "settings": _settings(self.optimizer),
            "entries": {n: x for n, x in entries.items() if n not in tensors},
            "on the CPU": sorted(n for n, x in tensors.items() if x.is_cpu),
        }
        return tensors, _plain(rest, "what the optimizer remembers")

    def _remember(
        self, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]
    ) -> None:
        """Give the optimiser its state back, bit for bit."""
        groups = self.optimizer.param_groups
        for group, settings in zip(groups, rest["settings"], strict=True):
            group |= settings
        moved = {
            name: x if name in rest["on the CPU"] else x.to(self.device)
            for name, x in tensors.items()
        }
        for name, value in (moved | rest["entries"]).items():
            parameter, _, entry = name.rpartition(".")
            self.optimizer.state[self.trained[parameter]][entry] = value

    def _not_finite(self) -> set[str]:
        """Return the names of what has entries that are not finite."""
        return {
            name
            for name, tensor in model_tensors(self.core).items()
            if tensor.is_floating_point() and not tensor.isfinite().all()
        }

    def _setup(self, step: int) -> dict[str, Any]:
        """Return what must not change from one start to the next."""
        setup: dict[str, Any] = asdict(self.config)
        del setup["steps"]
        setup["examples"] = operator.length_hint(self.data)
        setup["processes"] = self.processes
        setup["optimizer"] = type(self.optimizer).__name__
        setup["trained parameters"] = list(self.trained)
        setup["factor of the learning rate"] = self.lr_factor(
            max(step - 1, 0)
        )
        for number, group in enumerate(self._settings):
            for name, value in group.items():
                setup[f"{name} of parameter group {number}"] = value
        return _plain(setup, "the set-up")

    def _compare(self, checkpoint: Path, told: Mapping[str, Any]) -> None:
        """Raise unless a checkpoint is one of this run."""
        step, theirs = told.get("step"), told.get("setup")
        if not isinstance(step, int) or not isinstance(theirs, dict):
            raise TrainingError(
                f"{checkpoint} is not the checkpoint of a run"
            )
        if step > self.config.steps:
            raise TrainingError(
                f"{checkpoint}: its run has done {step} steps, this one ends "
                f"at {self.config.steps}"
            )
        for name, mine in self._setup(step).items():
            if theirs.get(name) != mine:
                raise TrainingError(
                    f"{checkpoint}: its run has {name} {theirs.get(name)}, "
                    f"this one has {mine}; go on with the same, or begin in "
                    "another folder"
                )


def _wide(x: Tensor) -> Tensor:
    """Return x in float32 at least: half the bits overflow in a norm."""
    low = x.is_floating_point() and x.dtype.itemsize < 4
    return x.float() if low else x


def _exchange(tensors: Iterable[Tensor], how: Callable[..., Any]) -> None:
    """Let the processes exchange tensors in place, half bits in float32."""
    for tensor in tensors:
        sent = _wide(tensor.detach()).contiguous()
        how(sent)
        tensor.detach().copy_(sent)


def _stream(data: Iterable[Any], seed: int, start: int) -> Iterator[Any]:
    """Yield the batches of an iterable from number `start` on, for ever."""
    length = operator.length_hint(data)
    first = start // length if length else 0
    number = first * length
    for epoch in itertools.count(first):
        fresh, began = derived_seed(seed, 2, epoch), number
        torch.manual_seed(fresh)
        sampler = getattr(data, "sampler", None)
        for owner in (data, sampler, getattr(data, "batch_sampler", None)):
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
        if found == 0 or found != (length or found):
            raise TrainingError(
                f"data had {found} batches in epoch {epoch}, expected "
                f"{length or 'some'}: it must be the same in every epoch"
            )


def _batch(data: Any, indices: Int64[Tensor, "B"]) -> Any:
    """Return a batch: at once, or item by item from PyTorch's data sets."""
    if not isinstance(data, Dataset):
        return data[indices]
    items = [data[i] for i in indices.tolist()]
    try:
        return default_collate(items)
    except TypeError as error:
        raise TypeError(
            f"data: a transform must make tensors of its items; {error}"
        ) from None


def _indexed(data: Any, config: Training, processes: int) -> bool:
    """Return whether data are taken by index; refuse what gives no batch."""
    count, size = processes * config.micro_batches, config.batch_size
    _require(
        size % count == 0,
        f"batch_size {size} cannot be cut into {processes} x "
        f"{config.micro_batches} equal parts (processes x micro_batches)",
    )
    other = isinstance(data, Mapping | IterableDataset)
    if other or not (
        hasattr(data, "__getitem__") or hasattr(data, "__iter__")
    ):
        raise TypeError(
            "data must be a data set, or an iterable of batches like a "
            f"DataLoader, got {type(data).__name__}"
        )
    if hasattr(data, "__getitem__") and not isinstance(data, list | tuple):
        batch_indices(len(data), size, 0, config.seed)
        return True
    own = getattr(data, "batch_size", None) or size // count
    _require(own * count == size, f"batch_size {size} is not {count} x {own}")
    keeps = getattr(data, "persistent_workers", False)
    _require(not keeps, "data: persistent_workers keep state between epochs")
    return False


class _Folder:
    """Where a run leaves its checkpoints and its log, if anywhere."""

    def __init__(self, run: Run, path: str | Path | None, keep: int) -> None:
        self.run, self.keep = run, keep
        self.path = None if path is None else Path(path)
        self.file: IO[bytes] | None = None  # the log; of the first process

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Lock the folder, go on from its newest checkpoint, hold its log."""
        if self.path is None:
            yield
            return
        with self._locked():
            found = checkpoints(self.path)
            size = self.run.restore(found[-1]) if found else 0
            if self.run.rank > 0:
                yield
                return
            log = self.path / "log.jsonl"
            self.run.log = _rows(log, size) if size else []
            with log.open("ab") as self.file:
                self.file.truncate(size)
                if not found:
                    self.run.save(self.path)
                self._prune()
                yield

    def add(self, row: Row) -> None:
        """Append a row to the log."""
        self.run.log.append(row)
        if self.file is not None:
            self.file.write(json.dumps(row).encode() + b"\n")
            self.file.flush()

    def save(self) -> None:
        """Save the state; first what the log has."""
        if self.file is not None:
            os.fsync(self.file.fileno())
            size = os.fstat(self.file.fileno()).st_size
            self.run.save(self.path, size)
            self._prune()
        if self.path is not None and self.run.processes > 1:
            dist.barrier()  # none ends before the checkpoint is there

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder for this run alone; the first process does."""
        if self.run.rank > 0:
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(self.path / ".lock", timeout=0).acquire()
        except Timeout:
            raise TrainingError(
                f"another run writes in {self.path}"
            ) from None
        with lock:
            yield

    def _prune(self) -> None:
        """Remove all checkpoints but the newest ones, and parts of others."""
        for path in checkpoints(self.path)[: -self.keep]:
            path.rename(path.with_name(f".{path.name}.old"))
        for path in self.path.glob(".step-[0-9]*/"):
            shutil.rmtree(path, ignore_errors=True)

    def kept(self) -> str:
        """Say what is on the disk."""
        found = [] if self.path is None else checkpoints(self.path)
        return f"kept: {found[-1]}" if found else "no checkpoint was written"


def checkpoints(folder: str | Path) -> list[Path]:
    """Return the checkpoints in the folder of a run, oldest first."""
    found = Path(folder).glob("step-" + "[0-9]" * 8)
    return sorted(path for path in found if path.is_dir())


def _rows(log: Path, size: int | None = None) -> list[Row]:
    """Return the rows in the first bytes of a log; half a row is none."""
    content = log.read_bytes()[:size]
    if len(content) < (size or 0):
        raise TrainingError(f"{log} is shorter than its checkpoint says")
    try:
        return [json.loads(line) for line in content.split(b"\n")[:-1]]
    except ValueError as error:
        raise TrainingError(
            f"{log} is not the log of a run: {error}"
        ) from None


def read_log(folder: str | Path) -> list[Row]:
    """Return the log of a run: a row for each logged step, in order.

    Raises:
        FileNotFoundError: if the folder has no log.
        TrainingError: if a line of it is not a row.
    """
    return _rows(Path(folder, "log.jsonl"))


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGINT or SIGTERM has come.

    The second of them acts as if this were not here. Outside of the main
    thread, where Python lets nobody handle signals, nothing is changed.
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
        model: trained in place, on the device where it is; in training mode
            afterwards.
        losses: (model, batch, generator) -> one loss for each item.
        data: a data set that gives `data[indices]`, a batch; or a PyTorch
            Dataset; or a DataLoader or other iterable of batches, of which a
            step takes one for each of its parts.
        optimizer: holds exactly the parameters that need a gradient.
        config: number of steps, batch size, and so on.
        lr_factor: step -> factor of the learning rates.
        folder: for checkpoints and log.jsonl; None: nothing is written.
        save_every: steps between checkpoints; the last step has one anyway.
        keep: how many checkpoints stay.
        evaluate: run -> numbers for the log, in evaluation mode and without
            gradients; called by every process.
        evaluate_every: steps between evaluations; the last step has one.
        log_every: steps between rows of the log; evaluations and saves look
            at the loss anyway. An accelerator waits at these steps only.

    Returns:
        The run after its last step, with `averaged` and `log`.

    Raises:
        ValueError, TypeError: if an argument is not as said, or the optimiser
            remembers what a checkpoint cannot hold.
        TrainingError: if the loss is not finite; or if another run writes in
            the folder, or has left a checkpoint there. What was saved stays.
        CheckpointError, OSError: if the folder cannot be read or written.
        KeyboardInterrupt: after SIGINT or SIGTERM, when all is saved.
    """
    rhythm = {"log_every": log_every, "keep": keep}
    rhythm |= {"save_every": save_every, "evaluate_every": evaluate_every}
    for name, value in rhythm.items():
        what = f"{name} must be at least 1, got {value}"
        _require(value is None or value >= 1, what)
    run = Run(model, losses, data, optimizer, config, lr_factor)
    files = _Folder(run, folder, keep)
    devices = [run.device] if run.device.type == "cuda" else []
    with (
        files.opened(),
        torch.random.fork_rng(devices),
        interruptible() as asked,
        closing(run),
        tqdm(
            total=config.steps,
            initial=run.step,
            unit="step",
            disable=True if run.rank else None,  # None: on a terminal only
        ) as bar,
    ):
        run.agree()
        stopped = _steps(run, files, asked, bar, evaluate, rhythm)
    if stopped or asked():
        raise KeyboardInterrupt(
            f"stopped after step {run.step}; {files.kept()}"
        )
    return run


def _steps(
    run: Run,
    files: _Folder,
    asked: Callable[[], bool],
    bar: Any,
    evaluate: Callable[[Run], Mapping[str, float]] | None,
    rhythm: Mapping[str, int | None],
) -> bool:
    """Make the steps of a run; return whether it was stopped."""
    first = since = run.step
    began, stopped = time.perf_counter(), False
    run.model.train()
    while run.step < run.config.steps and not stopped:
        due = {name: _due(run, every) for name, every in rhythm.items()}
        judged = due["evaluate_every"] and evaluate is not None
        logged = due["log_every"] or judged
        row, stopped = run.update(asked(), logged or due["save_every"])
        bar.update()
        if run.step == first + 1:
            run._remembered()  # better a TypeError now than at a save
        if logged:
            now = time.perf_counter()
            row["seconds"] = (now - began) / (run.step - since)
            row |= _evaluated(run, evaluate, row) if judged else {}
            bar.set_postfix_str(f"loss {row['loss']:.4g}", refresh=False)
            files.add(row)
        if stopped or due["save_every"]:
            files.save()
        if logged:  # what evaluating and saving took is no step's time
            since, began = run.step, time.perf_counter()
    return stopped


def _due(run: Run, every: int | None) -> bool:
    """Return whether the next step is one of every so many, or the last."""
    step = run.step + 1
    return step == run.config.steps or bool(every and step % every == 0)


def _evaluated(
    run: Run, evaluate: Callable[[Run], Mapping[str, float]], row: Row
) -> Row:
    """Return what an evaluation finds, made in evaluation mode."""
    run.model.eval()
    with torch.no_grad():
        found = {name: float(x) for name, x in evaluate(run).items()}
    run.model.train()
    clash = sorted(found.keys() & row.keys())
    _require(
        not clash,
        f"evaluate must use other names than the log's own, got {clash}",
    )
    return found


@contextmanager
def process_group() -> Iterator[torch.device]:
    """Yield the device of this process; under torchrun, join the others.

    It is a GPU if there is one, the process's own under torchrun (which
    talks through NCCL then, and through gloo on the CPU).
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
