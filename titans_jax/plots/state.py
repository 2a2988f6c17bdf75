"""Pictures of a model's state: the memories' weights, norms of keys, and the cost of removing parts."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from titans_jax.plots.legends import layer_colours
from titans_jax.plots.style import BLUE, MUTED, ORANGE, drawing, few, write
from titans_jax.plots.types import Axes, Figure, Target

Layers = Mapping[int, Mapping[str, NDArray]]
NEGLIGIBLE = 5e-4  # nats per token, drawn as 0
_CUTS = (ORANGE, BLUE, "#7a9e4d", "#8b6bb1")


def memory_state(first: Layers, last: Layers, path: Target) -> Figure:
    """Draws the matrices of every layer's memory at the end, and beside them their change by the text.

    first, last: by layer the fast weights {name: [heads, in, out]}. At most eight layers, two heads and two matrices
    are drawn. The JSON has the norms of both. Raises ValueError if first and last have different layers.
    """
    if first.keys() != last.keys() or not first:
        raise ValueError(f"first has layers {list(first)}, last {list(last)}; expected the same, at least one")
    layers = [list(first)[i] for i in few(len(first), 8)]
    stacks = first[layers[0]]
    names = [list(stacks)[i] for i in few(len(stacks), 2)]
    heads = few(min(len(stack) for stack in stacks.values()), 2)
    columns = [(name, head) for head in heads for name in names]
    with drawing(3.0 * len(columns) + 0.6, 1.25 * len(layers) + 0.9) as figure:
        parts: Any = figure.subfigures(1, 2)
        changes = {layer: {n: last[layer][n] - first[layer][n] for n in last[layer]} for layer in last}
        for part, title, values in zip(parts, ("at the end", "changed by the text"), (last, changes), strict=True):
            part.suptitle(f"Fast weights {title}", fontsize=10)
            panels = part.subplots(len(layers), len(columns), squeeze=False)
            for i, layer in enumerate(layers):
                most = max(np.abs(values[layer][name][head]).max() for name, head in columns) or 1e-12
                for axes, (name, head) in zip(panels[i], columns, strict=True):
                    matrix = values[layer][name][head]
                    matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
                    axes.imshow(matrix, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
                    axes.set(xticks=[], yticks=[])
                    axes.grid(False)
                    if i == 0:
                        axes.set_title(f"head {head}, {name}", fontsize=8)
                panels[i, -1].annotate(f"±{most:.2g}", (1, 0), xycoords="axes fraction", xytext=(-2, 2),
                                       textcoords="offset points", ha="right", va="bottom", fontsize=6,
                                       bbox={"fc": "white", "ec": "none", "alpha": 0.8, "pad": 1})  # fmt: skip
                panels[i, 0].set_ylabel(f"layer {layer}", fontsize=8)
        return write(figure, path, {"norm": _norms(last), "norm_of_change": _norms(changes)})


def norms(values: Mapping[str, NDArray], path: Target) -> Figure:
    """Draws box plots over the tokens for each of `values`, [layers, heads, T] by title, such as norms of keys.

    Whiskers end at 5% and 95%. Layers that are all nan are left out; at most twelve are drawn. The JSON has medians
    [layers][heads].
    """
    with drawing(4.1 * len(values), 3.4) as figure:
        panels = np.atleast_1d(figure.subplots(1, len(values)))
        for axes, (title, array) in zip(panels, values.items(), strict=True):
            layers = [i for i in few(len(array), 12) if np.isfinite(array[i]).any()]
            heads = array.shape[1]
            colours = layer_colours(heads)
            for head in range(heads):
                places = [i + 0.8 * ((head + 0.5) / heads - 0.5) for i in range(len(layers))]
                boxes = axes.boxplot(
                    [array[layer, head] for layer in layers], positions=places, widths=0.62 / heads,
                    whis=(5, 95), showfliers=False, patch_artist=True, medianprops={"color": "white"},
                )  # fmt: skip
                for box in boxes["boxes"]:
                    box.set(facecolor=colours[head], edgecolor="none")
                for line in boxes["whiskers"] + boxes["caps"]:
                    line.set(color=colours[head], lw=0.8)
                axes.plot([], [], "s", color=colours[head], label=f"head {head}")
            axes.set_xticks(range(len(layers)), [str(layer) for layer in layers])
            axes.set(xlabel="layer", title=title)
            axes.set_ylim(bottom=0)
            if heads <= 8:
                axes.legend(fontsize=6, ncols=min(heads, 4), loc="lower left")
        medians = {title: np.median(array, -1) for title, array in values.items()}
        return write(figure, path, {"median": medians})


def ablation_bars(found: Mapping[str, Mapping[str, list[float | None]]], path: Target) -> Figure:
    """Draws the cost of removing each part of each layer, as from `evaluation.ablate`.

    Costs below NEGLIGIBLE are drawn as 0; the JSON has the numbers themselves.
    """
    panels = {
        "divergence": "Change of the predictions: KL, nats per token",
        "loss": "Increase of the loss, nats per token",
    }
    with drawing(12, 3.6) as figure:
        for axes, (name, title) in zip(figure.subplots(1, 2), panels.items(), strict=True):
            _bars(axes, {cut: values[name] for cut, values in found.items()})
            axes.set(xlabel="layer", title=title)
            axes.axhline(0, color=MUTED, lw=0.8)
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        return write(figure, path, found)


def _bars(axes: Axes, rows: Mapping[str, list[float | None]]) -> None:
    width = 0.8 / len(rows)
    for i, (cut, values) in enumerate(rows.items()):
        places = np.arange(len(values)) + width * (i + 0.5) - 0.4
        heights = np.array([np.nan if value is None else value for value in values])
        heights = np.where(np.abs(heights) < NEGLIGIBLE, 0, heights)
        bars = axes.bar(places, heights, width=0.92 * width, color=_CUTS[i], label=f"without {cut}")
        if len(values) * len(rows) <= 32:
            axes.bar_label(bars, fmt=lambda x: f"{x:.3f}" if x else "0", fontsize=6.5, rotation=90, padding=2)
    axes.margins(y=0.15)
    axes.set_xticks(few(len(values), 12))


def positions_curve(found: Mapping[str, list[float | None]], path: Target) -> Figure:
    """Draws loss and accuracy by position, as from `evaluation.by_position`."""
    middle = (np.array(found["first"], float) + np.array(found["last"], float)) / 2
    with drawing(12, 3.4) as figure:
        loss, accuracy = figure.subplots(1, 2)
        values, error = (np.array(found[name], float) for name in ("loss", "standard_error"))
        loss.fill_between(middle, values - 2 * error, values + 2 * error, color=ORANGE, alpha=0.2, lw=0)
        loss.plot(middle, values, color=ORANGE, marker="o", ms=3)
        loss.set(xlabel="position in the sequence", ylabel="nats per token", title="Loss (band: two standard errors)")
        accuracy.plot(middle, found["accuracy"], color=BLUE, marker="o", ms=3)
        accuracy.set(xlabel="position in the sequence", ylabel="share of tokens", title="Accuracy")
        return write(figure, path, found)


def _norms(layers: Layers) -> dict[str, dict[str, NDArray]]:
    return {
        str(layer): {name: np.sqrt(np.square(w).sum((-2, -1))) for name, w in weights.items()}
        for layer, weights in layers.items()
    }
