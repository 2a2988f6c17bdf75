"""A batch in parts is the whole batch: its gradient, its loss and what the memory says."""

import jax
import numpy as np
import optax

from tests.nn.members import BATCH, config_of, jit, random_params
from tests.tolerance import close
from titans_jax.config import TrainConfig
from titans_jax.training.step import define, make_gradient, split_batch

ROWS, TOKENS = 3 * BATCH, 16


def batch_of(seed, weights):
    rng = np.random.default_rng(seed)
    text = rng.integers(0, 32, (ROWS, TOKENS + 1), np.int32)
    mask = np.float32(rng.integers(0, 3, (ROWS, TOKENS)) * weights[:, None])
    return {"inputs": text[:, :-1], "targets": text[:, 1:], "mask": mask}


def test_the_gradient_of_a_batch_in_parts_is_that_of_the_batch():
    definition = define(config_of(dict(block="lmm", rule="gated_deltanet"), depth=1, heads=2))
    params = random_params(definition.shapes)
    params = jax.tree.map(lambda x: x.astype(np.float32), params)
    batch = batch_of(0, np.array([1, 1, 5, 1, 0, 1]))  # the parts have other weights, and one row does not count
    whole, parts = (make_gradient(definition.graphdef, TrainConfig(z_loss=1e-3), parts) for parts in (1, 3))
    want, got = jit(whole)(params, batch, None), jit(parts)(params, batch, 8.0)
    size = optax.tree.norm(want[0])
    close(jax.tree.map(lambda x: x / 8 / size, got[0]), jax.tree.map(lambda x: x / size, want[0]), 1e-5)
    close(got[1], want[1], 1e-5)
    assert got[1][1]["tokens"] == np.count_nonzero(batch["mask"])


def test_a_batch_that_does_not_count_has_no_gradient():
    definition = define(config_of(dict(block="transformer"), depth=1, heads=2))
    params = definition.init(jax.random.key(0))
    gradients, (loss, sums, _) = make_gradient(definition.graphdef, TrainConfig(), 2)(
        params, batch_of(0, np.zeros(ROWS)), None
    )
    assert loss == sums["tokens"] == optax.tree.norm(gradients) == 0


def test_a_row_is_in_one_part():
    rows = np.arange(12).reshape(6, 2)
    np.testing.assert_array_equal(split_batch(rows, 3)[1], rows[[1, 4]])
