"""An animation: what a model attends to, and what its memory does, while it writes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from titans_jax.plots.style import INK, MUTED, ORANGE, drawable, drawing, write_numbers
from titans_jax.plots.types import Axes, Figure, Target

COLUMNS = 80


def generation(
    pieces: Sequence[str],
    path: Target,
    *,
    prompt: int,
    attention: Mapping[str, NDArray] | None,
    memory: Mapping[str, NDArray] | None,
    seconds: float = 0.2,
) -> Figure:
    """Draws a GIF with one frame for each written token.

    Args:
      pieces: the text of each of T tokens; the first `prompt` ones are the prompt.
      attention: [layers, heads, T, T] by what is read, "tokens" first; nan in layers without; None for no attention.
      memory: [layers, T] by title; nan in layers without; None for no memory.
      seconds: per frame.

    Returns the last frame's figure. The JSON has, for each frame, the mean weight on every token so far.

    Raises ValueError: nothing was written, or lengths do not fit.
    """
    parts = [*(attention or {}).values(), *(memory or {}).values()]
    if not 0 < prompt < len(pieces) or any(part.shape[-1] != len(pieces) for part in parts):
        found = ", ".join(str(part.shape) for part in parts)
        raise ValueError(f"{len(pieces)} pieces, prompt {prompt}, arrays {found}: expected T of each, 0 < prompt < T")
    from matplotlib.animation import PillowWriter

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    places = _places(pieces)
    means = {name: np.nanmean(weights, (0, 1)) for name, weights in (attention or {}).items()}
    lines = places[-1][0] + 1
    heights = [0.24 * lines + 0.35, *[1.5 if attention else 0.0], *[0.9] * len(memory or {})]
    with drawing(9, sum(heights) + 0.5) as figure:
        heights = [height for height in heights if height]
        panels = list(figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
        update = [_text(panels[0], pieces, places, prompt, means)]
        if attention:
            update.append(_attention(panels[1], next(iter(attention.values()))))
        for axes, (title, values) in zip(panels[-len(memory or {}) :], (memory or {}).items(), strict=False):
            update.append(_memory(axes, title, values, prompt))
        panels[-1].set_xlabel("token")
        writer = PillowWriter(fps=round(1 / seconds))
        with writer.saving(figure, str(path), dpi=90):
            for now in range(prompt, len(pieces)):
                for one in update:
                    one(now)
                writer.grab_frame()
                figure.set_layout_engine("none")  # the layout stays: only the panels' contents change
    weights = {name: [row[: now + 1] for now, row in enumerate(mean)][prompt:] for name, mean in means.items()}
    write_numbers(path, {"text": list(pieces), "prompt": prompt, "weights": weights, "memory": dict(memory or {})})
    return figure


def _places(pieces: Sequence[str]) -> list[tuple[int, int, str]]:
    """Line, column and letters of every piece, with COLUMNS letters per line."""
    places, line, column = [], 0, 0
    for piece in pieces:
        letters = drawable(piece)[:COLUMNS]
        if column + len(letters) > COLUMNS:
            line, column = line + 1, 0
        places.append((line, column, letters))
        column += len(letters)
    return places


def _text(axes: Axes, pieces: Sequence[str], places: Any, prompt: int, means: Mapping[str, NDArray]) -> Any:
    """The text so far: blue behind tokens that attention reads, an orange line under those it reads from memory."""
    lines = places[-1][0] + 1
    paper = np.zeros((lines, COLUMNS))
    shown = axes.imshow(paper, cmap="Blues", vmin=0, vmax=1, aspect="auto", extent=(0, COLUMNS, lines, 0))
    axes.grid(False)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    letters = [
        axes.text(column, line + 0.55, text, family="DejaVu Sans Mono", fontsize=11, va="center", visible=False,
                  color=MUTED if i < prompt else INK, parse_math=False)
        for i, (line, column, text) in enumerate(places)
    ]  # fmt: skip
    marks = [
        axes.plot([column, column + len(text)], [line + 0.95] * 2, color=ORANGE, lw=2, alpha=0)[0]
        for line, column, text in places
    ] if len(means) > 1 else []  # fmt: skip
    legend = "blue: read to write the last letters" if means else "the model has no attention"
    legend += "; orange line: read from the memory" if marks else ""
    axes.set_title(f"The text so far; {legend}", fontsize=9)

    def update(now: int) -> None:
        for i, letter in enumerate(letters):
            letter.set_visible(i <= now)
        weights = [mean[now - 1] for mean in means.values()]  # of the call that predicted the newest token
        if weights:
            paper[:] = 0
            for (line, column, text), weight in zip(places, _strength(weights[0]), strict=True):
                paper[line, column : column + len(text)] = 0.75 * weight
            shown.set_data(paper)
        for mark, weight in zip(marks, _strength(weights[-1]) if marks else [], strict=True):
            mark.set_alpha(float(weight))

    return update


def _strength(weights: NDArray) -> NDArray:
    """Weights scaled to a largest of 1; the square root makes small ones visible."""
    return np.sqrt(np.maximum(weights, 0) / max(float(weights.max()), 1e-9))


def _attention(axes: Axes, weights: NDArray) -> Any:
    layers, heads, length, _ = weights.shape
    rows = np.nan_to_num(weights).reshape(layers * heads, length, length)
    shown = axes.imshow(np.zeros((layers * heads, length)), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.grid(False)
    axes.set_yticks([heads * (i + 0.5) - 0.5 for i in range(layers)], [f"layer {i}" for i in range(layers)], fontsize=7)
    for i in range(1, layers):
        axes.axhline(heads * i - 0.5, color="#9ca3af", lw=0.5)
    axes.set_title("Attention of every head to earlier tokens", fontsize=9)

    def update(now: int) -> None:
        shown.set_data(np.stack([_strength(row) for row in rows[:, now - 1]]))

    return update


def _memory(axes: Axes, title: str, values: NDArray, prompt: int) -> Any:
    low, high = np.nanquantile(values, [0.01, 0.99])
    shown = axes.imshow(np.full(values.shape, np.nan), cmap="magma_r", vmin=low, vmax=high, aspect="auto")
    axes.axvline(prompt - 0.5, color=MUTED, lw=0.8, ls=":")
    axes.grid(False)
    axes.set_yticks(range(len(values)), [f"layer {i}" for i in range(len(values))], fontsize=7)
    axes.set_title(title, fontsize=9)

    def update(now: int) -> None:
        shown.set_data(np.where(np.arange(values.shape[1]) < now, values, np.nan))

    return update
