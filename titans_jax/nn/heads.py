"""Heads that say where in a sequence something is: each gives logits over its positions, so one loss serves them all.

States are [B, T, E], of which the first `length` [B] rows of a sequence are tokens; a position past them has no chance.
"""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from titans_jax.nn.layers import Linear, param


def last(states: Array, length: Array) -> Array:
    """The state of each sequence's last token, [B, E]: what a causal model knows of all of it."""
    return jnp.take_along_axis(states, (length - 1)[:, None, None], axis=1)[:, 0]


class Classify(nnx.Module):
    """A class for each position, from the last token's state; a class' weights are its position's embedding.

    Tied, since a position may be the answer in a handful of samples alone: what is learned for one serves the others.
    """

    def __init__(self, dim: int, positions: int, *, rngs: nnx.Rngs) -> None:
        self.query = Linear(dim, dim, ("embed", None), rngs=rngs)

    def __call__(self, states: Array, length: Array, embedding: Array) -> Array:
        """[B, T, E] and the embedding of positions [>= T, E] -> logits [B, T]."""
        query = self.query(last(states, length)[:, None])[:, 0]
        return inside(query @ embedding[: states.shape[1]].T, length)


class Regress(nnx.Module):
    """A number from the last token's state; its logits are those of a bell of learned width around it.

    So the loss is a squared error, in positions, that knows that positions are whole numbers.
    """

    def __init__(self, dim: int, positions: int, *, rngs: nnx.Rngs) -> None:
        self.share = Linear(dim, 1, ("embed", None), scale=0.1, bias=0.0, rngs=rngs)
        self.log_width = param(jnp.log(jnp.full(1, positions / 8)), None)
        self.positions = positions

    def __call__(self, states: Array, length: Array, embedding: Array) -> Array:
        """[B, T, E] -> logits [B, T]."""
        where = (0.5 + self.share(last(states, length)[:, None])[:, 0]) * self.positions
        away = (jnp.arange(states.shape[1]) - where) / jnp.exp(self.log_width[...])
        return inside(-away * away / 2, length)


class Point(nnx.Module):
    """A score for each token from its own state: a pointer, for any number of positions."""

    def __init__(self, dim: int, positions: int, *, rngs: nnx.Rngs) -> None:
        self.score = Linear(dim, 1, ("embed", None), rngs=rngs)

    def __call__(self, states: Array, length: Array, embedding: Array) -> Array:
        """[B, T, E] -> logits [B, T]."""
        return inside(self.score(states)[..., 0], length)


HEADS = {"classify": Classify, "regress": Regress, "point": Point}


def inside(scores: Array, length: Array) -> Array:
    """Scores [B, T] in float32, with the lowest number there is where a sequence has no token."""
    scores = scores.astype(jnp.float32)
    return jnp.where(jnp.arange(scores.shape[1]) < length[:, None], scores, jnp.finfo(jnp.float32).min)
