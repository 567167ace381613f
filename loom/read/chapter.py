"""A chapter and its code cells, as data."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from loom.read.blocks import Page, page

__all__ = ["ROLES", "Cell", "Chapter", "Line"]

ROLES = ("tangle", "verifies", "refutes")


@dataclass(frozen=True)
class Line:
    """A line of text, and the file and the line in which a person finds it (0: loom wrote it).

    Where loom moved the end of a line, such as closing quotes, `rest` is what stands there.
    """

    text: str
    path: str = ""
    number: int = 0
    rest: str = field(default="", compare=False)


@dataclass(frozen=True)
class Cell:
    """A code cell; `index` counts those of its chapter from 0, `line` and `end` are its fences."""

    chapter: "Chapter" = field(repr=False, compare=False)
    index: int
    line: int
    end: int
    options: dict[str, Any]
    lines: tuple[Line, ...]

    @cached_property
    def source(self) -> str:
        """The code, as the kernel gets it."""
        return "\n".join(line.text for line in self.lines)

    @cached_property
    def kind(self) -> str:
        """What becomes of the cell: `tangle`, `verify`, `refute`, or `run` for none of these."""
        kinds = {"tangle": "tangle", "verifies": "verify", "refutes": "refute"}
        return next((kinds[role] for role in ROLES if role in self.options), "run")

    @cached_property
    def module(self) -> str | None:
        """The file that the cell is tangled into, from the root of the project."""
        if self.kind == "run":
            return None
        if self.kind != "tangle":
            return self.chapter.tests
        target = self.options["tangle"]
        if target in ("", None):
            target = self.chapter.front.get("tangle")
        return None if target is None else f"tangled/{target}"

    def labels(self, option: str) -> tuple[str, ...]:
        """The labels that an option names, separated by blanks or commas."""
        return tuple(str(self.options.get(option) or "").replace(",", " ").split())

    @property
    def implements(self) -> tuple[str, ...]:
        """Labels of what the cell's definition implements."""
        return self.labels("implements")

    @property
    def verifies(self) -> tuple[str, ...]:
        """Labels of what the cell's tests verify."""
        return self.labels("verifies")

    @property
    def refutes(self) -> tuple[str, ...]:
        """Labels of what the cell's tests are negative controls of."""
        return self.labels("refutes")


@dataclass(frozen=True)
class Chapter:
    """A page: `order` is its place in `_toc.yml`, `part` the caption it stands under."""

    path: str
    order: int
    part: str
    text: str = field(repr=False)
    front: dict[str, Any] = field(compare=False)  # of the text, as are the title and the cells
    title: str
    cells: tuple[Cell, ...] = field(repr=False, compare=False, default=())

    @property
    def page(self) -> Page:
        """The blocks of the page."""
        return page(self.text)

    @property
    def shown(self) -> frozenset[int]:
        """The lines that say nothing themselves: code, examples of markup, comments."""
        return self.page.silent

    @property
    def docname(self) -> str:
        """The name that Sphinx gives the page."""
        return self.path.removesuffix(".md")

    @property
    def needs(self) -> tuple[str, ...]:
        """Prerequisites, as docnames without the leading `book/`."""
        return tuple(need.removeprefix("book/") for need in self.front.get("needs") or ())

    @property
    def tests(self) -> str:
        """The file that the chapter's checks are tangled into."""
        part, _, slug = self.docname.removeprefix("book/").rpartition("/")
        name = f"test_{slug.replace('-', '_')}.py"
        return "/".join(filter(None, ("tests/book", part, name)))
