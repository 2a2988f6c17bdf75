"""A chunk's end: what the learner does there, the clip, and the anchor of the next chunk's gradients."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from titans_jax.memory.base import Gates, Rule, State, Weights, norm
from titans_jax.memory.muon import orthogonal_step
from titans_jax.memory.scan import begun


def boundary(
    rule: Rule, state: State, gates: Gates, clip: float | None, after: tuple[State, list[Array]] | None = None
) -> tuple[State, list[Array]]:
    """End a chunk of which the last token had these gates; returns the state and by what all was scaled.

    What the learner does once a chunk comes first. Then the clip bounds what the chunk may change and what momentum may
    carry: A -> anchor + (A - anchor) min(1, clip/|A - anchor|) and S -> S min(1, clip/|S|), but no S of which only the
    directions count. It acts at the chunk's end only, so it is causal and the same under any split. A chunk that is not
    finite is undone, its scale 0, and leaves no token in a window. `clip=None` is the paper. It bounds the dual: what
    that means for the weights is said with each retention. Then the retention's end, the anchor, and weights carried
    beside the dual.
    after: what this returned before, where it is known: then nothing is made of the state but its gradients.
    """
    learner, retention, scales = rule.learner, rule.retention, []
    if learner.size is not None and learner.per == "chunk":
        state = orthogonal_step(state, learner.size(gates))
    if clip is not None:
        bounds = [clip, *[clip if learner.size is None else None] * len(state.learner)]
        given = [jax.tree.map(jnp.subtract, state.dual, state.anchor), *state.learner]
        scales = [_scale(x, bound) for x, bound in zip(given, bounds, strict=True)] if after is None else after[1]
        left = [_scaled(x, scale) for x, scale in zip(given, scales, strict=True)]
        if after is not None:
            left[1:] = after[0].learner
            if retention.end is None:
                left[0] = jax.tree.map(jnp.subtract, after[0].dual, state.anchor)
        (change, _), *traces = (_bounded(bound, *x) for bound, *x in zip(bounds, given, left, scales, strict=True))
        window = jax.tree.map(lambda x: jnp.where(scales[0] > 0, x, 0), state.window)
        dual = jax.tree.map(jnp.add, state.anchor, change)
        state = state._replace(dual=dual, learner=tuple(trace for trace, _ in traces), window=window)
    if retention.end is not None:
        assert state.home is not None
        state = state._replace(dual=retention.end(state.dual, state.home))
    return begun(retention, state), scales


def cut(scales: list[Array]) -> Array:
    """Whether anything was, at a chunk's end."""
    return functools.reduce(jnp.logical_or, [scale < 1 for scale in scales], jnp.zeros((), bool))


def _scale(tree: Weights, bound: float | None) -> Array:
    """What a tree is multiplied by so that its norm is at most the bound; 0 where it is not finite."""
    size = norm(tree)
    return jnp.where(jnp.isfinite(size), jnp.ones_like(size) if bound is None else jnp.minimum(1, bound / size), 0)


def _scaled(tree: Weights, scale: Array) -> Weights:
    return jax.tree.map(lambda x: jnp.where(scale > 0, x * scale, 0), tree)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _bounded(bound: float | None, tree: Weights, left: Weights, scale: Array) -> tuple[Weights, Array]:
    """left = tree scale and scale, as the bound makes them of the tree, whose values their gradients do not ask for."""
    return left, scale


@_bounded.defjvp
def _slopes(bound: float | None, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """d left = scale (dx - along left), d scale = -scale^2 along, along = <left, dx> / bound^2 where it was cut."""
    (left, scale), dx = _bounded(bound, *primals), tangents[0]
    along = jnp.zeros_like(scale)
    if bound is not None:
        inner = sum(jnp.vdot(left[name], dx[name]) for name in left)
        along = jnp.where((scale > 0) & (scale < 1), inner / bound**2, 0)
    slope = {name: jnp.where(scale > 0, scale * (dx[name] - along * left[name]), 0) for name in left}
    return (left, scale), (slope, -jnp.square(scale) * along)
