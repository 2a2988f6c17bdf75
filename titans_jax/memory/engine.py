"""What the engines share: their type, the window of past tokens, and the matrices that read the key."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from titans_jax.memory.types import Gates, Rule, State, Weights, Window


class Tokens(NamedTuple):
    """q, k, v: [b, D]. gates: [b]. In the state's dtype."""

    q: Array
    k: Array
    v: Array
    gates: Gates


class Engine(NamedTuple):
    """One way to run a rule over a chunk.

    chunk_step: (state, tokens of one chunk [b, ...], valid, shift, plan) -> state, (y [b, D], Info).
    valid: None where all rows are tokens, or [b] bool; the valid rows lie together. With fewer rows than the chunk, all
    are tokens, and the chunk does not end.
    shift: None, or weights [in, out] that are added where the gradients are taken.
    plan: None, or (gates [b], valid) -> what a chunk's gates alone decide; it is made for all chunks at once.
    """

    chunk_step: Callable[[State, Any, Array | None, Weights | None, Any], tuple[State, Any]]
    plan: Callable[[Gates, Array | None], Any] | None = None


def finite_rows(tokens: Tokens, valid: Array | None) -> tuple[Tokens, Array]:
    """Zeros for tokens that are not finite, or whose squares are not, so that no gradient meets them; which [b]."""
    squares = (jnp.square(x).reshape(len(x), -1).sum(-1) for x in jax.tree.leaves(tokens))
    bad = ~jnp.isfinite(sum(squares))
    tokens = jax.tree.map(lambda x: jnp.where(bad.reshape(-1, *[1] * (x.ndim - 1)), 0, x), tokens)
    return tokens, bad if valid is None else bad & valid


def with_window(state: State, k: Array, v: Array, gates: Gates, valid: Array | None) -> tuple[Window, State]:
    """The tokens whose gradients a chunk's rows take, [c-1 + b]: the window's and its own; and the next window."""
    weight = jnp.ones_like(k[:, :1]) if gates.weight is None else gates.weight[:, None]
    own = Window(k, v, weight, gates.threshold)
    if state.window is None:
        return own, state
    size, first, count = len(state.window.weight), jnp.int32(0), jnp.int32(len(k))
    if valid is not None:
        first, count = jnp.argmax(valid), valid.sum(dtype=jnp.int32)

    def joined(before: Array, own: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(jnp.concatenate([jnp.zeros_like(before), own]), before, first, 0)

    tokens = jax.tree.map(joined, state.window, own)
    window = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, first + count, size), tokens)
    return tokens, state._replace(window=window)


def reads_key(rule: Rule) -> list[str]:
    """The matrices that read the key itself: those whose channels are the key's."""
    if names := [name for name, axis in rule.architecture.channels.items() if axis == "in"]:
        return names
    raise NotImplementedError('no matrix is known to read the key: the architecture has no channels "in"')
