"""Output heads that predict a position in a sequence. Each returns logits over positions, so they share one loss.

The first `length` [B] rows of the states [B, T, E] are tokens. Later positions have the smallest float32 as logit.
"""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from titans_jax.nn.layers import Linear, param


def last(states: Array, length: Array) -> Array:
    """The state [B, E] of each sequence's last token."""
    return jnp.take_along_axis(states, (length - 1)[:, None, None], axis=1)[:, 0]


class Classify(nnx.Module):
    """A linear classifier of the last token's state, with one class per position.

    A class' weights are the position's embedding, since few samples have a given position as answer.
    """

    def __init__(self, dim: int, positions: int, *, rngs: nnx.Rngs) -> None:
        self.query = Linear(dim, dim, ("embed", None), rngs=rngs)

    def __call__(self, states: Array, length: Array, embedding: Array) -> Array:
        """States [B, T, E] and position embeddings [>= T, E] -> logits [B, T]."""
        query = self.query(last(states, length)[:, None])[:, 0]
        return masked_logits(query @ embedding[: states.shape[1]].T, length)


class Regress(nnx.Module):
    """A regression from the last token's state: logits of a discretised normal distribution of learned width."""

    def __init__(self, dim: int, positions: int, *, rngs: nnx.Rngs) -> None:
        self.share = Linear(dim, 1, ("embed", None), scale=0.1, bias=0.0, rngs=rngs)
        self.log_width = param(jnp.log(jnp.full(1, positions / 8)), None)
        self.positions = positions

    def __call__(self, states: Array, length: Array, embedding: Array) -> Array:
        """[B, T, E] -> logits [B, T]."""
        mean = (0.5 + self.share(last(states, length)[:, None])[:, 0]) * self.positions
        deviation = (jnp.arange(states.shape[1]) - mean) / jnp.exp(self.log_width[...])
        return masked_logits(-deviation * deviation / 2, length)


class Point(nnx.Module):
    """A pointer: a score of each token's state, for any number of positions."""

    def __init__(self, dim: int, positions: int, *, rngs: nnx.Rngs) -> None:
        self.score = Linear(dim, 1, ("embed", None), rngs=rngs)

    def __call__(self, states: Array, length: Array, embedding: Array) -> Array:
        """[B, T, E] -> logits [B, T]."""
        return masked_logits(self.score(states)[..., 0], length)


HEADS = {"classify": Classify, "regress": Regress, "point": Point}


def masked_logits(scores: Array, length: Array) -> Array:
    """Scores [B, T] in float32, with the smallest float32 after a sequence's last token."""
    scores = scores.astype(jnp.float32)
    return jnp.where(jnp.arange(scores.shape[1]) < length[:, None], scores, jnp.finfo(jnp.float32).min)
