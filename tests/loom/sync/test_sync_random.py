"""Random edits of modules and chapters: `loom sync` keeps both, or refuses and touches nothing.

`pytest tests/loom/test_sync_random.py --hypothesis-profile thorough` tries 10,000 pairs of edits.
"""

import ast
import functools
import itertools
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loom.errors import Problems
from loom.read.book import Book, read
from loom.sync.sync import sync
from loom.tangle.files import write
from loom.tangle.package import tangle

FRONT = """\
---
jupytext: {text_representation: {extension: .md, format_name: myst}}
kernelspec: {name: python3, display_name: Python 3, language: python}
tangle: diffusion/NAME.py
---
# Chapter NAME

```{code-cell} python
import math

from loom import continues
```
"""
PAIRS = max(1000, settings.default.max_examples)
Files = dict[str, str]


def function(i: int, docstring: str) -> str:
    return f"def f{i}(x=0):\n{docstring}    y = x + {i}\n\n    return y * {i}"


def code(kind: int, i: int, name: str) -> tuple[str, str]:
    """The option and the code of a cell."""
    one_line = f'    """Return {i}."""\n'
    paragraphs = (
        f'    """Return {i}.\n\n    More of {i}.\n    Much of {i}.\n    """\n'
    )
    grown = f"@continues(K{name})\nclass K{name}:\n    def m{i}(self):\n{{}}        return {i}"
    return [
        (":tangle:", f"# Above {i}.\nC{i} = {i}\nD{i} = {i} + math.tau"),
        (
            ":tangle:",
            function(i, paragraphs) + "\n\n\n" + function(i + 50, one_line),
        ),
        (
            f":tangle:\n:implements: eq-{name}",
            function(i, one_line) + f"\n    # End of {i}.",
        ),
        (f":tangle:\n:implements: eq-{name}", function(i, paragraphs)),
        (
            ":tangle: diffusion/other.py",
            function(i, "") + f"\n\n\nE{i} = {i}",
        ),
        (
            f":tangle:\n:implements: eq-{name}",
            grown.format(f"    {one_line}"),
        ),
        (
            ":tangle:",
            grown.format("")
            + f"\n\n    def n{i}(self):\n        return -{i}",
        ),
        (
            f":verifies: thm-{name}",
            f"def test_{i}():\n{one_line}    assert {i}\n    assert {i} + 1",
        ),
        (
            f":refutes: thm-{name}",
            f"def help_{i}():\n    return {i}\n\n\ndef test_{i}():\n    assert help_{i}()",
        ),
        ("", f"print({i})"),
    ][kind]


@functools.cache
def chapters(number: int) -> Files:
    """A book of one or two chapters, always the same for a number."""
    chance = random.Random(number)
    made = {}
    for name in ["a", "b"][: 1 + number % 2]:
        text = FRONT.replace("NAME", name)
        text += f"\n$$\nx\n$$ (eq-{name})\n\n```{{prf:theorem}}\n:label: thm-{name}\n\nTrue.\n```\n"
        cells = [(":tangle:", f"class K{name}:\n    base = 0")]
        cells += [
            code(chance.randrange(10), i + 100 * (name == "b"), name)
            for i in range(1, 5)
        ]
        for at, (option, source) in enumerate(cells):
            gap = "\n\n" if option else "\n"
            text += f"\nProse {at} of {name}.\n\n"
            text += f"```{{code-cell}} python\n{option}{gap}{source}\n```\n"
        made[f"book/diffusion/{name}.md"] = text
    pages = "".join(f"- file: {name.removesuffix('.md')}\n" for name in made)
    return {
        "_toc.yml": f"root: book/index\nchapters:\n{pages}",
        "book/index.md": "# Book\n",
        **made,
    }


@functools.cache
def modules(number: int, root: Path) -> Files:
    """What loom makes of a book before anybody edits anything."""
    return {
        path: module.text
        for path, module in tangle(read(root)).modules.items()
    }


def spans(lines: list[str]) -> list[tuple[str, int, int]]:
    """The top-level statements of a module: name, first line, line after the last."""
    found, end = [], 0
    for node in ast.parse("\n".join(lines)).body:
        name = (
            getattr(node, "name", "") or ast.unparse(node).partition(" =")[0]
        )
        first = end
        while not lines[first].strip():
            first += 1
        end = node.end_lineno
        found.append((name, first, end))
    return found


def indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


OPERATIONS = [
    "comment",
    "statement",
    "append",
    "blank",
    "delete",
    "swap",
    "define",
    "constant",
    "remove",
]
# Mostly they break what they are applied to.
RUDE = ["words", "delete block", "junk"]


def _aim(lines: list[str], at: int) -> int:
    """A line; seldom one of those on top of a module, which loom writes."""
    top = next(
        (
            i
            for i, s in enumerate(lines)
            if s.startswith(("def", "class", "@", "#"))
        ),
        0,
    )
    top = top if at % 10 else 0
    return top + at % max(1, len(lines) - top)


