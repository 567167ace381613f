"""Find the imports that each module needs, and refuse names that a reader could not resolve."""

import difflib
import graphlib
import re
from collections.abc import Iterator
from itertools import pairwise

from loom.errors import Problem
from loom.read.book import Book
from loom.read.chapter import Chapter
from loom.tangle.drafts import Draft
from loom.tangle.names import BUILTINS, Import, Scope, Uses, uses
from loom.tangle.pieces import Piece, problem

__all__ = ["cycles", "layers", "misplaced_imports", "resolve"]

# A part may use the parts on its right, and itself.
LAYERS = {
    "workshop": (),
    "foundations": ("workshop",),
    "diffusion": ("workshop", "foundations"),
    "attention": ("workshop", "foundations"),
    "language": ("workshop", "foundations", "diffusion", "attention"),
    "images": ("workshop", "foundations", "diffusion", "attention", "language"),
    "synthesis": ("workshop", "foundations", "diffusion", "attention", "language", "images"),
}


def misplaced_imports(
    book: Book, drafts: dict[str, Draft], found: dict[str, Scope]
) -> Iterator[Problem]:
    """Imports from the package that a chapter cannot have: its own, and unknown ones."""
    paths = {draft.dotted: draft for path, draft in drafts.items() if path.startswith("tangled/")}
    for chapter in book.chapters:
        for entries in found[chapter.path].imported.values():
            for entry, line in entries.items():
                if entry.module.partition(".")[0] != "tangled":
                    continue
                whole = f"{entry.module}.{entry.name}" if entry.name else entry.module
                draft = paths.get(entry.module) or paths.get(whole)
                sentence = _misplaced(chapter, entry, draft, named=entry.module in paths)
                if sentence:
                    code = "L19" if "itself" in sentence else "L16"
                    yield Problem(chapter.path, line, code, sentence)


def _misplaced(chapter: Chapter, entry: Import, draft: Draft | None, named: bool) -> str | None:
    if draft is None:
        return f"no chapter tangles '{entry.module}'"
    relevant = [p for p in draft.pieces if not (entry.name and named) or entry.name in p.names]
    if not relevant:
        names = [name for piece in draft.pieces for name in piece.names]
        near = difflib.get_close_matches(entry.name, names, n=1)
        renamed = f": is it '{near[0]}' now?" if near else ""
        return f"no chapter defines '{entry.name}' in {draft.path}{renamed}"
    if any(piece.cell.chapter.path == chapter.path for piece in relevant):
        return f"this chapter itself defines '{entry.name or entry.module}'"
    return None


def resolve(
    draft: Draft,
    drafts: dict[str, Draft],
    found: dict[str, Scope],
    edges: dict[tuple[str, str], tuple[Piece, int]],
) -> Iterator[Problem]:
    """Find the imports that a module needs; report names that come from nowhere."""
    own = {name: i for i, piece in enumerate(draft.pieces) for name in piece.names}
    bound: dict[str, tuple[Import, Piece]] = {}
    for index, piece in enumerate(draft.pieces):
        scope = found[piece.cell.chapter.path]
        used = uses(piece)
        known = (scope.imported.keys() | scope.defined.keys()) - own.keys()
        types = {name: line for name, line in used.quoted.items() if name in known}
        for name, line in (types | used.names).items():
            if name in own:
                yield from _misread(draft, draft.pieces[own[name]], piece, scope, name, line)
                yield from _too_early(draft, piece, used, name, own[name], index)
                continue
            if name in BUILTINS and not scope.knows(name):
                continue
            needed = list(_origins(name, piece, scope, drafts))
            if not needed:
                yield problem(piece.cell, line, "L06", _unknown(name, draft, scope))
                continue
            for entry in needed:
                other, first = bound.setdefault(name, (entry, piece))
                if not entry.agrees(other):
                    where = f"{first.cell.chapter.path}:{first.first}"
                    sentence = f"'{name}' is {entry.module} here and {other.module} at {where}"
                    yield problem(piece.cell, line, "L15", sentence)
                if entry.module.partition(".")[0] == "loom":
                    sentence = f"tangled code uses '{name}' of loom, which readers do not install"
                    yield problem(piece.cell, line, "L25", sentence)
                draft.imports.add(entry)
                target = _target(entry, drafts)
                if target is not None:
                    edges.setdefault((draft.path, target), (piece, line))


