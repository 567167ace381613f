"""Weaving: the Sphinx extension that makes the site and the printed book of the chapters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

__all__ = ["setup"]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register what the modules of this package add; each says what that is."""
    from loom.weave import (
        answers,
        appendix_letters,
        book_data,
        captions,
        exercises,
        folds,
        listings,
        macros,
        nodes,
        page_facts,
        reference,
        rerun,
        staleness,
        statements,
    )
    from loom.weave.html import (
        downloads,
        leftovers,
        module_pages,
        punctuation,
        search,
        sidebar,
    )
    from loom.weave.html import translator as html
    from loom.weave.latex import layout
    from loom.weave.latex import translator as latex

    block = (html.visit_statement, html.depart_division)
    app.add_enumerable_node(nodes.Statement, "theorem", statements.name, html=block)
    app.add_enumerable_node(nodes.Exercise, "exercise", statements.name, html=block)
    app.add_node(nodes.StatementTitle, html=(html.visit_title, html.depart_title))
    app.add_node(nodes.Proof, html=(html.visit_proof, html.depart_proof))
    app.add_node(nodes.Answer, html=(html.visit_answer, html.depart_answer))
    app.set_translator("html", html.BookTranslator)
    app.set_translator("latex", latex.BookTranslator)
    app.add_domain(statements.ProofDomain)
    for name, directive in exercises.DIRECTIVES.items():
        app.add_directive(name, directive, override=True)
    for name in listings.DIRECTIVES:
        app.add_directive(name, listings.ListingDirective)
    app.add_transform(exercises.Gather)
    app.add_transform(exercises.Pair)
    app.add_post_transform(answers.Collect)
    app.add_post_transform(listings.Fill)
    app.add_post_transform(layout.Parts)
    app.add_post_transform(layout.LongTables)
    app.add_node(nodes.Fold, html=(html.visit_fold, html.depart_division))
    app.add_node(nodes.Details, html=(html.visit_details, html.depart_answer))
    app.add_node(nodes.Provenance, html=(html.visit_provenance, html.depart_division))
    app.add_post_transform(punctuation.KeepTogether)
    app.add_env_collector(page_facts.Passed)
    app.add_post_transform(folds.Folding)
    app.add_post_transform(captions.Annotate)
    app.connect("builder-inited", book_data.load)
    # After the sections have their numbers.
    app.connect("env-get-updated", staleness.stale, priority=900)
    app.connect("env-updated", reference.register)
    app.connect("html-page-context", search.script)
    app.connect("html-collect-pages", module_pages.pages)
    # After the theme has made its list of buttons.
    app.connect("html-page-context", downloads.button, priority=900)
    app.connect("html-page-context", sidebar.level, priority=900)
    app.connect("build-finished", downloads.write)
    app.connect("build-finished", leftovers.remove)
    # The theme includes "../components/search-field.html", which is looked up from here first.
    app.config.templates_path = [str(Path(__file__).parent / "html/components")]
    rerun.connect(app)
    app.connect("config-inited", macros.share)
    app.connect("doctree-read", macros.check)
    appendix_letters.settle()
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