def changed(
    lines: list[str], at: int, operation: str, mark: int
) -> list[str]:
    """A text after one edit; `mark` stands in every new line."""
    out, at = list(lines), _aim(lines, at)
    line = out[at]
    if operation == "comment":
        out.insert(at, f"{indent(line)}# new {mark}")
    elif operation == "statement":
        out.insert(at, f"{indent(line)}v{mark} = {mark}")
    elif operation == "words":
        out.insert(at, f"{indent(line)}Words {mark}.")
    elif operation == "append" and line.strip() and '"""' not in line:
        out[at] += f"  # and {mark}"
    elif operation == "blank":
        out.insert(at, "")
    elif operation == "delete":
        del out[at]
    elif operation == "delete block":
        del out[at : at + 4]
    elif operation == "swap":
        out[at : at + 2] = reversed(out[at : at + 2])
    elif operation == "junk":
        out.insert(at, f"({mark}")
    elif operation in ("define", "constant", "remove"):
        with suppress(SyntaxError, IndexError, StopIteration):
            _, first, end = next(
                s for s in reversed(spans(out)) if s[1] <= at
            )
            if operation == "define":
                out[end:end] = [
                    "",
                    "",
                    f"def g{mark}():",
                    f"    return {mark}",
                ]
            elif operation == "constant":
                out[end:end] = ["", f"N{mark} = {mark}"]
            else:
                del out[first : end + 2]
    return out or [""]


