"""The chunk in matmuls: per-token gradients are rank one, so no tensor of [tokens, |W|] ever exists.

Per weight matrix, with inputs a_j and cotangents delta_j of the chunk's tokens, g_j = a_j^T delta_j:

    read    x_t W_t = sum_i start_ti (x_t z_i) + sum_{j<=t} steps_tj (x_t . a_j) delta_j
    carry   z_b     = sum_i start_bi z_i       + A^T diag(steps_b) Delta

with the learner's answer (start, steps) of `response.unroll`; for momentum they are c, d and -C of Titans' dual form.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from titans_jax.memory.base import Gates, Info, Rule, State, Weights, Window, losses, norm
from titans_jax.memory.matmul import MATMULS, Matmul
from titans_jax.memory.response import Responses, responses
from titans_jax.memory.scan import (
    Call,
    Engine,
    anew,
    begun,
    boundary,
    combine,
    components,
    covers,
    in_groups,
    lay,
    moved,
    moving,
    seen,
    select,
    sources,
    where_any,
)

# -> per weight the inputs a and cotangents delta [b, .] of every token, and surprise [b]
Gradients = Callable[[Matmul, Rule, State, Responses, Weights | None, Window], tuple[Weights, Weights, Array]]


def chunked(rule: Rule, chunk: int, clip: float | None, matmul_dtype: str) -> Engine:
    """Titans Eq 16-18 for any architecture: gradients at the chunk's start, the learner's recurrence in matmuls."""
    if rule.learner.gradient != "anchor":
        raise NotImplementedError(
            f"chunked takes gradients at the chunk's start, not at the {rule.learner.gradient} weights"
        )
    if rule.learner.per == "token":
        raise NotImplementedError("chunked has no step of every token's own that is orthogonalised; a chunk's it has")
    return blocks(rule, chunk, clip, matmul_dtype, anchored)


def anchored(
    matmul: Matmul, rule: Rule, state: State, response: Responses, residual: Weights | None, tokens: Window
) -> tuple[Weights, Weights, Array]:
    """The factors of every token's gradient at the anchor: taps at each matrix' output collect delta, x is a."""
    weights = rule.retention.link(state.anchor)
    if residual is not None:
        weights = jax.tree.map(jnp.add, weights, residual)
    taps = {name: jnp.zeros((len(tokens.key), w.shape[1]), tokens.key.dtype) for name, w in weights.items()}

    def loss(taps: Weights) -> tuple[Array, tuple[Weights, Array]]:
        inputs = {}

        def linear(name: str, x: Array) -> Array:
            if name in inputs:
                raise NotImplementedError(f"chunked: the network applies {name!r} twice; its gradient is not rank one")
            inputs[name] = x
            return matmul("ti,io->to", x, weights[name]) + taps[name]

        surprise = losses(rule, linear, tokens)
        return surprise.sum(), (inputs, surprise)

    delta, (inputs, surprise) = jax.grad(loss, has_aux=True)(taps)
    return inputs, delta, surprise


def scores(matmul: Matmul, x: Array, a: Array, steps: Array, axis: str | None) -> Array:
    """[t, j] how much of delta_j answers x_t; an "out" axis is left to `_read`."""
    if axis == "in":
        return jnp.einsum("ti,tji,ji->tj", x, steps, a)
    return matmul("ti,ji->tj", x, a) * (steps if axis is None else 1.0)


def _read(
    matmul: Matmul, rule: Rule, state: State, response: Responses, inputs: Weights, delta: Weights
) -> Callable[..., Array]:
    """`linear(name, x)` with the weights of row t acting on row t of x."""

    def linear(name: str, x: Array) -> Array:
        axis, r = response.of(rule.architecture, name)
        start, steps = r.start, r.steps
        near = scores(matmul, x, inputs[name], steps, axis)
        if axis == "out":
            y = jnp.einsum("tj,tjo,jo->to", near, steps, delta[name])
        else:
            y = matmul("tj,jo->to", near, delta[name])
        for i, z in enumerate(sources(state)):
            c = start[:, i, None] if axis is None else start[:, i]
            y += matmul("ti,io->to", c * x, z[name]) if axis == "in" else c * matmul("ti,io->to", x, z[name])
        return y

    return linear


def _carry(
    matmul: Matmul, rule: Rule, state: State, response: Responses, inputs: Weights, delta: Weights
) -> list[Weights]:
    """z after the chunk's last row."""
    z = components(state)

    def leaf(i: int, name: str) -> Array:
        axis, r = response.of(rule.architecture, name)
        steps = r.last_steps[i, :, None] if axis is None else r.last_steps[i]
        a, d = (inputs[name], steps * delta[name]) if axis == "out" else (steps * inputs[name], delta[name])
        return combine(r.last_start[i], axis, [leaf[name] for leaf in z]) + matmul("ti,to->io", a, d)

    return [{name: leaf(i, name) for name in state.dual} for i in moving(state)]


