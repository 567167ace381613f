"""loom, the compiler of the book: chapters in; a package, a site and a print edition out."""

from loom.continues import continues

__all__ = ["continues"]
