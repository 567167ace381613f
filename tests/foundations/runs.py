"""Training runs in processes of their own, to be killed, signalled and starved of disk.

`python runs.py` reads jobs, one JSON object a line, and forks the processes of each: to fork is
much faster than to import. It tells their numbers when they start and their ends when all have
ended. `torchrun runs.py JOB` is one process of a job.
"""

import contextlib
import errno
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tangled.foundations.training import (
    Run,
    Training,
    process_group,
    train,
    warmup_cosine,
)


class Points:
    """22 points in the plane, in two classes, and how much of each counts."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(3)
        self.y = torch.arange(22) % 2
        x = torch.randn(22, 2, generator=generator, dtype=torch.float64)
        self.x = (x + self.y[:, None]).to(dtype)

    def __len__(self) -> int:
        return 22

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.x[indices], self.y[indices], indices


def noisy_losses(model, batch, generator):
    """Return one loss for each point, seen through noise."""
    x, y, _ = batch
    noise = torch.randn(
        x.shape, generator=generator, device=x.device, dtype=x.dtype
    )
    return F.cross_entropy(model(x + 0.1 * noise), y, reduction="none")


def masked_losses(model, batch, generator):
    """Return point i's loss i % 4 times over: also not at all, as a masked token."""
    each = noisy_losses(model, batch, generator)
    return each.repeat_interleave(batch[2].to(each.device) % 4)


LOSSES = {"noisy": noisy_losses, "masked": masked_losses}


def network(norm: bool = True) -> nn.Module:
    """Return a network with all that draws or remembers."""
    torch.manual_seed(4)
    normed = [nn.BatchNorm1d(8)] if norm else []
    return nn.Sequential(
        nn.Linear(2, 8), *normed, nn.SiLU(), nn.Dropout(0.5), nn.Linear(8, 2)
    )


