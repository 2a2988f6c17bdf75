"""How a memory learns: one token's step, as the papers print it.

A step is a function of z = (dual A, trace S, ...), the gradient g, the token's gates and its row in the chunk. It must
be linear in z and g. `recurrent` calls it on the weights; `unroll` takes its coefficients for the chunked engines.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from titans_jax.memory.types import Gates, Learner

Z = tuple[Array, ...]


def gradient_descent(grad_at: str = "chunk_start", *, window: int = 1, writes_per_token: int = 1) -> Learner:
    """A_t = keep_t A_{t-1} - rate_t g_t (Titans Eq 8 and 16). The momentum gate is not used.

    grad_at, window, writes_per_token: see `Learner`. "previous" is the delta rule, "decayed" the gated delta rule.
    """

    def step(z: Z, g: Array, gates: Gates, position: Array) -> Z:
        (A,) = z
        return (gates.keep * A - gates.rate * g,)

    return Learner(step, 0, grad_at, window=window, writes_per_token=writes_per_token)


def momentum(order: int = 1, grad_at: str = "chunk_start", *, window: int = 1) -> Learner:
    """S_t = momentum_t S_{t-1} - rate_t g_t, A_t = keep_t A_{t-1} + S_t (Titans Eq 13-14).

    order: the number of traces. Each trace drives the next one with the same gate, and the last one drives A:
    S1_t = momentum_t S1_{t-1} - rate_t g_t, S2_t = momentum_t S2_{t-1} + S1_t, ..., A_t = keep_t A_{t-1} + SN_t.
    """

    def step(z: Z, g: Array, gates: Gates, position: Array) -> Z:
        A, S = z
        S = gates.momentum * S - gates.rate * g  # Titans Eq 14
        return gates.keep * A + S, S  # Titans Eq 13

    def higher_order(z: Z, g: Array, gates: Gates, position: Array) -> Z:
        A, *traces = z  # SN, ..., S1
        drive, new = -gates.rate * g, []
        for S in reversed(traces):
            drive = gates.momentum * S + drive
            new.append(drive)
        return gates.keep * A + drive, *reversed(new)

    return Learner(step if order == 1 else higher_order, order, grad_at, window=window)


def muon(every: str = "chunk", *, window: int = 1) -> Learner:
    """S_t = momentum_t S_{t-1} - g_t, A_t = keep_t A_{t-1} + rate_t NS5(S_t), matrix by matrix (ATLAS; Jordan's NS5).

    every: "token" is the equation; only "recurrent" serves it. With "chunk", A_t = keep_t A_{t-1} inside a chunk, and
    rate NS5(S) is added at its end, with the last token's S and rate.
    """

    def step(z: Z, g: Array, gates: Gates, position: Array) -> Z:
        A, S = z
        return gates.keep * A, gates.momentum * S - g

    if every not in ("token", "chunk"):
        raise ValueError(f"every: {every!r}; it must be token or chunk")
    return Learner(step, 1, window=window, orthogonalise=every)


def large_chunk() -> Learner:
    """S = momentum S' - sum_i rate_i g_i over a chunk, S' that of the last chunk; A + NS5(S) at its end (LaCT).

    Rates weigh the tokens of a chunk against each other. The momentum is that of the chunk's first token.
    """

    def step(z: Z, g: Array, gates: Gates, position: Array) -> Z:
        A, S = z
        return gates.keep * A, jnp.where(position > 0, 1.0, gates.momentum) * S - gates.rate * g

    return Learner(step, 1, orthogonalise="chunk", scale=lambda gates: jnp.ones_like(gates.rate))


def averaged(offsets: Sequence[float] | Array | None = None) -> Learner:
    """A_t = anchor - scale_t sum_{i<=t} rate_i g_i over the chunk, scale_t = max(0, 1/(t+1) + offsets_t) (TTT).

    offsets: None for zeros, or [chunk] or longer. The trace is the chunk's sum. Keep and momentum are not used.
    """

    def scale(position: Array) -> Array:
        offset = 0.0 if offsets is None else jnp.asarray(offsets)[position]
        return jnp.maximum(0.0, 1.0 / (position + 1.0) + offset)

    def step(z: Z, g: Array, gates: Gates, position: Array) -> Z:
        A, S = z  # A = anchor + scale S holds for the row before
        now, before = (scale(p).astype(gates.rate.dtype) for p in (position, jnp.maximum(position - 1, 0)))
        S = jnp.where(position > 0, S, 0.0)
        total = S - gates.rate * g
        return A + now * total - before * S, total

    return Learner(step, 1, max_chunk=None if offsets is None else len(offsets))


def implicit() -> Learner:
    """A_t = argmin_A ||A - keep_t A_{t-1}||^2 + rate_t ||k_t A - v_t||^2 (Longhorn, arXiv 2407.14207).

    For one matrix this is the gated delta rule with rate_t / (1 + rate_t |k_t|^2), which is stable at every rate.
    Longhorn itself has one rate per output and the diagonal of k^T k.
    """

    def inputs(k: Array, gates: Gates) -> tuple[Array, Gates]:
        finite = jnp.isfinite(jnp.square(k).sum(-1, keepdims=True))  # another key is not written
        squares = jnp.square(jnp.where(finite, k, 0)).sum(-1)
        return k, gates._replace(rate=gates.rate / (1 + gates.rate * squares))

    return gradient_descent("decayed")._replace(inputs=inputs)


def complement() -> Learner:
    """Descent with the key 1 - keep_t at rate 1: channels write what they forget (HGRN2, arXiv 2404.07904)."""

    def inputs(k: Array, gates: Gates) -> tuple[Array, Gates]:
        keep = gates.keep if gates.keep.ndim == 2 else gates.keep[:, None]
        return jnp.broadcast_to(1 - keep, k.shape), gates._replace(rate=jnp.ones_like(gates.rate))

    return gradient_descent()._replace(inputs=inputs)
