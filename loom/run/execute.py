"""Run the cells of one chapter in a kernel of its own, and say where it failed."""

import asyncio
import re
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loom.errors import Problem
from loom.read.chapter import Cell, Chapter

if TYPE_CHECKING:
    from nbclient import NotebookClient
    from nbformat import NotebookNode

__all__ = ["Failure", "Limits", "execute"]

LONGEST = 1_000_000  # characters of a cell's output: more is no page that anyone reads
ANSI = re.compile(r"\x1b\[[0-9;]*m")
FRAME = re.compile(r"Cell In\[(\d+)\], line (\d+)")
WARNING = re.compile(r"^(?P<file>\S+\.py):(?P<line>\d+): (?P<what>\w+: .*)$", re.MULTILINE)


@dataclass(frozen=True)
class Limits:
    """What a chapter may do: seconds for one cell, and whether standard error is a failure."""

    timeout: int = 300
    stderr: bool = False


class Failure(Exception):
    """A chapter that does not run: one line with its place, then what the kernel said."""

    def __init__(self, problem: Problem, detail: str = "") -> None:
        super().__init__(str(problem))
        self.problem = problem
        self.detail = detail


async def execute(
    chapter: Chapter,
    notebook: "NotebookNode",
    folder: Path,
    limits: Limits,
    ran: Callable[[], None] = lambda: None,
) -> None:
    """Execute the notebook in place, in `folder`; call `ran` after each cell.

    Raises:
        Failure: at the first cell that fails. The kernel never outlives this call.
    """
    # It takes longer to import than a run with nothing to do.
    from nbclient import NotebookClient

    # Timestamps in the cells would enter their key in the cache.
    # nbclient would join streams by an expression that takes the square of a long line's length.
    options = {"timeout": limits.timeout, "record_timing": False, "coalesce_streams": False}
    client = NotebookClient(notebook, **options)
    manager = client.create_kernel_manager()
    try:
        await client.async_start_new_kernel(cwd=str(folder))
        channels = await client.async_start_new_kernel_client()
        reply = await client.async_wait_for_reply(channels.kernel_info())
        if reply:
            notebook.metadata["language_info"] = reply["content"]["language_info"]
        cells = iter(chapter.cells)
        for index, cell in enumerate(notebook.cells):
            if cell.cell_type == "code":
                await _run(client, chapter, next(cells), index, limits)
                ran()
        client.set_widgets_metadata()
    finally:
        if client.kc is not None:
            client.kc.stop_channels()
        await _to_its_end(manager.shutdown_kernel(now=True))


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Await something that must not be left half-done; a cancellation takes effect after it."""
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    task.result()


async def _run(
    client: "NotebookClient", chapter: Chapter, cell: Cell, index: int, limits: Limits
) -> None:
    from nbclient.exceptions import (  # as above
        CellExecutionError,
        CellTimeoutError,
        DeadKernelError,
    )

    count = client.code_cells_executed + 1
    node = client.nb.cells[index]

    def failure(line: int, code: str, sentence: str, detail: str = "") -> Failure:
        return Failure(Problem(chapter.path, line, code, sentence), detail)

    left = False

    def replied(execute_reply: dict[str, Any], **_: object) -> None:
        nonlocal left
        payload = execute_reply["content"].get("payload", ())
        left = any(item.get("source") == "ask_exit" for item in payload)

    client.on_cell_executed = replied
    try:
        await client.async_execute_cell(node, index, execution_count=count)
    except CellExecutionError as error:
        traces = (output.traceback for output in node.outputs if output.output_type == "error")
        text = "\n".join(next(traces, [str(error)]))
        frames = FRAME.findall(ANSI.sub("", text))
        here = [int(number) for executed, number in frames if int(executed) == count]
        line = _line(cell, here[-1]) if here else cell.line
        message = next(iter(error.evalue.strip().splitlines()), "") or _text(cell, line)
        raise failure(line, "R01", f"{error.ename}: {message}".rstrip(": "), text) from None
    except CellTimeoutError:
        sentence = f"this cell did not finish within {limits.timeout} seconds"
        raise failure(cell.line, "R03", sentence) from None
    except DeadKernelError:
        raise failure(cell.line, "R04", "the kernel died in this cell (out of memory?)") from None
    if left:
        raise failure(cell.line, "R01", "SystemExit: this cell calls exit() or quit()")
    node.outputs = _joined(node.outputs)
    if (size := sum(len(text) for text in _texts(node))) > LONGEST:
        sentence = f"this cell prints {size:,} characters, more than {LONGEST:,}: print less"
        raise failure(cell.line, "R07", sentence)
    complaint = "" if _may_complain(node) else _stream(node, "stderr")
    if limits.stderr and complaint:
        line, sentence = _complaint(chapter, cell, client.nb, complaint)
        raise failure(line, "R02", sentence, complaint)
    if cell.kind in ("verify", "refute") and "passed: test_" not in _stream(node, "stdout"):
        sentence = "no test was called: this cell defines no function test_*() without parameters"
        raise failure(cell.line, "R05", sentence)


def _joined(outputs: "list[NotebookNode]") -> "list[NotebookNode]":
    """The outputs with each run of one stream as one text, in which a return begins a line anew."""
    joined = []
    for stream, group in groupby(outputs, lambda o: o.get("name", "")):
        first, *more = group
        if not stream:
            joined += [first, *more]
            continue
        text = "".join(output.text for output in (first, *more)).replace("\r\n", "\n")
        first.text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
        joined.append(first)
    return joined


def _texts(node: "NotebookNode") -> Iterator[str]:
    """What a page would show of a cell's outputs as text."""
    for output in node.outputs:
        yield output.get("text", "")
        data = output.get("data", {})
        yield from (data.get(kind, "") for kind in ("text/plain", "text/html"))


def _line(cell: Cell, number: int) -> int:
    """The chapter's line for a line of the cell, which IPython counts from the first with code."""
    return cell.lines[0].number + number - 1 if cell.lines else cell.line


def _text(cell: Cell, number: int) -> str:
    """The code in a line of the chapter."""
    return next((line.text.strip() for line in cell.lines if line.number == number), "")


def _stream(node: "NotebookNode", name: str) -> str:
    """What a cell wrote to standard output or standard error."""
    streams = (output for output in node.outputs if output.output_type == "stream")
    return "".join(output.text for output in streams if output.name == name)


def _may_complain(node: "NotebookNode") -> bool:
    """Whether the author says what to do with the cell's standard error, as myst-nb reads it."""
    tags, options = node.metadata.get("tags") or (), node.metadata.get("mystnb") or {}
    return "remove-stderr" in tags or options.get("output_stderr") in ("show", "remove")


def _complaint(
    chapter: Chapter, cell: Cell, notebook: "NotebookNode", text: str
) -> tuple[int, str]:
    """The line and the sentence for text on standard error, mostly a Python warning."""
    from ipykernel.compiler import get_file_name  # which is needed for a warning alone

    warning = WARNING.search(text)
    if "surrogates not allowed" in text:
        return cell.line, "this cell prints half a character, a lone surrogate"
    if not warning:
        return cell.line, f"this cell writes to standard error: {text.strip().splitlines()[0]}"
    nodes = [node for node in notebook.cells if node.cell_type == "code"]
    for place, node in zip(chapter.cells, nodes, strict=True):
        name = Path(get_file_name(node.source)).name  # type: ignore[no-untyped-call]
        if name == Path(warning["file"]).name:
            return _line(place, int(warning["line"])), warning["what"]
    return cell.line, warning["what"]
