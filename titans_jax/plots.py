"""Pictures of a run and of a memory at work, each with its numbers in a JSON file beside it.

Needs matplotlib, the optional extra `plot`. Only its object interface is used: no window, no global state.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _MUTED, _GRID = "#1d2433", "#6b7280", "#e5e7eb"
_TRAIN, _HELD_OUT = "#4f7cc4", "#d9622b"
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": "#9ca3af",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "legend.frameon": False,
}
_PANELS = {
    "surprise": "Surprise: the memory's loss on each token before it is written",
    "grad_norm": "Size of each token's update: norm of its gradient",
    "momentum_norm": "Momentum: norm of what past surprises still add",
    "weight_norm": "Memory: norm of the fast weights",
}


def loss_curve(records: Iterable[Mapping[str, Any]], path: str | os.PathLike[str]) -> "Figure":
    """Draws train and held-out bits per byte (or loss, where a record has no other) against the step.

    `records` as `metrics.read_records` returns them. Writes `path` and the JSON beside it; returns the figure.
    Raises ValueError if no record has a loss, ImportError without matplotlib.
    """
    chosen = [r for r in records if r["split"] in ("train", "held_out") and {"loss", "bits_per_byte"} & r.keys()]
    if not chosen:
        raise ValueError("records: none of split 'train' or 'held_out' has a loss or bits_per_byte")
    name = "bits_per_byte" if all("bits_per_byte" in r for r in chosen) else "loss"
    unit = "bits per byte" if name == "bits_per_byte" else "loss (nats a token)"
    chosen = [r for r in chosen if name in r]
    numbers = {
        split: {"step": [r["step"] for r in chosen if r["split"] == split],
                name: [r[name] for r in chosen if r["split"] == split]}
        for split in ("train", "held_out")
    }  # fmt: skip
    figure = _figure(7.5, 4.2)
    with _style():
        axes = figure.subplots()
        steps, values = (np.asarray(numbers["train"][key], float) for key in ("step", name))
        if len(steps):
            many = len(steps) > 40
            axes.plot(steps, values, color=_TRAIN, lw=0.8 if many else 1.6, alpha=0.35 if many else 1.0,
                      label=None if many else "train")  # fmt: skip
            if many:
                axes.plot(steps, _smooth(values), color=_TRAIN, lw=1.8, label="train, smoothed")
        steps, values = (np.asarray(numbers["held_out"][key], float) for key in ("step", name))
        if len(steps):
            axes.plot(steps, values, color=_HELD_OUT, lw=1.4, marker="o", ms=4, label="held out")
            _mark_lowest(axes, steps, values)
        axes.set(xlabel="step", ylabel=unit, title="Learning curve")
        axes.locator_params(axis="x", integer=True)
        every = np.concatenate([np.asarray(numbers[split][name], float) for split in numbers])
        _cut_the_start(axes, every)
        axes.legend(loc="upper right")
        return _write(figure, path, numbers)


def memory_picture(
    info: Any, path: str | os.PathLike[str], text: Sequence[str] | None = None, *, row: int = 0, marks: int = 24
) -> "Figure":
    """Draws what the memory of each layer did over the tokens of one row, means over heads.

    `info` is a record of arrays [layers, batch, heads, T] named surprise, grad_norm, momentum_norm, weight_norm and
    clipped, such as `memory.Info`. `text` has one piece for each token (a str where tokens are characters); the
    `marks` most surprising ones are written along the x axis, with what came before them. Writes `path` and the
    JSON beside it; returns the figure. Raises ValueError if shapes or lengths do not fit, ImportError without
    matplotlib.
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

    figure = _figure(12, 9.4 if marked else 8.4)
    with _style():
        panels = figure.subplots(4, 1, sharex=True, height_ratios=[1.5, 1, 1, 1])
        for axes, (name, title) in zip(panels, _PANELS.items(), strict=True):
            _lines(axes, means[name], _layer_colours(layers), stepped=name in ("momentum_norm", "weight_norm"))
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
    return _write(figure, path, numbers)


