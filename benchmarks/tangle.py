"""Tangle a large book with loom, with entangled and with jupytext + nbdev, side by side.

    python benchmarks/tangle.py

The book has 60 chapters, 46,000 lines and 1,800 code cells, 1,200 of them tangled. Each program
gets it in the form that it reads, the code being the same. A measurement is the time on the clock
of whole processes. The programs take turns, so that what else the machine does troubles all alike;
of the rounds, the median and the least are told. The other programs are installed into
`_build/peers` and nowhere else. The table is written to `benchmarks/results.md`.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from results import record

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "_build/peers"
BOOKS = ROOT / "_build/benchmark"
CHAPTERS, SECTIONS = 60, 30
PARTS = ("foundations", "diffusion", "language", "images")

PROSE = """\
The reverse chain begins where the forward chain ends, and each of its steps
undoes a little of the noise that the matching step has added. Nothing in the
argument asks for an image: a number, a vector and a graph will do as well.

Write $x_t$ for the state after step $t$. What the step adds is independent of
all that came before, so variances add up and the law stays Gaussian; a short
calculation gives its mean and its variance.

$$
x_t = a_t\\, x_0 + \\sqrt{1 - a_t^2}\\; \\varepsilon
$$ (eq-LABEL)

Both depend on the schedule alone. The next cell computes them, and the one
after it looks at what comes out.
"""
CODE = (
    '''\
def scale_N(x: float, y: float = 1.0) -> float:
    """Return x scaled by what the section says."""
    if x < 0:
        raise ValueError(f"x must not be negative, got {x}")
    total = math.sqrt(x) * y + LIMIT
    return total / (1.0 + N)
''',
    '''\
@dataclass
class Table_N:
    """The numbers of one section."""

    size: int
    start: float = 0.0

    def total(self) -> float:
        """Return the sum of all entries."""
        return sum(self.start + i for i in range(self.size))
''',
    """\
