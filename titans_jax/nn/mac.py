"""Memory as a context (Titans Eq 21-25), in the paper's order and without its two looks into the future.

    h = M*_s(S W_Q)              read the memory as it was when the segment began (Eq 21)
    y = x + Attn(P || h || S)    causal in h and in S: token i sees h_j and S_j for j <= i (Eq 22-23)
    M_t = M_{t-1}(y)             write (Eq 24)
    o = y + sigmoid(RMSNorm(y)) * RMSNorm(M*_t(y))    each token reads the memory as it is then (Eq 25)

S is RMSNorm(x), and the memory is given RMSNorm(y). The paper's equations leave out the residual connections that "all
blocks" have (section 4.4): here they are around attention and around the memory, as in MAL. Without the first, what
attention found reaches the stream as a gate alone, and the memory is written with means over the segment.

The write depends on the attention and the next segment's attention on the write: segments follow one another.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from titans_jax.memory import Span, Weights
from titans_jax.memory.scan import covers, grid, real_rows, select, where_any, within
from titans_jax.nn.attention import KV, Projections, by_slot, by_token, empty, on_grid
from titans_jax.nn.blocks import Block, Gating, Stream
from titans_jax.nn.config import ModelConfig
from titans_jax.nn.introspect import Attended, Introspection, by_distance, norms, read_weights, remembered
from titans_jax.nn.layers import RMSNorm
from titans_jax.nn.memory import Look, MemoryLayer, MemoryState, Retrieve


class MACState(NamedTuple):
    """snapshot: the memory's dual when the segment began, None where that is its anchor, a chunk being a segment.

    near: keys, rotated, and values of the segment so far: of h in the first half of the slots, of S in the other.
    """

    memory: MemoryState
    snapshot: Weights | None
    near: KV


class Tokens(NamedTuple):
    """What a segment needs of its tokens, before the memory is asked: x, q, k, v, retrieval [B, T, ...], age [B, T]."""

    x: Array
    query: Array
    key: Array
    value: Array
    retrieval: Array
    age: Array


class MAC(Block):
    """o at the top of this file."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        self.projections = Projections(config, rngs=rngs)
        self.retrieve = Retrieve(config, rngs=rngs)
        self.memory_norm = RMSNorm(config.dim)
        self.memory = MemoryLayer(config, rngs=rngs)
        self.combine = Gating(config.dim)

    def init_state(self, batch: int) -> MACState:
        """An untouched memory and an empty segment."""
        memory, c = self.memory.init_state(batch), self.config
        anchored = c.segment == c.memory.chunk and not c.memory.local_chunks
        snapshot = None if anchored else jax.tree.map(lambda x: x + 0, memory.memory.dual)
        return MACState(memory, snapshot, empty(c, batch, 2 * c.segment))

    def mix(self, stream: Stream, state: MACState) -> tuple[Stream, MACState, Look]:
        """One token in its segment; or any number, laid on the grid of segments and scanned."""
        x = self.norm(stream.x)
        query, key, value, values = self.projections.qkv(x, stream.values)
        tokens = Tokens(stream.x, query, key, value, self.retrieve.query(x), stream.age)
        if x.shape[1] == 1:
            state, (y, reads, look, learned) = self._token(tokens, state, stream.reset, stream.learned)
        else:
            span = Span(0, x.shape[1]) if stream.aligned else None
            state, (y, reads, look, learned) = self._segments(tokens, state, stream.reset, stream.learned, span)
        o = y + self.combine(y, self.memory.say(self.memory_norm(y), reads))
        return stream._replace(x=o, values=values, learned=learned), state, look

    def _token(self, tokens: Tokens, state: MACState, reset: Array | None, residual: Weights | None) -> Any:
        at = state.memory.memory.step % self.config.segment
        begin = None if reset is None else reset[:, 0] & (at == 0)
        return self._segment(tokens, state, begin, residual, at, None)

    def _segments(
        self, tokens: Tokens, state: MACState, reset: Array | None, residual: Weights | None, span: Span | None
    ) -> Any:
        L, T = self.config.segment, tokens.query.shape[1]
        rows, span = grid(T, L, state.memory.memory.step) if span is None else (T, span)
        segments = rows // L

        def lay(x: Array) -> Array:  # [B, T, ...] -> [segments, B, L, ...]
            return on_grid(x, rows, span.first).reshape(x.shape[0], segments, L, *x.shape[2:]).swapaxes(0, 1)

        def split(x: Array) -> Array:  # [B, H, chunks, ...] -> [segments, B, H, chunks of one, ...]
            return jnp.moveaxis(x.reshape(*x.shape[:2], segments, -1, *x.shape[3:]), 2, 0)

        real = real_rows(span, rows).reshape(segments, L)
        whole = covers(span, rows)
        begin = None if reset is None else lay(reset)[:, :, 0]
        xs = jax.tree.map(lay, tokens), begin, real, jax.tree.map(split, residual)

        @jax.checkpoint
        def body(state: MACState, xs: Any) -> Any:
            tokens, begin, real, residual = xs
            inside = Span(0, L) if whole else within(real)

            def run(state: MACState) -> Any:
                return self._segment(tokens, state, begin, residual, jnp.int32(0), inside)

            return run(state) if whole else where_any(real, run, state)

        state, (y, reads, look, learned) = lax.scan(body, state, xs)
        y = lax.dynamic_slice_in_dim(y.swapaxes(0, 1).reshape(y.shape[1], rows, -1), span.first, T, 1)

        def flat(x: Array) -> Array:  # [segments, B, H, L, ...] -> [B, H, T, ...]
            x = jnp.moveaxis(x, 0, 2).reshape(*x.shape[1:3], rows, *x.shape[4:])
            return lax.dynamic_slice_in_dim(x, span.first, T, 2)

        def join(x: Array) -> Array:
            x = jnp.moveaxis(x, 0, 2)
            return x.reshape(*x.shape[:2], -1, *x.shape[4:])

        return state, (y, flat(reads), jax.tree.map(flat, look), jax.tree.map(join, learned))

    def _segment(
        self,
        tokens: Tokens,
        state: MACState,
        begin: Array | None,
        residual: Weights | None,
        at: Array,
        span: Span | None,
    ) -> Any:
        """Tokens of one segment from its row `at` on, all of them or those in `span`."""
        memory = state.memory
        if begin is not None:
            fresh = self.memory.init_state(1).memory
            blank = lambda new, old: select_rows(begin, new, old) if old.ndim else old  # noqa: E731
            memory = memory._replace(memory=jax.tree.map(blank, fresh, memory.memory))
        snapshot = state.snapshot
        if snapshot is not None:
            whole = span is not None and covers(span, tokens.age.shape[1])
            starts = memory.memory.step % self.config.segment == 0
            snapshot = memory.memory.dual if whole else select(starts, memory.memory.dual, snapshot)
        h = self.retrieve(tokens.retrieval, memory.memory.anchor if snapshot is None else snapshot, self.memory)
        split = self.projections.split
        place = at + jnp.arange(tokens.age.shape[1])
        read, own = (self.projections.turned(k, place) for k in (split(self.projections.key(h)), tokens.key))
        keys = _append(state.near.keys, read, own, at, span)
        values = _append(state.near.values, split(self.projections.value(h)), tokens.value, at, span)
        near = state.near._replace(keys=keys, values=values)
        y, written = self._attended(tokens.x, self.attend(tokens.query, tokens.age, near, at))
        reads, memory, look, learned = self.memory.write(written, memory, tokens.age, span=span, residual=residual)
        return MACState(memory, snapshot, near), (y, reads, look, learned)

    def attend(self, query: Array, age: Array, near: KV, at: Array) -> Array:
        """Eq 22-23 for the rows `at` ... of a segment whose keys are in `near`: [B, T, H D].

        query: [B, T, H, D]; age: [B, T]. It is linear in the values.
        """
        (B, T, H, D), L = query.shape, self.config.segment
        row = at + jnp.arange(T)
        back = row[:, None] - jnp.arange(L)
        mask = (back >= 0) & (back <= age[..., None])
        mask = jnp.concatenate([mask, mask], -1)
        q, k, v, mask = (x[:, None] for x in (query, by_token(near.keys), by_token(near.values), mask))
        return self.projections.attend(q, k, v, mask, row)[:, 0].reshape(B, T, H * D)

    def _attended(self, x: Array, values: Array) -> tuple[Array, Array]:
        """y of Eq 23, and what the memory is written with, of x and of what attention read [B, T, H D]."""
        y = x + self.projections.out(values)
        return y, self.memory_norm(y)

    @property
    def view(self) -> int:
        """A segment."""
        return self.config.segment

    def parts(self, state: MACState) -> tuple[MemoryState, KV]:
        """The memory and the segment."""
        return state.memory, state.near

    def introspect(self, stream: Stream, before: MACState, after: MACState, info: Any) -> Introspection:
        """The attention over the segment, and the memory."""
        at = before.memory.memory.step % self.view
        q, k, _, _ = self.projections.qkv(self.norm(stream.x), stream.values)

        def attend(values: Array) -> Array:
            return self.attend(q, stream.age, after.near._replace(values=values), at).reshape(q.shape)

        (weights,) = read_weights(attend, after.near.values)
        distance = at - jnp.arange(self.view)
        read, tokens = (by_distance(half, distance, self.view) for half in jnp.split(weights, 2, -1))
        _, written = self._attended(stream.x, attend(after.near.values).reshape(*stream.x.shape[:2], -1))
        memory = remembered(self.memory, written, stream.age, before.memory, after.memory, info)
        return Introspection(Attended(tokens, read, norms(k[:, 0])), memory)


def _append(slots: Array, read: Array, own: Array, at: Array, span: Span | None) -> Array:
    """The slots [B, H, D, 2 L] with the rows that are tokens from `at` on: of h in one half, of S in the other."""
    rows, half = own.shape[1], slots.shape[3] // 2
    read, own = (by_slot(x.astype(slots.dtype)) for x in (read, own))
    if span is not None and covers(span, rows):
        return jnp.concatenate([read, own], 3)
    for first, new in ((at, read), (half + at, own)):
        if span is not None:
            new = jnp.where(real_rows(span, rows), new, lax.dynamic_slice_in_dim(slots, first, rows, 3))
        slots = lax.dynamic_update_slice_in_dim(slots, new, first, 3)
    return slots


def select_rows(rows: Array, new: Array, old: Array) -> Array:
    """new where rows [B] holds, else old, for [B, ...]."""
    return jnp.where(rows.reshape(-1, *[1] * (old.ndim - 1)), new, old)
