"""Fresh gradients at every token, still in matmuls: for one matrix and a squared loss they solve a triangular system.

With slope s, gradient g_t = k_t^T delta_t, delta_t = s (k_t W_pre - v_t), where W_pre is the state just before token t
in the learner's own terms (start', steps' of the row before, or of this row without its own step):

    (I - s steps' o (K K^T)) Delta = s (sum_i start'_i * (K z_i) - V)          unit lower triangular

With momentum 0 this is the WY form of the delta rule, and of the gated delta rule where the gradient is "decayed".

Keys should be of unit length. The delta rule multiplies by I - rate_t k_t^T k_t, so where rate |k|^2 is above 2 it
grows like (rate |k|^2)^b inside a chunk, before the clip at its end sees it.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from titans_jax.memory.base import Rule, State, Weights, Window
from titans_jax.memory.chunked import blocks, scores
from titans_jax.memory.matmul import Matmul, exactly
from titans_jax.memory.response import Response, Responses
from titans_jax.memory.scan import Engine, sources


def exact(rule: Rule, chunk: int, clip: float | None, matmul_dtype: str) -> Engine:
    """The delta family and linear Titans with the gradient at M_{t-1} itself; chunk bounds only the clip's reach.

    matmul_dtype has no part in the system that is solved.
    """
    name, slope = rule.architecture.linear, rule.bias.slope
    if name is None or slope is None:
        raise NotImplementedError("exact solves for one matrix with a squared loss")
    if rule.learner.gradient in ("anchor", "erasing"):
        raise NotImplementedError("exact takes a fresh gradient at every token, this learner takes the chunk's anchor")
    if rule.learner.window > 1:
        raise NotImplementedError("exact takes every gradient once, this learner again for a window of tokens")
    if rule.architecture.channels.get(name) == "out":
        raise NotImplementedError("exact has no decay per output channel")
    return blocks(rule, chunk, clip, matmul_dtype, functools.partial(fresh, name, slope))


def fresh(
    name: str,
    slope: float,
    matmul: Matmul,
    rule: Rule,
    state: State,
    response: Responses,
    residual: Weights | None,
    tokens: Window,
) -> tuple[Weights, Weights, Array]:
    """Solve for all tokens' cotangents at the matrix `name`; the loss is that of the prediction before the write."""
    if residual is not None:
        raise NotImplementedError("exact has no weight residual: its gradients are not taken at the chunk's start")
    k, v = tokens.key, tokens.value
    delta = solve(name, slope, rule, state, response, k, -v)
    surprise = jax.vmap(rule.bias.loss)(delta / slope + v, v)
    return {name: k}, {name: delta}, surprise


def solve(name: str, slope: float, rule: Rule, state: State, response: Responses, k: Array, rest: Array) -> Array:
    """The cotangents Delta = slope (rest + k_t W_pre) of steps that depend on each other through W_pre. [b, out]."""
    axis, r = response.of(rule.architecture, name)
    start, steps = _before(rule.learner.gradient, r)
    for i, z in enumerate(sources(state)):
        c = start[:, i, None] if axis is None else start[:, i]
        rest += (c * k) @ z[name]
    system = jnp.eye(k.shape[0], dtype=k.dtype) - slope * scores(exactly, k, k, steps, axis)
    return unit_lower_inverse(system) @ (slope * rest)


def unit_lower_inverse(x: Array) -> Array:
    """The inverse of a unit lower triangular [b, b], by halves: [[P, 0], [C, Q]] has [[P', 0], [-Q' C P', Q']].

    Matmuls alone, as stable as substitution; on a CPU, XLA's triangular solve took nine tenths of a chunk's time.
    """
    b = x.shape[0]
    size = 1 << (b - 1).bit_length()
    x = jnp.eye(size, dtype=x.dtype).at[:b, :b].set(x)
    inverse, half = jnp.ones((size, 1, 1), x.dtype), 1
    while half < size:
        blocks = x.reshape(size // (2 * half), 2, half, size // (2 * half), 2, half)[:, 1, :, :, 0]
        corner = jnp.moveaxis(jnp.diagonal(blocks, axis1=0, axis2=2), -1, 0)
        first, second = inverse[::2], inverse[1::2]
        below = -second @ corner @ first
        inverse = jnp.block([[first, jnp.zeros_like(first)], [below, second]])
        half *= 2
    return inverse[0, :b, :b]


def _before(gradient: str, r: Response) -> tuple[Array, Array]:
    """Of the dual's state where row t's gradient is taken: start [b, n(, D)] and steps [b, b(, D)]."""
    start, steps = r.start, r.steps
    if gradient == "decayed":
        b = steps.shape[0]
        return start, steps * (1 - jnp.eye(b, dtype=steps.dtype)).reshape(b, b, *[1] * (steps.ndim - 2))
    first = jnp.zeros_like(start[:1]).at[:, 0].set(1)
    return jnp.concatenate([first, start[:-1]]), jnp.concatenate([jnp.zeros_like(steps[:1]), steps[:-1]])
