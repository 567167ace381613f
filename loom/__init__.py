"""loom, the compiler of the book: chapters in; a package, a site and a print edition out."""

from loom.lesson import continues, refuses

__all__ = ["continues", "refuses"]
