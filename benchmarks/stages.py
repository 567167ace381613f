"""Seconds of each stage of a build: this book, and one of 44 chapters made from it.

    python benchmarks/stages.py [--chapters 44] [--no-pdf]

The book is cloned into a temporary folder, with the results of its chapters where `_build` here has
them; else they are run first. The large one has copies of the chapters, in which modules, labels
and chapters have names of their own; what a copy's cells print is what those of its model printed.
"""

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from results import record

from loom.read.book import Book, read
from loom.read.chapter import Chapter
from loom.read.labels import labels
from loom.run.cache import Cache
from loom.run.notebook import executable
from loom.tangle.package import tangle

ROOT = Path(__file__).parents[1]
FIGURE = re.compile(r"(?m)^\s*:?name: ((?:fig|tab)-\S+)$")
EDITED = "book/diffusion/forward.md"
TEXT = """\
# The stages of a build

Seconds on the clock, and in brackets those of the processor, of whole commands on 2 cores,
Python {python}, by `python benchmarks/stages.py`{shared}.
The book of {large} chapters is made of copies of the {small}, with modules, labels and chapters
renamed and outputs reused.

| stage | {small} chapters | {large} chapters |
| --- | --: | --: |
{rows}

*One prose edit*: a paragraph more in one chapter, until its page or the PDF is there.
†: the command ended with a complaint. –: not measured.
"""


def clone(folder: Path) -> None:
    """The committed book, and the results of its chapters if they are here."""
    command = ["git", "clone", "--quiet", "--local", str(ROOT), str(folder)]
    subprocess.run(command, check=True)
    for name in ("_build/.jupyter_cache", "_build/artifacts"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name)


def chapters(book: Book) -> list[Chapter]:
    """The chapters proper: neither the first page nor an appendix."""
    inner = [c for c in book.chapters if c.cells and c.path.count("/") > 1]
    return [c for c in inner if not c.path.startswith("book/appendix/")]


def enlarge(folder: Path, count: int) -> None:
    """Copy the chapters until there are so many."""
    book = read(folder)
    models = chapters(book)
    paths = [d.path for d in tangle(book).definitions]
    owners = {d.path: d.chapter for d in tangle(book).definitions}
    known = labels(book)
    tests = sorted((folder / "tests").glob("*/test_*.py"))
    tests = [
        file for file in tests if "pytest.mark.verifies" in file.read_text()
    ]
    toc, copies = "", []
    number, left = 2, count - len(models)
    while left > 0:
        chosen = models[:left]
        left -= len(chosen)
        inside = {chapter.path for chapter in chosen}
        names = {c.docname.removeprefix("book/") for c in chosen}
        names |= {
            path.removeprefix("tangled/").removesuffix(".py")
            for path in paths
            if path.startswith("tangled/") and owners[path] in inside
        }
        marks = {
            label.name for label in known.values() if label.chapter in inside
        }
        for chapter in chosen:
            marks.update(FIGURE.findall(chapter.text))
        rename = renaming(names, marks, str(number))
        toc += (
            f"  - caption: Copies {number}\n    numbered: 2\n    chapters:\n"
        )
        for chapter in chosen:
            copy = folder / rename(chapter.path)
            copy.write_text(rename(chapter.text))
            copies.append((chapter, copy))
            toc += f"      - file: {rename(chapter.docname)}\n"
        for file in tests:
            file.with_stem(f"{file.stem}{number}").write_text(
                rename(file.read_text())
            )
        number += 1
    file = folder / "_toc.yml"
    head, appendices, tail = file.read_text().partition(
        "  - caption: Appendices"
    )
    file.write_text(head + toc + appendices + tail)
    Timer(folder).loom(
        "tangle"
    )  # the results of a chapter hang on the modules that it imports
    for chapter, copy in copies:
        reuse(folder, chapter, copy)


def renaming(
    names: set[str], marks: set[str], suffix: str
) -> Callable[[str], str]:
    """A function that gives modules, chapters and labels in a text their new names."""
    either = "|".join(sorted({name.rpartition("/")[2] for name in names}))
    dotted = "|".join(
        re.escape(name.replace("/", ".")) for name in sorted(names)
    )
    slashed = "|".join(re.escape(name) for name in sorted(names))
    labelled = "|".join(re.escape(mark) for mark in sorted(marks))
    pattern = re.compile(
        rf"(?<=\btangled\.)(?:{dotted})\b"
        rf"|(?<![\w-])(?:{slashed})(?![\w-])"
        rf"|(?<=[(/])(?:{either})(?=\.md\b)"
        rf"|(?<![\w-])(?:{labelled})(?![\w-])"
    )

    def rename(text: str) -> str:
        return pattern.sub(
            lambda match: (
                match[0] + ("-" if match[0] in marks else "") + suffix
            ),
            text,
        )

    return rename


