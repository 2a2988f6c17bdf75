"""Scores along the sequence: sums by hand, and the same tokens as the whole score."""

import numpy as np
import pytest

from titans_jax.evaluation import Scores, by_position


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
