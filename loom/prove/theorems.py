"""The results of the book as a graph: what each proof uses, what implements and checks each.

Nothing here is kept by hand. A proof uses what it refers to; code implements what its cell says;
a test verifies what its cell or its mark says, if it reaches code that implements it.
"""

import graphlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from loom.errors import Problem
from loom.prove.call_graph import CallGraph, reached
from loom.prove.marked_tests import Mark, marked_tests
from loom.read.book import Book
from loom.read.labels import PROVED, Directive, Label, directives, labels, references
from loom.tangle.definitions import Definition
from loom.tangle.package import Tangled

__all__ = ["Result", "Results", "Test"]

# Kinds that code must implement; an equation only if code claims to.
IMPLEMENTED = frozenset({"def", "alg"})
# Kinds that are nodes of the graph.
STATED = PROVED | IMPLEMENTED


@dataclass(frozen=True)
class Test:
    """A test of a result: one of a chapter's cells, or a hand-written one with a mark."""

    name: str
    dotted: str
    path: str


@dataclass(frozen=True)
class Result:
    """A definition, lemma, theorem or the like, and what stands behind it.

    `uses` are the results that its proof refers to. `missing` says in words what it lacks.
    """

    label: Label
    uses: tuple[str, ...]
    implemented: tuple[Definition, ...]
    verified: tuple[Test, ...]
    refuted: tuple[Test, ...]
    missing: tuple[str, ...]

    @property
    def standing(self) -> dict[str, bool]:
        """Of what is asked of its kind, which it has: proved, implemented, verified, refuted."""
        asked: tuple[str, ...] = ()
        if self.label.kind in PROVED:
            asked = ("proved", "verified", "refuted")
        if self.label.kind in IMPLEMENTED:
            asked = ("implemented",)
        has = {word: word not in self.missing for word in asked}
        # What is not asked, but there, counts all the same.
        has |= {"implemented": True} if self.implemented else {}
        has |= {"verified": True} if self.verified and "verified" not in asked else {}
        return has


