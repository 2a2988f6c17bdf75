"""Pictures of Titan-Min: its answers, its memory while it reads, and its ablations."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from titans_jax.plots.style import BLUE, INK, MUTED, ORANGE, figure_of, layer_colours, style, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def needle_answers(length: Any, position: Any, predicted: Any, path: str | os.PathLike[str]) -> "Figure":
    """Draws predicted against true positions, and the accuracy by length and by tenth of the sequence.

    length, position, predicted: int [samples].
    """
    length, position, predicted = (np.asarray(x) for x in (length, position, predicted))
    right, lengths = predicted == position, np.unique(length)
    tenth = position * 10 // length
    by_length = [float(right[length == L].mean()) for L in lengths]
    by_tenth = [float(right[tenth == i].mean()) if (tenth == i).any() else float("nan") for i in range(10)]
    figure = figure_of(12, 4.2)
    with style():
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
    numbers = {
        "lengths": lengths.tolist(),
        "by_length": by_length,
        "by_tenth": by_tenth,
        "position": position.tolist(),
        "predicted": predicted.tolist(),
    }
    return write(figure, path, numbers)


def _shares(axes: "Axes", names: Sequence[str], values: Sequence[float], size: float = 9) -> None:
    bars = axes.bar(names, values, color=BLUE, width=0.7)
    axes.bar_label(bars, [f"{100 * value:.3g}%" for value in values], size=size, padding=2, color=INK)
    axes.set_ylim(0, 1.08)
    axes.tick_params(axis="x", labelsize=size)
    axes.grid(axis="x", visible=False)


def needle_memory(surprise: Any, rate: Any, needle: int, segment: int, path: str | os.PathLike[str]) -> "Figure":
    """Draws each token's surprise in each layer's memory, and the rate with which it was written.

    surprise, rate: [layers, T], means over heads. needle: its position. segment: its length; starts are marked.
    """
    panels = {"Surprise: the memory's loss on each token": surprise, "Rate of each token's write": rate}
    figure = figure_of(12, 5)
    with style():
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
        axes[0].legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(values), borderaxespad=0.2)
        axes[-1].set_xlabel("token (dotted: start of a segment)")
    numbers = {"surprise": np.asarray(surprise).tolist(), "rate": np.asarray(rate).tolist(), "needle": int(needle)}
    return write(figure, path, numbers)


def needle_ablations(rows: Mapping[str, Mapping[str, float]], path: str | os.PathLike[str]) -> "Figure":
    """Draws the accuracy by length of a model, and of the model without each of its parts.

    rows: {variant: {length: accuracy}}, from top to bottom.
    """
    lengths = list(next(iter(rows.values())))
    figure = figure_of(8, 1.2 + 0.3 * len(rows) * len(lengths))
    with style():
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
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(lengths), borderaxespad=0.2)
    return write(figure, path, {variant: dict(row) for variant, row in rows.items()})
