"""What a memory minimises: the loss between its prediction M(k) and the value v, both [D], for one token."""

import jax.numpy as jnp
from jax import Array

from titans_jax.memory.base import Bias


def l2(scale: float = 1.0) -> Bias:
    """scale ||M(k) - v||^2, summed over features (Titans Eq 12 with scale 1; the delta family and TTT with 1/2)."""

    def loss(prediction: Array, value: Array) -> Array:
        return scale * jnp.square(prediction - value).sum()

    return Bias(loss, slope=2.0 * scale, curvature=2.0 * scale)


def dot() -> Bias:
    """-<M(k), v>: the Hebbian write of linear attention (MIRAS Eq 8)."""

    def loss(prediction: Array, value: Array) -> Array:
        return -(prediction * value).sum()

    return Bias(loss, curvature=0.0)
