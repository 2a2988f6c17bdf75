"""Drawing a token from logits, with options of its own for every row. B rows, V vocabulary."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn: temperature first, then the filters in this order.

    temperature: 0 takes the likeliest token.
    top_k: only the k likeliest tokens.
    top_p: only the fewest tokens whose probabilities reach this sum.
    min_p: only tokens at least this many times as likely as the likeliest.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or more, and finite")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 1")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} is {value}; it must be above 0 and at most 1")


class Filters(NamedTuple):
    """The options of B rows as arrays [B]; an option of `Sampling` that is None becomes a value without effect."""

    temperature: NDArray[np.float32]
    top_k: NDArray[np.int32]
    top_p: NDArray[np.float32]
    min_p: NDArray[np.float32]


def filters(rows: Sequence[Sampling]) -> Filters:
    """The options of each row as arrays."""

    def column(name: str, all_: float, dtype: type) -> NDArray:
        values = [getattr(row, name) for row in rows]
        return np.array([all_ if value is None else value for value in values], dtype)

    return Filters(
        column("temperature", 1.0, np.float32),
        column("top_k", np.iinfo(np.int32).max, np.int32),
        column("top_p", 1.0, np.float32),
        column("min_p", 0.0, np.float32),
    )


def keep_top_k(logits: Array, k: Array | int) -> Array:
    """Logits [..., V] with all but the k largest (and their equals) at -inf. k: a number, or [..., 1].

    >>> keep_top_k(jnp.array([1.0, 3.0, 2.0]), 2).tolist()
    [-inf, 3.0, 2.0]
    """
    last = jnp.broadcast_to(jnp.clip(k, 1, logits.shape[-1]) - 1, (*logits.shape[:-1], 1))
    least = jnp.take_along_axis(jnp.sort(logits, axis=-1, descending=True), last, axis=-1)
    return jnp.where(logits >= least, logits, -jnp.inf)


def keep_top_p(logits: Array, p: Array | float) -> Array:
    """Logits [..., V] with -inf outside the smallest set of likeliest tokens whose probabilities reach p, or [..., 1].

    >>> keep_top_p(jnp.log(jnp.array([0.5, 0.3, 0.2])), 0.6)[2].tolist()
    -inf
    """
    order = jnp.argsort(-logits, axis=-1)
    sorted_ = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
    before = jnp.cumsum(sorted_, axis=-1) - sorted_
    rank = jnp.argsort(order, axis=-1)
    # The likeliest token stays even if p rounds to 0.
    return jnp.where((jnp.take_along_axis(before, rank, axis=-1) < p) | (rank == 0), logits, -jnp.inf)


def keep_min_p(logits: Array, p: Array | float) -> Array:
    """Logits [..., V] with -inf where a token is less than p, or [..., 1], times as likely as the likeliest.

    >>> keep_min_p(jnp.log(jnp.array([0.6, 0.3, 0.1])), 0.4)[2].tolist()
    -inf
    """
    return jnp.where(logits >= logits.max(-1, keepdims=True) + jnp.log(p), logits, -jnp.inf)


def draw(logits: Array, keys: Array, rules: Filters) -> Array:
    """Draw a token for each row, int32 [B].

    logits: [B, V]; a row that is not finite, but for a -inf, gives -1. keys: [B]; temperature 0 does not use its key.
    A filter that no row has is not computed.
    """
    temperature, top_k, top_p, min_p = (jnp.asarray(rule)[:, None] for rule in rules)
    vocabulary = logits.shape[-1]

    def drawn(logits: Array) -> Array:
        scaled = logits / jnp.where(temperature > 0, temperature, 1)
        scaled = lax.cond((top_k < vocabulary).any(), lambda x: keep_top_k(x, top_k), lambda x: x, scaled)
        scaled = lax.cond((top_p < 1).any(), lambda x: keep_top_p(x, top_p), lambda x: x, scaled)
        tokens = jax.vmap(jax.random.categorical)(keys, keep_min_p(scaled, min_p))
        return jnp.where(temperature[:, 0] > 0, tokens, likeliest(logits)).astype(jnp.int32)

    def likeliest(logits: Array) -> Array:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    tokens = lax.cond((temperature > 0).any(), drawn, likeliest, logits)
    return jnp.where(jnp.isfinite(logits.max(-1)), tokens, -1)
