"""How a memory forgets: the coordinates in which what is kept is a product keep_t A_{t-1}."""

import jax
import jax.numpy as jnp
from jax import Array

from titans_jax.memory.base import Retention, Weights


def decay(home: bool = False) -> Retention:
    """W = A: weight decay, keep_t = 1 - alpha_t (Titans Eq 13).

    With a home, A_t = keep_t A_{t-1} + (1 - keep_t) A_0 + S_t: what is forgotten is what was learned since the stream
    began, and the network that training made stays. Where decay ends at zero, a memory behind a layer norm shrinks
    until its gradients, which grow as 1/|W|, make its streams chaotic (ours; MIRAS section 3.2 allows any centre).
    """
    return Retention(lift=lambda weights: weights, link=lambda dual: dual, identity=True, home=home)


def renormalised() -> Retention:
    """At every chunk's end each unit's incoming weights get the norm they began with (LaCT); decay returns home."""

    def squares(w: Array) -> Array:
        return jnp.square(w).sum(0, keepdims=True) + 1e-12

    def end(dual: Weights, home: Weights) -> Weights:
        return jax.tree.map(lambda w, first: w * jnp.sqrt(squares(first) / squares(w)), dual, home)

    return decay(home=True)._replace(end=end)
