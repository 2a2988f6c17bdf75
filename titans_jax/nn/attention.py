"""Causal attention, full, in a sliding window or inside segments. The cache is a pytree of fixed size.

Rotary positions stay small in a stream of any length, so that they stay exact. Sliding attention counts positions from
the oldest visible key and caches keys before rotation. Segmented attention counts from the segment's start. Segmented
and full attention cache rotated keys.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from titans_jax import sharding
from titans_jax.memory.stream import Grid, bounded, grid_of
from titans_jax.nn.config import ModelConfig
from titans_jax.nn.cpu import rowwise
from titans_jax.nn.layers import Linear, param, rotate


class KV(NamedTuple):
    """A cache of keys and values.

    keys, values: [B, H, D, slots], the layout that decoding one token reads fastest.
    step: tokens read, int32 scalar.
    """

    keys: Array
    values: Array
    step: Array


class Values(NamedTuple):
    """The first attention layer's values, for the value residual.

    first: [B, T, H, D].
    set: bool scalar, false before the first attention layer.
    """

    first: Array
    set: Array


def empty(config: ModelConfig, batch: int, slots: int) -> KV:
    """An empty cache. Keys and values do not share a buffer, so that a caller may donate them."""
    shape = (batch, config.heads, config.head_dim, slots)
    keys, values = (sharding.constrain(jnp.zeros(shape, config.dtype), "batch", "heads", None, None) for _ in range(2))
    return KV(keys, values, jnp.zeros((), jnp.int32))


class Projections(nnx.Module):
    """The parameters of attention: query, key, value and output projections, and persistent tokens."""

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
        """Project x [B, T, E] to q, k, v [B, T, H, D]; the value residual is v + sigmoid(mix) (v_first - v)."""
        q, k, v = (self.split(project(x)) for project in (self.query, self.key, self.value))
        if self.mix is not None and values is not None:
            values = Values(jnp.where(values.set, values.first, v), jnp.ones((), bool))
            v = v + jax.nn.sigmoid(self.mix[...])[:, None].astype(v.dtype) * (values.first - v)
        return q, k, v, values

    def rotated(self, x: Array, positions: Array) -> Array:
        """Rotate x [..., T, H, D] by positions [T] if the configuration has rotary positions."""
        return rotate(x, positions) if self.config.positions == "rope" else x

    def attend(self, q: Array, k: Array, v: Array, mask: Array, positions: Array) -> Array:
        """Softmax attention (Titans Eq 1-2), with the persistent tokens in front of every row (Eq 19).

        Args:
          q: [B, N, T, H, D], not rotated. Persistent tokens have no position and see q as it is.
          k, v: [B, N, S, H, D], k as `rotated`.
          mask: [B, N, T, S].
          positions: [T], of q.

        Returns:
          [B, N, T, H, D].
        """
        q_rotated = self.rotated(q, positions)
        y, log_sum = jax.vmap(_dot_product_attention, in_axes=1, out_axes=1)(q_rotated, k, v, mask[:, :, None])
        if self.persistent is None:
            return y
        tokens = self.persistent[...][None]
        pk, pv = (self.split(project(tokens))[0] for project in (self.key, self.value))
        scores = jnp.einsum("bnthd,phd->bnthp", q, pk).astype(jnp.float32) * q.shape[-1] ** -0.5
        persistent_log_sum = jax.nn.logsumexp(scores, -1)
        share = jax.nn.sigmoid(persistent_log_sum - log_sum.astype(jnp.float32)).astype(y.dtype)
        weights = jnp.exp(scores - persistent_log_sum[..., None]).astype(y.dtype)
        return rowwise(y, 1 - share) + rowwise(jnp.einsum("bnthp,phd->bnthd", weights, pv), share)


def _dot_product_attention(q: Array, k: Array, v: Array, mask: Array) -> tuple[Array, Array]:
    """The output, and the log of the softmax' denominator."""
    dtype = q.dtype
    if dtype == jnp.float16:  # jax would use a float16 product that CPUs and TPUs lack
        q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    y, log_sum = jax.nn.dot_product_attention(q, k, v, mask=mask, return_residual=True)
    return y.astype(dtype), log_sum


