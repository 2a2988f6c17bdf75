"""A whole chunk in matmuls: Titans Eq 16-18. Gradients are rank one, so no tensor of [tokens, |W|] exists.

Per weight matrix, with inputs a_j and cotangents delta_j of the chunk's tokens, g_j = a_j^T delta_j:

    read    x_t W_t = x_t origin + sum_i initial_ti (x_t z_i) + sum_{j<=t} grad_tj (x_t . a_j) delta_j
    carry   z_b     = sum_i initial_bi z_i + A^T diag(grad_b) Delta

z = (dual, traces) at the chunk's start; initial and grad are `unroll`'s coefficients.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from titans_jax.memory.chunk_end import chunk_end
from titans_jax.memory.engine import Engine, Tokens, finite_rows, with_window
from titans_jax.memory.matmul import MATMULS, Matmul
from titans_jax.memory.types import Gates, Info, Rule, State, Weights, Window, dense, losses, norms, select
from titans_jax.memory.unroll import Coefficients, coefficients

# -> per weight the inputs a and cotangents delta [c-1 + b, .] of every token, and the surprise [c-1 + b]
Factors = Callable[[Matmul, Rule, State, Coefficients, Weights | None, Window], tuple[Weights, Weights, Array]]


def chunked(rule: Rule, chunk: int, clip: float | None, matmul_dtype: str, read_at: str) -> Engine:
    """Any architecture, with gradients at the chunk's start."""
    if rule.learner.grad_at != "chunk_start":
        raise NotImplementedError(f"chunked takes gradients at the chunk start, this rule at {rule.learner.grad_at}")
    return in_chunks(rule, chunk, clip, matmul_dtype, read_at, chunk_start_factors)


def chunk_start_factors(
    matmul: Matmul, rule: Rule, state: State, plan: Coefficients, shift: Weights | None, tokens: Window
) -> tuple[Weights, Weights, Array]:
    """Every token's gradient at the chunk start: taps at each matrix' output give delta, its input is a."""
    weights = rule.retention.link(state.anchor)
    if shift is not None:
        weights = jax.tree.map(jnp.add, weights, shift)
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


def in_chunks(rule: Rule, chunk: int, clip: float | None, matmul_dtype: str, read_at: str, factors: Factors) -> Engine:
    """The engine of one way to get the gradients' factors."""
    if rule.learner.orthogonalise == "token":
        raise NotImplementedError("an orthogonalised step at every token is not linear in the gradients of a chunk")
    if not rule.retention.identity and rule.retention.every == "token":
        raise NotImplementedError("a link at every token: the weights of single tokens have no rank-one form")
    matmul = MATMULS[matmul_dtype]

    def chunk_step(state: State, tokens: Tokens, valid: Array | None, shift: Any, plan: Coefficients) -> Any:
        # With a clip, a chunk with a token that is not finite is undone at its end; until then it answers NaN.
        tokens, bad = (tokens, jnp.zeros(len(tokens.q), bool)) if clip is None else finite_rows(tokens, valid)
        lost = bad.any()
        q, k, v, gates = tokens
        window, state = with_window(state, k, v, gates, valid)
        inputs, delta, surprise = factors(matmul, rule, state, plan, shift, window)
        grad_norm = jnp.sqrt(sum(_squares(inputs[n]) * _squares(delta[n]) for n in delta) + 1e-30)
        delta = jax.tree.map(lambda d: window.weight * d, delta)
        if read_at == "chunk_start":
            read = dense(rule.retention.link(state.anchor))
        else:
            read = _read(matmul, rule, state, plan, inputs, delta, read_at)
        y = rule.architecture.apply(read, q)
        rows = len(k)
        new = _carry(matmul, rule, state, plan, inputs, delta)
        new = new._replace(step=state.step + (rows if valid is None else valid.sum(dtype=jnp.int32)))
        cut, inside = jnp.zeros((), bool), new
        if clip is not None and (rows < chunk or valid is not None):
            parts = (inside.dual, inside.weights, inside.traces)
            dual, weights, traces = jax.tree.map(lambda x: jnp.where(lost, jnp.nan, x), parts)
            inside = inside._replace(dual=dual, weights=weights, traces=traces)
        if rows == chunk:
            ended, cut = chunk_end(rule, new, jax.tree.map(lambda x: x[-1], gates), clip, lost)
            new, cut = (ended, cut) if valid is None else (select(valid[-1], ended, inside), valid[-1] & cut)
        else:
            new = inside

        def repeated(x: Array) -> Array:
            return jnp.broadcast_to(x, (rows,)).astype(surprise.dtype)

        surprise = jnp.where(bad, jnp.nan, surprise[-rows:])
        y = jnp.where((jnp.cumsum(bad) > 0)[:, None], jnp.nan, y)
        return new, (y, Info(surprise, grad_norm[-rows:], *jax.tree.map(repeated, (*norms(new), cut))))

    def plan(gates: Gates, valid: Array | None) -> Coefficients:
        finite = jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, 0), gates)
        return coefficients(rule.learner, gates if clip is None else finite, valid)

    return Engine(chunk_step, plan)


