"""TNT: one memory of the whole stream and small ones that start again every shard (arXiv 2511.07343).

    y_t = M_G(q_t) + sum_i M_i(Pi_t q_t)        Pi_t = sum of k_s^T k_s over the tokens s <= t of the shard

M_G, with a large chunk, is read at its chunk's start. The local memories M_i, with small chunks, and Pi start again
every `shard` tokens, so shards are independent of each other and run as a batch. A shorter local chunk with the same
weights is the paper's second stage.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from titans_jax.memory.api import miras
from titans_jax.memory.chunk_end import new_stream
from titans_jax.memory.stream import Grid, Valid, all_valid, grid_of
from titans_jax.memory.types import Gates, Info, Memory, Reset, Rule, State, Weights, readable, select, state_axes


class TNTWeights(NamedTuple):
    """The initial weights of M_G and of each M_i."""

    global_memory: Weights
    local_memories: tuple[Weights, ...]


class TNTState(NamedTuple):
    """The states of M_G and of each M_i, and Pi [D, D] of the shard so far.

    start_dual: the dual of each M_i at a shard's start, or None where the dual is relative to it. start_pi: Pi there.
    """

    global_memory: State
    local_memories: tuple[State, ...]
    pi: Array
    start_dual: tuple[Weights, ...] | None
    start_pi: Array

    @property
    def step(self) -> Array:
        """Number of tokens read, int32 scalar."""
        return self.global_memory.step


def tnt_axes(axes: Any, locals: int, step: Any = None) -> TNTState:
    """A TNTState of `axes` in every field but the steps; see `types.state_axes`."""
    state = state_axes(axes, step)
    return TNTState(state, (state,) * locals, axes, axes, axes)


def tnt_new_stream(rule: Rule, state: TNTState) -> TNTState:
    """The state of a stream whose memories and shards start from this one's weights and Pi."""
    main, *local = (new_stream(rule, s) for s in (state.global_memory, *state.local_memories))
    return _at_start(rule, main, tuple(local), state.pi)


def _at_start(rule: Rule, main: State, local: tuple[State, ...], pi: Array) -> TNTState:
    start = None if rule.retention.to_origin else tuple(jax.tree.map(lambda x: x + 0, s.dual) for s in local)
    return TNTState(main, local, pi, start, pi + 0)


def tnt_weights(rule: Rule, key: Array, locals: int) -> TNTWeights:
    """A rule's initial weights for M_G and each M_i."""
    main, *local = (rule.architecture.init(k) for k in jax.random.split(key, 1 + locals))
    return TNTWeights(main, tuple(local))


