"""What a block did with one token: its attention weights, and the change of its memory.

`Block.introspect` computes them after the call, so the forward pass does no extra work. Attention is linear in the
values, so the weight of a value is the derivative of the output with respect to it. This includes masks, positions
and caches.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from titans_jax.memory.types import norm
from titans_jax.nn.attention import KV, Attention, Values, by_slot, by_token
from titans_jax.nn.memory import MemoryMixer
from titans_jax.nn.memory_state import LayerInfo, MemoryState, duals


class Attended(NamedTuple):
    """The attention weights of one token. Their sum is 1 minus the weight of the persistent tokens.

    tokens: [B, H, W], the weight of the token i positions back.
    read: [B, H, W], the weight of MAC's memory read for that token.
    key: [B, H], the norm of the token's key.
    """

    tokens: Array
    read: Array
    key: Array


class Remembered(NamedTuple):
    """What a memory did with one token.

    info: see `LayerInfo`; [B, H].
    change: the norm of the change of the fast weights, [B, H].
    query, key, value: [B, H, D], before normalisation, key and value as means over writes; NaN in hope, whose memories
      make keys and values.
    """

    info: LayerInfo
    change: Array
    query: Array
    key: Array
    value: Array


class Introspection(NamedTuple):
    """What a block did with one token; None for a part that the block lacks."""

    attention: Attended | None = None
    memory: Remembered | None = None


def attended(attention: Attention, x: Array, cache: KV, age: Array, values: Values | None) -> Attended:
    """The weights of `attention` for one token x [B, 1, E], from the arguments of its call."""
    q, k, v, _ = attention.projections.qkv(x, values)

    def attend(v: Array, cached: Array) -> Array:
        return attention.attend(q, k, by_token(v), cache._replace(values=cached), age)[0]

    new, cached = read_weights(attend, by_slot(v), cache.values)
    slot = jnp.arange(cached.shape[-1])
    next_slot = {"full": cache.step, "segmented": cache.step % len(slot), "sliding": jnp.int32(len(slot))}[
        attention.config.attention
    ]
    distance = jnp.concatenate([jnp.zeros(1, int), next_slot - slot])
    tokens = by_distance(jnp.concatenate([new, cached], -1), distance, len(slot))
    return Attended(tokens, jnp.zeros_like(tokens), norms(k[:, 0]))


def remembered(
    layer: MemoryMixer, x: Array, age: Array, before: MemoryState, after: MemoryState, info: LayerInfo
) -> Remembered:
    """What `layer` did with one token x [B, 1, E] between two states."""
    vectors, _ = layer.qkv(x, before.conv, age)
    query, key, value = (x[:, :, 0].reshape(*x.shape[:2], -1, x.shape[-1]).mean(2) for x in vectors)
    return memory_change(before, after, info, layer.config.head_dim)._replace(query=query, key=key, value=value)


def memory_change(before: MemoryState, after: MemoryState, info: LayerInfo, head_dim: int) -> Remembered:
    """What one token changed in the memories; query, key and value are NaN."""
    change = jax.tree.map(jnp.subtract, duals(after.memory), duals(before.memory))
    info = jax.tree.map(lambda x: x[..., 0].astype(jnp.float32), info)
    unknown = jnp.full((*info.surprise.shape, head_dim), jnp.nan)
    return Remembered(info, jax.vmap(jax.vmap(norm))(change), unknown, unknown, unknown)


def read_weights(attend: Callable[..., Array], *values: Array) -> tuple[Array, ...]:
    """The attention weights [B, H, slots] of one query for each of the values [B, H, D, slots].

    attend: values -> y [B, 1, H, D], linear in the values, with the same weights for every channel.
    """
    y, pull = jax.vjp(attend, *values)
    return tuple(x[:, :, 0].astype(jnp.float32) for x in pull(jnp.zeros_like(y).at[..., 0].set(1)))


def by_distance(weights: Array, distance: Array, width: int) -> Array:
    """Sort weights [B, H, slots] of tokens `distance` [slots] back into [B, H, width]; drop negative distances."""
    distance = jnp.where(distance < 0, width, distance)
    return jnp.zeros((*weights.shape[:2], width)).at[..., distance].add(weights, mode="drop")


def norms(x: Array) -> Array:
    """Norms over the last axis, in float32."""
    return jnp.sqrt(jnp.square(x.astype(jnp.float32)).sum(-1))
