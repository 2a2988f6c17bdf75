"""What happens once a stream or a chunk: the first state; an orthogonalised step, the clip, the retention's end."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from titans_jax.memory.types import Gates, Rule, State, Weights, Window, from_origin, norm

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of Jordan's quintic (Muon, 2024)."""


def chunk_end(
    rule: Rule, state: State, gates: Gates, clip: float | None, lost: Array | bool = False
) -> tuple[State, Array]:
    """End a chunk whose last token had these gates. Returns the state, and whether the clip changed it.

    The clip bounds the change of a chunk and the momentum that is carried on, A_0 the dual at the chunk's start:

        A -> A_0 + (A - A_0) min(1, clip / |A - A_0|)        S -> S min(1, clip / |S|)

    An orthogonalised S is not clipped. The clip acts at the chunk's end only, so it is causal and the same under any
    split. A chunk whose change is not finite, or that is `lost`, is undone, and its tokens leave the window.
    `clip=None` is the paper. The clip bounds the dual; each retention says what that means for the weights.
    """
    learner, retention, cut = rule.learner, rule.retention, jnp.zeros((), bool)
    if learner.orthogonalise == "chunk":
        state = orthogonal_step(state, learner.scale(gates))
    if clip is not None:
        first = state.anchor if state.origin is None else jax.tree.map(jnp.subtract, state.anchor, state.origin)
        change = jax.tree.map(jnp.subtract, state.dual, first)
        finite = jnp.isfinite(norm(change)) & ~jnp.asarray(lost)
        window = jax.tree.map(lambda x: jnp.where(finite, x, 0), state.window)
        change, cut = _shrink(change, clip, lost)
        traces = [_shrink(trace, None if learner.orthogonalise else clip, lost) for trace in state.traces]
        cut = jnp.stack([cut, *(c for _, c in traces)]).any()
        dual = jax.tree.map(jnp.add, first, change)
        state = state._replace(dual=dual, traces=tuple(t for t, _ in traces), window=window)
    if retention.end is not None:
        assert state.origin is not None
        dual = retention.end(from_origin(state), state.origin)
        state = state._replace(dual=jax.tree.map(jnp.subtract, dual, state.origin))
    return chunk_start(rule, state), cut


def chunk_start(rule: Rule, state: State) -> State:
    """The state at a chunk's start: anchor and weights follow from the dual."""
    weights = rule.retention.link(state.dual) if rule.retention.carries_weights else None
    return state._replace(anchor=from_origin(state), weights=weights)


def initial_state(rule: Rule, dual: Weights) -> State:
    """The state of a stream that starts with this dual. Each leaf is its own array, so that all may be donated.

    Its step is a constant while tracing: an update from it needs no alignment.
    """
    dual = {name: jax.lax.stop_gradient(w) if name in rule.architecture.frozen else w for name, w in dual.items()}
    origin, anchor = None, jax.tree.map(lambda x: x + 0, dual)
    if rule.retention.to_origin:
        dual, origin = jax.tree.map(jnp.zeros_like, dual), dual
    traces = tuple(jax.tree.map(jnp.zeros_like, dual) for _ in range(rule.learner.traces))
    weights = rule.retention.link(dual) if rule.retention.carries_weights else None
    step: Any = np.int32(0)
    own = jax.tree.map(lambda x: x + 0, anchor)
    initial = rule.retention.link(own) if rule.relative and origin is None else None
    return State(dual, traces, anchor, step, origin, weights, _empty_window(rule, dual), initial)


def _empty_window(rule: Rule, like: Weights) -> Window | None:
    count, dim = rule.learner.window - 1, rule.architecture.dim
    if count == 0:
        return None
    assert dim is not None
    zeros = functools.partial(jnp.zeros, dtype=jax.tree.leaves(like)[0].dtype)
    return Window(zeros((count, dim)), zeros((count, dim)), zeros((count, 1)))


def new_stream(rule: Rule, state: State) -> State:
    """The state of a stream that starts from this one's weights. They become the origin; traces stay."""
    if state.origin is not None:
        zeros = jax.tree.map(jnp.zeros_like, state.dual)
        state = state._replace(origin=from_origin(state), dual=zeros)
    state = chunk_start(rule, state)._replace(step=jnp.zeros((), jnp.int32))
    return state if state.initial is None else state._replace(initial=rule.retention.link(state.anchor))


def _shrink(tree: Weights, bound: float | None, lost: Array | bool) -> tuple[Weights, Array]:
    size = norm(tree)
    finite = jnp.isfinite(size) & ~jnp.asarray(lost)
    tree = jax.tree.map(lambda x: jnp.where(finite, x, 0.0), tree)
    if bound is None:
        return tree, ~finite
    factor = jnp.minimum(1.0, bound / jnp.where(finite, size, 1.0))
    return jax.tree.map(lambda x: x * factor, tree), ~finite | (size > bound)


def orthogonal_step(state: State, size: Array) -> State:
    """A + size NS5(S) for every matrix alone."""
    dual = jax.tree.map(lambda A, S: A + size * orthogonalise(S), state.dual, state.traces[0])
    return state._replace(dual=dual)


def orthogonalise(S: Array, steps: int = 5) -> Array:
    """NS5(S), near to U V^T of S = U D V^T: X = S / |S|, then X = a X + (b X X^T + c (X X^T)^2) X. [in, out]."""
    a, b, c = NEWTON_SCHULZ
    tall = S.shape[0] > S.shape[1]
    X = (S.T if tall else S) / jnp.sqrt(jnp.vdot(S, S) + 1e-14)

    def step(_: int, X: Array) -> Array:
        gram = X @ X.T
        return a * X + (b * gram + c * gram @ gram) @ X

    X = jax.lax.fori_loop(0, steps, step, X)
    return X.T if tall else X
