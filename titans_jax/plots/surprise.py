"""Pictures of a memory that reads a series: a dashboard, a memory that learns, and readings side by side."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from titans_jax.plots.legends import legend_above
from titans_jax.plots.style import BLUE, INK, MUTED, ORANGE, drawing, log_ticks, matplotlib, write
from titans_jax.plots.types import Axes, Figure, Target

RED = "#c0392b"
SHOWN_WEIGHTS = 12


def surprise_dashboard(
    series: ArrayLike,
    record: Any,
    path: Target,
    *,
    mask: ArrayLike | None = None,
    title: str = "",
    mark: str = "anomaly",
) -> Figure:
    """Draws a series, its surprise, the momentum of surprise, what each step wrote, and the memory's size.

    Panel 4 has |W_t - W_{t-1}| of the first 12 weights of the first layer, panel 5 the sum of the layers' norms.

    Args:
      series: [T], or [T, D] with a line for each channel.
      record: surprise and momentum [T], and weights, a mapping of the memory's layers [T, in, out] after each step,
        such as `series.SeriesRecord` with snapshots.
      mask: [T] bool, the steps to mark; mark is what they are.

    Raises ValueError: lengths differ, or there are no weights.
    """
    values, surprise, momentum = (np.asarray(x, np.float32) for x in (series, record.surprise, record.momentum))
    T = len(values)
    marked = _marked(mask, T)
    if record.weights is None:
        raise ValueError("record: it has no weights; process the series with snapshots=True")
    layers = [np.asarray(layer, np.float32).reshape(len(layer), -1) for layer in record.weights.values()]
    if any(len(x) != T for x in (surprise, momentum, *layers)):
        raise ValueError(f"record: of {len(surprise)} steps, the series has {T}")
    changes = np.abs(np.diff(layers[0][:, :SHOWN_WEIGHTS], axis=0)).T
    norms = np.sum([np.linalg.norm(layer, axis=1) for layer in layers], axis=0)

    with drawing(14, 10) as figure:
        grid = figure.add_gridspec(3, 2)
        places = (grid[0, :], grid[1, 0], grid[1, 1], grid[2, 0], grid[2, 1])
        panels = [figure.add_subplot(place) for place in places]
        _series(panels[0], values, marked, mark)
        _line(
            panels[1], surprise, marked, "Raw Surprise", "loss before the write", colour=ORANGE, log=surprise.min() > 0
        )
        _line(panels[2], momentum, marked, "Momentum Surprise", "norm of the momentum", colour=BLUE)
        _heatmap(panels[3], changes)
        _line(panels[4], norms, marked, "Memory Weight Norm", "sum of the layers' norms", colour=INK)
        figure.suptitle(title, fontsize=14, fontweight="bold")
        numbers = {"series": values, "surprise": surprise, "momentum": momentum, "weight_norm": norms}
        return write(figure, path, numbers | {"marked": marked})


def learning_picture(series: ArrayLike, prediction: ArrayLike, surprise: ArrayLike, shift: int, path: Target) -> Figure:
    """Draws a memory that learns a wave, is surprised when the wave changes, and learns the new one.

    series: [T]. prediction: [T], of each value, made before it was read. surprise: [T]. shift: the step of the change.
    """
    series, prediction, surprise = (np.asarray(x, np.float32) for x in (series, prediction, surprise))
    T, window = len(series), 10
    mean = np.convolve(surprise, np.ones(window) / window, mode="valid")  # of the last `window` values
    with drawing(6.4, 3.8) as figure, matplotlib().rc_context({"font.size": 10, "axes.titlesize": 11}):
        top, bottom = figure.subplots(2, 1, sharex=True)
        top.plot(series, color=MUTED, lw=4, alpha=0.4, label="the series")
        top.plot(prediction, color=BLUE, lw=1.6, label="the memory's prediction of each value")
        top.set(title="A memory learns a wave while it reads it", ylim=(-1.5, 2.4), yticks=[-1, 0, 1])
        top.legend(loc="upper left", ncols=2, borderaxespad=0.0)
        top.axvline(shift, ymax=0.72, color=INK, lw=1.2, ls="--")
        bottom.plot(surprise, color=ORANGE, lw=0.8, alpha=0.3)
        bottom.plot(np.arange(window - 1, T), mean, color=ORANGE, lw=2.2)
        bottom.set(
            title=f"Surprise: the prediction's squared error (bold: mean of the last {window})", xlabel="values read"
        )
        bottom.set(ylim=(0, 2.3), yticks=[0, 1, 2], xlim=(0, T - 1))
        bottom.axvline(shift, color=INK, lw=1.2, ls="--")
        bottom.text(27, 1.5, "knows nothing yet")
        bottom.text(shift - 4, 0.8, "has learned the wave", ha="right")
        bottom.text(shift - 4, 1.9, "the wave changes", ha="right")
        bottom.text(shift + 4, 1.9, "surprised")
        bottom.text(T - 4, 0.5, "has learned the new wave", ha="right")
        numbers = {"series": series, "prediction": prediction, "surprise": surprise, "shift": shift}
        return write(figure, path, numbers)


def surprise_grid(
    readings: Mapping[str, ArrayLike],
    path: Target,
    *,
    mask: ArrayLike | None = None,
    title: str = "",
    ylabel: str = "",
) -> Figure:
    """Draws several readings [T] of one series on one scale, two in a row.

    readings: by name. mask: [T] bool, the steps to mark. Raises ValueError without readings, or if lengths differ.
    """
    lines = {name: np.asarray(line, np.float32) for name, line in readings.items()}
    lengths = {len(line) for line in lines.values()}
    if len(lengths) != 1:
        raise ValueError(f"readings: of {len(lines)} names with lengths {sorted(lengths)}; expected one length")
    marked = _marked(mask, lengths.pop())
    rows = -(-len(lines) // 2)
    with drawing(12, 1 + 3.2 * rows) as figure:
        panels = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, (name, line) in zip(panels, lines.items(), strict=False):
            _line(axes, line, marked, name, ylabel, colour=BLUE)
        for axes in panels[len(lines) :]:
            axes.set_visible(False)
        figure.suptitle(title, fontsize=13, fontweight="bold")
        return write(figure, path, lines | {"marked": marked})


def _marked(mask: ArrayLike | None, length: int) -> NDArray[np.int64]:
    found = np.zeros(length, bool) if mask is None else np.asarray(mask, bool)
    if found.shape != (length,):
        raise ValueError(f"mask: shape {found.shape}; expected [{length}]")
    return np.flatnonzero(found)


def _series(axes: Axes, values: np.ndarray, marked: np.ndarray, mark: str) -> None:
    axes.plot(values, color=BLUE if values.ndim == 1 else None, lw=1.2)
    channels = values.reshape(len(values), -1)
    where = np.repeat(marked, channels.shape[1])
    axes.scatter(where, channels[marked].ravel(), color=RED, s=42, zorder=3, label=mark)
    axes.set(title="Input Sequence", xlabel="Timestep", ylabel="value")
    axes.set_xlim(-0.5, len(values) - 0.5)
    if len(marked):
        legend_above(axes)


def _line(
    axes: Axes, line: np.ndarray, marked: np.ndarray, title: str, ylabel: str, *, colour: str, log: bool = False
) -> None:
    for step in marked:
        axes.axvline(step, color=RED, lw=0.8, alpha=0.4, zorder=1.5)
    axes.plot(line, color=colour, lw=1.3)
    axes.set(title=title, xlabel="Timestep", ylabel=ylabel)
    axes.set_xlim(-0.5, len(line) - 0.5)
    if log:
        axes.set_yscale("log")
        log_ticks(axes.yaxis)
    else:
        axes.set_ylim(bottom=0)


def _heatmap(axes: Axes, changes: np.ndarray) -> None:
    weights, steps = changes.shape
    image = axes.imshow(changes, aspect="auto", cmap="YlOrRd", interpolation="nearest",
                        extent=(0.5, steps + 0.5, weights - 0.5, -0.5))  # fmt: skip
    axes.set(
        title="Memory Update Intensity: |change| of the first layer's first weights",
        xlabel="Timestep",
        ylabel="Weight Index",
    )
    axes.set_xlim(-0.5, steps + 0.5)
    axes.grid(False)
    axes.figure.colorbar(image, ax=axes, pad=0.01)
