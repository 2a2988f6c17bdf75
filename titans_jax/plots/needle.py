"""Pictures of needles: Titan-Min's answers, memory and ablations, and needles in haystacks of language models."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from titans_jax.plots.legends import layer_colours, legend_above
from titans_jax.plots.style import BLUE, INK, MUTED, ORANGE, drawing, matplotlib, short, write
from titans_jax.plots.types import Axes, Figure, Target

_TITLES = {"exact": "whole answer", "accuracy": "answer's tokens"}


def needle_answers(length: Any, position: Any, predicted: Any, path: Target) -> Figure:
    """Draws predicted against true positions, and the accuracy by length and by tenth of the sequence.

    length, position, predicted: int [samples].
    """
    length, position, predicted = (np.asarray(x) for x in (length, position, predicted))
    right, lengths = predicted == position, np.unique(length)
    tenth = position * 10 // length
    by_length = [float(right[length == L].mean()) for L in lengths]
    by_tenth = [float(right[tenth == i].mean()) if (tenth == i).any() else float("nan") for i in range(10)]
    with drawing(12, 4.2) as figure:
        left, middle, answers = figure.subplots(1, 3, width_ratios=[1, 1.6, 1.6])
        _shares(left, [str(L) for L in lengths], by_length)
        left.set(title="Found, by length", xlabel="tokens of the sequence", ylabel="share of needles found")
        _shares(middle, [f"{10 * i}" for i in range(10)], by_tenth, size=7)
        middle.set(title="Found, by where the needle is", xlabel="% of the sequence before it, in tenths")
        answers.plot([0, lengths.max()], [0, lengths.max()], color=MUTED, lw=0.8)
        for L, colour in zip(lengths, layer_colours(len(lengths)), strict=True):
            of = length == L
            answers.plot(position[of], predicted[of], ".", color=colour, ms=4, alpha=0.6, label=f"{L} tokens")
        answers.set(title="Every answer", xlabel="where the needle is", ylabel="the model's answer")
        answers.legend(loc="upper left", markerscale=2)
        numbers = {"lengths": lengths, "by_length": by_length, "by_tenth": by_tenth}
        return write(figure, path, numbers | {"position": position, "predicted": predicted})


def _shares(axes: Axes, names: Sequence[str], values: Sequence[float], size: float = 9) -> None:
    bars = axes.bar(names, values, color=BLUE, width=0.7)
    axes.bar_label(bars, [f"{100 * value:.3g}%" for value in values], size=size, padding=2, color=INK)
    axes.set_ylim(0, 1.08)
    axes.tick_params(axis="x", labelsize=size)
    axes.grid(axis="x", visible=False)


def needle_memory(surprise: Any, rate: Any, needle: int, segment: int, path: Target) -> Figure:
    """Draws each token's surprise in each layer's memory, and the rate with which it was written.

    surprise, rate: [layers, T], means over heads. needle: its position. segment: its length; starts are marked.
    """
    panels = {"Surprise: the memory's loss on each token": surprise, "Rate of each token's write": rate}
    with drawing(12, 5) as figure:
        axes = figure.subplots(2, 1, sharex=True)
        for axis, (title, values) in zip(axes, panels.items(), strict=True):
            values = np.asarray(values, float)
            for layer, colour in enumerate(layer_colours(len(values))):
                axis.plot(values[layer], color=colour, lw=1.0, marker=".", ms=3, label=f"layer {layer}")
            for start in range(segment, values.shape[1], segment):
                axis.axvline(start - 0.5, color=MUTED, lw=0.8, ls=":")
            axis.axvline(needle, color=ORANGE, lw=6, alpha=0.25, zorder=0)
            axis.set_title(title)
            axis.set_xlim(-0.5, values.shape[1] - 0.5)
        axes[0].text(needle, 1.0, " needle", color=ORANGE, transform=axes[0].get_xaxis_transform(), va="top")
        legend_above(axes[0])
        axes[-1].set_xlabel("token (dotted: start of a segment)")
        return write(figure, path, {"surprise": np.asarray(surprise), "rate": np.asarray(rate), "needle": needle})


def needle_ablations(rows: Mapping[str, Mapping[str, float]], path: Target) -> Figure:
    """Draws the accuracy by length of a model, and of the model without each of its parts.

    rows: {variant: {length: accuracy}}, from top to bottom.
    """
    lengths = list(next(iter(rows.values())))
    with drawing(8, 1.2 + 0.3 * len(rows) * len(lengths)) as figure:
        axes = figure.subplots()
        height = 0.8 / len(lengths)
        for i, (length, colour) in enumerate(zip(lengths, layer_colours(len(lengths)), strict=True)):
            where = np.arange(len(rows)) + (i - (len(lengths) - 1) / 2) * height
            bars = axes.barh(
                where, [row[length] for row in rows.values()], height, color=colour, label=f"{length} tokens"
            )
            axes.bar_label(bars, [f"{100 * row[length]:.3g}%" for row in rows.values()], size=8, padding=3, color=INK)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set(xlim=(0, 1.1), xlabel="share of needles found", title="Without each part")
        legend_above(axes)
        return write(figure, path, rows)


def haystack_picture(
    grids: Mapping[str, Mapping[str, Any]],
    lengths: Sequence[int],
    depths: Sequence[float],
    path: Target,
) -> Figure:
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
    with drawing(1.2 + max(3.0, 0.46 * len(lengths)) * len(grids), 2 * (1.1 + 0.32 * len(depths))) as figure:
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
        return write(figure, path, {"lengths": lengths, "depths": depths, **values})


def _heatmap(axes: Axes, values: np.ndarray) -> Any:
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
