"""Shared by all pictures: a figure without a window, one style, numbers as JSON beside each picture."""

import contextlib
import importlib.util
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from titans_jax import files
from titans_jax.plots.types import Figure, Target

INK, MUTED, GRID = "#1d2433", "#6b7280", "#e5e7eb"
BLUE, ORANGE = "#4f7cc4", "#d9622b"
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9ca3af",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
}


@contextlib.contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """An empty figure without a window, in our style; sizes in inches. Nothing outside the context changes."""
    library = matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)
    figure = Figure(figsize=(width, height), dpi=150, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    with library.rc_context(_STYLE):
        yield figure


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def matplotlib() -> Any:
    """The module; raises ImportError with the command that installs it."""
    try:
        import matplotlib
    except ImportError:
        raise ImportError("pictures need matplotlib: pip install titans-jax[plot]") from None
    return matplotlib


def few(count: int, most: int) -> list[int]:
    """At most `most` of `count` indices, evenly spread, with the first and the last.

    >>> few(3, 4), few(12, 4)
    ([0, 1, 2], [0, 4, 7, 11])
    """
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, most)).round()})


def one_shape(arrays: Mapping[str, np.ndarray], *axes: str) -> tuple[int, ...]:
    """The shape of all arrays. Raises ValueError if shapes differ or lack these axes; equal names mean equal sizes."""
    shapes = {array.shape for array in arrays.values()}
    sizes = dict(zip(axes, shape := shapes.pop(), strict=False))
    if shapes or shape != tuple(map(sizes.get, axes)):
        found = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"expected arrays of one shape [{', '.join(axes)}], not {found}")
    return shape


def short(count: int) -> str:
    """A number of tokens in units of 1024, where it is a multiple.

    >>> short(1000), short(2048), short(1 << 20)
    ('1000', '2K', '1M')
    """
    units = ((1 << 20, "M"), (1 << 10, "K"))
    return next((f"{count // unit}{letter}" for unit, letter in units if count % unit == 0), str(count))


def log_ticks(axis: Any) -> None:
    """Label a logarithmic axis, once all is drawn: powers of ten; also 2 and 5, as numbers, below two of them."""
    ticker = matplotlib().ticker
    low, high = sorted(axis.get_view_interval())
    if high < 100 * low:
        axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(ticker.NullFormatter())


def drawable(text: str) -> str:
    """The text on one line, with a box for every letter that DejaVu Sans Mono lacks."""
    matplotlib()
    from matplotlib.font_manager import fontManager, get_font

    letters = get_font(fontManager.findfont("DejaVu Sans Mono")).get_charmap()
    text = text.replace("\n", "↵").replace("\t", "→")
    return "".join(letter if ord(letter) in letters else "□" for letter in text)


def write(figure: Figure, path: Target, numbers: Mapping[str, Any]) -> Figure:
    """Write the picture, and its numbers beside it with the ending .json; returns the figure."""
    path = Path(path)
    with files.replacing(path) as file:
        figure.savefig(file, format=path.suffix.removeprefix(".") or None)
    write_numbers(path, numbers)
    return figure


def write_numbers(path: Target, numbers: Mapping[str, Any]) -> None:
    """Write the numbers of a picture beside it, six digits of each; arrays as lists."""
    text = json.dumps(_rounded(numbers)) + "\n"
    files.write(Path(path).with_suffix(".json"), text)


def _rounded(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