def tnt(
    rule: Rule,
    *,
    chunk: int,
    local_chunks: Sequence[int],
    shard: int,
    clip: float | None = 1.0,
    implementation: str | None = None,
    matmul_dtype: str = "float32",
) -> Memory:
    """The memory above, with `rule` for all of its memories; they are written with the same k, v and gates.

    Args:
      rule, clip, implementation, matmul_dtype: see `miras`.
      chunk: of M_G, a multiple of `shard`.
      local_chunks: one for each M_i; they divide `shard`.
      shard: tokens between two starts of the local memories.

    Returns:
      A `Memory` whose init takes TNTWeights, whose state is a TNTState, and whose info is that of M_G.

    Raises:
      ValueError: sizes that do not divide each other. NotImplementedError: a link that is not the identity; by update,
      a residual. What `miras` raises.
    """
    if chunk % shard or any(shard % c for c in local_chunks):
        raise ValueError(
            f"tnt: chunk {chunk}, shard {shard}, local {tuple(local_chunks)}; each must be a multiple of the next"
        )
    if not rule.retention.identity:
        raise NotImplementedError("tnt: the link is not the identity, and a shard starts with a dual")
    made = functools.partial(miras, rule, clip=clip, implementation=implementation, matmul_dtype=matmul_dtype)
    main, parts = made(chunk=chunk, read_at="chunk_start"), [made(chunk=c) for c in local_chunks]

    def init(weights: TNTWeights) -> TNTState:
        local = tuple(part.init(w) for part, w in zip(parts, weights.local_memories, strict=True))
        state = main.init(weights.global_memory)
        first = jax.tree.leaves(state.dual)[0]
        return _at_start(rule, state, local, jnp.zeros((len(first),) * 2, first.dtype))

    def read(state: TNTState, q: Array) -> Array:
        y = main.read(readable(rule, state.global_memory, state.global_memory.anchor), q)
        x = q @ state.pi.astype(q.dtype)
        return functools.reduce(
            jnp.add, (part.read(s, x) for part, s in zip(parts, state.local_memories, strict=True)), y
        )

    def fresh(state: TNTState) -> TNTState:
        """The local memories and Pi at a shard's start."""

        def one(local: State, dual: Weights | None) -> State:
            zeros = jax.tree.map(jnp.zeros_like, local)
            dual = zeros.dual if dual is None else dual
            anchor = dual if local.origin is None else local.origin
            return zeros._replace(dual=dual, anchor=anchor, origin=local.origin, initial=local.initial)

        start = state.start_dual or (None,) * len(parts)
        return state._replace(local_memories=tuple(map(one, state.local_memories, start)), pi=state.start_pi)

    def write(state: TNTState, tokens: Any, valid: Valid | None) -> tuple[Array, TNTState]:
        """Pi and every M_i: tokens of one shard."""
        q, k, v, gates = tokens
        keys = k if valid is None else k * valid[:, None].astype(k.dtype)
        q = q @ state.pi + jnp.tril(q @ keys.T) @ keys
        y = jnp.zeros_like(q)
        local: list[State] = []
        for part, s in zip(parts, state.local_memories, strict=True):
            y_i, s, _ = part.update(s, q, k, v, gates, valid=valid)
            y, local = y + y_i, [*local, s]
        return y, state._replace(local_memories=tuple(local), pi=state.pi + keys.T @ keys)

    def write_shards(state: TNTState, tokens: Any, valid: Valid | None) -> tuple[Array, TNTState]:
        """All shards in parallel; the first continues from `state`."""
        T, at = len(tokens[0]), state.step % shard
        start = fresh(state)
        if T == 1 and valid is None:
            return write(select(at == 0, start, state), tokens, None)
        grid = grid_of(T, shard, state.step) if valid is None else Grid(T, shard)
        valid = grid.valid if valid is None else valid.reshape(-1, shard)
        tokens = jax.tree.map(grid.split, tokens)
        if all_valid(valid):
            y, states = jax.vmap(lambda tokens: write(start, tokens, np.ones(shard, bool)))(tokens)
            return grid.join(y), jax.tree.map(lambda x: x[-1], states)
        touched = jnp.asarray(valid).any(1)
        first = jnp.argmax(touched)

        def one(number: Array, tokens: Any, valid: Array) -> tuple[Array, TNTState]:
            continued = (number == first) & (at != 0)
            return write(select(continued, state, start), tokens, valid)

        y, states = jax.vmap(one)(jnp.arange(grid.chunks), tokens, jnp.asarray(valid))
        return grid.join(y), jax.tree.map(lambda x: x[first + touched.sum() - 1], states)

    def update(
        state: TNTState,
        q: Array,
        k: Array,
        v: Array,
        gates: Gates,
        *,
        valid: Valid | None = None,
        reset: Reset | None = None,
        residual: Weights | None = None,
    ) -> tuple[Array, TNTState, Info]:
        if residual is not None:
            raise NotImplementedError("tnt: no weight residual")
        tokens = jax.tree.map(lambda x: x.astype(state.pi.dtype), (q, k, v, gates))
        if reset is not None:
            reset = reset._replace(state=reset.state.global_memory)
        y, stream, info = main.update(state.global_memory, *tokens, valid=valid, reset=reset)
        near, state = write_shards(state, tokens, valid)
        return (y + near).astype(q.dtype), state._replace(global_memory=stream), info

    return Memory(init, read, update)
