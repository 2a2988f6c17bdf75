"""How a memory learns: one token's step as a linear map of (dual, traces) and of the gradient."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from titans_jax.memory.base import Gates, Learner


def gradient_descent(gradient: str = "anchor") -> Learner:
    """A_t = keep_t A_{t-1} - rate_t g_t (Titans Eq 8 and 16); the momentum gate has no part in it.

    gradient: where g_t is taken: "anchor" (the chunk's start), "previous" (M_{t-1}, the delta rule), "decayed"
    (keep_t M_{t-1}, the gated delta rule) or "erasing" (the anchor; decay is by keep_t I - rate_t k_t^T k_t).
    """

    def transition(gates: Gates, position: Array) -> tuple[Array, Array]:
        return gates.keep[None, None], -gates.rate[None]

    return Learner(transition, traces=0, gradient=gradient)


def momentum(order: int = 1, gradient: str = "anchor") -> Learner:
    """S_t = momentum_t S_{t-1} - rate_t g_t, A_t = keep_t A_{t-1} + S_t (Titans Eq 10, 13, 14).

    Of a higher order, each trace drives the next with the same gate, and the last one drives A:
    S1_t = momentum_t S1_{t-1} - rate_t g_t, S2_t = momentum_t S2_{t-1} + S1_t, ..., A_t = keep_t A_{t-1} + SN_t.
    """

    def transition(gates: Gates, position: Array) -> tuple[Array, Array]:
        zero, n = jnp.zeros_like(gates.keep), order + 1
        # z = (A, SN, ..., S1): row i adds every later, already updated trace to what it keeps of itself
        F = [[zero if j < i else gates.momentum for j in range(n)] for i in range(n)]
        F[0][0] = gates.keep
        return jnp.stack([jnp.stack(row) for row in F]), -jnp.full(n, gates.rate)

    return Learner(transition, traces=order, gradient=gradient)


def averaged(offsets: Sequence[float] | Array | None = None) -> Learner:
    """A_t = anchor - scale_t sum_{i<=t} rate_i g_i over the chunk, scale_t = max(0, 1/(t+1) + offsets_t) (TTT).

    offsets: [chunk] or longer, or None for zeros. The trace is the chunk's sum; keep and momentum have no part in it.
    """

    def scale(position: Array) -> Array:
        offset = 0.0 if offsets is None else jnp.asarray(offsets)[position]
        return jnp.maximum(0.0, 1.0 / (position + 1.0) + offset)

    def transition(gates: Gates, position: Array) -> tuple[Array, Array]:
        now, rate = scale(position).astype(gates.rate.dtype), gates.rate
        before = scale(jnp.maximum(position - 1, 0)).astype(rate.dtype)
        begun = (position > 0).astype(rate.dtype)  # the sum starts anew with the chunk
        F = (
            jnp.array([[1.0, 0.0], [0.0, 0.0]], rate.dtype)
            .at[:, 1]
            .set(jnp.stack([now - before, jnp.ones_like(now)]) * begun)
        )
        return F, jnp.stack([-now * rate, -rate])

    return Learner(transition, traces=1, longest=None if offsets is None else len(offsets))