# The number of steps that the section looks at.
STEPS_N = 1000 + N
WIDTH_N = STEPS_N // 3
""",
    '''\
def mean_N(values: list[float]) -> float:
    """Return the mean of the values; that of none is zero."""
    if not values:
        return 0.0
    centred = [value - LIMIT for value in values]
    return LIMIT + math.fsum(centred) / len(centred)
''',
)
RUN = """\
values = [float(i) for i in range(N)]
print(len(values), sum(values))
"""


@dataclass(frozen=True)
class Cell:
    """A code cell of the book; `file` is the module that it goes into, if any."""

    code: str
    file: str = ""
    label: str = ""


def chapters() -> Iterable[tuple[str, list[str | Cell]]]:
    """The chapters by name (`part/c07`), each a list of prose and cells."""
    for number in range(CHAPTERS):
        name = f"{PARTS[number * len(PARTS) // CHAPTERS]}/c{number:02}"
        file = f"tangled/{name}.py"
        imports = "import math\nfrom dataclasses import dataclass\n"
        parts: list[str | Cell] = [f"# Chapter {number}\n", Cell(imports)]
        parts.append(Cell("LIMIT = 0.5\n", file))
        for section in range(1, SECTIONS - 1):
            label = f"{number}-{section}"
            parts.append(
                f"## Section {section}\n\n{PROSE.replace('LABEL', label)}"
            )
            if section % 3 == 0:
                parts.append(Cell(RUN.replace("N", str(section))))
            else:
                code = (
                    CODE[section % len(CODE)]
                    .replace("N", str(section))
                    .replace("STEPS", "S")
                )
                labelled = section % 3 == 1 and code.startswith("def")
                parts.append(
                    Cell(code, file, f"eq-{label}" if labelled else "")
                )
        yield name, parts


def fenced(parts: list[str | Cell], cell: Callable[[Cell], str]) -> str:
    """A chapter as text; `cell` writes its cells."""
    return "\n".join(
        part if isinstance(part, str) else cell(part) for part in parts
    )


FRONT = """\
---
jupytext: {text_representation: {extension: .md, format_name: myst}}
kernelspec: {name: python3, display_name: Python 3, language: python}
---
"""


@dataclass
class Program:
    """A program with its copy of the book: what to run for each measurement."""

    name: str
    folder: Path
    start: list[list[str]]
    tangle: list[list[str]]
    sync: list[list[str]]
    again: list[list[str]] | None = (
        None  # what to run where nothing changed, if it is less
    )
    files: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def lay(self) -> None:
        """Write the copy of the book, and remove what was made of an earlier one."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for path, text in self.files.items():
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).write_text(text)

    def run(self, commands: list[list[str]]) -> float:
        """The seconds that some commands take, one after another."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        begin = time.perf_counter()
        for command in commands:
            done = subprocess.run(
                command,
                cwd=self.folder,
                env=environment,
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise SystemExit(
                    f"{self.name}: {' '.join(command)}\n{done.stdout}{done.stderr}"
                )
        return time.perf_counter() - begin

    def round(self) -> None:
        """Measure everything once."""
        self.lay()
        module = self.folder / "tangled/diffusion/c20.py"
        self.keep("start-up", self.run(self.start))
        self.keep("full", self.run(self.tangle))
        self.keep("nothing changed", self.run(self.again or self.tangle))
        text = module.read_text()
        assert "total / (1.0 + 4)" in text
        module.write_text(
            text.replace("total / (1.0 + 4)", "total / (2.0 + 4)")
        )
        self.keep("one line back", self.run(self.sync))
        chapter = next(self.folder.glob("*/diffusion/c20.md"))
        assert "total / (2.0 + 4)" in chapter.read_text()

    def keep(self, what: str, seconds: float) -> None:
        """Enter a measurement."""
        self.seconds.setdefault(what, []).append(seconds)


def loom() -> Program:
    """This project's program, as the book uses it."""

    def cell(cell: Cell) -> str:
        options = ":tangle:\n" if cell.file else ""
        options += f":implements: {cell.label}\n" if cell.label else ""
        gap = "\n" if options else ""
        return f"```{{code-cell}} python\n{options}{gap}{cell.code}```\n"

    run = [sys.executable, "-m", "loom"]
    program = Program(
        "loom",
        BOOKS / "loom",
        [[*run, "--help"]],
        [[*run, "tangle"]],
        [[*run, "sync"]],
    )
    toc = ["root: book/index", "chapters:"]
    files = {"book/index.md": "# Book\n"}
    for name, parts in chapters():
        front = FRONT.replace("---\n", f"---\ntangle: {name}.py\n", 1)
        files[f"book/{name}.md"] = front + fenced(parts, cell)
        toc.append(f"- file: book/{name}")
    program.files = {**files, "_toc.yml": "\n".join(toc) + "\n"}
    return program


def entangled() -> Program:
    """Entangled, told to take code cells; the file stands in their first line."""

    def cell(cell: Cell) -> str:
        place = f" file={cell.file}" if cell.file else ""
        return f"```{{code-cell}} python{place}\n{cell.code}```\n"

    run = [str(PEERS / "bin/entangled")]
    program = Program(
        "entangled 2.1.13",
        BOOKS / "entangled",
        [[*run, "--help"]],
        [[*run, "tangle"]],
        [[*run, "stitch"]],
    )
    settings = (
        'version = "2.0"\nwatch_list = ["book/**/*.md"]\n\n[markers]\n'
        "open = '^(?P<indent>\\s*)```\\s*\\{code-cell\\}\\s*(?P<properties>.*)$'\n"
        "close = '^(?P<indent>\\s*)```\\s*$'\n"
    )
    files = {
        f"book/{name}.md": FRONT + fenced(parts, cell)
        for name, parts in chapters()
    }
    program.files = {**files, "entangled.toml": settings}
    return program


