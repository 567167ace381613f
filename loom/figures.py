"""Interactive figures: one call in a cell makes one, for the page and for print.

The picture is drawn by the script in `book/_static`, on the page by the browser and here by an
engine without one. What a cell gives out holds the figure's data; the pages and the stills of the
printed book are made from that when the book is woven, so that a change of the script runs no
chapter again.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Engine", "Figure", "FigureError", "Quantised", "engine", "picture", "widget"]

SCRIPT = Path(__file__).parents[1] / "book" / "_static" / "widgets.js"
# What arrays are on their way to the page: the letter and size of a number.
DTYPES = ("f8", "f4", "i4", "i2", "u2", "i1", "u1")

Still = tuple[str, Mapping[str, Any]]


class FigureError(ValueError):
    """A figure that cannot be drawn, in one sentence."""


@dataclass(frozen=True)
class Quantised:
    """An array that travels in whole steps, at a byte or two for each number.

    Between `lowest` and `highest` there are 255 steps, or 65,535 with `bits=16`; a number outside
    is refused. The page gets the rounded numbers.
    """

    values: Any
    lowest: float
    highest: float
    bits: int = 8

    def packed(self) -> dict[str, Any]:
        """The array as the page's script unpacks it.

        Raises:
            FigureError: if a number is not between the two, or `bits` is neither 8 nor 16.
        """
        import numpy as np

        if self.bits not in (8, 16):
            raise FigureError(f"bits must be 8 or 16, got {self.bits}")
        values = _numpy(self.values)
        if not (values.min() >= self.lowest and values.max() <= self.highest):
            found = f"{values.min():.4g} to {values.max():.4g}"
            raise FigureError(f"numbers from {found} do not fit {self.lowest} to {self.highest}")
        step = (self.highest - self.lowest) / (2**self.bits - 1)
        codes = (values - self.lowest) / step
        kind = np.uint8 if self.bits == 8 else np.uint16
        return {**_array(codes.round().astype(kind)), "lowest": self.lowest, "step": step}


def widget(
    family: str,
    *,
    stills: Sequence[Still],
    alt: str,
    question: str,
    origin: str,
    **props: Any,
) -> Figure:
    """Return an interactive figure, for the last line of a cell.

    Args:
        family: one of the folder `widgets/src/families`, such as "function-plot".
        stills: what print shows: pairs of a label and a state, that is, the values of some of the
            controls. The figure opens in the first of them. One still needs no label.
        alt: what is seen, in words.
        question: what the figure asks; it stands above it.
        origin: what is computed live and what was recorded; it stands below.
        **props: what the family asks for. Numbers, text, lists, and arrays of numpy or torch, which
            travel in their own dtype; make them smaller by casting, or by `Quantised`.

    Raises:
        TypeError: if something is of another kind than that.
        FigureError: if the family does not know a property or a state, or is missing one.
    """
    for name, text in (
        ("family", family),
        ("alt", alt),
        ("question", question),
        ("origin", origin),
    ):
        if not isinstance(text, str):
            raise TypeError(f"{name} must be text, got {type(text).__name__}")
        if not text.strip():
            raise FigureError(f"{name} must not be empty")
    shown = [_still(still) for still in stills]
    if not shown:
        raise FigureError("stills must name the states that print shows, one at least")
    if len(shown) > 1 and not all(still["label"] for still in shown):
        raise FigureError("of several stills each needs a label")
    spec = {
        "family": family,
        "question": question,
        "origin": origin,
        "alt": alt,
        "stills": shown,
        "props": {name: _plain(value, name) for name, value in props.items()},
    }
    text = json.dumps(spec, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    figure = Figure(text)
    if SCRIPT.is_file() and (fault := engine().call("fault", text)):
        raise FigureError(fault)
    return figure


@dataclass(frozen=True)
class Figure:
    """An interactive figure, as JSON; a notebook shows its first still."""

    spec: str

    def _repr_mimebundle_(self, **kwargs: object) -> dict[str, str]:
        alt: str = json.loads(self.spec)["alt"]
        seen = f"<p>{html.escape(alt)}</p>"
        if SCRIPT.is_file():
            seen = engine().call("stills", self.spec, 640)[0]
        data = html.escape(self.spec, quote=False)
        return {
            "text/html": f'<div data-figure="book">{seen}<template>{data}</template></div>',
            "text/plain": alt,
        }


def picture(pixels: Any, kind: str = "webp", quality: int = 80) -> str:
    """Return an image of pixels [H, W, 3] or [H, W], from 0 to 1, as an address for a figure.

    On the page it is a file of its own.

    Raises:
        FigureError: if the shape is another one, or a number is not between 0 and 1.
    """
    import numpy as np
    from PIL import Image

    levels = _numpy(pixels)
    if levels.ndim not in (2, 3) or (levels.ndim == 3 and levels.shape[2] != 3):
        raise FigureError(f"pixels must be [H, W] or [H, W, 3], got {list(levels.shape)}")
    if not (levels.min() >= 0 and levels.max() <= 1):
        raise FigureError("pixels must be between 0 and 1")
    file = io.BytesIO()
    image = Image.fromarray((255 * levels).round().astype(np.uint8))
    image.save(file, kind, quality=quality)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


class Engine:
    """The script of the figures, in an engine of its own."""

    def __init__(self, script: str) -> None:
        import quickjs

        self._context = quickjs.Context()
        self._context.set_memory_limit(512 * 2**20)
        self._context.eval(script)

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the script, `bookFigures.<name>`; its answer comes back by JSON.

        A mathematical function goes by its place, as in `"diffusion.schedule.entry"`.

        Raises:
            FigureError: if it throws.
        """
        import quickjs

        given = json.dumps(json.dumps([_plain(one, "argument") for one in arguments]))
        where = f"functions[{json.dumps(name)}]" if "." in name else name
        # Numbers that JSON lacks come back as words.
        told = 'typeof v === "number" && !Number.isFinite(v) ? {$number: String(v)} : v'
        answer = f"bookFigures.{where}(...bookFigures.unpack(JSON.parse({given})))"
        code = f"JSON.stringify({answer}, (k, v) => {told})"
        try:
            answer = self._context.eval(code)
        except quickjs.JSException as error:
            raise FigureError(str(error).strip().splitlines()[0]) from None
        return None if answer is None else json.loads(answer, object_hook=_number)