def blocks(rule: Rule, chunk: int, clip: float | None, matmul_dtype: str, gradients: Gradients) -> Engine:
    """`lax.scan` over chunks for one way to take the gradients; a call that begins inside a chunk is shifted to it."""
    if not rule.retention.identity and rule.retention.every == "token":
        raise NotImplementedError("a link at every token: the weights of single tokens have no rank-one form")
    matmul = MATMULS[matmul_dtype]

    def block(
        state: State, q: Array, k: Array, v: Array, gates: Gates, real: Array, response: Any, residual: Any
    ) -> Any:
        tokens, state = seen(state, k, v, gates, real)
        inputs, delta, surprise = gradients(matmul, rule, state, response, residual, tokens)
        grad_norm = jnp.sqrt(sum(_squares(inputs[n]) * _squares(delta[n]) for n in delta) + 1e-30)[-len(k) :]
        surprise = surprise[-len(k) :]
        delta = jax.tree.map(lambda d: tokens.weight * d, delta)
        y = rule.architecture.apply(_read(matmul, rule, state, response, inputs, delta), q)
        z = _carry(matmul, rule, state, response, inputs, delta)
        new = moved(state, z, state.step + real.sum(dtype=state.step.dtype))
        ended, cut = boundary(rule, new, jax.tree.map(lambda x: x[-1], gates), clip)
        ends = real[-1]
        new, cut = select(ends, ended, new), ends & cut
        momentum_norm = norm(new.learner[0]) if new.learner else jnp.zeros(())

        def held(x: Array) -> Array:
            return jnp.broadcast_to(x, surprise.shape).astype(surprise.dtype)

        return new, (y, Info(surprise, grad_norm, held(momentum_norm), held(norm(new.dual)), held(cut)))

    def engine(state: State, call: Call) -> tuple[Array, State, Info]:
        q, k, v, gates, span, reset, residual = call
        mask = jnp.zeros(k.shape[0], bool) if reset is None else reset.mask
        (q, k, v, gates, mask), real, inside, back = lay((q, k, v, gates, mask), chunk, state.step, span)
        whole = covers(inside, real.size)
        home = state.home

        def carried(state: State) -> State:  # not what never changes, nor what a chunk that begins knows of itself
            state = state._replace(home=None)
            return state._replace(anchor={}, weights=None) if whole else state

        def known(state: State) -> State:
            state = state._replace(home=home)
            return begun(rule.retention, state) if whole else state

        def body(state: State, xs: tuple[Any, ...]) -> tuple[State, Any]:
            q, k, v, gates, real, mask, residual, response = xs
            real = jnp.ones(chunk, bool) if whole else real
            state = anew(reset, mask[0] & real[0], known(state))
            anchors = None if residual is None else rule.retention.link(state.anchor)

            def write(state: State) -> tuple[State, tuple[Array, Info]]:
                new, out = block(known(state), q, k, v, gates, real, response, residual)
                return carried(new), out

            state = carried(state)
            new, (y, info) = write(state) if whole else where_any(real, write, state)
            return new, (y, info, anchors)

        def run(state: State, xs: tuple[Any, ...]) -> tuple[State, Any]:
            # the learner's response depends on the gates alone: of many chunks at once, before the scan
            answer = jax.vmap(responses, in_axes=(None, 0, 0, None))(rule, xs[3], xs[4], jnp.arange(chunk))
            if len(xs[4]) > 1:
                return lax.scan(jax.checkpoint(body), state, (*xs, answer))
            # a single one needs neither a loop nor a second forward pass
            state, out = body(state, jax.tree.map(lambda x: x[0], (*xs, answer)))
            return state, jax.tree.map(lambda x: x[None], out)

        xs = (q, k, v, gates, real, mask, residual)
        state, (y, info, anchors) = in_groups(run, carried(state), xs)
        y, info = back((y, info))
        return y, known(state), info._replace(anchors=anchors)

    return engine


def _squares(x: Array) -> Array:
    return jnp.square(x).sum(-1)
