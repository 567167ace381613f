"""What the tests of this part share: runs in other processes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

ROOT = Path(__file__).parents[2]
RUNS = Path(__file__).with_name("runs.py")


@dataclass
class End:
    """How a process ended: its exit status or minus a signal, and what it said, if it could."""

    status: int
    result: Any = None
    error: str | None = None
    message: str = ""
    calls: int = 0
    written: tuple[str, ...] = ()


class Runs:
    """The processes of `runs.py`."""

    # Without a network, and on the CPU even where there is something faster.
    environment: ClassVar = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "GLOO_SOCKET_IFNAME": "lo",
    }

    def __init__(self, scratch: Path) -> None:
        self.scratch, self.jobs = scratch, 0
        self.server = subprocess.Popen(
            [sys.executable, str(RUNS)],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(
        self,
        what: str,
        processes: int = 1,
        accident: dict | None = None,
        **arguments: Any,
    ) -> list[int]:
        """Start a job; return the numbers of its processes."""
        self.jobs, self.processes = self.jobs + 1, processes
        job = {
            "what": what,
            "arguments": arguments,
            "processes": processes,
            "accident": accident,
            "answer": str(self.scratch / f"{self.jobs}"),
        }
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def finish(self) -> list[End]:
        """Wait for the job; return how its processes ended."""
        ends = []
        for number, status in enumerate(
            json.loads(self.server.stdout.readline())
        ):
            answer = self.scratch / f"{self.jobs}.{number}"
            told = json.loads(answer.read_text()) if answer.exists() else {}
            ends.append(End(status, **told))
        return ends

    def all(self, what: str, **job: Any) -> list[End]:
        """Do a job from beginning to end."""
        self.start(what, **job)
        return self.finish()

    def do(self, what: str, **job: Any) -> End:
        """Do a job of one process."""
        (end,) = self.all(what, **job)
        return end


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Give processes that train."""
    made = Runs(tmp_path_factory.mktemp("runs"))
    yield made
    made.server.communicate(timeout=30)