def in_chapter(
    lines: list[str], at: int, operation: str, mark: int
) -> list[str]:
    """A chapter after one edit: of its prose, or of the code of one cell."""
    fences = [i for i, line in enumerate(lines) if line.startswith("```")]
    cells = [
        (first, end)
        for first, end in zip(fences[::2], fences[1::2], strict=False)
        if lines[first + 1].startswith(":")
    ]
    prose = [i for i, line in enumerate(lines) if line.startswith("Prose")]
    if at % 3 == 0 or not cells:
        out, place = (
            list(lines),
            prose[at % len(prose)] if prose else len(lines),
        )
        out[place:place] = [f"Written {mark}.", ""]
        if operation == "delete" and prose:
            del out[place + 2]
        return out
    first, end = cells[at // 3 % len(cells)]
    while lines[first + 1].startswith(":") or not lines[first + 1].strip():
        first += 1
    code = lines[first + 1 : end]
    new = changed(code, at // 7, operation, mark) if code else []
    return [*lines[: first + 1], *new, *lines[end:]]


BY_HAND = st.lists(
    st.tuples(st.integers(0, 999), st.sampled_from(OPERATIONS * 3 + RUDE)),
    min_size=1,
    max_size=3,
)
IN_CHAPTERS = st.lists(
    st.tuples(st.integers(0, 999), st.sampled_from(OPERATIONS)), max_size=2
)


def written(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for folder in ("book", "tangled", "tests")
        for path in (root / folder).rglob("*")
        if path.is_file()
    }


def lay(root: Path, files: Files) -> None:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def solid(text: str) -> list[str]:
    """The lines of a module's definitions that are not blank."""
    lines = text.split("\n")
    top = max(
        (
            end
            for (name, _, end), node in zip(
                spans(lines), ast.parse(text).body, strict=True
            )
            if isinstance(node, ast.Import | ast.ImportFrom | ast.Expr)
            or name == "__all__"
        ),
        default=0,
    )
    return [line for line in lines[top:] if line.strip()]


def prose(book: Book) -> dict[str, list[str]]:
    """The lines of each chapter that go into no module."""
    found = {}
    for chapter in book.chapters:
        code = {
            n
            for cell in chapter.cells
            if cell.module
            for n in range(cell.line, cell.end + 1)
        }
        lines = enumerate(chapter.text.split("\n"), 1)
        found[chapter.path] = [
            line for n, line in lines if n not in code and line.strip()
        ]
    return found


def holds_both(base: str, edited: str, chapters: str, result: str) -> None:
    """Nothing that either side wrote is missing, nothing that it removed is back."""
    was, mine, theirs, now = (
        Counter(solid(text)) for text in (base, edited, chapters, result)
    )
    for line in was | mine | theirs | now:
        by_hand, by_chapter = mine[line] - was[line], theirs[line] - was[line]
        expected = {was[line] + by_hand + by_chapter}
        if by_hand == by_chapter:  # the same change twice is one change
            expected.add(was[line] + by_hand)
        if not line.lstrip().startswith(
            ("Verifies", "Negative", "Implements")
        ):
            assert now[line] in expected, line
    once = {
        line
        for line in now
        if now[line] == was[line] == mine[line] == theirs[line] == 1
    }
    before, ours, others, after = (
        {line: at for at, line in enumerate(solid(text)) if line in once}
        for text in (base, edited, chapters, result)
    )
    # Any two stand as both sides have them, or as the side that moved one of them.
    for a, b in itertools.pairwise(after):
        orders = [side[a] < side[b] for side in (before, ours, others)]
        assert sum(orders[1:]) > orders[0]
    # Blank lines inside definitions are as they were written.
    if base == chapters:
        assert bodies(result) == bodies(edited)


def bodies(text: str) -> list[list[str]]:
    lines = text.split("\n")
    return [
        lines[first:end]
        for name, first, end in spans(lines)
        if name != "__all__"
        and not lines[first].startswith(("import", "from", '"""'))
    ]


OUTCOMES: Counter[str] = Counter()


@pytest.fixture(scope="module")
def folder() -> Iterator[Callable[[int], Path]]:
    """A function that lays a book of a number into a folder of its own and tangles it."""

    def lay_book(number: int) -> Path:
        root = Path(base) / str(number)
        if not root.exists():
            lay(root, chapters(number))
            book = read(root)
            write(book, tangle(book))
            modules(number, root)
        return root

    # Thousands of small files: in memory, where there is such a place.
    memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(
            dir=memory if memory.is_dir() else None
        ) as base,
        pytest.MonkeyPatch.context() as patched,
    ):
        # No git here, and no process each time to find that out.
        patched.setattr(
            "loom.tangle.last_written._committed", lambda root, path: None
        )
        yield lay_book
    print(
        f"\n{sum(OUTCOMES.values())} pairs of edits:",
        dict(OUTCOMES.most_common()),
    )


def by_hand(base: Files, edits: list[tuple[int, str]], which: int) -> Files:
    """The modules after edits by hand."""
    edited = dict(base)
    names = [
        path
        for path in base
        if not path.endswith(("__init__.py", "py.typed"))
    ]
    for mark, (at, operation) in enumerate(edits):
        path = names[(which + at // 500) % len(names)]
        lines = edited[path].removesuffix("\n").split("\n")
        edited[path] = (
            "\n".join(changed(lines, at, operation, mark + 7000)) + "\n"
        )
    return edited


def in_chapters(book: Files, edits: list[tuple[int, str]]) -> Files:
    """The chapters after edits there."""
    pages = dict(book)
    names = [path for path in book if "diffusion" in path]
    for mark, (at, operation) in enumerate(edits):
        path = names[at % len(names)]
        lines = pages[path].split("\n")
        pages[path] = "\n".join(in_chapter(lines, at, operation, mark + 8000))
    return pages


@settings(
    max_examples=PAIRS,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    number=st.integers(0, 79),
    here=BY_HAND,
    there=IN_CHAPTERS,
    which=st.integers(0, 99),
)
def test_both_edits_or_neither(
    folder: Callable[[int], Path],
    number: int,
    here: list[tuple[int, str]],
    there: list[tuple[int, str]],
    which: int,
) -> None:
    root = folder(number)
    base, book = modules(number, root), chapters(number)
    edited, pages = by_hand(base, here, which), in_chapters(book, there)
    files = {**base, **book}
    lay(root, {p: t for p, t in {**edited, **pages}.items() if t != files[p]})
    before = written(root)
    try:
        outcome = judged(root, base, edited)
    finally:
        after = written(root)
        for path in set(after) - set(files):
            (root / path).unlink()
        changed_files = {
            p: t for p, t in files.items() if after.get(p) != t.encode()
        }
        lay(root, changed_files)
        lay(
            root / "_build/loom/last",
            {p: t for p, t in changed_files.items() if p in base},
        )
    if outcome.endswith("carried"):
        outcome = (
            "module alone: " if pages == book else "both sides: "
        ) + outcome
    else:
        assert after == before
    OUTCOMES[outcome] += 1


def judged(root: Path, base: Files, edited: Files) -> str:
    """Sync, and see that both sides are in what was made; return what happened."""
    try:
        both = read(root)
        now = {
            path: module.text for path, module in tangle(both).modules.items()
        }
    except Problems:
        return "a chapter that does not tangle"
    try:
        sync(both)
    except Problems as refused:
        for problem in refused.problems:
            assert problem.path.startswith(("tangled/", "tests/", "book/"))
        return f"refused {refused.problems[0].code}"
    hand = {
        path
        for path in base
        if edited[path] not in (base[path], now.get(path))
    }
    if not hand:
        return "no edit of a module"
    result = read(root)
    made = {
        path: module.text for path, module in tangle(result).modules.items()
    }
    on_disk = {
        p: t.decode()
        for p, t in written(root).items()
        if not p.startswith("book/")
    }
    assert on_disk == made
    for path in base:
        if path in hand:
            holds_both(
                base[path], edited[path], now[path], made.get(path, "")
            )
        else:
            assert solid(made.get(path, "")) == solid(now.get(path, ""))
    assert prose(result) == prose(both)
    return "carried"
