"""The truth: one token at a time, the papers' equations as they stand."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from titans_jax.memory.base import Gates, Info, Rule, Span, State, Weights, Window, dense, losses, norm
from titans_jax.memory.delta import add_erased, erased
from titans_jax.memory.muon import orthogonal_step
from titans_jax.memory.response import responses
from titans_jax.memory.scan import (
    Call,
    Engine,
    anew,
    boundary,
    chunks_of,
    combine,
    components,
    moved,
    moving,
    real_rows,
    seen,
    sources,
)


def recurrent(rule: Rule, chunk: int, clip: float | None, matmul_dtype: str = "float32") -> Engine:
    """W_t = link(F_t z_{t-1} + G_t grad l(W; k_t, v_t)), y_t = M(W_t; q_t), by `lax.scan` over tokens: every rule."""
    if matmul_dtype != "float32":
        raise NotImplementedError("recurrent is what the others are held to, and rounds no factor")
    apply, link = rule.architecture.apply, rule.retention.link
    erases = rule.learner.gradient == "erasing" and bool(erased(rule))

    def loss(weights: Weights, token: Window) -> Array:
        return losses(rule, dense(weights), jax.tree.map(lambda x: x[None], token))[0]

    def acting(z: Weights) -> Weights:
        return z if rule.retention.carries_weights else link(z)

    def token(state: State, q: Array, k: Array, v: Array, gates: Gates, real: Array, residual: Weights | None) -> Any:
        decayed, write = _transition(rule, chunk, state, gates, real)
        previous = sources(state)[0]
        weights = {"anchor": link(state.anchor), "previous": acting(previous), "decayed": acting(decayed[0])}
        weights["erasing"] = weights["anchor"]
        taken_at = weights[rule.learner.gradient]
        if residual is not None:
            taken_at = jax.tree.map(jnp.add, taken_at, residual)
        tokens, state = seen(state, *jax.tree.map(lambda x: x[None], (k, v, gates, real)))
        surprises, gradients = jax.vmap(jax.value_and_grad(loss), (None, 0))(taken_at, tokens)
        gradient = jax.tree.map(lambda g: jnp.tensordot(tokens.weight[:, 0], g, 1), gradients)
        surprise, own = surprises[-1], jax.tree.map(lambda g: g[-1], gradients)
        if erases:
            own = gradient = add_erased(rule, gradient, acting(previous), k)
        z = [jax.tree.map(jnp.add, z, write(i, gradient)) for i, z in zip(moving(state), decayed, strict=True)]
        new = moved(state, z, state.step + real)
        if rule.learner.size is not None and rule.learner.per == "token":
            new = orthogonal_step(new, real * rule.learner.size(gates))
        y = apply(dense(acting(sources(new)[0])), q[None])[0]

        ends = real & (new.step % chunk == 0)
        end = lambda state: boundary(rule, state, gates, clip)  # noqa: E731
        new, cut = lax.cond(ends, end, lambda state: (state, jnp.zeros((), bool)), new)
        momentum_norm = norm(new.learner[0]) if new.learner else jnp.zeros_like(surprise)
        return new, y, Info(surprise, norm(own), momentum_norm, norm(new.dual), cut.astype(surprise.dtype))

    def engine(state: State, call: Call) -> tuple[Array, State, Info]:
        q, k, v, gates, span, reset, residual = call
        T = k.shape[0]
        real = real_rows(span or Span(0, T), T)
        offset, first = state.step % chunk, 0 if span is None else span.first

        def step(state: State, xs: tuple[Any, ...]) -> tuple[State, Any]:
            q, k, v, gates, real, begin, row = xs
            state = anew(reset, begin & real & (state.step % chunk == 0), state)
            at = None if residual is None else jax.tree.map(lambda r: r[(offset + row - first) // chunk], residual)
            new, y, info = token(state, q, k, v, gates, real, at)
            return new, (y, info, link(state.anchor) if residual is not None else None)

        begin = real if reset is None else reset.mask
        state, (y, info, anchors) = lax.scan(step, state, (q, k, v, gates, real, begin, jnp.arange(T)))
        if residual is not None:
            begins = jnp.clip(jnp.arange(chunks_of(T, chunk, span)) * chunk - offset + first, first, T - 1)
            info = info._replace(anchors=jax.tree.map(lambda a: a[begins], anchors))
        return y, state, info

    return engine


def _transition(rule: Rule, chunk: int, state: State, gates: Gates, real: Array) -> tuple[list[Weights], Any]:
    """z_t without its gradient's part, and (i, g) -> that part of component i."""
    response = responses(rule, *jax.tree.map(lambda x: x[None], (gates, real, state.step % chunk)))
    z = components(state)

    def decayed(i: int, name: str) -> Array:
        axis, r = response.of(rule.architecture, name)
        return combine(r.last_start[i], axis, [leaf[name] for leaf in z])

    def write(i: int, gradient: Weights) -> Weights:
        parts = {}
        for name, g in gradient.items():
            axis, r = response.of(rule.architecture, name)
            parts[name] = combine(r.last_steps[i, -1:], axis, [g])
        return parts

    return [{name: decayed(i, name) for name in state.dual} for i in moving(state)], write
