"""Legends, and the colours and labels of layers in them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from titans_jax.plots.style import BLUE, few, matplotlib
from titans_jax.plots.types import Axes, Figure


def layer_colours(layers: int) -> list[Any]:
    """A colour for each layer, from the first to the last."""
    if layers == 1:
        return [BLUE]
    return list(matplotlib().colormaps["plasma"](np.linspace(0.08, 0.85, layers)))


def layer_labels(layers: Sequence[int]) -> list[str | None]:
    """`layer N` for at most six layers, evenly spread; None keeps the others out of a legend."""
    named = few(len(layers), 6)
    return [f"layer {layer}" if i in named else None for i, layer in enumerate(layers)]


def legend_above(axes: Axes) -> None:
    """Draws the panel's legend in one row, above the panel on the right."""
    columns = len(axes.get_legend_handles_labels()[0])
    axes.legend(ncols=columns, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)


def legend_below(figure: Figure, axes: Axes, title: str | None = None) -> None:
    """Draws the legend of one panel's lines in one row, below all panels of the figure."""
    lines, names = axes.get_legend_handles_labels()
    figure.legend(lines, names, ncols=len(lines), loc="outside lower center", title=title, title_fontsize=8)