@lru_cache(maxsize=1)
def engine() -> Engine:
    """The engine with the script of this book."""
    return Engine(SCRIPT.read_text("utf-8"))


def _number(value: dict[str, Any]) -> Any:
    return float(value["$number"].replace("Infinity", "inf")) if "$number" in value else value


def _still(still: Still) -> dict[str, Any]:
    match still:
        case (str(label), Mapping() as state):
            return {"label": label, "state": _plain(dict(state), "stills")}
    raise TypeError(f"a still is a pair of a label and a state, got {still!r}")


def _plain(value: Any, name: str) -> Any:
    """The value as JSON has it."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Quantised):
        return value.packed()
    if isinstance(value, Mapping):
        return {str(key): _plain(one, name) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one, name) for one in value]
    if isinstance(value, int):
        return value
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, (int, float)):
        if not math.isfinite(value):
            raise FigureError(f"{name} holds {value}, which is no number that a page can have")
        return value
    if hasattr(value, "shape"):
        return _array(_numpy(value))
    raise TypeError(f"{name} must be numbers, text, lists or arrays, got {type(value).__name__}")


def _numpy(values: Any) -> np.ndarray[Any, Any]:
    """An array of numpy; one of torch says how it becomes that."""
    import numpy as np

    return np.asarray(values.detach().cpu().numpy() if hasattr(values, "detach") else values)


def _array(values: np.ndarray[Any, Any]) -> dict[str, Any]:
    if values.dtype == bool:
        values = values.astype("u1")
    if values.dtype.str[1:] == "i8":  # positions and classes; the page has no larger whole numbers
        values = values.astype("i4")
    kind = values.dtype.str[1:]
    if kind not in DTYPES:
        raise TypeError(
            f"an array must have one of the dtypes {', '.join(DTYPES)}, got {values.dtype}"
        )
    if not all(map(math.isfinite, (values.min(initial=0), values.max(initial=0)))):
        raise FigureError("an array holds a number that is not finite")
    data = base64.b64encode(values.astype(f"<{kind}").tobytes()).decode()
    return {"$array": data, "dtype": kind, "shape": list(values.shape)}
