"""Continuations of prompts of any lengths."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from titans_jax.decode.sampling import Sampling
from titans_jax.decode.slots import Request, serve
from titans_jax.nn import LM

Stop = Callable[[int, int], bool]


class NotFinite(FloatingPointError):
    """The logits of some rows were not finite, and they ended there. written: what `generate` returns otherwise."""

    def __init__(self, rows: Sequence[int], written: Any) -> None:
        super().__init__(f"rows {', '.join(map(str, rows))}: the model's logits are not finite; the text ends there")
        self.rows, self.written = rows, written


def generate(
    model: LM,
    prompt: ArrayLike | Sequence[Sequence[int]],
    *,
    length: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    key: Array | None = None,
    stop: Stop | None = None,
    segment: int = 64,
    slots: int = 16,
) -> Any:
    """Continue prompts by `length` tokens each.

    Args:
      prompt: an array [B, T], or a list of B prompts of any lengths.
      temperature, top_k, top_p, min_p: see `Sampling`.
      key: needed unless temperature is 0; row i draws from fold_in(key, i).
      stop: called as stop(row, token) after each token; True ends the row with that token.
      segment: prompt tokens read at a time.
      slots: how many rows are written at once, at most.

    Returns the tokens without the prompts: an int32 array [B, length] for an array, -1 after a row's end; a list of B
    int32 arrays for a list.

    Raises ValueError: an empty prompt, a token outside the vocabulary, or sampling options out of range; NotFinite,
    after all other rows are written.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p)
    rows: Any = prompt if isinstance(prompt, list | tuple) else np.asarray(prompt)
    requests = [
        Request(
            row,
            length,
            sampling,
            None if key is None else jax.random.fold_in(key, i),
            None if stop is None else partial(stop, i),
        )
        for i, row in enumerate(rows)
    ]
    written: list[list[int]] = [[] for _ in requests]
    lost = []
    for row, token in serve(model, requests, slots=max(1, min(slots, len(requests))), segment=segment):
        if token < 0:
            lost.append(row)
        else:
            written[row].append(token)
    found: Any = [np.array(line, np.int32) for line in written]
    if not isinstance(prompt, list | tuple):
        ended = [line + [-1] * (length - len(line)) for line in written]
        found = np.array(ended, np.int32).reshape(len(rows), length)
    if lost:
        raise NotFinite(sorted(lost), found)
    return found
