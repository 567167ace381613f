"""Artefacts: made once, by whoever asks first, and again when what made them changes."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torch import nn

from tangled.workshop import artifacts
from tangled.workshop.artifacts import (
    artifact,
    artifacts_folder,
    command,
    recipe,
    sources,
)
from tangled.workshop.checkpoint import read_config, read_tensors

ROOT = Path(__file__).parents[2]

# A package with two recipes. Each making leaves a line in $TRACE.
FILES = {
    "toy/__init__.py": '"""Toys."""\n',
    "toy/parts.py": '''
        """What the recipes are made of."""

        import os

        from torch import nn


        def part(width: int) -> nn.Module:
            """Return a layer."""
            return nn.Linear(width, width)


        def trace(word: str) -> None:
            with open(os.environ["TRACE"], "a") as file:
                file.write(f"{word} {os.getpid()}\\n")
        ''',
    "toy/other.py": '''
        """Nothing that a recipe imports."""

        UNUSED = 1
        ''',
    "toy/models.py": '''
        """Two recipes."""

        import os
        import time

        from tangled.workshop.artifacts import recipe

        from . import parts


        @recipe(width=3, seed=0)
        def judge(folder, *, width, seed):
            """Train for $PAUSE seconds, in steps that survive a crash."""
            parts.trace("judge")
            for step in range(10):
                if not (folder / str(step)).exists():
                    time.sleep(float(os.environ.get("PAUSE", 0)) / 10)
                    (folder / str(step)).touch()
                    parts.trace(f"step{step}")
            return parts.part(width), [{"loss": 0.5}]


        @recipe(width=2)
        def tiny(folder, *, width):
            parts.trace("tiny")
            return parts.part(width), []
        ''',
}
ASK = """
import sys
from tangled.workshop.artifacts import artifact
from toy.models import judge
print("ready", flush=True)
sys.stdin.readline()
print(artifact(judge), flush=True)
"""


# Runs Python's command lines, one a line, in processes that need not import PyTorch again.
SERVER = """
import json
import os
import runpy
import sys

import torch

for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        for number, name in enumerate(job["files"], start=1):
            os.dup2(os.open(name, flags), number)
        os.environ.update(job["environment"])
        sys.dont_write_bytecode = True
        sys.path[:0] = job["environment"]["PYTHONPATH"].split(os.pathsep)
        flag, what, *sys.argv[1:] = job["arguments"]
        status = 0
        try:
            if flag == "-m":
                runpy.run_module(what, run_name="__main__", alter_sys=True)
            else:
                exec(what, {"__name__": "__main__"})
        except SystemExit as end:
            status = end.code
        except BaseException:
            sys.excepthook(*sys.exc_info())
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(status, flush=True)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen]:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process