def similarity(matmul: Matmul, x: Array, a: Array, grad_weight: Array, axis: str | None) -> Array:
    """[t, j] the weight of delta_j in row t's product. With an "out" axis, `_read` applies grad_weight."""
    if axis == "in":
        return jnp.einsum("ti,tji,ji->tj", x, grad_weight, a)
    return matmul("ti,ji->tj", x, a) * (grad_weight if axis is None else 1.0)


def start_z(state: State) -> list[Weights]:
    """z at the chunk start, with W in place of the dual where the state carries it."""
    return [state.dual if state.weights is None else state.weights, *state.traces]


def _read(
    matmul: Matmul, rule: Rule, state: State, plan: Coefficients, inputs: Weights, delta: Weights, read_at: str
) -> Callable[..., Array]:
    """`linear(name, x)` in which the weights of row t, "after" its write or "before" it, act on row t of x."""

    def linear(name: str, x: Array) -> Array:
        axis, u = plan.of(rule.architecture, name)
        u = u.before("previous") if read_at == "before" else u
        weight = similarity(matmul, x, inputs[name], u.grad_weight, axis)
        if axis == "out":
            y = jnp.einsum("tj,tjo,jo->to", weight, u.grad_weight, delta[name])
        else:
            y = matmul("tj,jo->to", weight, delta[name])
        for i, z in enumerate(start_z(state)):
            c = u.initial_weight[:, i, None] if axis is None else u.initial_weight[:, i]
            y += matmul("ti,io->to", c * x, z[name]) if axis == "in" else c * matmul("ti,io->to", x, z[name])
        return y if state.origin is None else y + matmul("ti,io->to", x, state.origin[name])

    return linear


def _carry(matmul: Matmul, rule: Rule, state: State, plan: Coefficients, inputs: Weights, delta: Weights) -> State:
    """z after the chunk's last row."""

    def last_z(i: int, name: str, z: list[Weights]) -> Array:
        axis, u = plan.of(rule.architecture, name)
        grads = u.last_grad[i, :, None] if axis is None else u.last_grad[i]
        a, d = (inputs[name], grads * delta[name]) if axis == "out" else (grads * inputs[name], delta[name])
        shape = {None: (1, 1), "in": (-1, 1), "out": (1, -1)}[axis]
        kept = sum(u.last_initial[i, j].reshape(shape) * leaf[name] for j, leaf in enumerate(z))
        return kept + matmul("ti,to->io", a, d)

    def every(i: int, z: list[Weights]) -> Weights:
        return {name: last_z(i, name, z) for name in state.dual}

    z = [state.dual, *state.traces]
    weights = None if state.weights is None else every(0, start_z(state))
    return state._replace(dual=every(0, z), traces=tuple(every(i, z) for i in range(1, len(z))), weights=weights)


def _squares(x: Array) -> Array:
    return jnp.square(x).sum(-1)
