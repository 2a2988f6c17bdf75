"""How a memory learns: one token's step as a linear map of (dual, traces) and of the gradient."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from titans_jax.memory.base import Gates, Learner


def gradient_descent(gradient: str = "anchor", *, window: int = 1, writes: int = 1) -> Learner:
    """A_t = keep_t A_{t-1} - rate_t g_t (Titans Eq 8 and 16); the momentum gate has no part in it.

    gradient: where g_t is taken: "anchor" (the chunk's start), "previous" (M_{t-1}, the delta rule), "decayed"
    (keep_t M_{t-1}, the gated delta rule) or "erasing" (the anchor; decay is by keep_t I - rate_t k_t^T k_t).
    window, writes: see `Learner`.
    """

    def transition(gates: Gates, position: Array) -> tuple[Array, Array]:
        return gates.keep[None, None], -gates.rate[None]

    return Learner(transition, traces=0, gradient=gradient, window=window, writes=writes)


def implicit() -> Learner:
    """A_t = argmin_A ||A - keep_t A_{t-1}||^2 + rate_t ||k_t A - v_t||^2 (Longhorn, arXiv 2407.14207).

    For one matrix it is the step of explicit descent from keep_t A_{t-1} with rate_t / (1 + rate_t |k_t|^2), which no
    rate makes unstable. Longhorn itself takes a rate for every output and the diagonal of k^T k.
    """

    def inputs(k: Array, gates: Gates) -> tuple[Array, Gates]:
        return k, gates._replace(rate=gates.rate / (1 + gates.rate * jnp.square(k).sum(-1)))

    return gradient_descent("decayed")._replace(inputs=inputs)


def complement() -> Learner:
    """Gradient descent by the key 1 - keep_t at rate 1: what a channel forgets, it writes (HGRN2, arXiv 2404.07904)."""

    def inputs(k: Array, gates: Gates) -> tuple[Array, Gates]:
        keep = gates.keep if gates.keep.ndim == 2 else gates.keep[:, None]
        return jnp.broadcast_to(1 - keep, k.shape), gates._replace(rate=jnp.ones_like(gates.rate))

    return gradient_descent()._replace(inputs=inputs)


def momentum(order: int = 1, gradient: str = "anchor", *, window: int = 1) -> Learner:
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

    return Learner(transition, traces=order, gradient=gradient, window=window)


def muon(per: str = "chunk", *, window: int = 1) -> Learner:
    """S_t = momentum_t S_{t-1} - g_t, A_t = keep_t A_{t-1} + rate_t NS5(S_t), matrix by matrix (ATLAS; Jordan's NS5).

    per: "token", as it stands, which only recurrent serves; or "chunk": inside a chunk A_t = keep_t A_{t-1}, which is
    what its tokens read, and at its end A + rate NS5(S) with the last token's S and rate, in time for the next chunk.
    """

    def transition(gates: Gates, position: Array) -> tuple[Array, Array]:
        zero = jnp.zeros_like(gates.keep)
        F = jnp.stack([jnp.stack([gates.keep, zero]), jnp.stack([zero, gates.momentum])])
        return F, jnp.stack([zero, zero - 1])

    if per not in ("token", "chunk"):
        raise ValueError(f"per: {per!r}; it must be token or chunk")
    return Learner(transition, traces=1, window=window, size=lambda gates: gates.rate, per=per)


def large_chunk() -> Learner:
    """S = momentum S' - sum_i rate_i g_i over a chunk, S' that of the chunk before; A + NS5(S) at its end (LaCT).

    Rates weigh a chunk's tokens against each other; the momentum is that of its first token.
    """

    def transition(gates: Gates, position: Array) -> tuple[Array, Array]:
        zero = jnp.zeros_like(gates.keep)
        carried = jnp.where(position > 0, 1.0, gates.momentum)
        F = jnp.stack([jnp.stack([gates.keep, zero]), jnp.stack([zero, carried])])
        return F, jnp.stack([zero, -gates.rate])

    return Learner(transition, traces=1, size=lambda gates: jnp.ones_like(gates.rate))


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
