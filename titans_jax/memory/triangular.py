"""Fresh gradients at every token, still in matmuls: each chunk solves one unit lower triangular system.

A step that depends on k_t W_pre, the product with the weights just before it, depends on all earlier steps of its
chunk. With coefficients of W_pre (`Unrolled.before`), cotangents Delta of steps slope (rest_t + k_t W_pre) solve

    (I - slope grad' o (K K^T)) Delta = slope (rest + sum_i initial'_i * (K z_i))

"exact": one matrix and a squared loss of slope s, g_t = k_t^T s (k_t W_pre - v_t), so rest = -V. With momentum 0 this
is the WY form of the delta rule, and of the gated delta rule where the gradient is at the "decayed" weights.

"delta": decay by a matrix, where a write first erases what was read under its key (Nested Learning Eq 79-97):

    W_t = (keep_t I - rate_t k_t^T k_t) W_{t-1} - rate_t g_t = keep_t W_{t-1} - rate_t k_t^T (delta_t + k_t W_{t-1})

on the matrices that read the key; the others have keep_t alone. Here rest = delta at the chunk start, slope = 1. For
one matrix (Eq 93) it is Gated DeltaNet with beta = rate / keep and v' = keep (v - k W_anchor). At chunk 1 the old value
is subtracted twice: stable for |keep - 2 rate| < 1, unit keys and the loss ||k W - v||^2 / 2.

Keys should be of unit length. The delta rule multiplies by I - rate_t k_t^T k_t, so where rate |k|^2 is above 2 it
grows like (rate |k|^2)^b inside a chunk, before the clip at the chunk's end.
"""

import jax
import jax.numpy as jnp
from jax import Array

from titans_jax.memory.chunked import chunk_start_factors, in_chunks, similarity, start_z
from titans_jax.memory.engine import Engine, reads_key
from titans_jax.memory.matmul import Matmul, exactly
from titans_jax.memory.types import Rule, State, Weights, Window
from titans_jax.memory.unroll import Coefficients


def exact(rule: Rule, chunk: int, clip: float | None, matmul_dtype: str, read_at: str) -> Engine:
    """The delta family and linear Titans with the gradient at M_{t-1}. Chunks bound only the reach of the clip.

    The triangular system is solved in the state's dtype, whatever matmul_dtype is.
    """
    name, slope = rule.architecture.linear, rule.bias.slope
    if name is None or slope is None:
        raise NotImplementedError("exact solves for one matrix with a squared loss")
    if rule.learner.grad_at in ("chunk_start", "delta_decay"):
        raise NotImplementedError("exact takes a fresh gradient at every token, this rule takes it at the chunk start")
    if rule.learner.window > 1:
        raise NotImplementedError("exact takes every gradient once, this rule once for every window with the token")
    if rule.architecture.channels.get(name) == "out":
        raise NotImplementedError("exact has no decay per output channel")

    def factors(
        matmul: Matmul, rule: Rule, state: State, plan: Coefficients, shift: Weights | None, tokens: Window
    ) -> tuple[Weights, Weights, Array]:
        if shift is not None:
            raise NotImplementedError("exact has no weight residual: its gradients are not at the chunk start")
        k, v = tokens.key, tokens.value
        delta = solve(name, slope, rule, state, plan, k, -v)
        surprise = jax.vmap(rule.bias.loss)(delta / slope + v, v)
        return {name: k}, {name: delta}, surprise

    return in_chunks(rule, chunk, clip, matmul_dtype, read_at, factors)


def delta(rule: Rule, chunk: int, clip: float | None, matmul_dtype: str, read_at: str) -> Engine:
    """Delta gradient descent for any architecture."""
    if rule.learner.grad_at != "delta_decay":
        raise NotImplementedError("delta is for decay by a matrix, this rule decays by a number")
    names = reads_key(rule)

    def factors(
        matmul: Matmul, rule: Rule, state: State, plan: Coefficients, shift: Weights | None, tokens: Window
    ) -> tuple[Weights, Weights, Array]:
        inputs, cotangents, surprise = chunk_start_factors(matmul, rule, state, plan, shift, tokens)
        for name in names:
            cotangents[name] = solve(name, 1.0, rule, state, plan, tokens.key, cotangents[name])
        return inputs, cotangents, surprise

    return in_chunks(rule, chunk, clip, matmul_dtype, read_at, factors)


def solve(name: str, slope: float, rule: Rule, state: State, plan: Coefficients, k: Array, rest: Array) -> Array:
    """Delta = slope (rest + k_t W_pre), W_pre the weights just before row t's step. [b, out]."""
    axis, u = plan.of(rule.architecture, name)
    u = u.before(rule.learner.grad_at)
    for i, z in enumerate(start_z(state)):
        c = u.initial_weight[:, i, None] if axis is None else u.initial_weight[:, i]
        rest += (c * k) @ z[name]
    if state.origin is not None:
        rest += k @ state.origin[name]
    system = jnp.eye(k.shape[0], dtype=k.dtype) - slope * similarity(exactly, k, k, u.grad_weight, axis)
    return unit_lower_inverse(system) @ (slope * rest)


def unit_lower_inverse(x: Array) -> Array:
    """The inverse of a unit lower triangular [b, b], by halves: [[P, 0], [C, Q]] has [[P', 0], [-Q' C P', Q']].

    Matmuls alone, as stable as substitution. XLA's triangular solve on CPUs took nine tenths of a chunk's time.
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
