"""Random books: the tangled modules do what the cells did when they were run one after another.

And random damage to a chapter: loom makes modules of it or says what is wrong, one line each.
"""

import ast
import importlib
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from loom.__main__ import main
from loom.errors import Problems
from loom.read.book import read
from loom.run.notebook import executable
from loom.tangle.package import tangle

FRONT = """\
---
jupytext: {text_representation: {extension: .md, format_name: myst}}
kernelspec: {name: python3, display_name: Python 3, language: python}
tangle: diffusion/a.py
---
# Chapter

"""
MODULES = ("", " diffusion/a.py", " diffusion/b.py")


@st.composite
def chapters(draw: st.DrawFn) -> str:
    """A chapter of constants, functions and growing classes that use what stands above them."""
    cells = [
        "import math\nimport operator as op\n\nfrom loom import continues"
    ]
    options = [""]
    known: dict[str, list[str]] = {"a": [], "b": []}
    classes: dict[str, str] = {}
    for i in range(draw(st.integers(1, 8))):
        # Only b may use a, so that the two modules never import each other.
        module = draw(st.sampled_from(MODULES))
        side = "b" if module.endswith("b.py") else "a"
        above = known["a"] + (known["b"] if side == "b" else [])
        used = draw(st.sampled_from(above)) if above else "math.tau"
        kind = draw(
            st.sampled_from(["constant", "function", "class", "continue"])
        )
        if kind == "constant":
            code = f"C{i} = {used} * {draw(st.integers(-9, 9))}  # note {i}"
            known[side].append(f"C{i}")
        elif kind == "function":
            lines = draw(st.integers(0, 3))
            body = "".join(
                f"    y = op.add(y, {used})\n\n" for _ in range(lines)
            )
            code = f"# Above.\ndef f{i}(x=2.0):\n    y = x\n{body}    return y + {used}"
            known[side].append(f"f{i}()")
        elif kind == "class" or side not in classes:
            code = f'class K{i}:\n    """A class."""\n\n    base = {used}'
            classes[side] = f"K{i}"
            known[side].append(f"K{i}.base")
        else:
            name = classes[side]
            code = (
                f"@continues({name})\nclass {name}:\n"
                f"    def m{i}(self):\n        return type(self).base + {used}"
            )
            known[side].append(f"{name}().m{i}()")
        cells.append(code)
        options.append(f":tangle:{module}\n\n")
    both = zip(options, cells, strict=True)
    fenced = [f"```{{code-cell}} python\n{o}{c}\n```\n" for o, c in both]
    return FRONT + "\nSome prose.\n\n".join(fenced)


def values(names: dict[str, Any]) -> dict[str, float]:
    """Every number that a namespace holds or that its functions and methods return."""
    found: dict[str, float] = {}
    for name, thing in names.items():
        if name[0] == "C":
            found[name] = thing
        elif name[0] == "f" and name[1:].isdigit():
            found[name] = thing()
        elif name[0] == "K":
            found[name] = thing.base
            methods = [
                m
                for m in vars(thing)
                if m.startswith("m") and m[1:].isdigit()
            ]
            found.update(
                {f"{name}.{m}": getattr(thing(), m)() for m in methods}
            )
    return found


def imported(folder: Path, paths: Iterable[str]) -> dict[str, Any]:
    """Import the modules a and b of the package in a folder, instead of the real package."""
    real = {n: m for n, m in sys.modules.items() if n.startswith("tangled")}
    for name in real:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    found: dict[str, Any] = {}
    try:
        for path in sorted(paths):
            if path.endswith(("/a.py", "/b.py")):
                name = path.removesuffix(".py").replace("/", ".")
                module = importlib.import_module(name)
                found.update({n: vars(module)[n] for n in module.__all__})
    finally:
        sys.path.remove(str(folder))
        for name in [n for n in sys.modules if n.startswith("tangled")]:
            del sys.modules[name]
        sys.modules.update(real)
    return found


