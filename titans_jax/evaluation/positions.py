"""Loss and accuracy by position in the sequence: whether a longer context helps."""

from typing import Any

import numpy as np

from titans_jax.evaluation.perplexity import Scores


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
