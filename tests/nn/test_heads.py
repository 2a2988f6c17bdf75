"""The output heads against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from titans_jax.nn import heads

STATES = jax.random.normal(jax.random.key(0), (2, 6, 4))
LENGTH = jnp.array([6, 3])
EMBEDDING = jax.random.normal(jax.random.key(1), (8, 4))


def test_classify_scores_position_embeddings_by_the_last_token():
    head = heads.Classify(4, 8, rngs=nnx.Rngs(0))
    head.query.kernel[...] = 2 * jnp.eye(4)
    logits = head(STATES, LENGTH, EMBEDDING)
    np.testing.assert_allclose(logits[0], 2 * EMBEDDING[:6] @ STATES[0, 5], rtol=1e-5)
    np.testing.assert_allclose(logits[1, :3], 2 * EMBEDDING[:3] @ STATES[1, 2], rtol=1e-5)
    assert (logits[1, 3:] == jnp.finfo(jnp.float32).min).all()


def test_regress_is_a_normal_distribution_over_positions():
    head = heads.Regress(4, 8, rngs=nnx.Rngs(0))
    head.share.kernel[...], head.share.bias[...] = jnp.zeros((4, 1)), jnp.array([-0.125])
    head.log_width[...] = jnp.log(jnp.array([2.0]))
    [bell, _] = head(STATES, LENGTH, EMBEDDING)
    np.testing.assert_allclose(bell, [-9 / 8, -4 / 8, -1 / 8, 0, -1 / 8, -4 / 8], atol=1e-6)  # around 8 (1/2 - 1/8)


def test_point_scores_each_token_by_its_state():
    head = heads.Point(4, 8, rngs=nnx.Rngs(0))
    logits = head(STATES, LENGTH, EMBEDDING)
    np.testing.assert_allclose(logits[0], STATES[0] @ head.score.kernel[:, 0], rtol=1e-5)
