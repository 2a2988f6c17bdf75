"""The single functions against the equations, written out by hand in float64 numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiling import QUICK
from tests.oracles.recurrences import residual_mlp, residual_mlp_gradient
from titans_jax.memory import PRESETS, Gates, functional, miras, presets

D, T = 4, 6


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def network(seed=0):
    return {"w1": draw(D, 8, seed=seed) / 2, "w2": draw(8, D, seed=seed + 1) / 3}


def summed(weights, k, v):
    """The gradient of sum_t ||M(k_t) - v_t||^2 of the residual MLP."""
    each = [residual_mlp_gradient(weights, a, b, 1.0) for a, b in zip(k, v, strict=True)]
    return {name: sum(g[name] for g in each) for name in weights}


def near(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12), a, b)


def test_surprise_and_gradient_of_a_network():
    rule, weights, (k, v) = presets.titans(D, expansion=2), network(), draw(2, T, D, seed=3)
    wanted = [np.sum((residual_mlp(weights, a) - b) ** 2) for a, b in zip(k, v, strict=True)]
    near(functional.surprise(rule, weights, k, v), np.array(wanted))
    near(functional.gradient(rule, weights, k, v), summed(weights, k, v))
    near(functional.read(rule, weights, k), np.stack([residual_mlp(weights, a) for a in k]))


def test_writes_are_titans_equations_8_to_14():
    rule, weights, tokens = presets.titans(D, expansion=2), network(), draw(3, 2, T, D, seed=3)
    once = functional.write(rule, weights, *tokens[0], rate=0.1)
    near(once, {n: w - 0.1 * summed(weights, *tokens[0])[n] for n, w in weights.items()})  # 8

    S, W = None, weights
    M, trace = weights, {n: np.zeros_like(w) for n, w in weights.items()}
    for k, v in tokens:
        W, S = functional.momentum_write(rule, W, S, k, v, rate=0.1, momentum=0.7, keep=0.9)
        g = summed(M, k, v)
        trace = {n: 0.7 * s - 0.1 * g[n] for n, s in trace.items()}  # 14
        M = {n: 0.9 * w + trace[n] for n, w in M.items()}  # 13
    near(W, M)
    near(S, trace)
    near(functional.forget(rule, weights, 0.9), {n: 0.9 * w for n, w in weights.items()})


def test_the_delta_rule_and_the_linear_rnn_are_writes():
    M, k, v = draw(D, D), draw(1, D, seed=1), draw(1, D, seed=2)
    erased = M - 0.3 * k.T @ (k @ M) + 0.3 * k.T @ v  # MIRAS Eq 9 with keep 1
    near(functional.write(presets.deltanet(D), {"w": M}, k, v, rate=0.3), {"w": erased})
    decayed = 0.95 * M + k.T @ v  # MIRAS Eq 3 and 8
    near(functional.write(presets.linear_attention(D), {"w": M}, k, v, rate=1.0, keep=0.95), {"w": decayed})


@pytest.mark.parametrize("name", PRESETS)
def test_ten_writes_lower_what_every_rule_minimises(name):
    rule = PRESETS[name](D)
    weights, (k, v) = rule.architecture.init(jax.random.key(0)), draw(2, T, D, seed=3)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def write(weights, k, v):
        error = functional.surprise(rule, weights, k, v).sum()
        return functional.write(rule, weights, k, v, rate=1e-3), error

    weights, before = write(weights, k, v)
    for _ in range(10):
        weights, after = write(weights, k, v)
    assert after < before


@pytest.mark.parametrize("causal", [True, False])
def test_attention_and_linear_attention_are_titans_equations_1_to_5(causal):
    q, k, v = draw(3, T, D)
    plus = lambda x: np.where(x > 0, x, np.expm1(x)) + 1
    softmax, linear = np.zeros((T, D)), np.zeros((T, D))
    for t in range(T):
        seen = slice(0, t + 1 if causal else T)
        weights = np.exp(q[t] @ k[seen].T / np.sqrt(D))
        softmax[t] = weights @ v[seen] / weights.sum()
        M = sum(np.outer(plus(a), b) for a, b in zip(k[seen], v[seen], strict=True))  # 4
        linear[t] = plus(q[t]) @ M / (plus(q[t]) @ plus(k[seen]).sum(0))  # 3, 5
    near(functional.attention(q, k, v, causal), softmax)
    near(functional.linear_attention(q, k, v, causal), linear)


def test_linear_attention_is_two_streams_of_one_memory():
    q, k, v = jnp.asarray(draw(3, T, D))
    feature, once = lambda x: jax.nn.elu(x) + 1, Gates(jnp.ones(T), jnp.zeros(T), jnp.ones(T))
    memory = miras(presets.linear_attention(D), chunk=2, clip=None)

    def stream(values):
        return memory.update(memory.init({"w": jnp.zeros((D, D))}), feature(q), feature(k), values, once)[0]

    near(functional.linear_attention(q, k, v), stream(v) / stream(jnp.ones_like(v)))


def test_an_ensemble_reads_the_mean_of_what_each_member_alone_would():
    rules = [presets.titans_linear(D), presets.deltanet(D), presets.linear_attention(D)]
    weights = [{"w": draw(D, D, seed=i)} for i in range(3)]
    members = [miras(rule, chunk=4) for rule in rules]
    q, k, v = jnp.asarray(draw(3, T, D))
    gates = Gates(jnp.full(T, 0.1), jnp.full(T, 0.5), jnp.full(T, 0.9))
    memory = functional.ensemble(*members)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(weights, *tokens):
        alone = [m.update(m.init(w), *tokens) for m, w in zip(members, weights, strict=True)]
        return memory.update(memory.init(weights), *tokens), alone

    (y, state, infos), alone = run(weights, q, k, v, gates)
    near(y, sum(a[0] for a in alone) / 3)
    near(state, tuple(a[1] for a in alone))
    near(infos, tuple(a[2] for a in alone))
    near(memory.read(state, q), sum(m.read(a[1], q) for m, a in zip(members, alone, strict=True)) / 3)
    with pytest.raises(ValueError, match="ensemble: no memory"):
        functional.ensemble()
