"""What the commands `loom html` and `loom pdf` call."""

from loom.weave.html import build as html
from loom.weave.pdf import build as pdf

__all__ = ["html", "pdf"]