def _figure(width: float, height: float) -> "Figure":
    _matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)
    figure = Figure(figsize=(width, height), dpi=150, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ImportError("pictures need matplotlib: pip install titans-jax[plot]") from None
    return matplotlib


def _style() -> Any:
    return _matplotlib().rc_context(_STYLE)


def _smooth(values: np.ndarray) -> np.ndarray:
    """A centred moving average over a fiftieth of the run, over what there is at the ends and without nan."""
    window = np.ones(2 * max(1, len(values) // 100) + 1)
    finite = np.isfinite(values)
    total = np.convolve(np.where(finite, values, 0.0), window, mode="same")
    count = np.convolve(finite.astype(float), window, mode="same")
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _mark_lowest(axes: "Axes", steps: np.ndarray, values: np.ndarray) -> None:
    if not np.isfinite(values).any():
        return
    at = int(np.nanargmin(values))
    axes.annotate(
        f"{values[at]:.3f}",
        (steps[at], values[at]),
        xytext=(0, -12),
        textcoords="offset points",
        ha="center",
        va="top",
        color=_HELD_OUT,
        fontweight="bold",
    )


def _cut_the_start(axes: "Axes", values: np.ndarray) -> None:
    """Lets the first steps of a long run leave the picture at the top, so that the rest can be told apart."""
    finite = values[np.isfinite(values)]
    if len(finite) > 40:
        low, high = finite.min(), np.quantile(finite, 0.98)
        axes.set_ylim(low - 0.1 * (high - low), high + 0.05 * (high - low))


def _layer_colours(layers: int) -> list[Any]:
    if layers == 1:
        return [_TRAIN]
    return list(_matplotlib().colormaps["plasma"](np.linspace(0.08, 0.85, layers)))


def _lines(axes: "Axes", values: np.ndarray, colours: Sequence[Any], *, stepped: bool) -> None:
    crowded = len(colours) > 4
    drawstyle: Any = "steps-mid" if stepped else "default"
    for layer, colour in enumerate(colours):
        axes.plot(values[layer], color=colour, lw=0.7 if crowded else 1.0, ds=drawstyle, label=f"layer {layer}")
    if crowded:
        axes.plot(values.mean(axis=0), color=_INK, lw=1.8, ds=drawstyle, label="mean")
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
    """The positions of the highest peaks, far enough apart that their names do not touch."""
    apart = max(1, math.ceil(len(surprise) / 75))
    chosen: list[int] = []
    for position in np.argsort(-np.nan_to_num(surprise, nan=-np.inf), kind="stable"):
        if len(chosen) < marks and all(abs(position - other) >= apart for other in chosen):
            chosen.append(int(position))
    return sorted(chosen)


def _write_marks(panels: Sequence["Axes"], surprise: np.ndarray, text: Sequence[str], marked: Sequence[int]) -> None:
    from matplotlib.font_manager import fontManager, get_font

    drawable = get_font(fontManager.findfont("DejaVu Sans Mono")).get_charmap()

    def shown(piece: str) -> str:
        piece = piece.replace("\n", "↵").replace("\t", "→")
        return "".join(letter if ord(letter) in drawable else "□" for letter in piece)

    names = []
    for position in marked:
        before = "".join(text[max(0, position - 12) : position])[-12:]
        names.append(f"{shown(before)}[{shown(text[position]).replace(' ', '␣')}]")
    below = panels[0].secondary_xaxis("bottom")
    below.set_xticks(list(marked), names, rotation=90, family="DejaVu Sans Mono", fontsize=6.5, color=_INK)
    for label in below.get_xticklabels():
        label.set_parse_math(False)
    for axes in panels:
        for position in marked:
            axes.axvline(position, color=_HELD_OUT, lw=0.6, alpha=0.35, zorder=0)
    panels[0].plot(marked, surprise[marked], "v", color=_HELD_OUT, ms=4)


def _write(figure: "Figure", path: str | os.PathLike[str], numbers: Mapping[str, Any]) -> "Figure":
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    path.with_suffix(".json").write_text(json.dumps(_rounded(numbers)) + "\n", encoding="utf-8")
    return figure


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
