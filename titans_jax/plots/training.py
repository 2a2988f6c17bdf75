"""Curves: the losses of a run, and bits per byte and surprise along a stream."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from titans_jax.plots.legends import layer_colours, layer_labels, legend_above
from titans_jax.plots.style import BLUE, MUTED, ORANGE, drawing, log_ticks, write
from titans_jax.plots.types import Axes, Figure, Target

_ROOM = 0.14
"""Of the axis, below the lowest value, for the number that is written there."""


def loss_curve(records: Iterable[Mapping[str, Any]], path: Target) -> Figure:
    """Draws training and held-out bits per byte against the step; the loss, where a record lacks bits per byte.

    records: as from `metrics.read_records`. Raises ValueError if no record has a loss.
    """
    chosen = [r for r in records if r["split"] in ("train", "held_out") and {"loss", "bits_per_byte"} & r.keys()]
    if not chosen:
        raise ValueError("records: none of split 'train' or 'held_out' has a loss or bits_per_byte")
    name = "bits_per_byte" if all("bits_per_byte" in r for r in chosen) else "loss"
    unit = "bits per byte" if name == "bits_per_byte" else "loss (nats per token)"
    chosen = [r for r in chosen if name in r]
    numbers = {
        split: {"step": [r["step"] for r in chosen if r["split"] == split],
                name: [r[name] for r in chosen if r["split"] == split]}
        for split in ("train", "held_out")
    }  # fmt: skip
    with drawing(7.5, 4.2) as figure:
        axes = figure.subplots()
        steps, values = (np.asarray(numbers["train"][key], float) for key in ("step", name))
        if len(steps):
            many = len(steps) > 40
            axes.plot(steps, values, color=BLUE, lw=0.8 if many else 1.6, alpha=0.35 if many else 1.0,
                      label=None if many else "train")  # fmt: skip
            if many:
                axes.plot(steps, _smooth(values), color=BLUE, lw=1.8, label="train, smoothed")
        steps, values = (np.asarray(numbers["held_out"][key], float) for key in ("step", name))
        if len(steps):
            axes.plot(steps, values, color=ORANGE, lw=1.4, marker="o", ms=4, label="held out")
            _mark_lowest(axes, steps, values)
        axes.set(xlabel="step", ylabel=unit, title="Learning curve")
        axes.locator_params(axis="x", integer=True)
        every = np.concatenate([np.asarray(numbers[split][name], float) for split in numbers])
        axes.margins(y=_ROOM)
        _crop_start(axes, every)
        legend_above(axes)
        return write(figure, path, numbers)


def _smooth(values: np.ndarray) -> np.ndarray:
    """A centred moving average over a fiftieth of the run, without nan."""
    window = np.ones(2 * max(1, len(values) // 100) + 1)
    finite = np.isfinite(values)
    total = np.convolve(np.where(finite, values, 0.0), window, mode="same")
    count = np.convolve(finite.astype(float), window, mode="same")
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _mark_lowest(axes: Axes, steps: np.ndarray, values: np.ndarray) -> None:
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
        color=ORANGE,
        fontweight="bold",
    )


def _crop_start(axes: Axes, values: np.ndarray) -> None:
    """Crops the highest values, those of the first steps of a long run, so that the others stay distinguishable."""
    finite = values[np.isfinite(values)]
    if len(finite) > 40:
        low, high = finite.min(), np.quantile(finite, 0.98)
        if high > low:
            axes.set_ylim(low - _ROOM * (high - low), high + 0.05 * (high - low))


def recall_picture(found: Mapping[str, Mapping[str, Any]], path: Target) -> Figure:
    """Draws bits per byte, and the share of facts recalled by the length of the text, a bar for each model.

    found: for each of at most three models, bits_per_byte, and recalled {tokens: share} without lengths that did not
    fit.
    """
    names, colours = list(found), (ORANGE, MUTED, BLUE)
    lengths = list(dict.fromkeys(length for row in found.values() for length in row["recalled"]))
    with drawing(9, 3.6) as figure:
        left, right = figure.subplots(1, 2, width_ratios=[1, 2])
        bits = [row["bits_per_byte"] for row in found.values()]
        bars = left.bar(range(len(names)), bits, color=colours[: len(names)])
        left.bar_label(bars, fmt="{:.3f}")
        left.set(title="Held-out text", ylabel="bits per byte", ylim=(0, 1.15 * max(bits)))
        left.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names])
        width = 0.8 / len(names)
        for i, (name, row) in enumerate(found.items()):
            shares = [row["recalled"].get(length, math.nan) for length in lengths]
            places = np.arange(len(lengths)) + (i - (len(names) - 1) / 2) * width
            bars = right.bar(places, shares, width, color=colours[i], label=name)
            right.bar_label(bars, fmt="{:.0%}")
        right.set(ylabel="facts recalled", xlabel="tokens since the fact", ylim=(0, 1.12))
        right.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
        right.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
        for axes in (left, right):
            axes.grid(visible=False, axis="x")
        legend_above(right)
        return write(figure, path, {name: dict(row) for name, row in found.items()})


def stream_picture(curves: Mapping[str, Sequence[Any]], path: Target) -> Figure:
    """Draws bits per byte and, below, the surprise of every layer that has a memory, over the tokens read.

    curves: "tokens", where each stretch of the stream ends, "bits_per_byte", "layer_0/surprise" and so on, all of one
    length, None where a number was not finite. Raises ValueError if lengths differ.
    """
    layers = sorted((name for name in curves if name.endswith("/surprise")), key=lambda name: int(name[6:-9]))
    lines = {name: np.array(curves[name], float) for name in ["tokens", "bits_per_byte", *layers]}
    if len({len(line) for line in lines.values()}) != 1 or not len(lines["tokens"]):
        sizes = {name: len(line) for name, line in lines.items()}
        raise ValueError(f"curves: of lengths {sizes}; expected one length, above 0")
    with drawing(9, 5.6 if layers else 3.4) as figure:
        panels = figure.subplots(2 if layers else 1, 1, sharex=True, squeeze=False)[:, 0]
        tokens = lines["tokens"]
        panels[0].plot(tokens, lines["bits_per_byte"], color=BLUE, lw=1.2)
        panels[0].set(title="Bits per byte, of tokens before the model learns from them", ylabel="bits per byte")
        if layers:
            labels = layer_labels([int(name[6:-9]) for name in layers])
            for name, colour, label in zip(layers, layer_colours(len(layers)), labels, strict=True):
                panels[1].plot(tokens, lines[name], color=colour, lw=1.2, label=label)
            panels[1].set(title="Surprise: loss before the write", ylabel="mean loss")
            legend_above(panels[1])
            if _decades([lines[name] for name in layers]) > 1:
                panels[1].set_yscale("log")
                log_ticks(panels[1].yaxis)
        panels[-1].set_xlabel("tokens read")
        panels[-1].xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        return write(figure, path, lines)


def _decades(lines: Sequence[np.ndarray]) -> float:
    """The range of the lines' medians, in powers of ten."""
    middles = [np.nanmedian(line) for line in lines if np.isfinite(line).any()]
    return math.log10(max(middles) / min(middles)) if middles and min(middles) > 0 else 0.0
