"""Decay by a matrix: a write first erases what the memory said under its key (Nested Learning, Eq 79-97).

    W_t = (keep_t I - rate_t k_t^T k_t) W_{t-1} - rate_t g_t        g_t = k_t^T delta_t at the chunk's anchor
        = keep_t W_{t-1} - rate_t k_t^T (delta_t + k_t W_{t-1})

on the matrices that read the key itself; the others have keep_t alone. Deltas at the anchor are at hand in matmuls, and
the erasing is a fresh gradient of ||k_t W||^2 / 2, so that E = Delta + k_t W_{t-1} solves `exact`'s triangular system:

    (I - steps' o (K K^T)) E = Delta + sum_i start'_i * (K z_i)

For one matrix (Eq 93) this is Gated DeltaNet with beta = rate / keep and v' = keep (v - k W_anchor). At chunk 1 it
takes away what is there twice: stable for |keep - 2 rate| < 1, unit keys and the loss ||k W - v||^2 / 2.
"""

import jax.numpy as jnp
from jax import Array

from titans_jax.memory.base import Rule, State, Weights, Window
from titans_jax.memory.chunked import anchored, blocks
from titans_jax.memory.exact import solve
from titans_jax.memory.matmul import Matmul
from titans_jax.memory.response import Responses
from titans_jax.memory.scan import Engine


def delta(rule: Rule, chunk: int, clip: float | None, matmul_dtype: str) -> Engine:
    """Delta gradient descent for any architecture, in chunks."""
    if rule.learner.gradient != "erasing":
        raise NotImplementedError("delta is for decay by a matrix, this learner's is by a number")
    erased(rule)
    return blocks(rule, chunk, clip, matmul_dtype, erasing)


def erasing(
    matmul: Matmul, rule: Rule, state: State, response: Responses, residual: Weights | None, tokens: Window
) -> tuple[Weights, Weights, Array]:
    """The factors of every token's gradient at the anchor, and of what it erases."""
    inputs, cotangents, surprise = anchored(matmul, rule, state, response, residual, tokens)
    for name in erased(rule):
        cotangents[name] = solve(name, 1.0, rule, state, response, tokens.key, cotangents[name])
    return inputs, cotangents, surprise


def erased(rule: Rule) -> list[str]:
    """The matrices that read the key itself: those whose channels are the key's."""
    if names := [name for name, axis in rule.architecture.channels.items() if axis == "in"]:
        return names
    raise NotImplementedError('no matrix is known to read the key: the architecture has no channels "in"')


def add_erased(rule: Rule, gradient: Weights, weights: Weights, k: Array) -> Weights:
    """gradient + k^T k W for one token k [D], on the matrices that read the key."""
    return gradient | {name: gradient[name] + jnp.outer(k, k @ weights[name]) for name in erased(rule)}
