"""The papers' equations as single functions, for a notebook or an experiment; `miras` is what streams and trains.

Keys, values and queries are [T, D], one sequence and one head; batch and heads by `jax.vmap`. A memory forgets towards
zero here, also where its rule forgets to the origin. Attention, and what it says written into a memory:

>>> import jax, jax.numpy as jnp
>>> from titans_jax.memory import functional, presets
>>> rule = presets.titans(dim=8)
>>> weights = rule.architecture.init(jax.random.key(0))
>>> x = jax.random.normal(jax.random.key(1), (16, 8))
>>> context = functional.attention(x, x, x)
>>> before = functional.surprise(rule, weights, x, context)
>>> weights = functional.write(rule, weights, x, context, rate=0.01)
>>> after = functional.surprise(rule, weights, x, context)
>>> print(f"surprise falls by {100 * (1 - after.sum() / before.sum()):.0f}%")
surprise falls by 15%
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from titans_jax.memory.types import Gates, Memory, Rule, Weights, Window, dense, losses


def read(rule: Rule, weights: Weights, query: Array) -> Array:
    """y = M*(q), a read without a write (Titans Eq 15). query: [T, D]. Returns [T, D].

    >>> from titans_jax.memory import presets
    >>> rule = presets.linear_attention(dim=2)
    >>> read(rule, {"w": jnp.array([[0.0, 1.0], [2.0, 0.0]])}, jnp.array([[1.0, 0.0]])).tolist()
    [[0.0, 1.0]]
    """
    return rule.architecture.apply(dense(weights), query)


def surprise(rule: Rule, weights: Weights, key: Array, value: Array) -> Array:
    """l(M(k_t); v_t), the attentional bias of every token at these weights (Titans Eq 12; MIRAS Eq 4).

    key, value: [T, D]. Returns [T]; squared error is summed over features.

    >>> from titans_jax.memory import presets
    >>> rule = presets.deltanet(dim=2)                        # 1/2 ||M(k) - v||^2
    >>> surprise(rule, {"w": jnp.zeros((2, 2))}, jnp.ones((1, 2)), jnp.array([[3.0, 4.0]])).tolist()
    [12.5]
    """
    return losses(rule, dense(weights), Window(key, value, jnp.ones_like(key[:, :1])))


def gradient(rule: Rule, weights: Weights, key: Array, value: Array) -> Weights:
    """sum_t grad l(M; k_t, v_t), the momentary surprise of Titans Eq 8. key, value: [T, D]. Returns a tree of weights.

    >>> from titans_jax.memory import presets
    >>> rule = presets.deltanet(dim=2)
    >>> gradient(rule, {"w": jnp.zeros((2, 2))}, jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0]]))["w"].tolist()
    [[-3.0, -4.0], [-6.0, -8.0]]
    """
    return jax.grad(lambda weights: surprise(rule, weights, key, value).sum())(weights)


def forget(rule: Rule, weights: Weights, keep: jax.typing.ArrayLike) -> Weights:
    """link(keep lift(W)), keep = 1 - alpha: what is left of a memory where nothing is written (Titans Eq 13).

    keep: anything that multiplies every weight [in, out].

    >>> from titans_jax.memory import presets
    >>> forget(presets.titans_linear(dim=1), {"w": jnp.array([[4.0]])}, keep=0.75)["w"].tolist()
    [[3.0]]
    """
    kept = jax.tree.map(lambda dual: keep * dual, rule.retention.lift(weights))
    return rule.retention.link(kept)


def write(
    rule: Rule,
    weights: Weights,
    key: Array,
    value: Array,
    rate: jax.typing.ArrayLike,
    keep: jax.typing.ArrayLike = 1.0,
) -> Weights:
    """One step on a batch of tokens (Titans Eq 8, with Eq 13's forgetting; MIRAS Eq 5, 8, 9 by the rule).

    W <- link(keep lift(W) - rate sum_t grad l(W; k_t, v_t)). key, value: [T, D]. Returns the new weights. The rule's
    learner, which says how steps follow one another, has no part in it.

    Backpropagation is such a write (Nested Learning section 2): a layer's gradient step stores its input as the key
    and the error at its output, with the sign that lowers it, as the value of a Hebbian memory.

    >>> from titans_jax.memory import presets
    >>> x, w = jnp.array([[1.0, 2.0]]), jnp.array([[0.5, 0.0], [0.0, 0.5]])
    >>> loss = lambda y: jnp.sum(jnp.sin(y))
    >>> step = w - 0.1 * jax.grad(lambda w: loss(x @ w))(w)
    >>> error = jax.grad(loss)(x @ w)
    >>> stored = write(presets.linear_attention(dim=2), {"w": w}, x, -error, rate=0.1)
    >>> bool(jnp.allclose(stored["w"], step))
    True
    """
    return momentum_write(rule, weights, None, key, value, rate, 0.0, keep)[0]


def momentum_write(
    rule: Rule,
    weights: Weights,
    trace: Weights | None,
    key: Array,
    value: Array,
    rate: jax.typing.ArrayLike,
    momentum: jax.typing.ArrayLike,
    keep: jax.typing.ArrayLike = 1.0,
) -> tuple[Weights, Weights]:
    """One step with the surprise of the past (Titans Eq 9-10 and, with forgetting, 13-14).

    S <- momentum S - rate sum_t grad l(W; k_t, v_t);  W <- link(keep lift(W) + S). key, value: [T, D].
    trace: S, None before the first step. Returns the new weights and the new trace.

    >>> from titans_jax.memory import presets
    >>> rule, k, v = presets.titans_linear(dim=1), jnp.ones((1, 1)), jnp.ones((1, 1))
    >>> weights, trace = momentum_write(rule, {"w": jnp.zeros((1, 1))}, None, k, v, rate=0.25, momentum=0.5)
    >>> weights, trace = momentum_write(rule, weights, trace, k, v, rate=0.25, momentum=0.5)
    >>> float(trace["w"][0, 0]), float(weights["w"][0, 0])    # 0.5 0.5 + 0.25 2 (1 - 0.5); 0.5 + 0.5
    (0.5, 1.0)
    """
    dual = rule.retention.lift(weights)
    step = jax.tree.map(lambda g: -jnp.asarray(rate) * g, gradient(rule, weights, key, value))
    if trace is not None:
        step = jax.tree.map(lambda s, new: momentum * s + new, trace, step)
    return rule.retention.link(jax.tree.map(lambda a, s: keep * a + s, dual, step)), step


def attention(query: Array, key: Array, value: Array, causal: bool = True) -> Array:
    """y_t = sum_i softmax_i(q_t . k_i / sqrt(D)) v_i, over i <= t where causal (Titans Eq 1-2). [T, D] each.

    >>> q, v = jnp.zeros((2, 1)), jnp.array([[2.0], [4.0]])
    >>> attention(q, q, v).tolist(), attention(q, q, v, causal=False).tolist()
    ([[2.0], [3.0]], [[3.0], [3.0]])
    """
    scores = query @ key.T * query.shape[-1] ** -0.5
    return jax.nn.softmax(jnp.where(_visible(scores, causal), scores, -jnp.inf), axis=-1) @ value


def linear_attention(query: Array, key: Array, value: Array, causal: bool = True) -> Array:
    """y_t = sum_i f(q_t) . f(k_i) v_i / sum_i f(q_t) . f(k_i), f = elu + 1 (Titans Eq 3). [T, D] each.

    Over i <= t where causal; there both sums are memories that only add, M_t = M_{t-1} + f(k_t)^T v_t (Eq 4-5), which
    `presets.linear_attention` streams in a state of one size.

    >>> q, v = jnp.zeros((2, 1)), jnp.array([[2.0], [4.0]])
    >>> linear_attention(q, q, v).tolist()
    [[2.0], [3.0]]
    """
    weights = (jax.nn.elu(query) + 1) @ (jax.nn.elu(key) + 1).T
    weights = jnp.where(_visible(weights, causal), weights, 0)
    return weights @ value / weights.sum(-1, keepdims=True)


def _visible(scores: Array, causal: bool) -> Array:
    """[T, T] bool: which keys each query sees."""
    return jnp.tril(jnp.ones(scores.shape, bool)) if causal else jnp.ones(scores.shape, bool)


def ensemble(*memories: Memory) -> Memory:
    """y_t = mean_i M_i(q_t): memories that read and write the same tokens, each in its own way, as one memory.

    init takes a sequence of weights, one for each; states and infos are tuples.

    Raises:
        ValueError: no memory.

    >>> from titans_jax.memory import miras, presets
    >>> rules = [presets.linear_attention(dim=4), presets.deltanet(dim=4)]
    >>> memory = ensemble(*(miras(rule, chunk=4) for rule in rules))
    >>> state = memory.init([rule.architecture.init(jax.random.key(0)) for rule in rules])
    >>> q, k, v = jax.random.normal(jax.random.key(1), (3, 6, 4))
    >>> y, state, infos = memory.update(state, q, k, v, Gates(jnp.full(6, 0.1), jnp.zeros(6), jnp.ones(6)))
    >>> y.shape, memory.read(state, q).shape, len(infos)
    ((6, 4), (6, 4), 2)
    """
    if not memories:
        raise ValueError("ensemble: no memory; it needs at least one")

    def mean(outputs: list[Array]) -> Array:
        return sum(outputs[1:], outputs[0]) / len(memories)

    def init(weights: Any) -> Any:
        return tuple(memory.init(w) for memory, w in zip(memories, weights, strict=True))

    def read(state: Any, q: Array) -> Array:
        return mean([memory.read(s, q) for memory, s in zip(memories, state, strict=True)])

    def update(state: Any, q: Array, k: Array, v: Array, gates: Gates) -> Any:
        each = [memory.update(s, q, k, v, gates) for memory, s in zip(memories, state, strict=True)]
        y, states, infos = zip(*each, strict=True)
        return mean(list(y)), states, infos

    return Memory(init, read, update)
