"""The products of a chunk, by the dtype of their factors; sums and results have the dtype of the state."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

Matmul = Callable[[str, Array, Array], Array]
"""(spec, x, y) -> einsum(spec, x, y)."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def rounded(spec: str, x: Array, y: Array) -> Array:
    """einsum(spec, x, y) of factors rounded to bfloat16, and in its gradients of cotangents rounded as they are.

    Both factors of every product are bfloat16, which is what is fast: of a float32 cotangent and a bfloat16 factor, as
    autodiff would have it, a processor makes a float32 product. In reverse mode alone.

    >>> rounded("ti,io->to", jnp.array([[1.001, 2.0]]), jnp.array([[1.0], [3.0]])).tolist()
    [[7.0]]
    """
    factors = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
    return jnp.einsum(spec, *factors, preferred_element_type=jnp.float32).astype(x.dtype)


def _forward(spec: str, x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    return rounded(spec, x, y), (x, y)


def _backward(spec: str, factors: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    (x, y), (of_x, of_y, out) = factors, spec.replace("->", ",").split(",")
    return rounded(f"{out},{of_y}->{of_x}", g, y), rounded(f"{of_x},{out}->{of_y}", x, g)


rounded.defvjp(_forward, _backward)


def exactly(spec: str, x: Array, y: Array) -> Array:
    """einsum(spec, x, y) as it stands."""
    return jnp.einsum(spec, x, y)


MATMULS: dict[str, Matmul] = {"float32": exactly, "bfloat16": rounded}
"""By the dtype of the factors; "float32" stands for the dtype of the state, which may be float64."""
