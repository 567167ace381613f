"""Random books: the tangled modules do what the cells did when they were run one after another."""

import importlib
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from loom.__main__ import main
from loom.book import read
from loom.tangle import tangle

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
        package: dict[str, Any] = {}
        sys.path.insert(0, str(folder))
        for path in sorted(tangle(book).modules):
            if path.endswith(("/a.py", "/b.py")):
                module = importlib.import_module(
                    path.removesuffix(".py").replace("/", ".")
                )
                package.update(
                    {name: vars(module)[name] for name in module.__all__}
                )
        assert values(package) == values(kernel)
        for path, module in tangle(book).modules.items():
            chapter = text.split("\n")
            for line in module.lines:
                assert (
                    not line.number or chapter[line.number - 1] == line.text
                ), path
    finally:
        sys.path = [p for p in sys.path if p != str(folder)]
        for name in [
            n for n in sys.modules if n.partition(".")[0] == "tangled"
        ]:
            del sys.modules[name]
        shutil.rmtree(folder)