class Attention(nnx.Module):
    """Causal multi-head attention, as `config.attention` says: "full", "sliding" or "segmented".

    The state is a `KV` of `context`, `window` or `segment` slots. Full attention returns NaN after `context` tokens.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.projections = Projections(config, rngs=rngs)

    @property
    def view(self) -> int:
        """The most tokens that a token sees, itself included: the slots of the cache."""
        c = self.config
        return {"full": c.context, "sliding": c.window, "segmented": c.segment}[c.attention]

    def init_state(self, batch: int) -> KV:
        """An empty cache."""
        return empty(self.config, batch, self.view)

    def __call__(
        self, x: Array, state: KV, age: Array, values: Values | None, *, aligned: bool = False
    ) -> tuple[Array, KV, Values | None]:
        """Read x and append it to the cache.

        Args:
          x: [B, T, E].
          age: [B, T]. A token sees at most `age` tokens back.
          values: the first attention layer's, or None.
          aligned: whether the call starts at a segment's start and T is a multiple of the segment.

        Returns:
          y [B, T, E], the cache and the values.
        """
        q, k, v, values = self.projections.qkv(x, values)
        state = state._replace(step=bounded(state.step, self.view))
        y, keys, cached = self.attend(q, k, v, state, age, aligned=aligned)
        y = self.projections.out(y.reshape(*x.shape[:2], -1))
        return y, KV(keys, cached, state.step + x.shape[1]), values

    def attend(
        self, q: Array, k: Array, v: Array, state: KV, age: Array, *, aligned: bool = False
    ) -> tuple[Array, Array, Array]:
        """Attention of q over the cache and over k, v, each [B, T, H, D]. It is linear in the values.

        Returns y [B, T, H, D], and the cache's new keys and values.
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
        y, keys, cached = self._write_from(state.step, q, k, v, state, age)
        fits = state.step + jnp.arange(T) < slots
        return jnp.where(fits[:, None, None], y, jnp.nan), keys, cached

    def _write_from(
        self, first: Array, q: Array, k: Array, v: Array, state: KV, age: Array
    ) -> tuple[Array, Array, Array]:
        """Write the keys to the slots from `first` on; each token sees its own slot and those before it."""
        slot, position = jnp.arange(state.keys.shape[-1]), first + jnp.arange(q.shape[1])
        keys, cached = (
            lax.dynamic_update_slice_in_dim(old, by_slot(new), first, 3)
            for old, new in ((state.keys, self.projections.rotated(k, position)), (state.values, v))
        )
        distance = position[:, None] - slot
        mask = (distance >= 0) & (distance <= age[..., None])
        q, k, v, mask = (x[:, None] for x in (q, by_token(keys), by_token(cached), mask))
        return self.projections.attend(q, k, v, mask, position)[:, 0], keys, cached

    def _segmented(
        self, q: Array, k: Array, v: Array, state: KV, age: Array, aligned: bool
    ) -> tuple[Array, Array, Array]:
        """Each token sees the earlier tokens of its segment; the cache has the first segment's start."""
        (B, T, H, D), L = q.shape, state.keys.shape[-1]
        if T == 1:
            return self._write_from(state.step % L, q, k, v, state, age)
        grid = Grid(T, L) if aligned else grid_of(T, L, state.step)
        row, first = jnp.arange(L), grid.offset
        keys = self.projections.rotated(k, (first + jnp.arange(T)) % L)
        keys, cached = grid.split(keys, 1, by_token(state.keys)), grid.split(v, 1, by_token(state.values))
        distance = row[:, None] - row
        mask = (distance >= 0) & (distance <= grid.split(age, 1)[..., None])
        y = self.projections.attend(grid.split(q, 1), keys, cached, mask, row)
        start = jnp.maximum(first + T - L, 0)

        def last(x: Array) -> Array:
            """The last L rows; row r of a segment is in slot r."""
            x = lax.dynamic_slice_in_dim(x.reshape(B, grid.rows, H, D), start, L, 1)
            return by_slot(jnp.roll(x, start % L, 1))

        return grid.join(y, 1), last(keys), last(cached)

    def _sliding(self, q: Array, k: Array, v: Array, state: KV, age: Array) -> tuple[Array, Array, Array]:
        """Blocks of at most `slots` queries. A block sees its own keys and the `slots` keys before it."""
        (B, T, H, D), slots = q.shape, state.keys.shape[-1]
        if T == 1:
            return self._next(q, k, v, state, age)
        size = min(T, slots)
        blocks = -(-T // size)
        padding = blocks * size - T
        keys, cached = (jnp.concatenate([by_token(old), x], 1) for old, x in ((state.keys, k), (state.values, v)))

        def cut(x: Array, overlap: int = 0) -> Array:
            x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
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
        """One token: it sees exactly the keys that stay in the cache."""
        slot = jnp.arange(state.keys.shape[-1])
        keys, cached = (
            jnp.concatenate([old[..., 1:], by_slot(new)], 3) for old, new in ((state.keys, k), (state.values, v))
        )
        mask = slot[::-1] <= age[..., None]
        q, k, v, mask = (x[:, None] for x in (q, by_token(keys), by_token(cached), mask))
        return self.projections.attend(q, self.projections.rotated(k, slot), v, mask, slot[-1:])[:, 0], keys, cached


def by_slot(x: Array) -> Array:
    """[B, T, H, D] -> [B, H, D, T], the layout of a cache."""
    return x.transpose(0, 2, 3, 1)


def by_token(x: Array) -> Array:
    """[B, H, D, T] -> [B, T, H, D]."""
    return x.transpose(0, 3, 1, 2)
