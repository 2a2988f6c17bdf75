"""The reference: one token at a time, the papers' equations as they stand. Titans Eq 13-15, for every rule."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from titans_jax.memory.chunk_end import chunk_end, orthogonal_step
from titans_jax.memory.engine import Engine, Tokens, reads_key, with_window
from titans_jax.memory.types import (
    Gates,
    Info,
    Rule,
    State,
    Weights,
    Window,
    current,
    current_weights,
    dense,
    losses,
    norm,
    norms,
    select,
)


def recurrent(rule: Rule, chunk: int, clip: float | None, matmul_dtype: str, read_at: str) -> Engine:
    """Every rule, by `lax.scan` over tokens."""
    if matmul_dtype != "float32":
        raise NotImplementedError("recurrent is the reference and rounds no factor")
    learner, apply = rule.learner, rule.architecture.apply
    erased = reads_key(rule) if learner.grad_at == "delta_decay" else []

    def loss(weights: Weights, token: Window) -> Array:
        return losses(rule, dense(weights), jax.tree.map(lambda x: x[None], token))[0]

    def step(state: State, g: Weights, gates: Gates) -> State:
        """z_t from z_{t-1}, matrix by matrix; W_t beside A_t where the link acts at chunk ends."""

        def next_z(dual: Weights) -> tuple[Weights, ...]:
            z = {n: learner.step((dual[n], *(S[n] for S in state.traces)), g[n], decay(n), position) for n in g}
            return tuple({n: z[n][i] for n in g} for i in range(1 + learner.traces))

        def decay(name: str) -> Gates:
            axis, keep = rule.architecture.channels.get(name), gates.keep
            if keep.ndim:
                keep = {None: keep.mean(), "in": keep[:, None], "out": keep}[axis]
            return gates._replace(keep=keep)

        position = state.step % chunk
        dual, *traces = next_z(state.dual)
        weights = None if state.weights is None else next_z(state.weights)[0]
        return state._replace(dual=dual, traces=tuple(traces), weights=weights)

    def token(state: State, xs: tuple[Tokens, Any], shift: Weights | None) -> tuple[State, tuple[Array, Info]]:
        (q, k, v, gates), valid = xs
        at = start = rule.retention.link(state.anchor)
        previous = current_weights(rule, state)
        if learner.grad_at == "previous":
            at = previous
        if learner.grad_at == "decayed":
            at = current_weights(rule, step(state, jax.tree.map(jnp.zeros_like, at), gates))
        if shift is not None:
            at = jax.tree.map(jnp.add, at, shift)
        window, new = with_window(state, k[None], v[None], jax.tree.map(lambda x: x[None], gates), None)
        surprise, gradients = jax.vmap(jax.value_and_grad(loss), (None, 0))(at, window)
        g = jax.tree.map(lambda g: jnp.tensordot(window.weight[:, 0], g, 1), gradients)
        own = jax.tree.map(lambda g: g[-1], gradients)
        if erased:
            own = g = g | {n: g[n] + jnp.outer(k, k @ previous[n]) for n in erased}

        new = step(new, g, gates)._replace(step=state.step + 1)
        if learner.orthogonalise == "token":
            new = orthogonal_step(new, learner.scale(gates))
        read = {"after": current(rule, new), "before": current(rule, state), "chunk_start": dense(start)}[read_at]
        y = apply(read, q[None])[0]  # Titans Eq 15
        end = lambda state: chunk_end(rule, state, gates, clip)  # noqa: E731
        new, cut = lax.cond(new.step % chunk == 0, end, lambda state: (state, jnp.zeros((), bool)), new)
        new = new if valid is None else select(valid, new, state)
        return new, (y, Info(surprise[-1], norm(own), *norms(new), cut.astype(y.dtype)))

    def chunk_step(state: State, tokens: Tokens, valid: Array | None, shift: Weights | None, plan: None) -> Any:
        state, (y, info) = lax.scan(lambda state, xs: token(state, xs, shift), state, (tokens, valid))
        return state, (y, info)

    return Engine(chunk_step)
