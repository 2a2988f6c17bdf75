"""Memory as a context (Titans Eq 21-25), made causal.

    h = M*_s(S W_Q)              read the memory at the segment's start s (Eq 21)
    y = x + Attn(P || h || S)    token i sees h_j and S_j for j <= i (Eq 22-23)
    M_t = M_{t-1}(y)             write (Eq 24)
    o = y + sigmoid(RMSNorm(y)) * RMSNorm(M*_t(y))    read after token t's write (Eq 25)

S is RMSNorm(x). The memory is written with RMSNorm(y). In the paper a token sees all of h and reads the memory after
the segment's last write. Section 4.4 gives all blocks residual connections, which the equations omit. Here they are
around attention and around the memory, as in MAL.

A segment's attention needs the writes of the segment before it, so segments are scanned.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

from titans_jax.memory import Weights
from titans_jax.memory.stream import MOST, Grid, Valid, all_valid, grid_of, where_any
from titans_jax.memory.types import readable, select
from titans_jax.nn.attention import KV, Projections, by_slot, by_token, empty
from titans_jax.nn.blocks import Activations, Block, Gating
from titans_jax.nn.config import ModelConfig
from titans_jax.nn.introspect import Attended, Introspection, by_distance, norms, read_weights, remembered
from titans_jax.nn.layers import RMSNorm
from titans_jax.nn.memory import MemoryMixer, Retrieve
from titans_jax.nn.memory_state import LayerInfo, MemoryState, bounded_step, take_snapshot


class MACState(NamedTuple):
    """The state of a MAC layer.

    snapshot: the memory at the segment's start, or None if a segment is one chunk.
    cache: rotated keys, and values, of the current segment: of h in the first half of the slots, of S in the second.
    """

    memory: MemoryState
    snapshot: Any
    cache: KV


class Tokens(NamedTuple):
    """The inputs of a segment: x, query, key, value, retrieval (the memory's queries) [B, T, ...], age [B, T]."""

    x: Array
    query: Array
    key: Array
    value: Array
    retrieval: Array
    age: Array


class MAC(Block):
    """Memory as a context; the equations are at the top of this file."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        self.projections = Projections(config, rngs=rngs)
        self.retrieve = Retrieve(config, rngs=rngs)
        self.memory_norm = RMSNorm(config.dim)
        self.memory = MemoryMixer(config, rngs=rngs)
        self.gating = Gating(config.dim)

    def init_state(self, batch: int) -> MACState:
        """The initial memory and an empty segment."""
        memory, c = self.memory.init_state(batch), self.config
        one_chunk = c.segment == c.memory.chunk and not c.memory.local_chunks
        snapshot = None if one_chunk else jax.tree.map(lambda x: x + 0, take_snapshot(self.memory.rule, memory.memory))
        return MACState(memory, snapshot, empty(c, batch, 2 * c.segment))

    def mix(self, stream: Activations, state: MACState) -> tuple[Activations, MACState, LayerInfo]:
        """Read one token, or scan over segments."""
        x = self.norm(stream.x)
        query, key, value, values = self.projections.qkv(x, stream.values)
        tokens = Tokens(stream.x, query, key, value, self.retrieve.query(x), stream.age)
        # The segment's row must go on too, so this count stops before the memory's own, which knows of chunks alone.
        memory = bounded_step(state.memory.memory, self.config.segment, MOST // 2)
        state = state._replace(memory=state.memory._replace(memory=memory))
        run = self._token if x.shape[1] == 1 else self._segments
        state, (y, reads, info, learned) = run(tokens, state, stream)
        o = y + self.gating(y, self.memory.output(self.memory_norm(y), reads))
        return stream._replace(x=o, values=values, learned=learned), state, info

    def _token(self, tokens: Tokens, state: MACState, stream: Activations) -> Any:
        row = state.memory.memory.step % self.config.segment
        reset = None if stream.reset is None else stream.reset[:, 0] & (row == 0)
        return self._segment(tokens, state, reset, stream.learned, row, None)

    def _segments(self, tokens: Tokens, state: MACState, stream: Activations) -> Any:
        L, T = self.config.segment, tokens.query.shape[1]
        grid = Grid(T, L) if stream.aligned else grid_of(T, L, state.memory.memory.step)
        valid = grid.valid
        aligned = all_valid(valid)

        def split(x: Array) -> Array:  # [B, T, ...] -> [segments, B, L, ...]
            return grid.split(x, 1).swapaxes(0, 1)

        def split_chunks(x: Array) -> Array:  # [B, H, chunks, ...] -> [segments, B, H, chunks of one, ...]
            return jnp.moveaxis(x.reshape(*x.shape[:2], grid.chunks, -1, *x.shape[3:]), 2, 0)

        def join(x: Array) -> Array:  # [segments, B, H, L, ...] -> [B, H, T, ...]
            return grid.join(jnp.moveaxis(x, 0, 2), 2)

        def join_chunks(x: Array) -> Array:
            x = jnp.moveaxis(x, 0, 2)
            return x.reshape(*x.shape[:2], -1, *x.shape[4:])

        @jax.checkpoint
        def body(state: MACState, xs: Any) -> Any:
            tokens, reset, valid, residual = xs
            rows = np.ones(L, bool) if aligned else valid

            def run(state: MACState) -> Any:
                return self._segment(tokens, state, reset, residual, jnp.int32(0), rows)

            return run(state) if aligned else where_any(valid, run, state)

        reset = None if stream.reset is None else split(stream.reset)[:, :, 0]
        xs = jax.tree.map(split, tokens), reset, jnp.asarray(valid), jax.tree.map(split_chunks, stream.learned)
        state, (y, reads, info, learned) = lax.scan(body, state, xs)
        y = grid.join(y.swapaxes(0, 1), 1)
        return state, (y, join(reads), jax.tree.map(join, info), jax.tree.map(join_chunks, learned))

    def _segment(
        self,
        tokens: Tokens,
        state: MACState,
        reset: Array | None,
        residual: Weights | None,
        row: Array,
        valid: Valid | None,
    ) -> Any:
        """Read tokens of one segment, which start at its row `row`; only the valid ones if `valid` is not None."""
        memory = state.memory
        if reset is not None:
            start = self.memory.init_state(1).memory
            memory = memory._replace(memory=jax.tree.map(partial(_select_rows, reset), start, memory.memory))
        snapshot = state.snapshot
        if snapshot is not None:
            is_whole_segment = valid is not None and all_valid(valid)
            at_start = memory.memory.step % self.config.segment == 0
            now = take_snapshot(self.memory.rule, memory.memory)
            snapshot = now if is_whole_segment else select(at_start, now, snapshot)
        start = readable(self.memory.rule, memory.memory, memory.memory.anchor) if snapshot is None else snapshot
        h = self.retrieve(tokens.retrieval, start, self.memory)  # Eq 21
        split = self.projections.split
        position = row + jnp.arange(tokens.age.shape[1])
        h_key, key = (self.projections.rotated(k, position) for k in (split(self.projections.key(h)), tokens.key))
        keys = _append(state.cache.keys, h_key, key, row, valid)
        values = _append(state.cache.values, split(self.projections.value(h)), tokens.value, row, valid)
        cache = state.cache._replace(keys=keys, values=values)
        y, written = self._attended(tokens.x, self.attend(tokens.query, tokens.age, cache, row))  # Eq 22-23
        reads, memory, info, learned = self.memory.write(written, memory, tokens.age, valid=valid, residual=residual)
        return MACState(memory, snapshot, cache), (y, reads, info, learned)

    def attend(self, query: Array, age: Array, cache: KV, row: Array) -> Array:
        """Attention of Eq 22 for a segment's rows from `row` on, [B, T, H D]; it is linear in the values.

        query: [B, T, H, D].
        age: [B, T].
        cache: has the keys and values of these rows.
        """
        (B, T, H, D), L = query.shape, self.config.segment
        position = row + jnp.arange(T)
        distance = position[:, None] - jnp.arange(L)
        mask = (distance >= 0) & (distance <= age[..., None])
        mask = jnp.concatenate([mask, mask], -1)
        q, k, v, mask = (x[:, None] for x in (query, by_token(cache.keys), by_token(cache.values), mask))
        return self.projections.attend(q, k, v, mask, position)[:, 0].reshape(B, T, H * D)

    def _attended(self, x: Array, values: Array) -> tuple[Array, Array]:
        """y of Eq 23, and the memory's input RMSNorm(y), from x and the attention's output [B, T, H D]."""
        y = x + self.projections.out(values)
        return y, self.memory_norm(y)

    @property
    def view(self) -> int:
        """The length of a segment."""
        return self.config.segment

    def parts(self, state: MACState) -> tuple[MemoryState, KV]:
        """The memory's state and the segment's cache."""
        return state.memory, state.cache

    def introspect(self, stream: Activations, before: MACState, after: MACState, info: Any) -> Introspection:
        """See `Block.introspect`. The attention is over the segment."""
        row = before.memory.memory.step % self.view
        q, k, _, _ = self.projections.qkv(self.norm(stream.x), stream.values)

        def attend(values: Array) -> Array:
            return self.attend(q, stream.age, after.cache._replace(values=values), row).reshape(q.shape)

        (weights,) = read_weights(attend, after.cache.values)
        distance = row - jnp.arange(self.view)
        read, tokens = (by_distance(half, distance, self.view) for half in jnp.split(weights, 2, -1))
        _, written = self._attended(stream.x, attend(after.cache.values).reshape(*stream.x.shape[:2], -1))
        memory = remembered(self.memory, written, stream.age, before.memory, after.memory, info)
        return Introspection(Attended(tokens, read, norms(k[:, 0])), memory)


def _append(slots: Array, h: Array, s: Array, row: Array, valid: Valid | None) -> Array:
    """Write the valid rows, from `row` on, to the slots [B, H, D, 2 L]: h to the first half, S to the second."""
    half = slots.shape[3] // 2
    h, s = (by_slot(x.astype(slots.dtype)) for x in (h, s))
    if valid is not None and all_valid(valid):
        return jnp.concatenate([h, s], 3)
    for first, new in ((row, h), (half + row, s)):
        if valid is not None:
            new = jnp.where(valid, new, lax.dynamic_slice_in_dim(slots, first, new.shape[3], 3))
        slots = lax.dynamic_update_slice_in_dim(slots, new, first, 3)
    return slots


def _select_rows(rows: Array, new: Array, old: Array) -> Array:
    """new where rows [B] is true, else old. new, old: [B, ...], or scalars, which stay."""
    return jnp.where(rows.reshape(-1, *[1] * (old.ndim - 1)), new, old) if old.ndim else old