def _misread(
    draft: Draft, owner: Piece, piece: Piece, scope: Scope, name: str, line: int
) -> Iterator[Problem]:
    """A name of the module that the code's own chapter does not know, or by another meaning."""
    theirs, ours = owner.cell.chapter, piece.cell.chapter
    known = scope.imported.get(name, {})
    if theirs is ours or Import(draft.dotted, name) in known:
        return
    if known:
        sentence = f"'{name}' is {next(iter(known)).module} here and defined in {draft.path}"
        yield problem(piece.cell, line, "L15", sentence)
    else:
        sentence = f"'{name}' is defined in {theirs.path}: import it from {draft.dotted}"
        yield problem(piece.cell, line, "L06", sentence)


def _too_early(
    draft: Draft, piece: Piece, used: Uses, name: str, defined: int, index: int
) -> Iterator[Problem]:
    # A guard is moved to the end, where everything is defined.
    if name in used.early and defined > index and piece.kind != "guard":
        where = draft.pieces[defined].first
        sentence = f"'{name}' is used when {draft.path} is imported, but defined at line {where}"
        yield problem(piece.cell, used.early[name], "L13", sentence)


def _origins(name: str, piece: Piece, scope: Scope, drafts: dict[str, Draft]) -> Iterator[Import]:
    """The imports that give a piece a name: of its chapter's cells, or of a sibling module."""
    if (path := scope.defined.get(name)) is not None:
        if piece.cell.kind != "tangle" or path.startswith("tangled/"):
            yield Import(drafts[path].dotted, name)
        return
    known = list(scope.imported.get(name, ()))
    if len(known) > 1:  # of `import xml` and `import xml.dom`, those that the text names
        named = [i for i in known if re.search(rf"\b{re.escape(i.module)}\b", piece.text)]
        known = named or known
    yield from known


def _target(entry: Import, drafts: dict[str, Draft]) -> str | None:
    for dotted in (entry.module, f"{entry.module}.{entry.name}"):
        path = f"{dotted.replace('.', '/')}.py"
        if path in drafts:
            return path
    return None


def _unknown(name: str, draft: Draft, scope: Scope) -> str:
    if name in scope.defined:
        return f"'{name}' is defined in {scope.defined[name]}, which the package does not have"
    if name in scope.local:
        return f"'{name}' comes from line {scope.local[name]}, a cell that is not tangled"
    if scope.starred:
        return f"'{name}' may come from '*' on line {scope.starred[0]}: import it by name"
    return f"'{name}' is neither defined in {draft.path} nor imported by this chapter"


def cycles(edges: dict[tuple[str, str], tuple[Piece, int]]) -> Iterator[Problem]:
    """Report modules that import each other, at the use that closes the circle."""
    graph: dict[str, set[str]] = {}
    for user, used in edges:
        graph.setdefault(user, set()).add(used)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        # The cycle is given from the used to the user; read it the other way round.
        cycle = list(reversed(error.args[1]))
        piece, line = max(
            (edges[pair] for pair in pairwise(cycle)),
            key=lambda place: (place[0].cell.chapter.order, place[1]),
        )
        sentence = f"modules import each other: {' -> '.join(cycle)}"
        yield problem(piece.cell, line, "L07", sentence)


def layers(edges: dict[tuple[str, str], tuple[Piece, int]]) -> Iterator[Problem]:
    """Report modules that use a part of the package which theirs does not build on."""
    for (user, used), (piece, line) in edges.items():
        if not user.startswith("tangled/"):
            continue
        above, below = user.split("/")[1], used.split("/")[1]
        if above in LAYERS and above != below and below not in LAYERS[above]:
            sentence = f"{user} cannot use {used}: '{above}' does not build on '{below}'"
            yield problem(piece.cell, line, "L26", sentence)