def fussy(
    folder: str | None = None,
    steps: int = 6,
    *,
    evaluate: Callable[[Run], dict[str, float]] | None = None,
    model: Callable[[], nn.Module] = network,
    optimizer: str = "AdamW",
    options: dict[str, Any] | None = None,
    schedule: str = "cosine",
    losses: str = "noisy",
    save_every: int | None = 2,
    keep: int = 1,
    evaluate_every: int | None = 1,
    log_every: int = 1,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> Run:
    """Train with micro-batches, noise, dropout, clipping, averaging and a schedule."""
    made = model().to(device, dtype)
    trained = [p for p in made.parameters() if p.requires_grad]
    build = getattr(torch.optim, optimizer)
    settings = {
        "batch_size": 8,
        "micro_batches": 2,
        "ema_decay": 0.5,
        "seed": 5,
    }
    return train(
        made,
        LOSSES[losses],
        Points(dtype),
        build(trained, **({"lr": 0.1} | (options or {}))),
        Training(steps, **({"max_norm": 0.5} | settings | changes)),
        lr_factor=warmup_cosine(steps, 3)
        if schedule == "cosine"
        else lambda step: 1.0,
        folder=folder,
        save_every=save_every,
        keep=keep,
        evaluate=evaluate,
        evaluate_every=evaluate_every,
        log_every=log_every,
    )


# ---- jobs


def summary(run: Run) -> dict[str, float]:
    """Return something to log."""
    return {"by": run.model[0].weight.sum().item()}


def stopped_in(steps: list[int]) -> None:
    """From now on, SIGTERM comes just before these steps."""
    update = Run.update

    def signalled(run: Run, stop: bool = False, look: bool = True) -> Any:
        if run.step + 1 in steps:
            os.kill(os.getpid(), signal.SIGTERM)
            stop = True
        return update(run, stop, look)

    Run.update = signalled


def train_it(
    signals: dict[str, int] | None = None,
    stops: list[int] | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Train; after the steps that `signals` names, in those of `stops`, come signals."""
    stopped_in(stops or [])

    def evaluate(run: Run) -> dict[str, float]:
        for _ in range(2 if twice else 1):
            if str(run.step) in (signals or {}) and run.rank == rank:
                os.kill(os.getpid(), signals[str(run.step)])
        return summary(run)

    def own() -> nn.Module:  # the weights of the first process are to count
        made = network()
        with torch.no_grad():
            made[0].weight += int(os.environ.get("RANK", "0"))
        return made

    twice, rank = arguments.pop("twice", False), arguments.pop("rank", 0)
    with process_group():
        run = fussy(evaluate=evaluate, model=own, **arguments)
    state = torch.cat([x.flatten() for x in run.model.state_dict().values()])
    return {"step": run.step, "state": state.tolist()}


def share(
    losses: str, micro_batches: int, group: bool = True
) -> dict[str, Any]:
    """Return a gradient and the weights after steps, in float64, with clipping and averages."""
    with process_group() if group else contextlib.nullcontext():
        model = network(norm=False).double()
        config = Training(
            6, 12, micro_batches, max_norm=0.3, ema_decay=0.5, seed=1
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
        run = Run(
            model, LOSSES[losses], Points(torch.float64), optimizer, config
        )
        model.train()
        rows = [run.update()[0]]
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        rows += [run.update()[0] for _ in range(5)]
    weights = [
        p.flatten() for p in (*model.parameters(), *run.averaged.parameters())
    ]
    return {
        "gradient": gradient.tolist(),
        "weights": torch.cat(weights).tolist(),
        "items": [row["items"] for row in rows],
        "norm": [row["norm"] for row in rows],
        "loss": [row["loss"] for row in rows],
    }


def both(folder: str, shares: dict[str, Any], told: str) -> None:
    """Tell of a share first, then train on and on."""
    with process_group():
        found = share(**shares, group=False)
        Path(f"{told}.{os.environ['RANK']}").write_text(json.dumps(found))
        endless = {"steps": 10**6, "schedule": "constant", "save_every": None}
        fussy(folder, evaluate=summary, **endless)


JOBS = {"train": train_it, "share": share, "both": both}


# ---- accidents

CALLS = (
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "fcntl.flock",
)


class Accident:
    """Something that happens at the n-th call to the file system in a part of a run.

    Python tells of most calls by itself (audit events); the others are wrapped.

    Args:
        how: "kill"; "full": no call that takes space works from then on; "small": no file can
            become larger than `at` bytes; "slow": all calls take long; "list": nothing.
        at: n, from 1 on.
        phase: "save": of the checkpoint after `step`; "start": before the first step.
    """

    def __init__(
        self, how: str, at: int = 0, phase: str = "save", step: int = 4
    ) -> None:
        self.how, self.at, self.phase, self.step = how, at, phase, step
        self.watching, self.count = phase == "start", 0
        self.written: list[str] = []
        for name in ("fsync", "close"):
            setattr(os, name, self.wrapped(name, getattr(os, name)))
        for owner, name in ((Run, "save"), (Run, "update")):
            setattr(owner, name, self.switched(name, getattr(owner, name)))
        sys.addaudithook(self.call)
        if self.watching:
            self.begin()

    def begin(self) -> None:
        self.watching = True
        if self.how == "small":
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (self.at, resource.RLIM_INFINITY)
            )

    def end(self) -> None:
        self.watching = False
        if self.how == "small":
            both = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.setrlimit(resource.RLIMIT_FSIZE, both)

    def wrapped(self, name: str, original: Callable) -> Callable:
        def wrapper(*arguments: Any) -> Any:
            self.call(name, arguments)
            return original(*arguments)

        return wrapper

    def switched(self, name: str, original: Callable) -> Callable:
        def wrapper(this: Any, *arguments: Any) -> Any:
            if (
                name == "save"
                and self.phase == "save"
                and this.step == self.step
            ):
                self.begin()
            elif name == "update" and self.phase == "start":
                self.watching = False
            try:
                return original(this, *arguments)
            finally:
                if name == "save":
                    self.end()

        return wrapper

    def call(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in (*CALLS, "fsync", "close"):
            return
        writes = event in ("os.mkdir", "os.rename", "fsync") or (
            event == "open"
            and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        )
        removes = event in ("os.remove", "os.rmdir")
        if removes or (writes and event != "fsync"):
            self.written.append(str(arguments[0]))
        if not self.watching or (self.how == "full" and not writes):
            return
        self.count += 1
        if self.how == "slow":
            time.sleep(0.02)
        elif self.how == "kill" and self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.how == "full" and self.count >= self.at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# ---- processes


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Do a job; say what came of it."""
    accident = Accident(**job["accident"]) if job.get("accident") else None
    told: dict[str, Any] = {}
    try:
        told["result"] = JOBS[job["what"]](**job["arguments"])
    except BaseException as error:
        told |= {"error": type(error).__name__, "message": str(error)}
    if accident is not None:
        accident.end()
        told |= {"calls": accident.count, "written": accident.written}
    return told


def child(job: dict[str, Any], number: int, port: int) -> None:
    """Be one of a job's processes."""
    processes = job.get("processes", 1)
    if processes > 1:
        os.environ |= {
            "WORLD_SIZE": str(processes),
            "RANK": str(number),
            "LOCAL_RANK": str(number),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    told = work(job)
    Path(f"{job['answer']}.{number}").write_text(json.dumps(told))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def serve(lines: Iterator[str]) -> None:
    for line in lines:
        job, port, pids = json.loads(line), free_port(), []
        for number in range(job.get("processes", 1)):
            pids.append(os.fork())
            if pids[-1] == 0:
                try:
                    child(job, number, port)
                finally:
                    os._exit(0)
        print(json.dumps(pids), flush=True)
        ends = [
            os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids
        ]
        print(json.dumps(ends), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    # A shell that starts the tests in the background has it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # What was written outlives its process. To wait for the disk, hundreds of times, protects from
    # power failures alone, and those are tried with the checkpoints.
    os.fsync = lambda descriptor: None
    if len(sys.argv) > 1:
        told = work(json.loads(sys.argv[1]))
        print(told["message"], file=sys.stderr)
        sys.exit(130)
    fussy(steps=4)  # now all is imported, and no child does it again
    serve(sys.stdin)