@settings(max_examples=150, deadline=None)
@given(chapters())
def test_modules_equal_cells(text: str) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        (folder / "book/diffusion").mkdir(parents=True)
        (folder / "_toc.yml").write_text(
            "root: book/index\nchapters:\n- file: book/diffusion/a\n"
        )
        (folder / "book/index.md").write_text("# The book\n")
        (folder / "book/diffusion/a.md").write_text(text)
        assert main(["-C", str(folder), "tangle"]) == 0
        kernel: dict[str, Any] = {"__name__": "__main__"}
        book = read(folder)
        for cell in book.cells():
            exec(compile(cell.source, "cell", "exec"), kernel)
        package = imported(folder, tangle(book).modules)
        assert values(package) == values(kernel)
        for path, module in tangle(book).modules.items():
            chapter = text.split("\n")
            for line in module.lines:
                assert (
                    not line.number or chapter[line.number - 1] == line.text
                ), path
    finally:
        shutil.rmtree(folder)


WHOLE = (
    FRONT
    + """\
```{code-cell} python
import math

from loom import continues
```

````{prf:theorem} One
:label: thm-one

$$
x
$$ (eq-one)
````

```{code-cell} python
---
tangle: diffusion/b.py
tags: [hide-input]
---
# Above.
@math.log2
class Net:
    \"\"\"A net.\"\"\"

    size: int = math.floor(2.5)

    def f(self, y: "Net" = None, *z: int) -> list[int]:
        return [i for i in z if (n := i)]
```

```{code-cell} python
:tangle: diffusion/b.py
:implements: eq-one

@continues(Net)
class Net:
    @property
    def g(self) -> str:
        \"\"\"Return g.\"\"\"
        return f\'\'\'
{self!r:>{math.e}}\'\'\'
```

```{code-cell} python
:verifies: thm-one

def test_one() -> None:
    assert Net().g
```

```{code-cell} python
%time x = 3
for i in range(x):
    pass
```
"""
)
MARKS = (
    *"()[]{}:'\"\\`#@=%!\n\t \f\r\0\u2028é$-*&|<1",
    *(
        "```",
        "---",
        "$$",
        '"""',
        ":::",
        "~~~",
        "````",
        "{code-cell}",
        "    ",
        "# ",
        "lambda: ",
        "class ",
    ),
    *(
        "import ",
        "from x import *",
        "return ",
        "await ",
        "nonlocal x",
        "global Net",
        "del ",
    ),
    *(
        "@continues(Net)\n",
        ":tangle: ",
        "tangle: ",
        "&a ",
        "*a",
        "2024-02-31",
        "\ufeff",
    ),
)


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A chapter with a few lines moved, lost, doubled or changed."""
    lines = WHOLE.split("\n")
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        other = draw(st.sampled_from(lines))
        cut = draw(st.integers(0, len(lines[at])))
        begin, end = lines[at][:cut], lines[at][cut:]
        mark = draw(st.sampled_from(MARKS))
        lines[at : at + 1] = draw(
            st.sampled_from(
                [
                    [],
                    [begin],
                    [end],
                    [begin + mark + end],
                    [other],
                    [other, begin + end],
                ]
            )
        )
        lines = lines or [""]
    return "\n".join(lines)


@settings(max_examples=300, deadline=None)
@given(text=damaged())
def test_damage_is_reported(text: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "_toc.yml").write_text("root: a\n")
        (folder / "a.md").write_text(text)
        try:
            modules = tangle(read(folder)).modules
        except Problems as problems:
            for line in str(problems).split("\n"):
                assert line.startswith(("a.md:", "_toc.yml:"))
        else:
            for path, module in modules.items():
                ast.parse(module.text, path)


@settings(max_examples=300, deadline=None)
@given(text=damaged())
def test_what_is_read_is_what_runs(text: str) -> None:
    """A chapter that loom accepts has the cells, with the options, that the kernel gets."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "_toc.yml").write_text("root: a\n")
        (folder / "a.md").write_text(text)
        try:
            (chapter,) = read(folder).chapters
        except Problems:
            return
        notebook = executable(folder / "a.md", folder)
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    assert [c.source.strip() for c in cells] == [
        c.source.strip() for c in chapter.cells
    ]
    assert [set(c.metadata) for c in cells] == [
        set(c.options) for c in chapter.cells
    ]
