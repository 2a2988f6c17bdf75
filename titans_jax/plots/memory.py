"""Pictures of memories over the tokens of a text: surprise, gates, updates and weights."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from titans_jax.plots.legends import layer_colours, layer_labels, legend_above
from titans_jax.plots.style import INK, MUTED, ORANGE, drawable, drawing, few, log_ticks, one_shape, write
from titans_jax.plots.types import Axes, Figure, Target

_PANELS = {
    "surprise": "Surprise: the memory's loss on each token before it is written",
    "grad_norm": "Size of each token's update: norm of its gradient",
    "momentum_norm": "Momentum: norm of the gradients' running sum",
    "weight_norm": "Memory: norm of the fast weights",
}


def memory_picture(info: Any, path: Target, text: Sequence[str] | None = None, *, marks: int = 24) -> Figure:
    """Draws surprise, gradients, momentum and weights of each layer's memory over one text; means over heads.

    Args:
      info: arrays [layers, heads, T] named surprise, grad_norm, momentum_norm, weight_norm and clipped.
      text: the text of each token; the `marks` most surprising ones are written along the x axis, with their context.

    Raises ValueError: shapes or lengths do not fit.
    """
    arrays = {name: np.asarray(getattr(info, name), np.float32) for name in [*_PANELS, "clipped"]}
    layers, _, tokens = one_shape(arrays, "layers", "heads", "T")
    if text is not None and len(text) != tokens:
        raise ValueError(f"text has {len(text)} pieces for {tokens} tokens; give one piece for each token")
    means = {name: array.mean(axis=1) for name, array in arrays.items()}
    marked = [] if text is None else _most_surprising(means["surprise"].mean(axis=0), marks)

    # A rule without momentum has nothing but zeros to show there.
    names = [name for name in _PANELS if name != "momentum_norm" or means[name].any()]
    with drawing(12, 2 * len(names) + (1.4 if marked else 0.4)) as figure:
        panels = figure.subplots(len(names), 1, sharex=True, height_ratios=[1.5] + [1] * (len(names) - 1))
        for axes, name in zip(panels, names, strict=True):
            _lines(axes, means[name], stepped=name in ("momentum_norm", "weight_norm"))
            axes.set(title=_PANELS[name], ylabel="loss" if name == "surprise" else "norm")
        _show_clipped(panels[1], means["clipped"])
        panels[-1].set_xlabel("token")
        if layers > 1:
            legend_above(panels[0])
        if text is not None and marked:
            _write_marks(panels, means["surprise"].max(axis=0), text, marked)
    numbers: dict[str, Any] = dict(means)
    if text is not None:
        numbers["marked"] = [
            {"token": i, "text": text[i], "surprise": float(means["surprise"][:, i].mean())} for i in marked
        ]
    return write(figure, path, numbers)


def _lines(axes: Axes, values: np.ndarray, *, stepped: bool) -> None:
    layers, crowded = len(values), len(values) > 4
    drawstyle: Any = "steps-mid" if stepped else "default"
    for line, colour, label in zip(values, layer_colours(layers), layer_labels(range(layers)), strict=True):
        axes.plot(line, color=colour, lw=0.7 if crowded else 1.0, ds=drawstyle, label=label)
    if crowded:
        axes.plot(values.mean(axis=0), color=INK, lw=1.8, ds=drawstyle, label="mean")
    axes.set_xlim(-0.5, values.shape[1] - 0.5)
    axes.margins(y=0.08)


def _show_clipped(axes: Axes, clipped: np.ndarray) -> None:
    anywhere = clipped.max(axis=0) > 0
    if anywhere.any():
        where = np.arange(clipped.shape[1])
        axes.fill_between(
            where, 0, 0.04, where=anywhere, step="mid", transform=axes.get_xaxis_transform(), color="#c0392b", lw=0
        )
        axes.set_title(axes.get_title(loc="left") + " (red: the chunk's sum was clipped)")


def _most_surprising(surprise: np.ndarray, marks: int) -> list[int]:
    """The positions of the highest peaks, far enough apart that their labels do not overlap."""
    apart = max(1, math.ceil(len(surprise) / 75))
    chosen: list[int] = []
    for position in np.argsort(-np.nan_to_num(surprise, nan=-np.inf), kind="stable"):
        if len(chosen) < marks and all(abs(position - other) >= apart for other in chosen):
            chosen.append(int(position))
    return sorted(chosen)


def _write_marks(panels: Sequence[Axes], surprise: np.ndarray, text: Sequence[str], marked: Sequence[int]) -> None:
    names = []
    for position in marked:
        before = "".join(text[max(0, position - 12) : position])[-12:]
        names.append(f"{drawable(before)}[{drawable(text[position]).replace(' ', '␣')}]")
    below = panels[0].secondary_xaxis("bottom")
    below.set_xticks(list(marked), names, rotation=90, family="DejaVu Sans Mono", fontsize=6.5, color=INK)
    for label in below.get_xticklabels():
        label.set_parse_math(False)
    for axes in panels:
        for position in marked:
            axes.axvline(position, color=ORANGE, lw=0.6, alpha=0.35, zorder=0)
    panels[0].plot(marked, surprise[marked], "v", color=ORANGE, ms=4)


def memory_activity(values: Mapping[str, NDArray], path: Target, *, names: Sequence[int] | None = None) -> Figure:
    """Draws a coloured strip for each of `values`, [layers, heads, T] by title: rows are heads, columns tokens.

    names: the layers' numbers, if they are not 0, 1, .... At most six layers and four heads are drawn. The JSON has
    means over heads. Raises ValueError if shapes differ.
    """
    layers, count, tokens = one_shape(values, "layers", "heads", "T")
    rows, heads = few(layers, 6), few(count, 4)
    numbers = list(names or range(layers))
    with drawing(12, len(values) * (0.16 * len(rows) * len(heads) + 0.55) + 0.4) as figure:
        panels = figure.subplots(len(values), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (title, array) in zip(panels, values.items(), strict=True):
            strip = array[np.ix_(rows, heads)].reshape(-1, tokens)
            shown = axes.imshow(
                strip, aspect="auto", cmap="magma_r", interpolation="nearest", vmin=_low(strip), vmax=_high(strip)
            )
            axes.grid(False)
            axes.set_title(title, fontsize=9)
            middles = [len(heads) * (i + 0.5) - 0.5 for i in range(len(rows))]
            axes.set_yticks(middles, [f"layer {numbers[i]}" for i in rows], fontsize=7)
            axes.tick_params(axis="y", length=0)
            for i in range(1, len(rows)):
                axes.axhline(len(heads) * i - 0.5, color="white", lw=1.5)
            bar = figure.colorbar(shown, ax=axes, fraction=0.03, pad=0.005)
            bar.ax.tick_params(labelsize=6)
            bar.ax.yaxis.get_offset_text().set_fontsize(6)
        panels[-1].set_xlabel(f"token; in each layer {len(heads)} of its {count} heads, one below the other")
        return write(figure, path, {title: array.mean(1) for title, array in values.items()})


def memory_updates(
    surprise: NDArray,
    change: NDArray,
    ends: Sequence[int],
    learned: Mapping[str, Mapping[int, NDArray]],
    path: Target,
) -> Figure:
    """Draws the sizes of the writes, their correlation with surprise, and how the weights change.

    surprise, change: [layers, T], means over heads; change is the norm of a token's change. ends: tokens read at each
    measurement of the weights. learned: as from `evaluation.statistics.learned`. The JSON has all of them, and each
    layer's rank correlation of surprise and change.
    """
    layers = list(learned["rank"])
    colours = layer_colours(len(layers))
    correlations = [_rank_correlation(x, y) for x, y in zip(surprise, change, strict=True)]
    with drawing(12, 6.6) as figure:
        panels = figure.subplots(2, 3).ravel()
        for row, (layer, colour, label) in enumerate(zip(layers, colours, layer_labels(layers), strict=True)):
            sizes = np.sort(change[row][change[row] > 0])
            panels[0].plot(sizes, np.linspace(0, 1, len(sizes)), color=colour, label=label)
            panels[1].plot(surprise[row], change[row], ".", ms=3, alpha=0.6, color=colour)
            for axes, values in zip(panels[2:5], learned.values(), strict=True):
                axes.plot(ends, values[layer], "o-", ms=3, color=colour)
        panels[0].set(xscale="log", xlabel="norm of a token's change", ylabel="share of tokens below")
        panels[0].set_title("Sizes of the writes")
        panels[1].set(yscale="log", xlabel="surprise", ylabel="norm of the change")
        panels[1].set_title("Does surprise drive the writes?")
        titles = ("Effective rank of the fast weights", "Effective rank of what was learned", "Drift")
        marks = (
            "exp(entropy of singular values)",
            "exp(entropy of singular values)",
            "|W - W at first| / |W at first|",
        )
        for axes, title, mark in zip(panels[2:5], titles, marks, strict=True):
            axes.set(xlabel="tokens read", ylabel=mark, title=title)
        log_ticks(panels[0].xaxis)
        log_ticks(panels[1].yaxis)
        panels[5].bar([str(layer) for layer in layers], correlations, color=colours, width=0.6)
        panels[5].axhline(0, color=MUTED, lw=0.8)
        panels[5].set(xlabel="layer", ylabel="Spearman's rho", ylim=(-1, 1), title="Surprise and change, rank by rank")
        panels[0].legend(fontsize=7)
        numbers: dict[str, Any] = {"surprise": surprise, "change": change, "ends": ends}
        numbers |= {name: {str(layer): x for layer, x in values.items()} for name, values in learned.items()}
        return write(figure, path, numbers | {"correlation": correlations})


def _rank_correlation(x: NDArray, y: NDArray) -> float:
    """Spearman's rank correlation; 0 if x or y is constant."""
    first, second = (np.argsort(np.argsort(values)).astype(float) for values in (x, y))
    if not (np.ptp(x) > 0 and np.ptp(y) > 0):
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _low(values: NDArray) -> float:
    return float(np.nanmin(values, initial=np.inf)) if np.isfinite(values).any() else 0.0


def _high(values: NDArray) -> float:
    """The 99th percentile, so that a few peaks do not use up the colour scale."""
    if not np.isfinite(values).any():
        return 1.0
    return max(float(np.nanquantile(values, 0.99)), _low(values) + 1e-12)
