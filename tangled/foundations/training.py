"""The training loop of every model in the book, on one process or many, resumed bit for bit.

Tangled from book/foundations/training.md.
"""

import copy
import hashlib
import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractContextManager,
    ExitStack,
    closing,
    contextmanager,
    nullcontext,
)
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import IO, Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from tqdm import tqdm

from tangled.workshop.checkpoint import (
    CheckpointError,
    explained,
    load_checkpoint,
    locked,
    model_tensors,
    new_folder,
    read_config,
    read_tensors,
    remove_leftovers,
    write_checkpoint,
)

__all__ = [
    "Dataset",
    "Losses",
    "MovingAverage",
    "Part",
    "Row",
    "Run",
    "Schedule",
    "Training",
    "TrainingError",
    "accumulate",
    "batch_indices",
    "checkpoints",
    "constant",
    "derived_seed",
    "interruptible",
    "process_group",
    "read_log",
    "through",
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
    if not 1 <= batch_size <= n:
        raise ValueError(
            f"batch_size must lie between 1 and the {n} examples of the "
            f"data, got {batch_size}"
        )
    epoch, batch = divmod(step, n // batch_size)
    order = _epoch_order(n, epoch, seed)
    return order[batch * batch_size : (batch + 1) * batch_size]


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says why, and what is kept."""


@runtime_checkable
class Dataset(Protocol):
    """Examples in memory: their number, and batches of them by index."""

    def __len__(self) -> int:
        """Return the number of examples."""
        ...

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors of a batch, each [B, *dims]."""
        ...


# What a model is trained on: (model, batch, generator) -> losses [items].
Losses = Callable[[nn.Module, Any, torch.Generator], Float[Tensor, "items"]]
# A part of a batch, and the seed of all that is drawn for it.
Part = tuple[tuple[Tensor, ...], int]


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
    parts: Sequence[Part],
    precision: str = "float32",
) -> tuple[Float[Tensor, ""], int]:
    """Add the gradients of the summed losses of the parts.

    A model under DistributedDataParallel exchanges its gradients with the
    last part alone.

    Returns:
        The sum of the losses, in the units of `losses`, and their number.

    Implements eq-mean-gradient (book/foundations/training.md).
    """
    device = next(model.parameters()).device
    total, items = torch.zeros((), device=device), 0
    for number, (batch, seed) in enumerate(parts, 1):
        generator = _seeded(device, seed)
        batch = tuple(x.to(device, non_blocking=True) for x in batch)
        last = number == len(parts)
        with _exchange(model, last), _autocast(device, precision):
            each = losses(model, batch, generator)
        loss = each.sum()
        loss.backward()
        total, items = total + loss.detach(), items + each.numel()
    return total, items


def _exchange(model: nn.Module, now: bool) -> AbstractContextManager[None]:
    """Let processes exchange gradients now, or not yet."""
    waits = isinstance(model, DistributedDataParallel) and not now
    return model.no_sync() if waits else nullcontext()


def _autocast(
    device: torch.device, precision: str
) -> AbstractContextManager[None]:
    """Let the layers that may compute in bfloat16, if that is asked for."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def through(
    x: Float[Tensor, "*dims"], dtype: torch.dtype, scale: float = 1.0
) -> Float[Tensor, "*dims"]:
    """Return x after a trip through a narrow dtype, scaled for the way.

    Implements eq-loss-scaling, prop-loss-scaling
    (book/foundations/training.md).
    """
    return (x * scale).to(dtype).to(x.dtype) / scale


class MovingAverage:
    """An average of the weights that a model has had, recent ones first.

    At first the plain mean of all of them, later the exponential moving
    average: step k has weight max(1 - decay, 1 / k) when it arrives.

    Args:
        model: the model; its current weights do not count.
        decay: in [0, 1); it remembers about 1 / (1 - decay) steps.

    Attributes:
        model: a copy of the model that holds the average, in eval mode.
        steps: how many weights have been averaged.

    Raises:
        ValueError: if the decay lies outside [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights of the model; its buffers are copied.

        Implements eq-moving-average, prop-moving-average
        (book/foundations/training.md).
        """
        self.steps += 1
        weight = max(1 - self.decay, 1 / self.steps)
        own, new = list(self.model.parameters()), list(model.parameters())
        torch._foreach_lerp_(own, new, weight)
        for mine, theirs in zip(
            self.model.buffers(), model.buffers(), strict=True
        ):
            mine.copy_(theirs)


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
        for name in ("steps", "batch_size", "micro_batches"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}"
                )
        if self.max_norm is not None and not self.max_norm > 0:
            raise ValueError(f"max_norm must be > 0, got {self.max_norm}")
        if self.precision == "float16":
            raise ValueError(
                "precision float16 needs loss scaling, which this loop does "
                "not do; use bfloat16"
            )
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(
                "precision must be float32 or bfloat16, "
                f"got {self.precision!r}"
            )
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")


# The factor of the learning rates in step 0, 1, 2, ...
Schedule = Callable[[int], float]


def constant(step: int) -> float:
    """Return 1: a learning rate that does not change."""
    return 1.0


def warmup_cosine(steps: int, warmup: int, final: float = 0.0) -> Schedule:
    """Return a schedule: up in a line to 1, down along a cosine to `final`.

    Raises:
        ValueError: if the warm-up is not shorter than the run.

    Implements eq-warmup-cosine (book/foundations/training.md).
    """
    if not 0 <= warmup < steps:
        raise ValueError(
            f"warmup must lie in 0..{steps - 1} for {steps} steps, "
            f"got {warmup}"
        )

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / (steps - warmup))
        return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2

    return factor


# One line of the log: what is known of a step.
Row = dict[str, float | int]


def _place() -> tuple[int, int]:
    """Return the number of this process, and of how many."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class Run:
    """A training run between two steps.

    Args:
        model: the model, on the device where it is trained.
        losses: one loss for each item of a batch, in any unit.
        data: the examples.
        optimizer: holds exactly the parameters that need a gradient.
        config: what the run does.
        schedule: the factor of the optimiser's learning rates by step.

    Attributes:
        step: how many steps are done.
        average: the moving average of the weights, if there is one.
        log: a row for each of these steps, or for some; in the first process
            also those of earlier starts.

    Raises:
        ValueError: if a batch is larger than the data or cannot be cut
            evenly, or the optimiser holds other parameters.
        TypeError: if JSON cannot hold a setting of the optimiser.

    Implements def-run-state (book/foundations/training.md).
    """

    def __init__(
        self,
        model: nn.Module,
        losses: Losses,
        data: Dataset,
        optimizer: Optimizer,
        config: Training,
        schedule: Schedule = constant,
    ) -> None:
        self.model, self.losses, self.data = model, losses, data
        self.optimizer, self.config = optimizer, config
        self.schedule = schedule
        self.rank, self.processes = _place()
        parts = self.processes * config.micro_batches
        if config.batch_size % parts:
            raise ValueError(
                f"batch_size {config.batch_size} cannot be cut into "
                f"{self.processes} x {config.micro_batches} equal parts "
                "(processes x micro_batches)"
            )
        batch_indices(len(data), config.batch_size, 0, config.seed)
        decay = config.ema_decay
        self.average = None if decay is None else MovingAverage(model, decay)
        self.step, self.log = 0, list[Row]()
        self._rates = [group["lr"] for group in optimizer.param_groups]
        self._named = self._trained()
        self._setup(0)  # better a TypeError now than at the first save
        self._parallel = (
            DistributedDataParallel(model) if self.processes > 1 else model
        )

    def _trained(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by name, as the optimiser has them."""
        trained = {
            parameter: name
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }
        held = [
            parameter
            for group in self.optimizer.param_groups
            for parameter in group["params"]
        ]
        lacking = [trained[p] for p in trained.keys() - set(held)]
        if lacking or len(held) > len(trained):
            raise ValueError(
                "the optimizer must hold what the model trains: it lacks "
                f"{sorted(lacking)} and has {len(held)} parameters for "
                f"{len(trained)}"
            )
        return {trained[parameter]: parameter for parameter in held}

    def gradient(self, stop: bool = False) -> tuple[Row, bool]:
        """Set the gradient of the mean loss of the next step, clipped.

        Args:
            stop: whether this process was asked to stop.

        Returns:
            The mean loss, the norm of its gradient before clipping and the
            number of items; and whether any process was asked to stop.

        Implements eq-shared-gradient, eq-clip, prop-weighted-parts
        (book/foundations/training.md).
        """
        self.optimizer.zero_grad()
        total, items = accumulate(
            self._parallel, self.losses, self.parts(), self.config.precision
        )
        sums = torch.tensor([0.0, items, stop], device=total.device)
        sums[0] = total
        if self.processes > 1:
            dist.all_reduce(sums)
        gradients = [
            parameter.grad
            for parameter in self._named.values()
            if parameter.grad is not None
        ]
        scale = self.processes / sums[1].to(gradients[0].dtype)
        norm = scale * nn.utils.get_total_norm(gradients)
        if self.config.max_norm is not None:
            # At norm 0 it is min(1, inf); the library's has an epsilon there.
            scale = scale * (self.config.max_norm / norm).clamp(max=1.0)
        torch._foreach_mul_(gradients, scale)
        told = torch.cat([sums, norm.to(sums.dtype)[None]])
        loss, n, stops, length = told.tolist()  # the only wait
        row: Row = {"loss": loss / n if n else math.nan, "norm": length}
        row["items"] = int(n)
        return row, stops > 0

    def parts(self) -> list[Part]:
        """Return what this process works on in the next step."""
        config, share = self.config, self.config.micro_batches
        indices = batch_indices(
            len(self.data), config.batch_size, self.step, config.seed
        )
        cut = indices.chunk(self.processes * share)
        return [
            (self.data[cut[j]], derived_seed(config.seed, 1, self.step, j))
            for j in range(self.rank * share, (self.rank + 1) * share)
        ]

    def update(self, stop: bool = False) -> tuple[Row, bool]:
        """Make one step; return its row of the log, and whether to stop.

        Raises:
            TrainingError: if the loss or its gradient is not finite; the
                weights are then as they were.
        """
        told, stopped = self.gradient(stop)
        if not all(map(math.isfinite, told.values())):
            raise TrainingError(
                f"step {self.step + 1}: the loss is {told['loss']} over "
                f"{told['items']} items, with a gradient of norm "
                f"{told['norm']}"
            )
        factor = self.schedule(self.step)
        for group, rate in zip(
            self.optimizer.param_groups, self._rates, strict=True
        ):
            group["lr"] = rate * factor
        self.optimizer.step()
        for group, rate in zip(
            self.optimizer.param_groups, self._rates, strict=True
        ):
            group["lr"] = rate
        self.step += 1
        if self.average is not None:
            self.average.update(self.model)
        row: Row = {"step": self.step, "lr": self._rates[0] * factor}
        return row | told, stopped

    def close(self) -> None:
        """Exchange no more gradients; call it before the processes part."""
        # A wrapper that outlives its group can wait for that group for ever.
        self._parallel = self.model

    @property
    def averaged(self) -> nn.Module:
        """The average of the weights as a model; the model if there is none."""
        return self.model if self.average is None else self.average.model

    def _setup(self, step: int) -> dict[str, Any]:
        """Return what must not change from one start to the next."""
        setup = asdict(self.config)
        del setup["steps"]
        setup["examples"] = len(self.data)
        setup["processes"] = self.processes
        setup["optimizer"] = type(self.optimizer).__name__
        setup["schedule's factor"] = self.schedule(max(step - 1, 0))
        names = {parameter: name for name, parameter in self._named.items()}
        for number, (group, rate) in enumerate(
            zip(self.optimizer.param_groups, self._rates, strict=True)
        ):
            held = [names[parameter] for parameter in group["params"]]
            settings = {**group, "lr": rate, "params": held}
            for name, value in settings.items():
                setup[f"{name} of parameter group {number}"] = value
        return json.loads(json.dumps(setup))  # as a file gives it back

    def _remembered(self) -> dict[str, Tensor]:
        """Return the optimiser's state by name of parameter and of entry."""
        return {
            f"{name}.{entry}": value
            for name, parameter in self._named.items()
            for entry, value in self.optimizer.state.get(
                parameter, {}
            ).items()
            if value is not None
        }

    def save(self, folder: Path) -> Path:
        """Write the state into a new folder step-<number>, or nothing at all.

        Raises:
            CheckpointError: if that exists or cannot be written.
            TrainingError: if a weight is not finite; nothing is written.

        Implements thm-resume (book/foundations/training.md).
        """
        for name, parameter in self.model.named_parameters():
            if not parameter.isfinite().all():
                raise TrainingError(
                    f"step {self.step}: {name} has an entry that is not finite"
                )
        target = Path(folder) / f"step-{self.step:08d}"
        with new_folder(target) as partial:
            setup = {"step": self.step, "setup": self._setup(self.step)}
            write_checkpoint(partial, model_tensors(self.model), setup)
            (partial / "optimizer").mkdir()
            write_checkpoint(partial / "optimizer", self._remembered(), {})
            if self.average is not None:
                (partial / "average").mkdir()
                write_checkpoint(
                    partial / "average", model_tensors(self.average.model), {}
                )
        return target

    def restore(self, checkpoint: Path) -> None:
        """Take over the state that `save` wrote.

        Raises:
            CheckpointError: if it cannot be read or is another model's.
            TrainingError: if it is the state of another run.
        """
        told = read_config(checkpoint)
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
        load_checkpoint(self.model, checkpoint)
        self._remember(read_tensors(checkpoint / "optimizer"))
        if self.average is not None:
            load_checkpoint(self.average.model, checkpoint / "average")
            self.average.steps = step
        self.step = step

    def _remember(self, tensors: Mapping[str, Tensor]) -> None:
        """Give the optimiser its state back."""
        state = {name: dict[str, Tensor]() for name in self._named}
        for name, value in tensors.items():
            parameter, _, entry = name.rpartition(".")
            state[parameter][entry] = value
        self.optimizer.load_state_dict(
            {
                "state": dict(enumerate(state.values())),
                "param_groups": self.optimizer.state_dict()["param_groups"],
            }
        )


def checkpoints(folder: str | Path) -> list[Path]:
    """Return the checkpoints in the folder of a run, oldest first."""
    found = Path(folder).glob("step-" + "[0-9]" * 8)
    return sorted(path for path in found if path.is_dir())


def _line(row: Row) -> str:
    """Return a row as a line of the log, in ASCII."""
    return json.dumps(row) + "\n"


def _rows(log: Path) -> list[Row]:
    """Return the rows of a log, without a last one that was cut in half."""
    rows: list[Row] = []
    with log.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
                fine = type(row["step"]) is int
            except (ValueError, TypeError, KeyError, RecursionError):
                fine = False
            if not fine:
                raise TrainingError(
                    f"{log}: line {number} is not a row of a log"
                )
            rows.append(row)
    return rows


def read_log(folder: str | Path) -> list[Row]:
    """Return the log of a run: a row for each logged step, in order.

    Raises:
        FileNotFoundError: if the folder has no log.
        TrainingError: if a line of it is not a row.
    """
    return _rows(Path(folder, "log.jsonl"))


def _prune(folder: Path, keep: int) -> None:
    """Remove all checkpoints but the newest ones, and parts of others."""
    for path in checkpoints(folder)[:-keep]:
        path.rename(path.with_name(f".{path.name}.old"))
    for path in folder.glob(".step-*.old"):
        shutil.rmtree(path, ignore_errors=True)
    remove_leftovers(folder, "step-*")


class _Journal:
    """What a run leaves on the disk; nothing if it has no folder."""

    def __init__(
        self, run: Run, folder: str | Path | None, keep: int
    ) -> None:
        self.run, self.keep = run, keep
        self.folder = None if folder is None else Path(folder)
        self.file: IO[str] | None = None
        if self.folder is None:
            return
        for newest in checkpoints(self.folder)[-1:]:
            run.restore(newest)
        if run.rank == 0:
            run.log = self._cut(self.folder / "log.jsonl", run.step)
            with explained(f"write in {self.folder}"):
                _prune(self.folder, keep)

    @staticmethod
    def _cut(log: Path, step: int) -> list[Row]:
        """Cut a log back to its rows up to a step, and return these."""
        log.touch()
        rows = [row for row in _rows(log) if row["step"] <= step]
        os.truncate(log, sum(len(_line(row)) for row in rows))
        return rows

    def add(self, row: Row) -> None:
        """Append a row to the log."""
        self.run.log.append(row)
        if self.file is not None:
            with explained(f"write in {self.folder}"):
                self.file.write(_line(row))

    def save(self) -> None:
        """Save the state; first what the log has."""
        if self.folder is not None and self.file is not None:
            with explained(f"write in {self.folder}"):
                os.fsync(self.file.fileno())
                self.run.save(self.folder)
                _prune(self.folder, self.keep)
        if self.folder is not None and self.run.processes > 1:
            dist.barrier()  # none ends before the checkpoint is there

    def __enter__(self) -> "_Journal":
        if self.folder is not None and self.run.rank == 0:
            log = self.folder / "log.jsonl"
            self.file = log.open("a", buffering=1)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Close the log; an error of the run also tells what is kept."""
        if self.file is not None:
            with explained(f"write in {self.folder}"):
                self.file.close()
        if isinstance(error, TrainingError):
            raise TrainingError(f"{error}; {self.kept()}") from None

    def kept(self) -> str:
        """Say what is on the disk."""
        found = [] if self.folder is None else checkpoints(self.folder)
        return f"kept: {found[-1]}" if found else "no checkpoint was written"


@contextmanager
def _all_or_none(run: Run) -> Iterator[None]:
    """If a process is refused in here, refuse all of them, and say why."""
    refusal = None
    try:
        yield
    except (TrainingError, CheckpointError, OSError) as error:
        refusal = error
    told: list[str | None] = [None] * run.processes
    if run.processes > 1:
        dist.all_gather_object(told, refusal and str(refusal))
    if refusal is not None:
        raise refusal
    for sentence in told:
        if sentence is not None:
            raise TrainingError(sentence)


@contextmanager
def _opened(
    run: Run, folder: str | Path | None, keep: int
) -> Iterator[_Journal]:
    """Take a folder for this run alone, and go on from what is there."""
    with ExitStack() as held:
        with _all_or_none(run):
            if folder is not None and run.rank == 0:
                Path(folder).mkdir(parents=True, exist_ok=True)
                try:
                    held.enter_context(locked(folder))
                except BlockingIOError:
                    raise TrainingError(
                        f"another run writes in {folder}"
                    ) from None
            journal = _Journal(run, folder, keep)
        yield held.enter_context(journal)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGINT or SIGTERM has come.

    The second of them acts as if this were not here. Outside of the main
    thread, where Python lets nobody handle signals, nothing is changed.
    """
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        restore()

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
    previous = {number: signal.signal(number, note) for number in numbers}
    try:
        yield lambda: bool(came)
    finally:
        restore()


def train(
    model: nn.Module,
    losses: Losses,
    data: Dataset,
    optimizer: Optimizer,
    config: Training,
    *,
    schedule: Schedule = constant,
    folder: str | Path | None = None,
    save_every: int | None = None,
    keep: int = 2,
    evaluate: Callable[[Run], Mapping[str, float]] | None = None,
    evaluate_every: int | None = None,
    log_every: int = 1,
) -> Run:
    """Train a model; go on where the folder says that a run was stopped.

    On SIGINT or SIGTERM the run ends after the step, with a checkpoint. Under
    torchrun (`process_group`) the processes share each batch; the first one
    writes. Random generators of the caller are left as they are.

    Args:
        model: trained in place, on the device where it is; in training mode
            afterwards.
        losses: (model, batch, generator) -> one loss for each item.
        data: `len(data)`, and `data[indices]` for the tensors of a batch.
        optimizer: holds exactly the parameters that need a gradient.
        config: number of steps, batch size, and so on.
        schedule: step -> factor of the learning rates.
        folder: for checkpoints and log.jsonl; None: nothing is written.
        save_every: steps between checkpoints; the last step has one anyway.
        keep: how many checkpoints stay.
        evaluate: run -> numbers for the log, in evaluation mode and without
            gradients; called by every process.
        evaluate_every: steps between evaluations; the last step has one.
        log_every: steps between rows of the log; evaluations have one anyway.

    Returns:
        The run after its last step, with `averaged` and `log`.

    Raises:
        ValueError: if an argument is out of range, the batch is larger than
            the data, or `evaluate` uses a name of the log's own.
        TrainingError: if the loss is not finite; or if another run writes in
            the folder, or has left a checkpoint there. What was saved stays.
        CheckpointError: if a checkpoint cannot be read or written.
        OSError: if the folder cannot be made or its log not be opened.
        KeyboardInterrupt: after SIGINT or SIGTERM, when all is saved.
    """
    for name, value in (
        ("keep", keep),
        ("save_every", save_every),
        ("evaluate_every", evaluate_every),
        ("log_every", log_every),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    run = Run(model, losses, data, optimizer, config, schedule)
    device = next(model.parameters()).device
    with (
        closing(run),
        _opened(run, folder, keep) as journal,
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        interruptible() as stop,
        tqdm(
            total=config.steps,
            initial=run.step,
            unit="step",
            disable=True if run.rank else None,  # None: on a terminal only
        ) as bar,
    ):
        model.train()
        stopped = False
        while run.step < config.steps and not stopped:
            began = time.perf_counter()
            row, stopped = run.update(stop())
            row["seconds"] = time.perf_counter() - began
            bar.set_postfix_str(f"loss {row['loss']:.4g}", refresh=False)
            bar.update()
            judge = evaluate if _due(run, evaluate_every) else None
            clash: list[str] = []
            if judge is not None:
                found = _evaluated(run, judge)
                clash = sorted(found.keys() & row.keys())
                row = row | found | row
            if judge is not None or _due(run, log_every):
                journal.add(row)
            if stopped or clash or _due(run, save_every):
                journal.save()
            if clash:
                raise ValueError(
                    "evaluate must use other names than the log's own, "
                    f"got {clash}"
                )
    if stopped or stop():
        raise KeyboardInterrupt(
            f"stopped after step {run.step}; {journal.kept()}"
        )
    return run


def _due(run: Run, every: int | None) -> bool:
    """Return whether it is time for what comes every so many steps."""
    last = run.step == run.config.steps
    return last or (every is not None and run.step % every == 0)


def _evaluated(
    run: Run, evaluate: Callable[[Run], Mapping[str, float]]
) -> Row:
    """Return what an evaluation finds, made in evaluation mode."""
    run.model.eval()
    with torch.no_grad():
        found = {name: float(x) for name, x in evaluate(run).items()}
    run.model.train()
    return found


@contextmanager
def process_group() -> Iterator[torch.device]:
    """Yield the device of this process; under torchrun, join the others.

    It is a GPU if there is one, the process's own under torchrun (which
    talks through NCCL then, and through gloo on the CPU). Enter it once in a
    program: PyTorch does not join the same processes twice.
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