def nbdev() -> Program:
    """Jupytext makes notebooks of the chapters, nbdev modules of the notebooks.

    Where nothing changed, and on the way back, only what must be converted is.
    """

    def cell(cell: Cell) -> str:
        mark = "#| export\n" if cell.file else ""
        return f"```{{code-cell}} python\n{mark}{cell.code}```\n"

    jupytext, export = (
        str(PEERS / "bin/jupytext"),
        str(PEERS / "bin/nbdev-export"),
    )
    texts = {}
    for name, parts in chapters():
        start = f"```{{code-cell}} python\n#| default_exp {name.replace('/', '.')}\n```\n\n"
        texts[f"nbs/{name}.md"] = FRONT + start + fenced(parts, cell)
    update = str(PEERS / "bin/nbdev-update")
    convert = [jupytext, "--quiet", "--to"]
    program = Program(
        "jupytext 1.19.6 + nbdev 3.3.26",
        BOOKS / "nbdev",
        [[jupytext, "--help"], [export, "--help"]],
        [[*convert, "ipynb", *texts], [export]],
        [[update], [*convert, "md:myst", "nbs/diffusion/c20.ipynb"]],
        again=[[export]],
    )
    settings = (
        '[project]\nname = "tangled"\nversion = "1"\n'
        '[tool.nbdev]\nlib_path = "tangled"\nnbs_path = "nbs"\n'
    )
    program.files = {**texts, "pyproject.toml": settings}
    return program


def table(programs: list[Program], rounds: int) -> str:
    """The measurements, one row a program: median and least, in seconds."""
    kinds = list(programs[0].seconds)
    rows = [["", *kinds], ["---", *["--:"] * len(kinds)]]
    for program in programs:
        cells = [
            f"{statistics.median(program.seconds[kind]):.2f} ({min(program.seconds[kind]):.2f})"
            for kind in kinds
        ]
        rows.append([program.name, *cells])
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return (
        "# Tangling a large book\n\n"
        f"60 chapters, {count():,} lines, 1,800 code cells, 1,200 of them tangled. Seconds on the\n"
        f"clock of whole processes, median of {rounds} rounds (and the least); the programs take\n"
        "turns. Measured on 2 cores, Python 3.11, by `python benchmarks/tangle.py`.\n\n"
        f"{lines}\n\n"
        "*Full*: every module is written. *Nothing changed*: the same again; for jupytext +\n"
        "nbdev only the export. *One line back*: a line edited in one module is carried into\n"
        "its chapter. Each makes something else: loom resolves imports, merges classes, cites\n"
        "labels and checks names; entangled copies blocks between marker comments; nbdev writes\n"
        "cells and an index.\n"
    )


def count() -> int:
    """How many lines the book has, as loom reads it."""
    return sum(
        path.read_text().count("\n")
        for path in (BOOKS / "loom/book").rglob("*.md")
    )


def install() -> None:
    """Install the other programs where nothing else uses them."""
    if not (PEERS / "bin/entangled").exists():
        venv.create(PEERS, with_pip=True)
        requirements = Path(__file__).with_name("requirements.txt")
        subprocess.run(
            [PEERS / "bin/pip", "install", "-q", "-r", requirements],
            check=True,
        )


def main() -> None:
    """Measure, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--rounds", type=int, default=7, help="how often each is measured (7)"
    )
    parser.add_argument(
        "--alone", action="store_true", help="loom only, and write no table"
    )
    options = parser.parse_args()
    if not options.alone:
        install()
    programs = [loom()] if options.alone else [loom(), entangled(), nbdev()]
    for number in range(options.rounds + 1):
        for program in programs:
            program.round()
            if not number:  # the first round fills the caches of the system
                program.seconds.clear()
    text = table(programs, options.rounds)
    print(text)
    if not options.alone:
        record(text)


if __name__ == "__main__":
    main()
