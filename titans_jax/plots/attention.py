"""Pictures of attention weights, by head and by layer."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from titans_jax.plots.legends import layer_colours, layer_labels
from titans_jax.plots.style import MUTED, drawable, drawing, few, log_ticks, one_shape, write
from titans_jax.plots.types import Axes, Figure, Target

Maps = Mapping[str, NDArray]
COLOURS = ("Blues", "Oranges", "Greens")
SHARES = ("#4f7cc4", "#d9622b", "#b8bcc6")


def attention_maps(maps: Maps, path: Target) -> Figure:
    """Draws every head of every layer: row t, column s is the weight of token t on token s.

    maps: by what is read ("tokens", ...), each [layers, heads, T, T], nan in layers without attention. At most eight
    layers and eight heads are drawn. The JSON has each head's mean weight. Raises ValueError for other shapes.
    """
    layers, heads, _, _ = one_shape(maps, "layers", "heads", "T", "T")
    attending = [i for i in range(layers) if all(np.isfinite(weights[i]).all() for weights in maps.values())]
    rows, columns = [attending[i] for i in few(len(attending), 8)], few(heads, 8 // len(maps))
    width, height = 1.35 * len(columns) * len(maps) + 0.8, 1.35 * len(rows) + 0.9
    with drawing(max(width, 5), height) as figure:
        parts: Any = figure.subfigures(1, len(maps), squeeze=False)
        for part, (name, weights), colours in zip(parts[0], maps.items(), COLOURS, strict=False):
            part.suptitle(f"Weights on {name}", fontsize=10)
            panels = part.subplots(len(rows), len(columns), squeeze=False)
            for i, layer in enumerate(rows):
                for j, head in enumerate(columns):
                    _map(panels[i, j], weights[layer, head], colours, "antialiased")
                    panels[i, j].set(xticks=[], yticks=[])
                    if i == 0:
                        panels[i, j].set_title(f"head {head}", fontsize=8)
                panels[i, 0].set_ylabel(f"layer {layer}", fontsize=8)
        numbers = {name: weights.sum(-1).mean(-1) for name, weights in maps.items()}
        return write(figure, path, {"share": numbers})


def head_grid(maps: Maps, text: Sequence[str], path: Target, *, layer: int) -> Figure:
    """Draws the heads of one layer over a short text, large enough to read: each row has the weights of one token.

    maps: by what is read, each [heads, T, T]. text: T pieces. At most two heads are drawn. The JSON has the weights.
    Raises ValueError if shapes do not fit.
    """
    heads, length, _ = one_shape(maps, "heads", "T", "T")
    if len(text) != length:
        raise ValueError(f"text has {len(text)} pieces for {length} tokens; give one piece for each token")
    columns = few(heads, 2)
    names = [drawable(piece).replace(" ", "␣") for piece in text]
    with drawing(4.4 * len(columns) + 0.5, 4.4 * len(maps) + 0.5) as figure:
        panels = figure.subplots(len(maps), len(columns), squeeze=False)
        for i, ((name, weights), colours) in enumerate(zip(maps.items(), COLOURS, strict=False)):
            for j, head in enumerate(columns):
                axes = panels[i, j]
                _map(axes, weights[head], colours, "nearest")
                axes.set_title(f"head {head}: weights on {name}", fontsize=9)
                for axis in (axes.xaxis, axes.yaxis):
                    axis.set_ticks(range(length), names, family="DejaVu Sans Mono", fontsize=8, color="#1d2433")
                    for label in axis.get_ticklabels():
                        label.set_parse_math(False)
                axes.tick_params(length=0, pad=1)
        figure.suptitle(f"Layer {layer}: each row is a token, dark is a large weight", x=0.01, ha="left", fontsize=10)
        return write(figure, path, {"layer": layer, "text": list(text), "weights": maps})


def head_comparison(numbers: Maps, path: Target) -> Figure:
    """Draws a coloured table for each of `numbers`, [layers, heads] by title. Raises ValueError for other shapes."""
    layers, heads = one_shape(numbers, "layers", "heads")
    with drawing((0.62 * heads + 1.2) * len(numbers), 0.42 * layers + 1.1) as figure:
        panels = np.atleast_1d(figure.subplots(1, len(numbers)))
        for axes, (title, values) in zip(panels, numbers.items(), strict=True):
            axes.imshow(values, cmap="Purples", aspect="auto", vmin=0, vmax=1.7 * max(np.nanmax(values), 1e-9))
            axes.grid(False)
            axes.set_title(title, fontsize=9)
            axes.set_xticks(range(heads), [f"head {h}" for h in range(heads)], fontsize=7)
            axes.set_yticks(range(layers), [f"layer {i}" for i in range(layers)], fontsize=7)
            axes.tick_params(length=0)
            if layers * heads <= 256:
                for (i, j), value in np.ndenumerate(values):
                    axes.text(j, i, _short(value), ha="center", va="center", fontsize=7.5)
        return write(figure, path, numbers)


def layer_analysis(by_distance: Maps, shares: Maps, reach: NDArray, path: Target) -> Figure:
    """Draws how the layers differ: weight by distance, weight by what is read, and the number of things read at once.

    by_distance: [layers, W], mean weight on the token so far back, by what is read.
    shares: [layers], share of the weight, by what is read.
    reach: [layers, heads], the effective number of things that a token reads.
    """
    layers = len(reach)
    colours, lines = layer_colours(layers), ("-", "--")
    with drawing(12, 3.6) as figure:
        far, what, wide = figure.subplots(1, 3, width_ratios=[1.3, 1, 1])
        for weights, line in zip(by_distance.values(), lines, strict=False):
            back = np.arange(1, weights.shape[1] + 1)
            for row, colour, label in zip(weights, colours, layer_labels(range(layers)), strict=True):
                shown = label if line == "-" else None
                far.plot(back, np.where(row > 0, row, np.nan), line, color=colour, lw=1.3, label=shown)
        if len(by_distance) > 1:
            far.plot([], [], "--", color=MUTED, label=f"on {list(by_distance)[1]}")
        far.set(xscale="log", yscale="log", xlabel="tokens back (1 is the token itself)", ylabel="mean weight")
        far.set_title("How far back")
        log_ticks(far.xaxis)
        log_ticks(far.yaxis)
        far.legend(fontsize=7)
        bottom = np.zeros(layers)
        for (name, share), colour in zip(shares.items(), SHARES, strict=False):
            what.bar(range(layers), share, bottom=bottom, color=colour, width=0.7, label=name)
            bottom = bottom + np.nan_to_num(share)
        what.set(xlabel="layer", ylabel="share of the weight", ylim=(0, 1.25), title="On what")
        what.set_yticks([0, 0.25, 0.5, 0.75, 1])
        what.legend(ncols=2, fontsize=7, loc="upper center")
        for layer in range(layers):
            wide.plot([layer] * reach.shape[1], reach[layer], "o", ms=4, color=colours[layer], alpha=0.7)
        wide.plot(reach.mean(1), "_-", ms=14, color=MUTED, lw=1.2, label="mean of the heads")
        wide.set(xlabel="layer", ylabel="exp(entropy)", title="How many things at once")
        wide.set_ylim(bottom=0)
        wide.legend(fontsize=7)
        for axes in (what, wide):
            axes.set_xticks(few(layers, 12))
        return write(figure, path, {"by_distance": by_distance, "shares": shares, "reach": reach})


def _map(axes: Axes, weights: NDArray, colours: str, interpolation: str) -> None:
    from matplotlib.colors import PowerNorm

    norm = PowerNorm(0.4, 0, max(float(np.nanmax(weights, initial=0)), 1e-9))
    axes.imshow(weights, cmap=colours, norm=norm, interpolation=interpolation)
    axes.grid(False)


def _short(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.0f}" if value >= 10 else f"{value:.2g}"
