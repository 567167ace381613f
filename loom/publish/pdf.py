"""From Jupyter Book's LaTeX to the book in print, `_build/latex/signal-from-noise.pdf`.

LaTeX runs only when what it reads changed; its log is then held to what a printed page needs.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from loom.publish.last_build import State, files_digest
from loom.weave.latex.lines import LINES, Lines

__all__ = ["NAME", "failure", "faults", "missing", "typeset"]

NAME = "signal-from-noise"
TOOLS = ("latexmk", "xelatex", "makeindex")
WIDEST = 5.0  # points that a line may stick out into the margin
LATEXMK = ("latexmk", "-pdfxe", "-dvi-", "-ps-", "-interaction=nonstopmode", "-halt-on-error")

UNDEFINED = re.compile(
    r"LaTeX Warning: (?:Hyper reference|Reference|Citation) [`'](.*?)'.*undefined"
)
MULTIPLE = re.compile(r"LaTeX Warning: Label [`'](.*?)' multiply defined")
MISSING = re.compile(r"Missing character: There is no (.*?) \((U\+\w+)\) in font ([^/:!]*)")
OVERFULL = re.compile(r"Overfull \\hbox \(([\d.]+)pt too wide\)")
AT = re.compile(r"(?:at lines? |on input line )(\d+)")
FAILED = re.compile(r"^! (.*?)\.?$.*?^l\.(\d+) (.*?)$", re.MULTILINE | re.DOTALL)


def missing() -> str | None:
    """A program that is not installed; None if all are there."""
    return next((tool for tool in TOOLS if shutil.which(tool) is None), None)


def typeset(root: Path) -> int:
    """Run LaTeX on what Jupyter Book wrote, unless that is what was typeset last."""
    folder = root / "_build/latex"
    files = [file for file in sorted(folder.iterdir()) if is_source(file)]
    state, now = State(root, "latex"), files_digest(root, files)
    if (folder / f"{NAME}.pdf").is_file() and state.matches(now):
        return 0
    # After a failure latexmk would take the broken files for what it had to make.
    again = () if state.file.is_file() else ("-g",)
    state.forget()
    if code := run(folder, again):
        return code
    state.keep(now)
    return 0


def is_source(file: Path) -> bool:
    """Tell what xelatex reads from what it writes."""
    return file.suffix in {".tex", ".sty", ".cls", ".png", ".jpg"} or (
        file.suffix == ".pdf" and file.stem != NAME
    )


def run(folder: Path, options: tuple[str, ...]) -> int:
    """Run latexmk and judge its log."""
    # Messages of any length on one line, so that they can be read; and memory for a long book:
    # as it is installed, TeX has five million words, which fifty chapters fill.
    settings = {"max_print_line": "10000", "error_line": "254", "extra_mem_bot": "8000000"}
    environment = {**os.environ, **settings}
    command = [*LATEXMK, *options, f"{NAME}.tex"]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True)
    log = (folder / f"{NAME}.log").read_text(encoding="utf-8", errors="replace")
    source = (folder / f"{NAME}.tex").read_text(encoding="utf-8").splitlines()
    lines = Lines.load(folder / LINES)
    if result.returncode:
        reason = failure(log, lines) or result.stderr.decode(errors="replace").strip()[-300:]
        print(reason, file=sys.stderr)
        return 1
    found = list(dict.fromkeys(faults(log, source, lines)))
    for fault in found:
        print(fault, file=sys.stderr)
    return 1 if found else 0


def failure(log: str, lines: Lines) -> str:
    """The error that ended the run, with its place and what stood last before it; "" if none."""
    if not (error := FAILED.search(log)):
        return ""
    return f"{lines.at(int(error[2]))}: {error[1]}: {error[3].strip()}"


def faults(log: str, source: list[str], lines: Lines) -> Iterator[str]:
    """What would be wrong on paper, one line each."""
    for line in log.splitlines():
        place = AT.search(line)
        number = int(place[1]) if place else 0
        if match := MISSING.search(line):
            said = f"the font {match[3].strip()} has no {match[1]} ({match[2]})"
            yield f"{everywhere(match[1], source, lines)}: {said}"
        elif match := UNDEFINED.search(line):
            yield f"{lines.at(number)}: the reference to '{match[1]}' leads nowhere"
        elif match := MULTIPLE.search(line):
            places = everywhere(f"\\label{{\\detokenize{{{match[1]}}}}}", source, lines)
            yield f"{places}: the label '{match[1]}' stands twice"
        elif (match := OVERFULL.search(line)) and float(match[1]) > WIDEST:
            width = f"sticks out by {float(match[1]):.0f} pt"
            yield f"{lines.at(number)}: {width}: {quote(source, number)}"


def everywhere(words: str, source: list[str], lines: Lines) -> str:
    """Where words stand that TeX complains of without a place."""
    places = (lines.at(number) for number, line in enumerate(source, 1) if words in line)
    return ", ".join(dict.fromkeys(places)) or "somewhere"


def quote(source: list[str], number: int) -> str:
    """The end of what stands there."""
    words = " ".join(line.strip() for line in source[max(number - 4, 0) : number])
    return words[-120:]
