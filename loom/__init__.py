"""loom, the compiler of the book: chapters in; a package, a site and a print edition out."""

from loom.continues import continues
from loom.exercises import refuses

__all__ = ["continues", "refuses"]
