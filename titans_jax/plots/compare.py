"""Pictures of models side by side: how they learn, what they cost, and how the cost grows with the context."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from titans_jax.plots.legends import legend_below
from titans_jax.plots.style import INK, drawing, log_ticks, matplotlib, write
from titans_jax.plots.types import Figure, Target

Curve = Mapping[str, Sequence[float]]
_SCORES = {"loss": "Held-out loss (nats per token)", "perplexity": "Perplexity", "accuracy": "Accuracy"}
_MARKS = "osD^vP*X"


def compare_curves(curves: Mapping[str, Sequence[Curve]], path: Target) -> Figure:
    """Draws held-out loss, perplexity and accuracy over the steps: each model's mean over seeds, and its extremes.

    curves: for each model and seed the lists "step", "loss", "perplexity", "accuracy"; only the steps that all seeds
    have are drawn. Raises ValueError without a model.
    """
    colours = _colours(curves)
    numbers: dict[str, Any] = {}
    with drawing(13, 4.4) as figure:
        panels = figure.subplots(1, len(_SCORES))
        for axes, (score, title) in zip(panels, _SCORES.items(), strict=True):
            for name, (colour, mark) in colours.items():
                steps, values = _aligned(curves[name], score)
                numbers.setdefault(name, {"step": steps})[score] = values.T
                if values.size:
                    axes.plot(steps, values.mean(1), color=colour, marker=mark, ms=3.5, lw=1.4, label=name)
                    axes.fill_between(steps, values.min(1), values.max(1), color=colour, alpha=0.15, lw=0)
            axes.set(xlabel="step", title=title)
            axes.locator_params(axis="x", integer=True)
            if score == "perplexity":
                axes.set_yscale("log")
                log_ticks(axes.yaxis)
        legend_below(figure, panels[0], "lines: means over seeds; bands: from the smallest to the largest")
        return write(figure, path, numbers)


def compare_places(places: Mapping[str, Sequence[Sequence[float]]], path: Target) -> Figure:
    """Draws the held-out loss against the position in the sequence: how much each model gains from the context.

    places: for each model and seed the loss in each of equal parts of the sequence. The text itself is harder in some
    parts, so a second panel has the differences to the mean of the models. Raises ValueError without a model.
    """
    colours = _colours(places)
    values = {name: np.asarray(rows, float) for name, rows in places.items() if len(rows)}
    middle = np.mean([each.mean(0) for each in values.values()], axis=0) if values else 0.0
    with drawing(12, 4.6) as figure:
        left, right = figure.subplots(1, 2)
        for axes, zero in ((left, 0.0), (right, middle)):
            for name, each in values.items():
                (colour, mark), shown = colours[name], each - zero
                at = (np.arange(each.shape[1]) + 0.5) / each.shape[1]
                axes.plot(at, shown.mean(0), color=colour, marker=mark, ms=3.5, lw=1.4, label=name)
                axes.fill_between(at, shown.min(0), shown.max(0), color=colour, alpha=0.15, lw=0)
            axes.set(xlabel="position in the sequence", xlim=(0, 1))
            axes.xaxis.set_major_formatter("{x:.0%}")
        left.set_title("Held-out loss (nats per token) by position")
        right.set_title("The same minus the mean of the models")
        legend_below(figure, left, "lines: means over seeds; bands: from the smallest to the largest")
        return write(figure, path, places)


def compare_costs(costs: Mapping[str, Mapping[str, Any]], path: Target) -> Figure:
    """Draws bars of training and decoding speed, of a training step's memory and of the parameters.

    costs: for each model train_tokens_per_second, decode_tokens_per_second (a list; the first is drawn), parameters and
    step_bytes (None where it was not measured). Raises ValueError without a model.
    """
    colours = _colours(costs)
    bars = {
        "Training, tokens/s": [row["train_tokens_per_second"] for row in costs.values()],
        "Writing one sequence, tokens/s": [row["decode_tokens_per_second"][0] for row in costs.values()],
        "Parameters, thousands": [row["parameters"] / 1e3 for row in costs.values()],
    }
    if None not in (step_bytes := [row["step_bytes"] for row in costs.values()]):
        bars["Memory of a training step, MB"] = [each / 1e6 for each in step_bytes]
    with drawing(13, 1.1 + 0.36 * len(costs)) as figure:
        for axes, (title, values) in zip(figure.subplots(1, len(bars), sharey=True), bars.items(), strict=True):
            drawn = axes.barh(list(costs), values, color=[colour for colour, _ in colours.values()], height=0.7)
            axes.bar_label(drawn, [f"{value:,.0f}" for value in values], padding=3, color=INK, fontsize=8)
            axes.margins(x=0.22)
            axes.set(title=title)
            axes.grid(axis="y", visible=False)
            axes.xaxis.set_major_locator(matplotlib().ticker.MaxNLocator(4))
            axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.invert_yaxis()  # they share it
        return write(figure, path, {"models": list(costs)} | bars)


def compare_contexts(costs: Mapping[str, Mapping[str, Any]], path: Target) -> Figure:
    """Draws the bytes of a stream's state, and the speed of its next token, against the tokens read so far.

    costs: for each model the lists contexts, states and decode_tokens_per_second. Raises ValueError without a model.
    """
    panels = {"states": "State of one sequence, bytes", "decode_tokens_per_second": "Writing one sequence, tokens/s"}
    with drawing(11, 4.4) as figure:
        both = figure.subplots(1, 2)
        for axes, (field, title) in zip(both, panels.items(), strict=True):
            for name, (colour, mark) in _colours(costs).items():
                row = costs[name]
                axes.plot(row["contexts"], row[field], color=colour, marker=mark, ms=4.5, lw=1.4, alpha=0.9, label=name)
            axes.set(xscale="log", yscale="log", xlabel="tokens read so far", title=title)
            at = next(iter(costs.values()))["contexts"]
            axes.set_xticks(at, [f"{context:,}" for context in at])
            axes.minorticks_off()
        legend_below(figure, both[0])
        fields = ("contexts", *panels)
        return write(figure, path, {name: {field: row[field] for field in fields} for name, row in costs.items()})


def _aligned(curves: Sequence[Curve], score: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps that all seeds have, and the scores there, [steps, seeds]."""
    length = min((len(curve["step"]) for curve in curves), default=0)
    steps = np.asarray(curves[0]["step"][:length] if curves else [], float)
    return steps, np.asarray([curve[score][:length] for curve in curves], float).T


def _colours(models: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """A colour and a mark for each model."""
    if not models:
        raise ValueError("there is no model to draw")
    colours = matplotlib().colormaps["tab10"].colors
    return {name: (colours[i % len(colours)], _MARKS[i % len(_MARKS)]) for i, name in enumerate(models)}
