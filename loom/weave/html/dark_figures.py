"""Drawings in the dark: black, white and greys turn round; a colour stays what it is called."""

import re

__all__ = ["dark", "width"]

COLOUR = re.compile(r"(?<=[:\"\s])#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})(?=[;\"\s])")
WIDTH = re.compile(r"<svg[^>]*\bwidth=\"([\d.]+)(pt|px)?\"")
# What black becomes and what white becomes, and how far apart the parts of a grey may lie.
LIGHT, GROUND, GREY = 230, 26, 12


def dark(svg: str) -> str:
    """The drawing with its greys turned round; what says no colour is black, and turns too."""
    turned = COLOUR.sub(_turned, svg)
    return turned.replace("<svg ", f'<svg fill="{_grey(0)}" ', 1)


def width(svg: str) -> int:
    """How many pixels wide a drawing is by its own account; 0 if it does not say."""
    match = WIDTH.search(svg)
    if match is None:
        return 0
    return round(float(match[1]) * (4 / 3 if match[2] == "pt" else 1))


def _turned(match: re.Match[str]) -> str:
    parts = [int(part, 16) for part in match.groups()]
    if max(parts) - min(parts) > GREY:
        return match[0]
    return _grey(sum(parts) / 3)


def _grey(value: float) -> str:
    level = round(LIGHT - value * (LIGHT - GROUND) / 255)
    return f"#{level:02x}{level:02x}{level:02x}"
