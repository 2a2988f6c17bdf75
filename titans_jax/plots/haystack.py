"""The picture of needles in haystacks: accuracy by length and depth, models side by side."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from titans_jax.plots.style import INK, MUTED, figure_of, matplotlib, short, style, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLES = {"exact": "whole answer", "accuracy": "answer's tokens"}


def haystack_picture(
    grids: Mapping[str, Mapping[str, Any]],
    lengths: Sequence[int],
    depths: Sequence[float],
    path: str | os.PathLike[str],
) -> "Figure":
    """Draws a column of heatmaps for each model: the share of whole answers, and of their tokens, that were right.

    grids: for each model "exact" and "accuracy", [depths, lengths] from 0 to 1; None, drawn hatched, where a text did
    not fit. depths: from 0 to 1. Raises ValueError if a grid has another shape.
    """
    shape = len(depths), len(lengths)
    values = {
        name: {kind: np.array(grid[kind], float) for kind in _TITLES}  # None becomes nan
        for name, grid in grids.items()
    }
    for name, grid in values.items():
        if any(array.shape != shape for array in grid.values()):
            raise ValueError(f"{name}: expected grids of [depths, lengths] = {list(shape)}")
    figure = figure_of(1.2 + max(3.0, 0.46 * len(lengths)) * len(grids), 2 * (1.1 + 0.32 * len(depths)))
    with style():
        panels = figure.subplots(2, len(grids), sharex=True, sharey=True, squeeze=False)
        for column, (name, grid) in enumerate(values.items()):
            for line, (kind, array) in enumerate(grid.items()):
                axes = panels[line, column]
                image = _heatmap(axes, array)
                axes.set_title(name if line == 0 else "")
                if column == 0:
                    axes.set_ylabel(f"{_TITLES[kind]} right\ndepth of the needle")
        panels[0, 0].set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
        for axes in panels[1]:
            axes.set_xticks(range(len(lengths)), [short(length) for length in lengths])
            axes.set_xlabel("length in tokens")
        bar = figure.colorbar(image, ax=panels, shrink=0.8, pad=0.01, ticks=[0, 0.5, 1], format="{x:.0%}")
        bar.outline.set_visible(False)
    numbers = {
        "lengths": list(lengths),
        "depths": list(depths),
        **{name: {kind: array.tolist() for kind, array in grid.items()} for name, grid in values.items()},
    }
    return write(figure, path, numbers)


def _heatmap(axes: "Axes", values: np.ndarray) -> Any:
    colours = matplotlib().colormaps["YlGnBu"]
    image = axes.imshow(values, vmin=0, vmax=1, cmap=colours, aspect="auto")
    axes.set_facecolor("#f3f4f6")
    axes.grid(False)
    axes.tick_params(length=0)
    for (row, column), value in np.ndenumerate(values):
        if np.isnan(value):
            patch = matplotlib().patches.Rectangle(
                (column - 0.5, row - 0.5), 1, 1, fill=False, hatch="////", edgecolor="#c4c8cf", lw=0
            )
            axes.add_patch(patch)
        else:
            axes.text(
                column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=7,
                color="white" if value > 0.55 else INK if value else MUTED,
            )  # fmt: skip
    return image
