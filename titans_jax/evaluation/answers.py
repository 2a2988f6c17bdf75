"""What a model thinks of given answers: each row's tokens are scored where they count, however long the row.

A row is read in segments with the state carried on, so the cost of a token and the memory needed do not depend on what
came before it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from numpy.typing import ArrayLike, NDArray

from titans_jax.decode import first_state
from titans_jax.nn import LM


class Answers(NamedTuple):
    """Of each row [B]: the sum of log p(target) in nats, targets that are the likeliest token, and targets, counted."""

    log_likelihood: NDArray[np.float64]
    correct: NDArray[np.int64]
    tokens: NDArray[np.int64]

    @property
    def exact(self) -> NDArray[np.bool_]:
        """Whether greedy decoding says every counted token of the row [B]: it does where each is the likeliest."""
        return self.correct == self.tokens


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _read(graphdef: Any, params: Any, state: Any, inputs: Array, targets: Array, mask: Array) -> Any:
    logits, state, _ = nnx.merge(graphdef, params)(inputs, state)
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
    right = (logits.argmax(-1) == targets) & (mask != 0)
    return jnp.where(mask != 0, picked, 0).sum(1), right.sum(1), state


def score_answers(
    model: LM,
    inputs: ArrayLike,
    targets: ArrayLike,
    mask: ArrayLike,
    *,
    segment: int = 512,
    heard: Callable[[int], object] = lambda tokens: None,
) -> Answers:
    """Score the targets of rows that each begin a document.

    inputs, targets: int [B, T]; mask: [B, T], not 0 where a target counts. segment: tokens read at a time; the rest of
    a row is read at once, so that rows of every length share few compiled shapes. heard: called with the number of
    tokens read since it was called last.

    Raises ValueError for rows that full attention has no room for.
    """
    inputs, targets = np.asarray(inputs, np.int32), np.asarray(targets, np.int32)
    mask = np.asarray(mask, np.float32)
    batch, length = inputs.shape
    if reason := no_room(model, length):
        raise ValueError(reason)
    graphdef, params = nnx.split(model)
    state = first_state(graphdef, params, batch)
    sums: list[tuple[Array, Array]] = []
    for start in range(0, length, min(segment, length)):
        part = slice(start, min(start + segment, length))
        *seen, state = _read(graphdef, params, state, inputs[:, part], targets[:, part], mask[:, part])
        sums.append((seen[0], seen[1]))
        if len(sums) % 8 == 0:
            jax.block_until_ready(seen)  # so that `heard` says what was read, not what is queued
        heard(batch * (part.stop - start))
    totals = [np.sum(jax.device_get(each), 0) for each in zip(*sums, strict=True)]
    counted = (mask != 0).sum(1)
    return Answers(totals[0].astype(np.float64), totals[1].astype(np.int64), counted.astype(np.int64))


def endings(rows: Sequence[tuple[NDArray, int]], filler: int, length: int = 0) -> tuple[NDArray, NDArray]:
    """Rows of tokens, each with how many of its last are to be scored, side by side.

    Returns tokens int32 [B, T], T the longest row or `length` if that is more, with filler behind each row; and the
    mask float32 [B, T - 1] of the targets tokens[:, 1:].
    """
    tokens = np.full((len(rows), max(length, *(len(row) for row, _ in rows))), filler, np.int32)
    mask = np.zeros(tokens.shape, np.float32)
    for line, (row, count) in enumerate(rows):
        tokens[line, : len(row)] = row
        mask[line, len(row) - count : len(row)] = 1
    return tokens, mask[:, 1:]


def no_room(model: LM, length: int) -> str:
    """Why rows of so many tokens cannot be read, in a line; "" where they can."""
    config = model.config
    if (config.grows or config.positions == "learned") and length > config.context:
        return f"{length} tokens do not fit into the model.context of {config.context} tokens"
    return ""