def reuse(folder: Path, model: Chapter, copy: Path) -> None:
    """Keep the outputs of a chapter as those of its copy."""
    cache = Cache(folder)
    ran = cache.executed(executable(folder / model.path, folder))
    if ran is None:
        raise SystemExit(f"{model.path} was not run")
    made = executable(copy, folder)
    new, old = (
        [c for c in n.cells if c.cell_type == "code"] for n in (made, ran)
    )
    for cell, model_cell in zip(new, old, strict=True):
        cell.outputs, cell.execution_count = (
            model_cell.outputs,
            model_cell.execution_count,
        )
    cache.store(made, copy, 1.0)


def used() -> float:
    """Seconds of the processor that ended commands took."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Timer:
    """Runs loom in a folder, and keeps seconds by stage."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds: dict[str, str] = {}

    def loom(self, *verbs: str) -> tuple[float, float, str]:
        """Seconds on the clock, those of the processor, and what went wrong."""
        environment = {"PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1"}
        before, start = used(), time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "loom", *verbs],
            cwd=self.folder,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )
        wall, cpu = time.perf_counter() - start, used() - before
        return wall, cpu, done.stderr if done.returncode else ""

    def stage(self, name: str, *verbs: str, rounds: int = 1) -> None:
        """Time a command; of several rounds the median."""
        done = sorted(self.loom(*verbs) for _ in range(rounds))
        wall, cpu, wrong = done[rounds // 2]
        self.seconds[name] = f"{wall:.1f} ({cpu:.1f})" + " †" * bool(wrong)
        print(f"{self.folder.name}, {name}: {self.seconds[name]}", flush=True)
        print(wrong[-2000:], end="", file=sys.stderr, flush=True)

    def edit(self) -> None:
        """One more paragraph, and no other change."""
        file = self.folder / EDITED
        file.write_text(
            file.read_text() + f"\nOne more paragraph, at {time.time_ns()}.\n"
        )


def measure(folder: Path, pdf: bool) -> dict[str, str]:
    """The seconds of all stages."""
    timer = Timer(folder)
    timer.loom("make", "tangle", "run")
    timer.stage("tangle, nothing changed", "tangle", rounds=3)
    timer.stage("check", "check", rounds=3)
    timer.stage("run, nothing changed", "run", rounds=3)
    timer.stage("site from executed chapters", "html")
    timer.stage(
        "`make html`, nothing changed",
        "make",
        "tangle",
        "run",
        "html",
        rounds=3,
    )
    for _ in range(
        2
    ):  # what the first build leaves to the second is no part of an edit
        timer.edit()
        timer.stage("one prose edit, site", "make", "tangle", "run", "html")
    if pdf:
        timer.stage("PDF from executed chapters", "pdf")
        timer.edit()
        timer.stage("one prose edit, PDF", "make", "tangle", "run", "pdf")
    return timer.seconds


def main() -> None:
    """Measure, and record the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--chapters", type=int, default=44, help="of the large book"
    )
    parser.add_argument(
        "--no-pdf", action="store_true", help="of the large book"
    )
    parser.add_argument(
        "--shared",
        action="store_true",
        help="say that the machine was shared",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        small, large = Path(temporary, "book"), Path(temporary, "large")
        clone(small)
        Timer(small).loom("make", "tangle", "run")
        shutil.copytree(small, large)
        enlarge(large, options.chapters)
        found = [measure(small, True), measure(large, not options.no_pdf)]
        count = len(chapters(read(small)))
    write(found[0], found[1], count, options.chapters, options.shared)


def write(
    small: dict[str, str],
    large: dict[str, str],
    few: int,
    many: int,
    shared: bool,
) -> None:
    """Record the table; a dash stands for what was not measured."""
    rows = "\n".join(
        f"| {name} | {small[name]} | {large.get(name, '–')} |"
        for name in small
    )
    record(
        TEXT.format(
            python=".".join(map(str, sys.version_info[:2])),
            shared=" while others worked on the machine" * shared,
            small=few,
            large=many,
            rows=rows,
        )
    )


if __name__ == "__main__":
    main()
