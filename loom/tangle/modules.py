"""A module as it will stand on disk: its docstring, its lines, and the packages around it."""

import json
import textwrap
import tomllib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from loom.read.book import Book
from loom.read.chapter import Line
from loom.tangle.drafts import Draft
from loom.tangle.render import WIDTH, render

__all__ = ["Module", "module", "packages"]

VERSION = """


def __getattr__(name: str) -> str:
    \"\"\"Return `__version__`, looked up in the installation when it is asked for.\"\"\"
    if name != "__version__":
        raise AttributeError(f"module 'tangled' has no attribute '{name}'")
    from importlib.metadata import version

    return version(NAME)
"""


@dataclass(frozen=True)
class Module:
    """A tangled file: its lines, each with the chapter line that it is."""

    path: str
    lines: tuple[Line, ...]

    @property
    def text(self) -> str:
        """The file's whole text."""
        return "".join(f"{line.text}\n" for line in self.lines)


def module(draft: Draft) -> Module:
    """The module that a draft has become."""
    public = draft.path.startswith("tangled/")
    lines = render(_docstring(draft), draft.imports, draft.pieces, public)
    return Module(draft.path, tuple(lines))


def _docstring(draft: Draft) -> str:
    """A sentence of the chapter's front matter (or its title), and where the module comes from."""
    chapters = list({p.cell.chapter.path: p.cell.chapter for p in draft.pieces}.values())
    target = draft.path.removeprefix("tangled/")
    stated = [(c.front.get("modules") or {}).get(target) for c in chapters]
    if not draft.path.startswith("tangled/"):
        head = f"Checks of the chapter “{chapters[0].title}”."
    else:
        head = next(filter(None, stated), None) or _sentence("; ".join(c.title for c in chapters))
    source = f"Tangled from {' and '.join(c.path for c in chapters)}."
    wrapped = textwrap.fill(source, WIDTH, break_long_words=False, break_on_hyphens=False)
    return _quoted(f"{head}\n\n{wrapped}\n")


def _sentence(title: str) -> str:
    return title if title.endswith((".", "?", "!")) else f"{title}."


def _quoted(text: str) -> str:
    """A docstring with this text; a title may hold mathematics, and thus backslashes."""
    prefix = "r" if "\\" in text else ""
    return prefix + '"""' + text.replace('"""', "'''") + '"""'


def packages(book: Book, drafts: dict[str, Draft]) -> dict[str, Module]:
    """The `__init__.py` files, a docstring each, and the marker of a typed package."""
    made: dict[str, str] = {}
    for path in sorted(path for path in drafts if path.startswith("tangled/")):
        first = drafts[path].pieces[0].cell.chapter
        *folders, _, _ = PurePosixPath(path).parents
        for folder in folders:
            name = folder.as_posix().removeprefix("tangled/")
            stated = (first.front.get("modules") or {}).get(name)
            head = stated or _sentence(first.part or first.title)
            made.setdefault(f"{folder}/__init__.py", _quoted(head))
    if made:
        root = book.chapters[0].title
        head = _quoted(f"{root}: the code of the book, tangled from its chapters.")
        made["tangled/__init__.py"] = head + _version(book.root)
        made["tangled/py.typed"] = ""
    return {
        path: Module(path, tuple(Line(line) for line in text.splitlines()))
        for path, text in made.items()
    }


def _version(root: Path) -> str:
    """Code for `tangled.__version__`, if `pyproject.toml` says what the package is called."""
    file = root / "pyproject.toml"
    project = tomllib.loads(file.read_text("utf-8")).get("project", {}) if file.is_file() else {}
    return VERSION.replace("NAME", json.dumps(project["name"])) if "name" in project else ""
