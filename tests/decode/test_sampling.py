"""How a token is drawn: each filter alone, and rows of different rules side by side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from titans_jax.decode import Sampling, draw, filters, keep_min_p, keep_top_k, keep_top_p


@pytest.mark.parametrize("k", [1, 3, 10, 99])
def test_top_k_keeps_the_k_largest(k):
    logits = np.random.default_rng(k).normal(size=(4, 10)).astype(np.float32)
    kept = np.isfinite(keep_top_k(jnp.array(logits), k))
    for row, mask in zip(logits, kept, strict=True):
        assert set(np.flatnonzero(mask)) == set(np.argsort(-row)[:k])


@pytest.mark.parametrize("p", [1e-6, 0.3, 0.7, 0.95, 1.0])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p):
    logits = np.random.default_rng(1).normal(size=(6, 12)).astype(np.float32) * 2
    kept = np.isfinite(keep_top_p(jnp.array(logits), p))
    for row, mask in zip(logits.astype(np.float64), kept, strict=True):
        probabilities = np.exp(row) / np.exp(row).sum()
        order = np.argsort(-probabilities)
        count = 1 + int((np.cumsum(probabilities[order])[:-1] < p - 1e-7).sum())
        assert set(np.flatnonzero(mask)) == set(order[:count])


def test_top_p_takes_one_of_equals_only():
    assert np.isfinite(keep_top_p(jnp.zeros((1, 4)), 0.25)).sum() == 1


@pytest.mark.parametrize("p", [0.05, 0.3, 1.0])
def test_min_p_keeps_what_is_near_the_likeliest(p):
    logits = np.random.default_rng(2).normal(size=(5, 9)).astype(np.float32) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = probabilities >= p * probabilities.max(-1, keepdims=True) * (1 - 1e-6)
    np.testing.assert_array_equal(np.isfinite(keep_min_p(jnp.array(logits), p)), expected)


def test_draws_follow_the_distribution_after_temperature_and_filters():
    logits = jnp.log(jnp.array([0.5, 0.25, 0.15, 0.1]))
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = draw(jnp.tile(logits, (len(keys), 1)), keys, filters([Sampling(temperature=0.5, top_k=3)] * len(keys)))
    expected = np.array([0.5, 0.25, 0.15, 0.0]) ** 2
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / len(keys), expected / expected.sum(), atol=0.01)


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}, {"min_p": 0.0}])
def test_sampling_options_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_rows_are_drawn_by_their_own_rules():
    logits = jnp.array(np.random.default_rng(3).normal(size=(1, 40)).astype(np.float32) * 2)
    rules = [Sampling(0), Sampling(0.5), Sampling(1, top_k=3), Sampling(2, top_p=0.5), Sampling(1, min_p=0.2)]
    keys = jax.random.split(jax.random.key(1), len(rules))
    together = draw(jnp.repeat(logits, len(rules), 0), keys, filters(rules))
    one = jax.jit(draw)
    alone = [one(logits, keys[i : i + 1], filters([rule]))[0] for i, rule in enumerate(rules)]
    np.testing.assert_array_equal(together, alone)
    assert together[0] == logits[0].argmax()
