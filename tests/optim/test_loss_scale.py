"""Loss scaling for float16: its effect on an optimizer's state, and a training close to float32's."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from titans_jax.bench.fit import fit
from titans_jax.config import Experiment, TrainConfig
from titans_jax.data import DataConfig
from titans_jax.metrics import Progress
from titans_jax.nn import MemoryConfig, ModelConfig
from titans_jax.optim import OptimConfig, loss_scaled
from titans_jax.training import define, make_step
from titans_jax.training.step import TrainState, optimizer_of


def test_a_non_finite_gradient_changes_only_the_scale():
    optimizer, params = loss_scaled(optax.adam(0.1), start=4.0, growth=3), {"w": jnp.ones(2)}
    state = optimizer.init(params)
    good, bad = {"w": jnp.ones(2)}, {"w": jnp.array([1.0, jnp.inf])}
    scales = []
    for gradient in (good, bad, good, good, good, good):
        before = state.inner
        updates, state = optimizer.update(gradient, state, params)
        if gradient is bad:
            np.testing.assert_array_equal(updates["w"], 0)
            jax.tree.map(np.testing.assert_array_equal, state.inner, before)
        else:
            np.testing.assert_allclose(updates["w"], -0.1, rtol=1e-4)  # adam's on equal gradients, the bad one unseen
        scales.append(float(state.loss_scale))
    assert scales == [4, 2, 2, 2, 4, 4]
    for _ in range(5):
        state = optimizer.update(bad, state, params)[1]
    assert state.loss_scale == 1


def experiment(dtype, block="transformer", seed=0):
    # A text's first keys (conv) and its first relative reads are small, and the gradients of their norms large: the
    # loss scale may then fall once, and every later loss is a step behind.
    memory = MemoryConfig(heads=1, head_dim=8, chunk=16)
    sizes = dict(dim=32, depth=1, heads=2, head_dim=8, window=32, segment=16, memory=memory)
    model = ModelConfig(block=block, vocab_size=256, dtype=dtype, **sizes)
    optim = OptimConfig(peak_rate=1e-2, warmup=2)
    return Experiment("half", model, DataConfig(sequence=32, batch=4), optim, TrainConfig(steps=20, seed=seed))


@pytest.mark.slow
@pytest.mark.parametrize("block", ["transformer", "mac"])
def test_twenty_steps_in_float16_are_close_to_float32(block):
    """The mean difference of losses over steps and seeds; single ones vary, as Adam's first steps are signs."""
    gaps = []
    for seed in range(3):
        with Progress(40, "fit") as bar:
            half, whole = (fit(experiment(dtype, block, seed), bar).losses for dtype in ("float16", "float32"))
        gaps.append(np.abs(np.subtract(half, whole)))
        assert whole[-1] < whole[0] - 1
    assert 0 < np.mean(gaps) < 0.008, np.round(gaps, 4)  # of ten seeds, any three have at most 0.001


@pytest.mark.slow
def test_a_too_large_scale_falls_and_is_reported():
    """With a scale beyond float16's range, steps are skipped until it fits, and change nothing else."""
    config = experiment("float16")
    definition, optimizer = define(config.model), optimizer_of(config.model, config.optim, 20)
    params = jax.jit(definition.init)(jax.random.key(0))
    state = TrainState(params, optimizer.init(params), jax.random.key(0))
    state = state._replace(optimizer=state.optimizer._replace(loss_scale=jnp.float32(2.0**40)))
    start = jax.tree.map(np.array, params)
    tokens = np.random.default_rng(0).integers(0, 255, (4, 33)).astype(np.int32)
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "mask": np.ones((4, 32), np.float32)}
    step, seen = make_step(definition.graphdef, optimizer, config.train), []
    for _ in range(30):
        state, metrics = step(state, batch)
        seen.append({name: float(metrics[name]) for name in ("loss", "loss_scale", "grad_norm")})
        if len(seen) == 5:
            jax.tree.map(np.testing.assert_array_equal, state.params, start)
    skipped = list(itertools.takewhile(lambda row: row["grad_norm"] == 0, seen))
    assert 5 < len(skipped) < 25
    assert [row["loss_scale"] for row in skipped] == [2.0 ** (40 - i) for i in range(len(skipped))]
    assert len({row["loss"] for row in skipped}) == 1 and seen[-1]["loss"] < seen[0]["loss"]
    beyond = state._replace(params=jax.tree.map(lambda p: p * jnp.nan, state.params))
    beyond = beyond._replace(optimizer=state.optimizer._replace(loss_scale=jnp.float32(1)))
    assert not np.isfinite(step(beyond, batch)[1]["grad_norm"])  # there is nothing smaller to try: the run has diverged