class Results:
    """The results of a book, in reading order."""

    def __init__(self, book: Book, tangled: Tangled) -> None:
        """Work out the graph."""
        self.book, self.tangled = book, tangled
        self.known = labels(book)
        self.marks = marked_tests(book.root)
        self.place = {chapter.path: chapter.order for chapter in book.chapters}
        self._proofs: dict[str, list[tuple[str, Directive]]] = {}
        self._home: dict[str, str] = {}
        for chapter in book.chapters:
            for block in directives(chapter):
                if block.directive == "prf:proof":
                    self._proofs.setdefault(block.of, []).append((chapter.path, block))
                elif block.label in self.known and self.known[block.label].kind in STATED:
                    self._house(chapter.path, block)

    def _house(self, path: str, block: Directive) -> None:
        """Note which equations stand inside a statement: to use them is to use it."""
        for label in self.known.values():
            inside = block.line < label.line <= block.last
            if label.kind == "eq" and label.chapter == path and inside:
                self._home[label.name] = block.label

    def order(self, name: str) -> tuple[int, int]:
        """The place of a label in the book."""
        label = self.known[name]
        return self.place[label.chapter], label.line

    @cached_property
    def stated(self) -> list[str]:
        """The labels that are nodes: statements, and equations that code or a proof relies on."""
        own = {name for name, label in self.known.items() if label.kind in STATED}
        relied = {name for name in self._implementers if self.known[name].kind == "eq"}
        for name in own:
            relied |= {used for used, _ in self._used(name)}
        relied = {name for name in relied if name not in self._home}
        return sorted(own | relied, key=self.order)

    def _used(self, name: str) -> Iterator[tuple[str, Problem]]:
        """What the proofs of a result refer to, with the problem if that stood later."""
        for path, block in self._proofs.get(name, ()):
            for target in references("\n".join(block.body)):
                label = self.known.get(target)
                if label is None or (
                    label.chapter == path and block.line <= label.line <= block.last
                ):
                    continue
                home = self._home.get(target, target)
                if home != name and self.known[home].kind in STATED | {"eq"}:
                    sentence = f"the proof of '{name}' uses '{home}', which stands later"
                    yield home, Problem(path, block.line, "L32", sentence)

    def uses(self, name: str) -> tuple[str, ...]:
        """The results that the proofs of a result refer to, in reading order."""
        return tuple(sorted({used for used, _ in self._used(name)}, key=self.order))

    @cached_property
    def _implementers(self) -> dict[str, list[Definition]]:
        found: dict[str, list[Definition]] = {}
        for definition in self.tangled.definitions:
            for label in definition.implements:
                found.setdefault(label, []).append(definition)
        return found

    @cached_property
    def _tests(self) -> dict[tuple[str, str], list[Test]]:
        found: dict[tuple[str, str], list[Test]] = {}
        for d in self.tangled.definitions:
            test = Test(d.name, d.dotted, d.path)
            for label in d.verifies:
                found.setdefault(("verifies", label), []).append(test)
            for label in d.refutes:
                found.setdefault(("refutes", label), []).append(test)
        for mark in self.marks:
            module = mark.path.removesuffix(".py").replace("/", ".")
            test = Test(mark.test, f"{module}.{mark.test}", mark.path)
            found.setdefault((mark.verb, mark.label), []).append(test)
        return found

    @cached_property
    def facts(self) -> tuple[object, ...]:
        """All that the results follow from, without the lines where it stands."""
        known = [(n, x.title, x.chapter, x.proof) for n, x in self.known.items()]
        uses = [(name, self.uses(name)) for name in self._proofs]
        tests = [(mark.path, mark.test, mark.verb, mark.label) for mark in self.marks]
        code = [(path, module.text) for path, module in self.tangled.modules.items()]
        claims = [(d.dotted, d.implements, d.verifies, d.refutes) for d in self.tangled.definitions]
        return known, uses, tests, code, claims, sorted(self._home.items())

    @cached_property
    def call_graph(self) -> CallGraph:
        """The definitions of the package and of the tests, and how one leads to another."""
        texts = {p: m.text for p, m in self.tangled.modules.items() if p.endswith(".py")}
        for path in {mark.path for mark in self.marks}:
            texts[path] = Path(self.book.root / path).read_text(encoding="utf-8")
        return CallGraph(texts)

    def _wanted(self, name: str) -> set[str]:
        """The code that a test of a result should reach: of the result, or of what it rests on."""
        inside = {eq for eq, home in self._home.items() if home == name}
        rests = {name, *inside, *self.uses(name)}
        rests |= {eq for eq, home in self._home.items() if home in rests}
        return {d.dotted for label in rests for d in self._implementers.get(label, ())}

    def _reaching(self, verb: str, name: str) -> tuple[list[Test], bool]:
        """The tests of a result, and whether one of them reaches what it should."""
        tests = self._tests.get((verb, name), [])
        wanted = self._wanted(name)
        reaching = any(wanted & reached(self.call_graph, test.dotted) for test in tests)
        return tests, reaching or not wanted

    def result(self, name: str) -> Result:
        """Everything about one label."""
        label = self.known[name]
        inside = [eq for eq, home in self._home.items() if home == name]
        implemented = [d for n in (name, *inside) for d in self._implementers.get(n, ())]
        verified, reaches = self._reaching("verifies", name)
        refuted, caught = self._reaching("refutes", name)
        missing = []
        if label.kind in PROVED:
            missing += ["proved"] * (not label.proof)
            missing += ["verified"] * (not verified or not reaches)
            missing += ["refuted"] * (not refuted or not caught)
        if label.kind in IMPLEMENTED and not implemented:
            missing.append("implemented")
        once = tuple(dict.fromkeys(implemented))
        return Result(label, self.uses(name), once, tuple(verified), tuple(refuted), tuple(missing))

    def all(self) -> list[Result]:
        """The results in reading order."""
        return [self.result(name) for name in self.stated]

    def problems(self) -> Iterator[Problem]:
        """What is wrong with the graph, one line each."""
        for mark in self.marks:
            yield from self._unknown(mark)
        for name in self.stated:
            for used, problem in self._used(name):
                if self.order(used) > (self.place[problem.path], problem.line):
                    yield problem
        try:
            graphlib.TopologicalSorter({n: self.uses(n) for n in self.stated}).prepare()
        except graphlib.CycleError as error:
            circle = error.args[1]
            label = self.known[max(circle, key=self.order)]
            sentence = f"results rest on each other: {' -> '.join(reversed(circle))}"
            yield Problem(label.chapter, label.line, "L33", sentence)
        for name in self.stated:
            yield from self._unmet(name)

    def _unknown(self, mark: Mark) -> Iterator[Problem]:
        if mark.label not in self.known:
            sentence = f"no chapter has the label '{mark.label}'"
            yield Problem(mark.path, mark.line, "L14", sentence)

    def _unmet(self, name: str) -> Iterator[Problem]:
        label = self.known[name]
        missing = []
        if label.kind in PROVED:
            missing += ["neither proved nor cited"] * (not label.proof)
            for verb, none, astray in (
                ("verifies", "verified by no test", "verified by tests"),
                ("refutes", "without a negative control", "refuted by tests"),
            ):
                tests, reaching = self._reaching(verb, name)
                if not tests:
                    missing.append(none)
                elif not reaching:
                    missing.append(f"{astray} that never reach the code that implements it")
        if "implemented" in self.result(name).missing:
            missing.append("implemented by no code")
        if missing:
            sentence = f"'{name}' is {', '.join(missing)}"
            yield Problem(label.chapter, label.line, "L29", sentence)
