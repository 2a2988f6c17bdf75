"""The picture of each layer's memory over the tokens of a text."""

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from titans_jax.plots.style import INK, ORANGE, drawable, figure_of, layer_colours, style, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS = {
    "surprise": "Surprise: the memory's loss on each token before it is written",
    "grad_norm": "Size of each token's update: norm of its gradient",
    "momentum_norm": "Momentum: norm of the gradients' running sum",
    "weight_norm": "Memory: norm of the fast weights",
}


def memory_picture(
    info: Any, path: str | os.PathLike[str], text: Sequence[str] | None = None, *, row: int = 0, marks: int = 24
) -> "Figure":
    """Draws surprise, gradients, momentum and weights of each layer's memory, for one row; means over heads.

    Args:
      info: arrays [layers, batch, heads, T] named surprise, grad_norm, momentum_norm, weight_norm and clipped.
      text: the text of each token; the `marks` most surprising ones are written along the x axis, with their context.
      row: of the batch.

    Raises:
      ValueError: shapes or lengths do not fit.
    """
    arrays = {name: np.asarray(getattr(info, name), np.float32) for name in [*_PANELS, "clipped"]}
    shape = arrays["surprise"].shape
    if len(shape) != 4 or any(array.shape != shape for array in arrays.values()):
        found = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"info: expected arrays of one shape [layers, batch, heads, tokens], not {found}")
    layers, batch, _, tokens = shape
    if text is not None and len(text) != tokens:
        raise ValueError(f"text has {len(text)} pieces for {tokens} tokens; give one piece for each token")
    if not 0 <= row < batch:
        raise ValueError(f"row={row}: expected 0 to {batch - 1}")
    means = {name: array[:, row].mean(axis=1) for name, array in arrays.items()}
    marked = [] if text is None else _most_surprising(means["surprise"].mean(axis=0), marks)

    figure = figure_of(12, 9.4 if marked else 8.4)
    with style():
        panels = figure.subplots(4, 1, sharex=True, height_ratios=[1.5, 1, 1, 1])
        for axes, (name, title) in zip(panels, _PANELS.items(), strict=True):
            _lines(axes, means[name], layer_colours(layers), stepped=name in ("momentum_norm", "weight_norm"))
            axes.set_title(title)
        _show_clipped(panels[1], means["clipped"])
        panels[-1].set_xlabel("token")
        if layers > 1:
            _layer_legend(panels[0])
        if text is not None and marked:
            _write_marks(panels, means["surprise"].max(axis=0), text, marked)
    numbers: dict[str, Any] = {name: mean.tolist() for name, mean in means.items()}
    if text is not None:
        numbers["marked"] = [
            {"token": i, "text": text[i], "surprise": float(means["surprise"][:, i].mean())} for i in marked
        ]
    return write(figure, path, numbers)


def _lines(axes: "Axes", values: np.ndarray, colours: Sequence[Any], *, stepped: bool) -> None:
    crowded = len(colours) > 4
    drawstyle: Any = "steps-mid" if stepped else "default"
    for layer, colour in enumerate(colours):
        axes.plot(values[layer], color=colour, lw=0.7 if crowded else 1.0, ds=drawstyle, label=f"layer {layer}")
    if crowded:
        axes.plot(values.mean(axis=0), color=INK, lw=1.8, ds=drawstyle, label="mean")
    axes.set_xlim(-0.5, values.shape[1] - 0.5)
    axes.margins(y=0.08)


def _show_clipped(axes: "Axes", clipped: np.ndarray) -> None:
    anywhere = clipped.max(axis=0) > 0
    if anywhere.any():
        where = np.arange(clipped.shape[1])
        axes.fill_between(
            where, 0, 0.04, where=anywhere, step="mid", transform=axes.get_xaxis_transform(), color="#c0392b", lw=0
        )
        axes.set_title(axes.get_title(loc="left") + " (red: the chunk's sum was clipped)")


def _layer_legend(axes: "Axes") -> None:
    lines, names = axes.get_legend_handles_labels()
    if len(lines) > 8:  # the last is their mean
        chosen = [0, len(lines) // 2 - 1, len(lines) - 2, len(lines) - 1]
        lines, names = [lines[i] for i in chosen], [names[i] for i in chosen]
    axes.legend(lines, names, ncols=len(lines), loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)


def _most_surprising(surprise: np.ndarray, marks: int) -> list[int]:
    """The positions of the highest peaks, far enough apart that their labels do not overlap."""
    apart = max(1, math.ceil(len(surprise) / 75))
    chosen: list[int] = []
    for position in np.argsort(-np.nan_to_num(surprise, nan=-np.inf), kind="stable"):
        if len(chosen) < marks and all(abs(position - other) >= apart for other in chosen):
            chosen.append(int(position))
    return sorted(chosen)


def _write_marks(panels: Sequence["Axes"], surprise: np.ndarray, text: Sequence[str], marked: Sequence[int]) -> None:
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
