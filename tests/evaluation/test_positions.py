"""Scores along the sequence: sums by hand, and the same tokens as the whole score."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from titans_jax.evaluation import Scores, by_position, perplexity


def some(nll: list[list[float]], correct: list[list[float]], tokens: list[list[float]]) -> Scores:
    return Scores(*(np.array(x, float) for x in (nll, correct, tokens)), 12, "anew")


def test_stretches_of_the_sequence_by_hand():
    scores = some([[4, 2, 6, 0], [8, 2, 0, 0]], [[1, 0, 2, 0], [0, 1, 0, 0]], [[2, 2, 2, 0], [2, 2, 0, 0]])
    found = by_position(scores, parts=2)
    assert (found["first"], found["last"], found["tokens"]) == ([0, 2], [1, 3], [8, 2])
    assert found["loss"] == [2.0, 3.0]  # (4 + 2 + 8 + 2) / 8, 6 / 2
    assert found["accuracy"] == [0.25, 1.0]
    # batches of 6 / 4 and 10 / 4 about 2: sqrt(2 ((6 - 8)^2 + (10 - 8)^2)) / 8
    assert found["standard_error"] == [pytest.approx(0.5), 0.0]
    every = by_position(scores)
    assert every["first"] == [0, 1, 2]  # nothing was scored at the last position
    summary = scores.summary()
    assert summary["loss"] == pytest.approx(22 / 10) and summary["accuracy"] == 0.4
    assert np.dot(every["loss"], every["tokens"]) == pytest.approx(22)


def test_one_batch_has_no_error():
    found = by_position(some([[1, 2]], [[0, 1]], [[1, 1]]))
    assert found["standard_error"] == [None, None]


def test_a_batch_has_its_scores_before_the_next_one_is_asked_for(monkeypatch):
    """So that who counts batches sees the speed of the model, not that of sending it work."""
    made = []

    @jax.jit
    def slow(x):
        for _ in range(20):
            x = jnp.tanh(x @ x)
        return dict.fromkeys(("nll", "correct", "tokens"), 1 + x[0])

    def score_slowly(graphdef, params, state, batch):
        made.append(slow(jnp.eye(500)))
        return made[-1], None

    def batches():
        for _ in range(3):
            assert all(array.is_ready() for scores in made for array in scores.values())
            yield {"inputs": np.zeros((1, 500), int), "targets": np.zeros((1, 500), int), "mask": np.ones((1, 500))}

    monkeypatch.setattr(perplexity, "_score", score_slowly)
    perplexity.score(nnx.Module(), batches(), np.ones(1, np.int32))
    assert len(made) == 3
