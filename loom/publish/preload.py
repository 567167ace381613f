"""Import what a build of the site needs, so that the builds that follow need not wait for it."""

import jupyter_book.cli.main
import myst_nb.sphinx_ext
import sphinx.application
import sphinx.builders.html
import sphinx_book_theme

import loom.publish.build
import loom.run.run

__all__ = ["jupyter_book", "loom", "myst_nb", "sphinx", "sphinx_book_theme"]
