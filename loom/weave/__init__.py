"""Weaving: the Sphinx extension that makes the site and the printed book of the chapters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

__all__ = ["setup"]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register what the modules of this package add; each says what that is."""
    from loom import stamp
    from loom.weave import (
        answers,
        atlas,
        captions,
        contents,
        downloads,
        exercises,
        folds,
        latex,
        layout,
        letters,
        macros,
        modules,
        nobreak,
        pages,
        reference,
        results,
        search,
        source,
        statements,
        tidy,
    )

    block = (pages.visit_statement, pages.depart_division)
    app.add_enumerable_node(statements.Statement, "theorem", statements.name, html=block)
    app.add_enumerable_node(exercises.Exercise, "exercise", statements.name, html=block)
    app.add_node(statements.StatementTitle, html=(pages.visit_title, pages.depart_title))
    app.add_node(statements.Proof, html=(pages.visit_proof, pages.depart_proof))
    app.add_node(exercises.Answer, html=(pages.visit_answer, pages.depart_answer))
    app.set_translator("html", pages.BookTranslator)
    app.set_translator("latex", latex.BookTranslator)
    app.add_domain(statements.ProofDomain)
    for name, directive in exercises.DIRECTIVES.items():
        app.add_directive(name, directive, override=True)
    for name in atlas.DIRECTIVES:
        app.add_directive(name, atlas.ListingDirective)
    app.add_transform(exercises.Gather)
    app.add_transform(exercises.Pair)
    app.add_post_transform(answers.Collect)
    app.add_post_transform(atlas.Fill)
    app.add_post_transform(layout.Parts)
    app.add_post_transform(layout.LongTables)
    app.add_node(folds.Fold, html=(pages.visit_fold, pages.depart_division))
    app.add_node(folds.Details, html=(pages.visit_details, pages.depart_answer))
    app.add_node(folds.Provenance, html=(pages.visit_provenance, pages.depart_division))
    app.add_post_transform(nobreak.KeepTogether)
    app.add_env_collector(results.Passed)
    app.add_post_transform(folds.Folding)
    app.add_post_transform(captions.Annotate)
    app.connect("builder-inited", source.load)
    # After the sections have their numbers.
    app.connect("env-get-updated", results.stale, priority=900)
    app.connect("env-updated", reference.register)
    app.connect("html-page-context", search.script)
    app.connect("html-collect-pages", modules.pages)
    # After the theme has made its list of buttons.
    app.connect("html-page-context", downloads.button, priority=900)
    app.connect("html-page-context", contents.level, priority=900)
    app.connect("build-finished", downloads.write)
    app.connect("build-finished", tidy.tidy)
    # The theme includes "../components/search-field.html", which is looked up from here first.
    app.config.templates_path = [str(Path(__file__).parent / "components")]
    stamp.connect(app)
    app.connect("config-inited", macros.share)
    app.connect("doctree-read", macros.check)
    letters.settle()
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
