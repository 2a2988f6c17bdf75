"""A reading in numbers, each made by hand."""

import numpy as np
import pytest

from titans_jax.evaluation.introspect import Reading
from titans_jax.evaluation.statistics import effective_rank, head_numbers, learned, square
from titans_jax.nn import Attended


def test_heads_by_hand():
    tokens = np.zeros((1, 2, 2, 4))
    read = np.zeros_like(tokens)
    tokens[0, 0, :, 2] = 1  # the token two back, alone
    tokens[0, 1, :, [0, 1]] = 0.25
    read[0, 1, :, [0, 3]] = [[0.25, 0.25], [0.0, 0.0]]
    found = head_numbers(Attended(tokens, read, np.zeros((1, 2, 2))))
    assert found["distance"].tolist() == [[2, pytest.approx(1 / 3)]]
    assert found["reach"].tolist() == [[pytest.approx(1), pytest.approx(3)]]
    assert found["read"].tolist() == [[0, 0.25]]
    assert found["persistent"].tolist() == [[0, 0.25]]


def test_maps_put_distances_where_the_tokens_are():
    by_distance = np.arange(1, 10.0).reshape(3, 3)
    assert square(by_distance).tolist() == [[1, 0, 0], [5, 4, 0], [9, 8, 7]]
    assert square(by_distance[:, :2]).tolist() == [[1, 0, 0], [5, 4, 0], [0, 8, 7]]  # a view of two tokens


def test_what_was_learned_by_hand():
    first = {"w": np.stack([np.eye(3), 2 * np.eye(3)])}
    one = np.zeros((3, 3))
    one[0, 1] = 3**0.5
    last = {"w": first["w"] + np.stack([one, 2 * np.eye(3)])}
    reading = Reading(np.arange(4), np.zeros((4, 2)), None, None, [0, 4], [{2: first}, {2: last}])
    found = learned(reading)
    np.testing.assert_allclose(found["rank"][2][0], 3)
    np.testing.assert_allclose(found["change_rank"][2], [0, (1 + 3) / 2])
    np.testing.assert_allclose(found["drift"][2], [0, 1])
    assert effective_rank(np.diag([1.0, 1e-9])) == pytest.approx(1, abs=1e-6)
