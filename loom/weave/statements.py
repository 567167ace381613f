"""Theorems and their kin: the directives `prf:theorem`, `prf:proof` and so on, and `{prf:ref}`.

All kinds share one counter in each chapter (Definition 1.1, Theorem 1.2), so that a reader who
looks for Theorem 1.2 finds it after 1.1 whatever that is. Sphinx' own figure numbering counts.
"""

# mypy: disallow-subclassing-any=False

from collections.abc import Iterable, Set
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.builders import Builder
from sphinx.domains import Domain, ObjType
from sphinx.environment import BuildEnvironment
from sphinx.roles import XRefRole
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

from loom.weave.nodes import Proof, Statement, StatementTitle

__all__ = ["KINDS", "ProofDomain", "name", "number", "setup", "statement"]

KINDS = (
    "definition",
    "lemma",
    "proposition",
    "theorem",
    "corollary",
    "algorithm",
    "example",
    "remark",
)

# Kinds whose titles are names that one looks up in an index.
NAMED = KINDS[:6]

logger = logging.getLogger(__name__)


def statement(directive: SphinxDirective, node: Statement, counter: str) -> list[nodes.Node]:
    """Parse a directive into a statement, numbered by a counter; its kind is the directive's."""
    env = directive.env
    kind = directive.name.rpartition(":")[2]
    title = directive.arguments[0] if directive.arguments else ""
    label = directive.options.get("label") or f"{kind}-{env.new_serialno(kind) + 1}"
    node.update_basic_atts({"ids": [label]})
    node.attributes.update(kind=kind, counter=counter, label=label, docname=env.docname)
    directive.set_source_info(node)
    inline, messages = directive.parse_inline(title)
    node += StatementTitle(title, "", *inline)
    node += messages
    if kind in NAMED and title and not any(mark in title for mark in "$`*{"):
        entry = title.removeprefix("The ").removeprefix("A ")
        entry = entry[:1].upper() + entry[1:]
        node += addnodes.index(entries=[("single", entry, label, "", None)])
    node += directive.parse_content_to_nodes()
    proofs = env.get_domain("prf")
    assert isinstance(proofs, ProofDomain)
    proofs.note(node)
    return [node]


class StatementDirective(SphinxDirective):
    """`{prf:theorem} Title` with `:label:`; the kind is the name of the directive."""

    has_content = True
    optional_arguments = 1
    final_argument_whitespace = True
    option_spec: ClassVar[dict[str, Any]] = {"label": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        return statement(self, Statement(), "theorem")


class ProofDirective(SphinxDirective):
    """`{prf:proof}`, or `{prf:proof} of {prf:ref}`thm-x`` where the proof stands elsewhere."""

    has_content = True
    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        node = Proof()
        self.set_source_info(node)
        inline, messages = self.parse_inline(self.arguments[0] if self.arguments else "")
        node += StatementTitle("", "", *inline)
        node += messages
        node += self.parse_content_to_nodes()
        return [node]


class ProofDomain(Domain):
    """Knows every labelled statement of the book and resolves references to it."""

    name = "prf"
    label = "Statements"
    data_version = 1
    object_types: ClassVar[dict[str, ObjType]] = {
        kind: ObjType(kind, "ref") for kind in (*KINDS, "exercise")
    }
    directives: ClassVar[dict[str, Any]] = {
        "proof": ProofDirective,
        **dict.fromkeys(KINDS, StatementDirective),
    }
    roles: ClassVar[dict[str, Any]] = {"ref": XRefRole()}
    initial_data: ClassVar[dict[str, Any]] = {"labels": {}}

    @property
    def labels(self) -> dict[str, tuple[str, str, str, str]]:
        """The document, kind, counter and title of each label."""
        labels: dict[str, tuple[str, str, str, str]] = self.data["labels"]
        return labels

    def note(self, node: Statement) -> None:
        label = node["label"]
        if label in self.labels:
            other = self.env.doc2path(self.labels[label][0])
            logger.warning("label %r stands already in %s", label, other, location=node)
        title = node[0].astext()
        self.labels[label] = (self.env.docname, node["kind"], node["counter"], title)

    def clear_doc(self, docname: str) -> None:
        for label, entry in list(self.labels.items()):
            if entry[0] == docname:
                del self.labels[label]

    def merge_domaindata(self, docnames: Set[str], otherdata: dict[str, Any]) -> None:
        for label, entry in otherdata["labels"].items():
            if entry[0] in docnames:
                self.labels[label] = entry

    def resolve_xref(
        self,
        env: BuildEnvironment,
        fromdocname: str,
        builder: Builder,
        typ: str,
        target: str,
        node: addnodes.pending_xref,
        contnode: nodes.Element,
    ) -> nodes.reference | None:
        if target not in self.labels:
            return None
        docname, kind, counter, _ = self.labels[target]
        text = node.astext()
        if not node.get("refexplicit"):
            text = f"{kind.title()}\N{NO-BREAK SPACE}{number(env, docname, counter, target)}"
        return make_refnode(builder, fromdocname, docname, target, nodes.inline(text, text))

    def resolve_any_xref(
        self,
        env: BuildEnvironment,
        fromdocname: str,
        builder: Builder,
        target: str,
        node: addnodes.pending_xref,
        contnode: nodes.Element,
    ) -> list[tuple[str, nodes.reference]]:
        found = self.resolve_xref(env, fromdocname, builder, "ref", target, node, contnode)
        return [("prf:ref", found)] if found is not None else []

    def get_type_name(self, type: ObjType, primary: bool = False) -> str:
        return str(type.lname)

    def get_objects(self) -> Iterable[tuple[str, str, str, str, str, int]]:
        """Every statement by number and title, for the search and for other projects."""
        for label, (docname, kind, counter, title) in self.labels.items():
            tag = number(self.env, docname, counter, label)
            # Sphinx leaves out an anchor that is the name, and its search then takes the title for
            # it; so it is written in another way, which leads to the same place.
            anchor = label.replace("-", "%2D", 1)
            yield label, f"{kind.title()} {tag} {title}".strip(), kind, docname, anchor, 1


def name(node: nodes.Element) -> str:
    """What Sphinx calls a statement; it counts no node without a name."""
    label: str = node["label"]
    return label


def number(env: BuildEnvironment, docname: str, counter: str, name: str) -> str:
    """The number that `counter` gave to the node with id `name`, such as "1.2"."""
    numbers = env.toc_fignumbers.get(docname, {}).get(counter, {})
    return ".".join(map(str, numbers.get(name, ())))


def setup(app: Sphinx) -> None:
    """Add the directives and the domain of theorems and their kin."""
    app.add_enumerable_node(Statement, "theorem", name)
    app.add_domain(ProofDomain)
