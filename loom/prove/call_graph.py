"""What a piece of code reaches: the definitions that it calls, directly or through one another.

The graph is read from the tangled modules as they are written, and from the tests. It is an
approximation from above: a method counts as reached when its class is and some reached code has
an attribute of its name.
"""

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from loom.tangle.syntax import defined, walk

__all__ = ["CallGraph", "reached"]


@dataclass
class Unit:
    """A definition: the names that it reads, the attributes, and, of a class, the members.

    `accesses` are attributes of plain names, as pairs; `kinds` are the names in the annotation of
    each parameter.
    """

    names: set[str] = field(default_factory=set)
    attributes: set[str] = field(default_factory=set)
    members: dict[str, str] = field(default_factory=dict)
    accesses: set[tuple[str, str]] = field(default_factory=set)
    kinds: dict[str, set[str]] = field(default_factory=dict)


class CallGraph:
    """The definitions of some modules, by dotted name, and how names lead from one to another."""

    def __init__(self, modules: dict[str, str]) -> None:
        """Read modules, given as their texts by path."""
        self.units: dict[str, Unit] = {}
        self.scopes: dict[str, dict[str, str]] = {}
        for path, text in modules.items():
            self._read(path.removesuffix(".py").replace("/", "."), ast.parse(text))

    def _read(self, module: str, tree: ast.Module) -> None:
        scope = self.scopes.setdefault(module, {})
        for node in walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    scope[alias.asname or alias.name.partition(".")[0]] = alias.name
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    scope[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        for node in tree.body:
            for name in defined(node):
                scope[name] = f"{module}.{name}"
                self.units[f"{module}.{name}"] = unit = Unit()
                if not isinstance(node, ast.ClassDef):
                    _enter(unit, [node])
                    continue
                methods = [c for c in node.body if defined(c)]
                outside = [c for c in ast.iter_child_nodes(node) if c not in methods]
                _enter(unit, outside)
                for child in methods:
                    for member in defined(child):
                        unit.members[member] = f"{module}.{name}.{member}"
                        inner = self.units.setdefault(unit.members[member], Unit())
                        _enter(inner, [child])

    def used(self, user: str) -> set[str]:
        """The definitions that another one names: by their names, or members by an attribute."""
        unit = self.units[user]
        scope = self.scopes[self.module_of(user)]
        found = {scope[name] for name in unit.names if name in scope}
        for base, attribute in unit.accesses:
            kinds = {base, *unit.kinds.get(base, ())}
            owners = [owner for kind in kinds for owner in self._classes.get(kind, ())]
            if base in ("self", "cls"):
                owners.append(user.rpartition(".")[0])
            for owner in owners:
                members = self.units[owner].members if owner in self.units else {}
                found |= {members[attribute]} if attribute in members else set()
        return found

    @cached_property
    def _classes(self) -> dict[str, list[str]]:
        """The classes that have members, by their own names."""
        found: dict[str, list[str]] = {}
        for dotted, unit in self.units.items():
            if unit.members:
                found.setdefault(dotted.rpartition(".")[2], []).append(dotted)
        return found

    def module_of(self, name: str) -> str:
        """The module that a definition stands in."""
        while name and name not in self.scopes:
            name = name.rpartition(".")[0]
        return name


def _enter(unit: Unit, nodes: Iterable[ast.AST]) -> None:
    for top in nodes:
        for node in walk(top):
            if isinstance(node, ast.Name):
                unit.names.add(node.id)
            elif isinstance(node, ast.Attribute):
                unit.attributes.add(node.attr)
                if isinstance(node.value, ast.Name):
                    unit.accesses.add((node.value.id, node.attr))
            elif isinstance(node, ast.arg) and node.annotation is not None:
                inside = walk(node.annotation)
                unit.kinds[node.arg] = {n.id for n in inside if isinstance(n, ast.Name)}


def reached(code: CallGraph, start: str) -> set[str]:
    """Return the dotted names of all definitions that `start` reaches, itself included."""
    found: set[str] = set()
    attributes: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in found or name not in code.units:
            continue
        found.add(name)
        unit, scope = code.units[name], code.scopes[code.module_of(name)]
        attributes |= unit.attributes
        waiting += [scope[used] for used in unit.names if used in scope]
        # Python itself calls the special methods; the others are called by name.
        for other in found:
            for member, dotted in code.units[other].members.items():
                if member in attributes or member.startswith("__"):
                    waiting.append(dotted)
    return found
