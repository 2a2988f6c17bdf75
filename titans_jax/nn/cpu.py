"""Products in place of sums and broadcasts that XLA is slow to compute on CPUs; each says how slow.

The numbers are the same on every device. `LM.by_layer` is the other workaround for CPUs.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax

from titans_jax import sharding


def scaled(x: Array, scale: Array) -> Array:
    """x * scale, in x's dtype.

    x: [..., C].
    scale: [C], of any dtype. Without a mesh its gradient is a product with a row of ones, since XLA on CPUs takes
      twenty times as long to sum over rows.
    """
    scale = scale.astype(x.dtype)
    return x * (scale if sharding.active() is not None else _broadcast(scale, x.shape))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _broadcast(scale: Array, shape: tuple[int, ...]) -> Array:
    return jnp.broadcast_to(scale, shape)


def _sum_rows(shape: tuple[int, ...], _: None, g: Array) -> tuple[Array]:
    rows = g.reshape(-1, shape[-1])
    return (jnp.matmul(jnp.ones((1, len(rows)), g.dtype), rows, precision=lax.Precision.HIGHEST)[0],)


_broadcast.defvjp(lambda scale, shape: (_broadcast(scale, shape), None), _sum_rows)


def inner(x: Array, y: Array) -> Array:
    """sum_c x_c y_c over the last axis: [..., C], [..., C] -> [...].

    Written as a product, so that its gradients (`rowwise`) are products too: XLA on CPUs takes ten times as long to sum
    over the last of three or more axes.
    """
    return jnp.einsum("...c,...c->...", x, y, precision=lax.Precision.HIGHEST)


def rowwise(x: Array, scale: Array) -> Array:
    """x * scale with one scale per row. x: [..., C]; scale: [...] -> [..., C]."""
    return jnp.einsum("...c,...->...c", x, scale, precision=lax.Precision.HIGHEST)
