"""How well a model predicts held-out text: loss, perplexity, bits per byte and accuracy.

The memory learns from the text while it reads, so the order matters: the logits that score a token were made before the
token was an input. `targets` are `inputs` one token later: target t is scored when the memory has read inputs up to t.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax import Array
from numpy.typing import NDArray

from titans_jax.loss import cross_entropy
from titans_jax.metrics import summarise
from titans_jax.nn import LM

Batch = Mapping[str, Any]

RESETS = {
    "sequence": "the memory starts from its initial weights at every sequence",
    "stream": "the memory is carried from batch to batch: each row reads one part of the text",
}


class Scores(NamedTuple):
    """Sums over the text.

    nll (nats), correct, tokens: [batches, T], by position in the sequence.
    bytes: of the scored text.
    reset: the policy in words.
    """

    nll: NDArray[np.float64]
    correct: NDArray[np.float64]
    tokens: NDArray[np.float64]
    bytes: int
    reset: str

    def summary(self) -> dict[str, Any]:
        """The means over all tokens, by name."""
        nll, correct, tokens = (float(sums.sum()) for sums in (self.nll, self.correct, self.tokens))
        numbers = summarise(nll, tokens, correct, self.bytes)
        return {**numbers, "tokens": int(tokens), "bytes": self.bytes, "reset": self.reset}


@partial(jax.jit, static_argnums=0)
def _score(graphdef: Any, params: Any, state: Any, batch: Batch) -> tuple[dict[str, Array], Any]:
    """One batch's sums [T] over its rows, and the state after it; None is the initial state."""
    model = nnx.merge(graphdef, params)
    state = model.init_state(batch["inputs"].shape[0]) if state is None else state
    logits, state, _ = model(batch["inputs"], state, batch.get("reset"), aligned=True)
    by_position = jax.vmap(lambda *batch: cross_entropy(*batch)[1], in_axes=1)
    return by_position(logits, batch["targets"], batch["mask"]), state


def evaluate(model: LM, batches: Iterable[Batch], byte_lengths: NDArray[np.int32], **options: Any) -> dict[str, Any]:
    """The summary of `score`: loss (nats per token), perplexity, bits_per_byte, accuracy, tokens, bytes and reset."""
    return score(model, batches, byte_lengths, **options).summary()


def score(
    model: LM,
    batches: Iterable[Batch],
    byte_lengths: NDArray[np.int32],
    *,
    reset: str = "sequence",
    sharding: jax.sharding.Sharding | None = None,
) -> Scores:
    """Score a model on batches of one shape.

    Args:
      batches: as from `data.held_out_batches`.
      byte_lengths: [vocab], the bytes of text that each token stands for.
      reset: a key of RESETS.
      sharding: of each batch.

    Raises ValueError: the reset is unknown, or there is no token to score.
    """
    if reset not in RESETS:
        raise ValueError(f"reset is {reset!r}; it must be one of {', '.join(RESETS)}")
    graphdef, params = nnx.split(model)
    sums: list[dict[str, Array]] = []
    state, size = None, 0
    for batch in batches:
        size += int(byte_lengths[batch["targets"]][batch["mask"] != 0].sum())
        if state is None and reset == "stream":
            state = model.init_state(len(batch["inputs"]))
        needed = {k: v for k, v in batch.items() if k != "reset" or v.any()}
        scores, after = _score(graphdef, params, state, jax.device_put(needed, sharding))
        jax.block_until_ready(scores)  # else who counts batches times how fast they are sent to the device
        state = after if reset == "stream" else None
        sums.append(scores)
    # Added in float64, so that no token is lost.
    every = jax.device_get(sums)
    if not any(one["tokens"].any() for one in every):
        raise ValueError("there is no held-out token to score; give more text or a larger data.held_out")
    nll, correct, tokens = (
        np.stack([one[name] for one in every]).astype(np.float64) for name in ("nll", "correct", "tokens")
    )
    return Scores(nll, correct, tokens, size, RESETS[reset])


def by_position(scores: Scores, parts: int = 32) -> dict[str, list[Any]]:
    """Loss and accuracy over equal stretches of the sequence, at most `parts` of them.

    Returns a list each: first and last (positions, from 0), loss (nats per token), its standard error over batches,
    accuracy and tokens. Stretches without a token are left out; the error of a single batch is None.
    """
    length = scores.nll.shape[1]
    edges = np.unique(np.linspace(0, length, min(parts, length) + 1).round().astype(int))
    found: dict[str, list[Any]] = {
        name: [] for name in ("first", "last", "loss", "standard_error", "accuracy", "tokens")
    }
    for first, end in zip(edges[:-1], edges[1:], strict=True):
        nll, correct, tokens = (sums[:, first:end].sum(1) for sums in (scores.nll, scores.correct, scores.tokens))
        if not tokens.any():
            continue
        loss = nll.sum() / tokens.sum()
        row = (int(first), int(end) - 1, loss, _error(nll, tokens, loss), correct.sum() / tokens.sum())
        for name, value in zip(found, (*row, int(tokens.sum())), strict=True):
            found[name].append(value)
    return found


def _error(nll: Any, tokens: Any, loss: float) -> float | None:
    """The standard error of a ratio of two sums over batches, by linear approximation."""
    batches = len(nll)
    if batches < 2:
        return None
    return float(np.sqrt(batches / (batches - 1) * np.square(nll - loss * tokens).sum()) / tokens.sum())
