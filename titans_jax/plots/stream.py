"""The picture of a stream: bits per byte, and every layer's surprise, over its length."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from titans_jax.plots.style import BLUE, few, figure_of, layer_colours, style, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def stream_picture(curves: Mapping[str, Sequence[Any]], path: str | os.PathLike[str]) -> "Figure":
    """Draws bits per byte and, below, the surprise of every layer that has a memory, over the tokens read.

    curves: "tokens", where each stretch of the stream ends, "bits_per_byte", "layer_0/surprise" and so on, all of one
    length, None where a number was not finite. Raises ValueError if lengths differ.
    """
    layers = sorted((name for name in curves if name.endswith("/surprise")), key=lambda name: int(name[6:-9]))
    lines = {name: np.array(curves[name], float) for name in ["tokens", "bits_per_byte", *layers]}
    if len({len(line) for line in lines.values()}) != 1 or not len(lines["tokens"]):
        sizes = {name: len(line) for name, line in lines.items()}
        raise ValueError(f"curves: of lengths {sizes}; expected one length, above 0")
    figure = figure_of(9, 5.6 if layers else 3.4)
    with style():
        panels = figure.subplots(2 if layers else 1, 1, sharex=True, squeeze=False)[:, 0]
        tokens = lines["tokens"]
        panels[0].plot(tokens, lines["bits_per_byte"], color=BLUE, lw=1.2)
        panels[0].set(title="Bits per byte, of tokens before the model learns from them", ylabel="bits per byte")
        if layers:
            named = few(len(layers), 6)
            for i, (name, colour) in enumerate(zip(layers, layer_colours(len(layers)), strict=True)):
                label = name.partition("/")[0].replace("_", " ") if i in named else None
                panels[1].plot(tokens, lines[name], color=colour, lw=1.2, label=label)
            panels[1].set(title="Surprise: loss before the write", ylabel="mean loss")
            panels[1].legend(ncols=len(named), loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)
            if _decades([lines[name] for name in layers]) > 1:
                panels[1].set_yscale("log")
        panels[-1].set_xlabel("tokens read")
        panels[-1].xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        return write(figure, path, {name: line.tolist() for name, line in lines.items()})


def _decades(lines: Sequence[np.ndarray]) -> float:
    """The range of the lines' medians, in powers of ten."""
    middles = [np.nanmedian(line) for line in lines if np.isfinite(line).any()]
    return math.log10(max(middles) / min(middles)) if middles and min(middles) > 0 else 0.0
