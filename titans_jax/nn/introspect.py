"""What a block did with one token: how its attention read the context, and what its memory changed.

Blocks answer with `Block.introspect`, after the call: the forward pass computes nothing for it. Attention is linear in
the values that it reads, so the derivative of its output by a value is the weight of that value, with masks, positions
and caches included.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from titans_jax.memory.types import norm
from titans_jax.nn.attention import KV, Attention, Values, by_slot, by_token
from titans_jax.nn.memory import MemoryLayer
from titans_jax.nn.memory_state import LayerInfo, MemoryState, duals


class Attended(NamedTuple):
    """How attention read one token's context.

    tokens: [B, H, W], the weight on the token so far back, 0 for itself.
    read: [B, H, W], the weight on what MAC's memory gave for that token.
    key: [B, H], the norm of the token's own key.
    The weights that are missing to 1 are on the persistent tokens.
    """

    tokens: Array
    read: Array
    key: Array


class Remembered(NamedTuple):
    """What a memory did with one token, each [B, H].

    info: see `LayerInfo`.
    change: the norm of what the token changed in the fast weights.
    key, value: the norms of what was written, the key's before it is normalised; nan in hope, whose memories make both.
    """

    info: LayerInfo
    change: Array
    key: Array
    value: Array


class Introspection(NamedTuple):
    """What a block did; None for a part that it does not have."""

    attention: Attended | None = None
    memory: Remembered | None = None


def attended(attention: Attention, x: Array, cache: KV, age: Array, values: Values | None) -> Attended:
    """How `attention` reads its cache for one token x [B, 1, E], with the arguments of its call."""
    q, k, v, _ = attention.projections.qkv(x, values)

    def attend(v: Array, cached: Array) -> Array:
        return attention.attend(q, k, by_token(v), cache._replace(values=cached), age)[0]

    own, cached = read_weights(attend, by_slot(v), cache.values)
    slot = jnp.arange(cached.shape[-1])
    at = {"full": cache.step, "segmented": cache.step % len(slot), "sliding": jnp.int32(len(slot))}[
        attention.config.attention
    ]
    distance = jnp.concatenate([jnp.zeros(1, int), at - slot])
    tokens = by_distance(jnp.concatenate([own, cached], -1), distance, len(slot))
    return Attended(tokens, jnp.zeros_like(tokens), norms(k[:, 0]))


def remembered(
    layer: MemoryLayer, x: Array, age: Array, before: MemoryState, after: MemoryState, info: LayerInfo
) -> Remembered:
    """What `layer` did with one token x [B, 1, E] between two states."""
    (_, k, v), _ = layer.qkv(x, before.conv, age)
    changed = memory_change(before, after, info)
    key, value = (norms(x[:, :, 0]).reshape(*changed.change.shape, -1).mean(-1) for x in (k, v))
    return changed._replace(key=key, value=value)


def memory_change(before: MemoryState, after: MemoryState, info: LayerInfo) -> Remembered:
    """What one token changed in the memories, without the norms of keys and values."""
    change = jax.tree.map(jnp.subtract, duals(after.memory), duals(before.memory))
    info = jax.tree.map(lambda x: x[..., 0].astype(jnp.float32), info)
    unknown = jnp.full_like(info.surprise, jnp.nan)
    return Remembered(info, jax.vmap(jax.vmap(norm))(change), unknown, unknown)


def read_weights(attend: Callable[..., Array], *values: Array) -> tuple[Array, ...]:
    """The weights [B, H, slots] with which one query reads each of the values [B, H, D, slots].

    attend: values -> y [B, 1, H, D], linear in them and the same in every channel.
    """
    y, pull = jax.vjp(attend, *values)
    return tuple(x[:, :, 0].astype(jnp.float32) for x in pull(jnp.zeros_like(y).at[..., 0].set(1)))


def by_distance(weights: Array, distance: Array, width: int) -> Array:
    """Weights [B, H, slots] of tokens `distance` [slots] back -> [B, H, width]; negative distances are left out."""
    distance = jnp.where(distance < 0, width, distance)
    return jnp.zeros((*weights.shape[:2], width)).at[..., distance].add(weights, mode="drop")


def norms(x: Array) -> Array:
    """Norms over the last axis, in float32."""
    return jnp.sqrt(jnp.square(x.astype(jnp.float32)).sum(-1))