class Toys:
    """The package in a temporary folder, and what is run with it."""

    def __init__(self, folder: Path, server: subprocess.Popen) -> None:
        self.folder, self.server = folder, server
        self.root = folder / "artefacts"
        self.trace = folder / "trace"
        self.trace.touch()
        for name, text in FILES.items():
            self.write(name, textwrap.dedent(text).lstrip())

    def write(self, name: str, text: str) -> None:
        (self.folder / name).parent.mkdir(exist_ok=True)
        (self.folder / name).write_text(text)

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.folder / name).read_text()
        assert old in text
        self.write(name, text.replace(old, new))

    def environment(self, pause: float = 0) -> dict[str, str]:
        return {
            "PYTHONPATH": f"{self.folder}{os.pathsep}{ROOT}",
            "TANGLED_ARTIFACTS": str(self.root),
            "TRACE": str(self.trace),
            "PAUSE": str(pause),
        }

    def start(self, *arguments: str, pause: float = 0) -> subprocess.Popen:
        """Start a process that lives beside the test."""
        return subprocess.Popen(
            [sys.executable, "-B", *arguments],
            env={**os.environ, **self.environment(pause)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Run a command line to its end: exit status, output, errors."""
        files = [self.folder / "out", self.folder / "errors"]
        job = {
            "arguments": arguments,
            "environment": self.environment(),
            "files": list(map(str, files)),
        }
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        status = int(self.server.stdout.readline())
        return status, *(file.read_text() for file in files)

    def make(self) -> tuple[int, str, str]:
        return self.run("-m", "tangled.workshop.artifacts", "toy")

    def words(self) -> list[str]:
        return [
            line.split()[0] for line in self.trace.read_text().splitlines()
        ]

    def until(self, word: str) -> None:
        for _ in range(600):
            if word in self.words():
                return
            time.sleep(0.05)
        raise AssertionError(f"{word} never came")

    def folders(self) -> list[Path]:
        return [path for path in self.root.glob("*-*") if not path.suffix]


@pytest.fixture
def toys(tmp_path: Path, server: subprocess.Popen) -> Toys:
    return Toys(tmp_path, server)


def ready(process: subprocess.Popen) -> None:
    assert process.stdout.readline() == "ready\n", process.stderr.read()


def go(process: subprocess.Popen) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


def test_everything_is_made_once_and_listed(toys):
    status, out, errors = toys.make()
    assert status == 0, errors
    assert "judge: in the making" in errors
    assert "tiny: in the making" in errors
    folders = sorted(toys.root.glob("*-????????????"))
    for name, folder, line in zip(
        ("judge", "tiny"), folders, out.splitlines(), strict=True
    ):
        assert folder.name.startswith(f"{name}-")
        took = read_config(folder)["seconds"]
        size = sum(file.stat().st_size for file in folder.iterdir())
        assert line == f"{folder.name} {size:,} bytes toy.models {took} s"
    assert not list(toys.root.glob("*.scratch"))
    status, out, errors = toys.make()
    assert (status, errors) == (0, "")
    assert out.count("toy.models") == 2
    assert toys.words().count("judge") == toys.words().count("tiny") == 1


def test_an_artefact_says_what_made_it(toys):
    toys.make()
    (folder,) = toys.root.glob("judge-????????????")
    told = read_config(folder)
    assert told["recipe"] == "judge"
    assert told["module"] == "toy.models"
    assert told["config"] == {"width": 3, "seed": 0}
    assert told["log"] == [{"loss": 0.5}]
    assert read_tensors(folder)["weight"].shape == (3, 3)


def test_of_two_processes_one_trains(toys):
    pair = [toys.start("-c", ASK, pause=1.0) for _ in range(2)]
    for process in pair:
        ready(process)
    for process in pair:
        go(process)
    answers = {process.communicate(timeout=60)[0] for process in pair}
    assert len(answers) == 1
    assert toys.words().count("judge") == 1
    assert len(toys.folders()) == 1


def test_a_killed_maker_blocks_nobody_and_is_resumed(toys):
    maker = toys.start("-c", ASK, pause=5.0)
    ready(maker)
    go(maker)
    toys.until("step2")
    maker.send_signal(signal.SIGKILL)
    maker.communicate()
    assert not toys.folders()
    status, out, errors = toys.run("-c", ASK)
    assert status == 0, errors
    assert Path(out.split()[-1]).is_dir()
    assert toys.words().count("judge") == 2
    assert toys.words().count("step2") == 1  # it was not done again


def test_what_made_it_changes_the_key(toys):
    toys.make()
    for count, (name, old, new) in enumerate(
        [
            ("toy/models.py", "width=3", "width=4"),  # configuration
            ("toy/parts.py", "nn.Linear(width, width)", "nn.Identity()"),
            ("toy/models.py", 'trace("judge")', 'trace("justice")'),
        ],
        start=2,
    ):
        toys.edit(name, old, new)
        status, _, errors = toys.make()
        assert status == 0, errors
        assert "judge: in the making" in errors
        # Nothing goes unasked.
        assert len(list(toys.root.glob("judge-????????????"))) == count


def test_a_computed_configuration_changes_the_key():
    def make(folder: Path, width: int) -> tuple[nn.Module, list]:
        raise NotImplementedError

    keys = {artifacts._place(recipe(width=n)(make)) for n in (1, 2, 2)}
    assert len(keys) == 2


def test_prose_changes_no_key(toys):
    toys.make()
    for name, old, new in [
        ("toy/models.py", "Two recipes.", "A pair of recipes."),
        ("toy/parts.py", "Return a layer.", "Return one layer."),
        ("toy/parts.py", "import os\n", "import os  # for the trace\n\n"),
        ("toy/parts.py", '    """Return one layer."""\n', ""),
        ("toy/other.py", "UNUSED = 1", "UNUSED = 2"),  # nobody imports it
    ]:
        toys.edit(name, old, new)
    status, out, errors = toys.make()
    assert (status, errors) == (0, "")
    assert out.count("toy.models") == 2


def test_how_weights_are_kept_changes_no_key():
    kept = "tangled.workshop.checkpoint"
    assert sources(kept).keys() == {kept}
    assert sources(artifact.__module__) == {}


def test_a_maker_removes_what_a_killed_one_left_and_no_more(toys):
    toys.make()
    (judge,) = toys.root.glob("judge-????????????")
    mine = toys.root / f".{judge.name}.0123abcd.partial"
    other = toys.root / ".tiny-0123456789ab.0123abcd.partial"
    judge.rename(mine)
    other.mkdir()
    status, _, errors = toys.make()
    assert status == 0, errors
    assert judge.exists()
    assert not mine.exists()
    assert other.exists()


def test_the_folder_of_all_may_lie_two_missing_levels_deep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def make(folder: Path) -> tuple[nn.Module, list]:
        return nn.Linear(1, 1), []

    monkeypatch.setenv("TANGLED_ARTIFACTS", str(tmp_path / "a/two/levels"))
    assert read_tensors(artifact(recipe()(make)))["weight"].shape == (1, 1)
    monkeypatch.setenv("TANGLED_ARTIFACTS", str(tmp_path / "b/two/levels"))
    monkeypatch.setattr(
        artifacts, "recipes", lambda package: {"make": recipe()(make)}
    )
    assert command() == 0
    assert len(list((tmp_path / "b/two/levels").glob("make-*"))) == 2


def test_a_recipe_that_fails_shows_where_and_leaves_no_weights(toys):
    toys.edit("toy/models.py", 'parts.trace("judge")', "1 / 0")
    status, _, errors = toys.make()
    assert status == 1
    assert errors.splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert "toy/models.py" in errors
    assert not toys.folders()


def test_two_recipes_of_one_name_are_refused(toys):
    text = (toys.folder / "toy/models.py").read_text()
    toys.write("toy/more.py", text)
    status, _, errors = toys.make()
    assert status == 1
    assert "toy.models and toy.more both have a recipe" in errors


def test_control_c_keeps_what_was_trained(toys):
    maker = toys.start("-m", "tangled.workshop.artifacts", "toy", pause=5.0)
    toys.until("step1")
    maker.send_signal(signal.SIGINT)
    _, errors = maker.communicate(timeout=60)
    assert maker.returncode == 130
    assert errors.endswith("interrupted: what was trained is kept\n")
    assert "Traceback" not in errors
    (scratch,) = toys.root.glob("judge-*.scratch")
    assert (scratch / "1").exists()
    assert not toys.folders()
    assert toys.make()[0] == 0
    assert toys.words().count("step1") == 1
    assert not list(toys.root.glob("*.scratch"))


NOTEBOOK = """
from tangled.workshop import artifacts

@artifacts.recipe(width=9)
def {name}(folder, *, width):
    raise AssertionError("the notebook's own recipe must not run")

scan = artifacts.recipes
artifacts.recipes = lambda: scan("toy")
try:
    print(artifacts.artifact({name}))
except artifacts.ArtifactError as error:
    print(error)
"""


def test_a_notebook_gets_the_recipe_of_the_package(toys):
    def out(name: str) -> str:
        _, text, errors = toys.run("-c", NOTEBOOK.format(name=name))
        assert not errors
        return text.strip()

    assert Path(out("tiny")).parent == toys.root
    assert read_tensors(out("tiny"))["weight"].shape == (2, 2)
    assert out("gone") == "no module has a recipe 'gone'"


SEEDS = """
import torch
from tangled.workshop.artifacts import artifact
from toy.models import tiny
torch.manual_seed({seed})
before = torch.get_rng_state()
folder = artifact(tiny)
assert torch.equal(torch.get_rng_state(), before)
print(folder)
"""


def test_a_recipe_without_a_seed_does_not_depend_on_the_caller(toys):
    found = []
    for seed in (1, 2):
        toys.root = toys.folder / f"artefacts{seed}"
        _, out, errors = toys.run("-c", SEEDS.format(seed=seed))
        assert not errors
        found.append(read_tensors(out.strip())["weight"])
    assert found[0].equal(found[1])


@pytest.mark.gpu
def test_the_random_numbers_of_an_accelerator_are_left_alone(toys):
    code = SEEDS.replace("get_rng_state", "cuda.get_rng_state")
    process = toys.start("-c", code.format(seed=1))
    assert not process.communicate(timeout=60)[1]


def test_where_artefacts_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TANGLED_ARTIFACTS", "/a/b")
    assert artifacts_folder() == Path("/a/b")
    monkeypatch.delenv("TANGLED_ARTIFACTS")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert artifacts_folder() == Path("/cache/tangled")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/reader")
    assert artifacts_folder() == Path("/home/reader/.cache/tangled")


def test_a_folder_that_cannot_be_made_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Callable
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TANGLED_ARTIFACTS", str(tmp_path / "file" / "x"))
    assert command() == 1
    assert "Not a directory" in capsys.readouterr().err


def test_a_package_that_is_not_there_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Callable
):
    monkeypatch.setenv("TANGLED_ARTIFACTS", str(tmp_path))
    assert command("gone") == 1
    assert capsys.readouterr().err == "No module named 'gone'\n"
