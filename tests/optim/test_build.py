"""OptimConfig and build: schedules, optimizers, weight decay, accumulation, errors."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from titans_jax.optim import OPTIMIZERS, SCHEDULES, OptimConfig, build, decays, learning_rate

PLAIN = OptimConfig(peak_rate=0.1, schedule="constant", warmup=0, weight_decay=0.0, clip=None)


def parameters(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {
        "block": {"proj": {"kernel": (2, 4, 3), "bias": (2, 3)}, "norm": {"scale": (2, 4)}},
        "embed": {"embedding": (5, 4)},
        "memory": {"fast": {"w1": (2, 4, 4)}, "persistent": (3, 4)},
    }
    draw = lambda shape: rng.normal(size=shape).astype(np.float32)
    return jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple))


def run(config, params, gradients, steps):
    """The parameters after each of the gradients."""
    transformation = build(config, steps)
    state, seen = transformation.init(params), []

    @jax.jit
    def step(gradient, state, params):
        updates, state = transformation.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for gradient in gradients:
        params, state = step(gradient, state, params)
        seen.append(params)
    return seen


# Peak 2, warm-up 4, 24 steps, last rate a tenth of the peak; every value worked out by hand. After the warm-up 20
# steps are left: progress is 1/4 at step 9 and 1/2 at step 14; wsd decays over the last quarter of them, from step 19.
QUARTER, HALF = (1 + math.sqrt(0.5)) / 2, 0.5
BY_HAND = {
    "constant": {9: 2.0, 14: 2.0, 23: 2.0, 24: 2.0},
    "linear": {9: 2 * (0.1 + 0.9 * 0.75), 14: 2 * (0.1 + 0.9 * HALF), 24: 0.2},
    "cosine": {9: 2 * (0.1 + 0.9 * QUARTER), 14: 2 * (0.1 + 0.9 * HALF), 24: 0.2},
    "rsqrt": {9: 2 * math.sqrt(4 / 9), 16: 1.0, 24: 2 * math.sqrt(4 / 24)},
    "wsd": {9: 2.0, 19: 2.0, 20: 2 * (0.1 + 0.9 * 0.8), 22: 2 * (0.1 + 0.9 * 0.4), 24: 0.2},
}


def test_every_schedule_has_values_by_hand():
    assert BY_HAND.keys() == SCHEDULES.keys()


@pytest.mark.parametrize("schedule", BY_HAND)
def test_schedule_values(schedule):
    config = OptimConfig(peak_rate=2.0, schedule=schedule, warmup=4, final_fraction=0.1, decay_fraction=0.25)
    rate = learning_rate(config, steps=24)
    wanted = {0: 0.4, 1: 0.8, 2: 1.2, 3: 1.6, 4: 2.0} | BY_HAND[schedule]
    np.testing.assert_allclose([rate(t) for t in wanted], list(wanted.values()), rtol=3e-6)
    np.testing.assert_allclose(jax.vmap(rate)(jnp.array(list(wanted))), list(wanted.values()), rtol=3e-6)
    np.testing.assert_allclose(rate(1000), rate(24) if schedule != "rsqrt" else 2 * math.sqrt(4 / 1000), rtol=3e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_at_the_edges_are_finite_and_within_the_peak(schedule):
    for warmup, steps, fraction in [(0, 1, 0.0), (10, 5, 0.0), (5, 5, 1.0), (0, 7, 0.0)]:
        config = OptimConfig(schedule=schedule, warmup=warmup, decay_fraction=fraction, final_fraction=0.0)
        rates = [float(learning_rate(config, steps)(t)) for t in range(steps + 2)]
        assert all(0 <= x <= np.float32(config.peak_rate) for x in rates) and max(rates[:steps]) > 0


def test_adamw_steps_equal_the_equations():
    config = OptimConfig(
        peak_rate=0.1, schedule="linear", warmup=2, final_fraction=0.0, weight_decay=0.3, b1=0.8, b2=0.9, clip=1.5
    )
    params = {"kernel": jnp.array([[0.5, -1.0]]), "bias": jnp.array([2.0])}
    gradients = [
        {"kernel": jnp.array([[a, -b]]), "bias": jnp.array([c])}
        for a, b, c in [(3.0, 4.0, 0.0), (1.0, 0.0, 1.0), (0.0, 1.0, 2.0)]
    ]
    seen = run(config, params, gradients, steps=6)

    flat = lambda tree: np.concatenate([np.ravel(tree["kernel"]), np.ravel(tree["bias"])]).astype(np.float64)
    p, m, v, decayed = flat(params), np.zeros(3), np.zeros(3), np.array([1, 1, 0])
    for t, (gradient, rate) in enumerate(zip(gradients, [0.1 / 3, 0.2 / 3, 0.1], strict=True)):
        g = flat(gradient)
        g = g * min(1, 1.5 / np.linalg.norm(g))
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
        m_hat, v_hat = m / (1 - 0.8 ** (t + 1)), v / (1 - 0.9 ** (t + 1))
        p = p - rate * (m_hat / (np.sqrt(v_hat) + 1e-8) + 0.3 * decayed * p)
        np.testing.assert_allclose(flat(seen[t]), p, rtol=1e-5)


def test_only_matrices_decay():
    assert decays(parameters()) == {
        "block": {"proj": {"kernel": True, "bias": False}, "norm": {"scale": False}},
        "embed": {"embedding": True},
        "memory": {"fast": {"w1": False}, "persistent": False},
    }


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_gradients_only_matrices_decay(name):
    params = parameters()
    config = dataclasses.replace(PLAIN, name=name, weight_decay=0.5)
    [after] = run(config, params, [jax.tree.map(jnp.zeros_like, params)], steps=1)
    wanted = jax.tree.map(lambda decay, p: p * (1 - 0.1 * 0.5 * decay), decays(params), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), after, wanted)


def test_a_flax_state_decays_like_a_dict():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs)])
            self.embed = nnx.Embed(4, 2, rngs=rngs)
            self.fast = nnx.Param({"kernel": jnp.ones((2, 2))})

    _, params = nnx.split(Model(nnx.Rngs(0)))
    wanted = {"layers": {0: {"kernel": True, "bias": False}}, "embed": {"embedding": True}, "fast": {"kernel": False}}
    assert decays(nnx.to_pure_dict(params)) == wanted
    assert jax.tree.leaves(decays(params)) == jax.tree.leaves(wanted)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_descends(name):
    params, target = parameters(), parameters(seed=1)

    def loss(params):
        return sum(jnp.sum(jnp.square(p - t)) for p, t in zip(*map(jax.tree.leaves, (params, target)), strict=True))

    config = dataclasses.replace(PLAIN, name=name, peak_rate=0.02)
    transformation = build(config, 100)
    state, p = transformation.init(params), params

    @jax.jit
    def step(p, state):
        updates, state = transformation.update(jax.grad(loss)(p), state, p)
        return optax.apply_updates(p, updates), state

    for _ in range(100):
        p, state = step(p, state)
    assert loss(p) < 0.5 * loss(params)


def test_sgd_is_heavy_ball_momentum():
    params = {"kernel": jnp.zeros((1, 1))}
    seen = run(dataclasses.replace(PLAIN, name="sgd", b1=0.5), params, [{"kernel": jnp.ones((1, 1))}] * 3, steps=3)
    np.testing.assert_allclose([float(p["kernel"][0, 0]) for p in seen], [-0.1, -0.1 - 0.15, -0.25 - 0.175], rtol=1e-6)


def test_muon_orthogonalises_each_layer_of_a_stack():
    params = {"layers": {"kernel": jnp.zeros((2, 6, 4))}, "gate": {"bias": jnp.zeros((2, 4))}}
    rng = np.random.default_rng(0)
    gradient = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)
    config = dataclasses.replace(PLAIN, name="muon")
    [after] = run(config, params, [gradient], steps=1)
    larger = jax.tree.map(lambda g: g.at[1].multiply(7.0), gradient)
    [again] = run(config, params, [larger], steps=1)
    np.testing.assert_allclose(after["layers"]["kernel"], again["layers"]["kernel"], atol=1e-6)
    singular = np.linalg.svd(after["layers"]["kernel"], compute_uv=False) / (0.1 * 0.2 * math.sqrt(6))
    assert np.all((singular > 0.6) & (singular < 1.3))
    np.testing.assert_allclose(np.abs(after["gate"]["bias"]), 0.1, rtol=1e-5)


def test_clipping_limits_the_global_norm_of_large_gradients_only():
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    config = dataclasses.replace(PLAIN, name="sgd", b1=0.0, clip=1.0)
    for size, wanted in [(10.0, 1.0), (0.1, 0.5)]:
        gradient = {"a": jnp.array([3.0 * size]), "b": jnp.array([4.0 * size])}
        [after] = run(config, params, [gradient], steps=1)
        np.testing.assert_allclose([after["a"][0], after["b"][0]], [-0.06 * wanted, -0.08 * wanted], rtol=1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(name="adamv"), "optim.name: 'adamv' is unknown; known are .*; did you mean adamw"),
        (dict(name="zzz"), "optim.name: 'zzz' is unknown; known are adamw"),
        (dict(schedule="cosin"), "did you mean cosine"),
        (dict(peak_rate=-1e-3), "peak_rate is -0.001, it must be 0 or more"),
        (dict(peak_rate=math.nan), "peak_rate is nan"),
        (dict(peak_rate=math.inf), "peak_rate is inf"),
        (dict(warmup=-1), "warmup is -1"),
        (dict(weight_decay=-0.1), "weight_decay is -0.1"),
        (dict(final_fraction=1.1), "final_fraction is 1.1, it must be between 0 and 1"),
        (dict(decay_fraction=-0.1), "decay_fraction is -0.1"),
        (dict(b1=1.0), "b1 is 1.0, it must be at least 0 and below 1"),
        (dict(b2=-0.1), "b2 is -0.1"),
        (dict(eps=0.0), "eps is 0.0"),
        (dict(clip=0.0), "clip is 0.0, it must be above 0, or None"),
        (dict(b3=1.0), "b3 is 1.0"),
        (dict(alpha=-1.0), "alpha is -1.0, it must be 0 or more"),
        (dict(chunk=0), "chunk is 0, it must be 1 or more"),
        (dict(accumulation=0), "accumulation is 0, it must be 1 or more"),
    ],
)
def test_invalid_options_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        OptimConfig(**change)


def test_a_run_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="steps is 0, it must be 1 or more"):
        build(OptimConfig(), steps=0)
