"""The log-likelihood of chosen tokens of a text, however long the text.

A row is read in segments and the state is carried from one to the next, so the cost per token and the memory do not
grow with the length.
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

from titans_jax import sharding
from titans_jax.decode import first_state
from titans_jax.nn import LM


class TargetScores(NamedTuple):
    """Sums over the counted targets of each row, [B].

    log_likelihood: of log p(target), in nats.
    correct: targets that are the likeliest token.
    tokens: counted targets.
    """

    log_likelihood: NDArray[np.float64]
    correct: NDArray[np.int64]
    tokens: NDArray[np.int64]

    @property
    def exact(self) -> NDArray[np.bool_]:
        """Whether greedy decoding gives every counted target of the row, [B]."""
        return self.correct == self.tokens


@partial(jax.jit, static_argnums=(0, 6), donate_argnums=2)
def _read(graphdef: Any, params: Any, state: Any, inputs: Array, targets: Array, mask: Array, aligned: bool) -> Any:
    logits, state, _ = nnx.merge(graphdef, params)(inputs, state, aligned=aligned)
    logits = sharding.constrain(logits, "batch")  # the vocabulary on every device
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
    right = (logits.argmax(-1) == targets) & (mask != 0)
    return sharding.constrain(jnp.where(mask != 0, picked, 0).sum(1)), sharding.constrain(right.sum(1)), state


def score_targets(
    model: LM,
    inputs: ArrayLike,
    targets: ArrayLike,
    mask: ArrayLike,
    *,
    segment: int = 512,
    on_tokens: Callable[[int], object] = lambda count: None,
) -> TargetScores:
    """Score the targets of rows; each row begins a document.

    Args:
      inputs, targets: int [B, T].
      mask: [B, T], not 0 where a target counts.
      segment: tokens read at a time. The rest of a row is read at once, so rows of every length share few compiled
        shapes.
      on_tokens: called with the number of tokens read since the last call.

    Raises ValueError: full attention has no room for the rows.
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
        rows = (inputs[:, part], targets[:, part], mask[:, part])
        likelihood, right, state = _read(graphdef, params, state, *rows, aligned=start % rows[0].shape[1] == 0)
        sums.append((likelihood, right))
        if len(sums) % 8 == 0:
            jax.block_until_ready(right)  # so that `on_tokens` counts what was read, not what is queued
        on_tokens(batch * (part.stop - start))
    totals = [np.sum(jax.device_get(each), 0) for each in zip(*sums, strict=True)]
    counted = (mask != 0).sum(1)
    return TargetScores(totals[0].astype(np.float64), totals[1].astype(np.int64), counted.astype(np.int64))


def endings(rows: Sequence[tuple[NDArray, int]], filler: int, length: int = 0) -> tuple[NDArray, NDArray]:
    """Make a batch of rows of which the last tokens are scored.

    Args:
      rows: tokens, and how many of the last ones are scored.
      filler: the token behind shorter rows.
      length: T is the longest row, or this if it is more.

    Returns tokens int32 [B, T], and the mask float32 [B, T - 1] of the targets tokens[:, 1:].
    """
    tokens = np.full((len(rows), max(length, *(len(row) for row, _ in rows))), filler, np.int32)
    mask = np.zeros(tokens.shape, np.float32)
    for line, (row, count) in enumerate(rows):
        tokens[line, : len(row)] = row
        mask[line, len(row) - count : len(row)] = 1
    return tokens, mask[:, 1:]


def no_room(model: LM, length: int) -> str:
    """Why the model cannot read rows of `length` tokens, in one line; "" if it can."""
    config = model.config
    if (config.grows or config.positions == "learned") and length > config.context:
        return f"{length} tokens do not fit into the model.context of {config.context} tokens"
    return ""
