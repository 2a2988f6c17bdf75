"""Causal attention over everything, over a window, or inside segments, with a cache of fixed size as a value.

Positions stay small, and exact, however long the stream is: sliding attention counts them from the oldest key in sight,
and caches keys before rotation; segmented attention from the segment's start, and caches them rotated, as full does.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from titans_jax import sharding
from titans_jax.memory.stream import Grid, grid_of
from titans_jax.nn.config import ModelConfig
from titans_jax.nn.layers import Linear, param, rotate, rowwise


class KV(NamedTuple):
    """keys, values: [B, H, D, slots], as one token's products read them. step: tokens read, int32 scalar."""

    keys: Array
    values: Array
    step: Array


class Values(NamedTuple):
    """The values of the first attention layer, for the value residual. first: [B, T, H, D]; set: bool scalar."""

    first: Array
    set: Array


def empty(config: ModelConfig, batch: int, slots: int) -> KV:
    """A cache without keys. Keys and values are arrays of their own, so that a caller may donate them."""
    shape = (batch, config.heads, config.head_dim, slots)
    keys, values = (sharding.constrain(jnp.zeros(shape, config.dtype), "batch", "heads", None, None) for _ in range(2))
    return KV(keys, values, jnp.zeros((), jnp.int32))


class Projections(nnx.Module):
    """Queries, keys and values, persistent keys and values, and the way back: what every attention shares."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        size, axes, dtype = config.heads * config.head_dim, ("embed", "heads"), config.dtype
        self.query = Linear(config.dim, size, axes, dtype=dtype, rngs=rngs)
        self.key = Linear(config.dim, size, axes, dtype=dtype, rngs=rngs)
        self.value = Linear(config.dim, size, axes, dtype=dtype, rngs=rngs)
        self.out = Linear(size, config.dim, axes[::-1], dtype=dtype, scale=(2 * config.depth) ** -0.5, rngs=rngs)
        tokens = jax.random.normal(rngs.params(), (config.persistent, config.dim))
        self.persistent = param(tokens, None, None) if config.persistent else None
        self.mix = param(jnp.zeros(config.heads), None) if config.value_residual else None
        self.config = config

    def split(self, x: Array) -> Array:
        """[B, T, H D] -> [B, T, H, D]."""
        shape = (*x.shape[:2], self.config.heads, self.config.head_dim)
        return x.reshape(shape, out_sharding=sharding.out(shape, "batch", None, "heads", None))

    def qkv(self, x: Array, values: Values | None) -> tuple[Array, Array, Array, Values | None]:
        """q, k, v [B, T, H, D] of x [B, T, E], with the value residual v + sigmoid(mix) (v_first - v)."""
        q, k, v = (self.split(project(x)) for project in (self.query, self.key, self.value))
        if self.mix is not None and values is not None:
            values = Values(jnp.where(values.set, values.first, v), jnp.ones((), bool))
            v = v + jax.nn.sigmoid(self.mix[...])[:, None].astype(v.dtype) * (values.first - v)
        return q, k, v, values

    def rotated(self, x: Array, positions: Array) -> Array:
        """x [..., T, H, D] at positions [T], where they are rotary."""
        return rotate(x, positions) if self.config.positions == "rope" else x

    def attend(self, q: Array, k: Array, v: Array, mask: Array, at: Array) -> Array:
        """Softmax attention (Titans Eq 1-2), with the persistent tokens in front of every row (Eq 19).

        q: [B, N, T, H, D]; k, v: [B, N, S, H, D], k as `rotated`; mask: [B, N, T, S]; at: positions [T] of q, which the
        persistent tokens have none of. Returns [B, N, T, H, D].
        """
        y, near = jax.vmap(_dot_product_attention, in_axes=1, out_axes=1)(self.rotated(q, at), k, v, mask[:, :, None])
        if self.persistent is None:
            return y
        tokens = self.persistent[...][None]
        pk, pv = (self.split(project(tokens))[0] for project in (self.key, self.value))
        scores = jnp.einsum("bnthd,phd->bnthp", q, pk).astype(jnp.float32) * q.shape[-1] ** -0.5
        front = jax.nn.logsumexp(scores, -1)
        share = jax.nn.sigmoid(front - near.astype(jnp.float32)).astype(y.dtype)
        weights = jnp.exp(scores - front[..., None]).astype(y.dtype)
        return rowwise(y, 1 - share) + rowwise(jnp.einsum("bnthp,phd->bnthd", weights, pv), share)


def _dot_product_attention(q: Array, k: Array, v: Array, mask: Array) -> tuple[Array, Array]:
    dtype = q.dtype
    if dtype == jnp.float16:  # jax asks for a product of float16 that neither CPUs nor TPUs have
        q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    y, near = jax.nn.dot_product_attention(q, k, v, mask=mask, return_residual=True)
    return y.astype(dtype), near


class Attention(nnx.Module):
    """Causal multi-head attention of kind config.attention or the one given: "full", "sliding" or "segmented".

    State: a `KV` of `context`, `window` or `segment` slots. Past `context` tokens, full attention's outputs are NaN.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.projections = Projections(config, rngs=rngs)

    @property
    def view(self) -> int:
        """How many tokens a token sees at most, itself included: the slots of the cache."""
        c = self.config
        return {"full": c.context, "sliding": c.window, "segmented": c.segment}[c.attention]

    def init_state(self, batch: int) -> KV:
        """An empty cache."""
        return empty(self.config, batch, self.view)

    def __call__(
        self, x: Array, state: KV, age: Array, values: Values | None, *, aligned: bool = False
    ) -> tuple[Array, KV, Values | None]:
        """x: [B, T, E]; age: [B, T] bounds how far back a token sees; aligned: whether the call is of whole segments.

        Returns y [B, T, E], the cache and the values.
        """
        q, k, v, values = self.projections.qkv(x, values)
        y, keys, cached = self.attend(q, k, v, state, age, aligned=aligned)
        y = self.projections.out(y.reshape(*x.shape[:2], -1))
        return y, KV(keys, cached, state.step + x.shape[1]), values

    def attend(
        self, q: Array, k: Array, v: Array, state: KV, age: Array, *, aligned: bool = False
    ) -> tuple[Array, Array, Array]:
        """Attention of q over the cache and k, v, each [B, T, H, D]: y of that shape, and the cache's keys and values.

        It is linear in the values, v and the cache's.
        """
        if self.config.attention == "sliding":
            return self._sliding(q, k, v, state, age)
        if self.config.attention == "full":
            return self._full(q, k, v, state, age)
        return self._segmented(q, k, v, state, age, aligned)

    def _full(self, q: Array, k: Array, v: Array, state: KV, age: Array) -> tuple[Array, Array, Array]:
        T, slots = q.shape[1], state.keys.shape[-1]
        if T > slots:
            raise ValueError(f"full attention holds model.context = {slots} tokens, the call has {T}")
        y, keys, cached = self._from(state.step, q, k, v, state, age)
        inside = state.step + jnp.arange(T) < slots
        return jnp.where(inside[:, None, None], y, jnp.nan), keys, cached

    def _from(self, first: Array, q: Array, k: Array, v: Array, state: KV, age: Array) -> tuple[Array, Array, Array]:
        """Tokens whose keys take the slots from the `first` on, and which see those before them."""
        slot, at = jnp.arange(state.keys.shape[-1]), first + jnp.arange(q.shape[1])
        keys, cached = (
            lax.dynamic_update_slice_in_dim(old, by_slot(new), first, 3)
            for old, new in ((state.keys, self.projections.rotated(k, at)), (state.values, v))
        )
        distance = at[:, None] - slot
        mask = (distance >= 0) & (distance <= age[..., None])
        q, k, v, mask = (x[:, None] for x in (q, by_token(keys), by_token(cached), mask))
        return self.projections.attend(q, k, v, mask, at)[:, 0], keys, cached

    def _segmented(
        self, q: Array, k: Array, v: Array, state: KV, age: Array, aligned: bool
    ) -> tuple[Array, Array, Array]:
        """Every token among those of its segment before it, the segment that the cache has begun included."""
        (B, T, H, D), L = q.shape, state.keys.shape[-1]
        if T == 1:
            return self._from(state.step % L, q, k, v, state, age)
        grid = Grid(T, L) if aligned else grid_of(T, L, state.step)
        row, first = jnp.arange(L), grid.offset
        keys = self.projections.rotated(k, (first + jnp.arange(T)) % L)
        keys, cached = grid.split(keys, 1, by_token(state.keys)), grid.split(v, 1, by_token(state.values))
        distance = row[:, None] - row
        mask = (distance >= 0) & (distance <= grid.split(age, 1)[..., None])
        y = self.projections.attend(grid.split(q, 1), keys, cached, mask, row)
        start = jnp.maximum(first + T - L, 0)

        def last(x: Array) -> Array:  # the last L rows, each in the slot of its row in a segment
            x = lax.dynamic_slice_in_dim(x.reshape(B, grid.rows, H, D), start, L, 1)
            return by_slot(jnp.roll(x, start % L, 1))

        return grid.join(y, 1), last(keys), last(cached)

    def _sliding(self, q: Array, k: Array, v: Array, state: KV, age: Array) -> tuple[Array, Array, Array]:
        """Blocks of at most `slots` queries, each before its own keys and the `slots` ones that came before it."""
        (B, T, H, D), slots = q.shape, state.keys.shape[-1]
        if T == 1:
            return self._next(q, k, v, state, age)
        size = min(T, slots)
        blocks = -(-T // size)
        rest = blocks * size - T
        keys, cached = (jnp.concatenate([by_token(old), x], 1) for old, x in ((state.keys, k), (state.values, v)))

        def cut(x: Array, overlap: int = 0) -> Array:
            x = jnp.pad(x, [(0, 0), (0, rest)] + [(0, 0)] * (x.ndim - 2))
            if not overlap:
                return x.reshape(B, blocks, size, *x.shape[2:])
            if blocks == 1:
                return x[:, None]
            x = x.reshape(B, blocks + 1, size, *x.shape[2:])
            return jnp.concatenate([x[:, :-1], x[:, 1:]], 2)

        query, key = slots + jnp.arange(size), jnp.arange(slots + size)
        distance = query[:, None] - key
        mask = (distance >= 0) & (distance < slots) & (distance <= cut(age)[..., None])
        q, k, v = cut(q), self.projections.rotated(cut(keys, slots), key), cut(cached, slots)
        y = self.projections.attend(q, k, v, mask, query).reshape(B, blocks * size, H, D)[:, :T]
        return y, by_slot(keys[:, -slots:]), by_slot(cached[:, -slots:])

    def _next(self, q: Array, k: Array, v: Array, state: KV, age: Array) -> tuple[Array, Array, Array]:
        """One token: what it sees is what is kept."""
        slot = jnp.arange(state.keys.shape[-1])
        keys, cached = (
            jnp.concatenate([old[..., 1:], by_slot(new)], 3) for old, new in ((state.keys, k), (state.values, v))
        )
        mask = slot[::-1] <= age[..., None]
        q, k, v, mask = (x[:, None] for x in (q, by_token(keys), by_token(cached), mask))
        return self.projections.attend(q, self.projections.rotated(k, slot), v, mask, slot[-1:])[:, 0], keys, cached


def by_slot(x: Array) -> Array:
    """[B, T, H, D] -> [B, H, D, T], as caches lie."""
    return x.transpose(0, 2, 3, 1)


def by_token(x: Array) -> Array:
    """[B, H, D, T] -> [B, T, H, D]."""
    return x.transpose(0, 3, 1, 2)
