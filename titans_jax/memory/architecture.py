"""What a memory is: small networks written over `linear(name, x)`, so that one text serves every engine.

The engines act through `linear`: plainly, with taps that record the gradients' rank-one factors, or as the weights of
every token at once. A network may use anything on [T, D] that treats each row alone.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from titans_jax.memory.base import Architecture, Linear, Weights


def layer_norm(x: Array) -> Array:
    """(x - mean) / sqrt(var + 1e-6) over the last axis, without affine. [..., D] -> [..., D]."""
    x = x - x.mean(-1, keepdims=True)
    return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def _normal(shapes: dict[str, tuple[int, int]]) -> Callable[[Array], Weights]:
    def init(key: Array) -> Weights:
        keys = jax.random.split(key, len(shapes))
        return {n: jax.random.normal(k, s) / s[0] ** 0.5 for k, (n, s) in zip(keys, shapes.items(), strict=True)}

    return init


def linear(dim: int) -> Architecture:
    """M(x) = x W (Titans Eq 5); the matrix memory of the delta family, which starts empty. W: [dim, dim]."""
    return Architecture(
        init=lambda key: {"w": jnp.zeros((dim, dim))},
        apply=lambda linear, x: linear("w", x),
        channels={"w": "in"},
        linear="w",
    )


def mlp(dim: int, depth: int = 2, expansion: int = 4) -> Architecture:
    """M(x) = x + LN(gelu(... gelu(x W_1) ...) W_depth) (Titans section 3.1, exact gelu, LN without affine).

    W_1: [dim, expansion dim], W_depth: [expansion dim, dim], between them [expansion dim, expansion dim].
    """
    sizes = [dim, *[expansion * dim] * (depth - 1), dim]
    names = [f"w{i}" for i in range(1, depth + 1)]

    def apply(linear: Linear, x: Array) -> Array:
        h = linear(names[0], x)
        for name in names[1:]:
            h = linear(name, jax.nn.gelu(h, approximate=False))
        return x + layer_norm(h)

    shapes = dict(zip(names, zip(sizes[:-1], sizes[1:], strict=True), strict=True))
    return Architecture(_normal(shapes), apply, {names[-1]: "out"} | {names[0]: "in"})


def residual(dim: int, expansion: int = 4) -> Architecture:
    """M(x) = x + gelu(x W_1) W_2 (the memories of self-modifying Titans, arXiv 2512.24695)."""
    hidden = expansion * dim

    def apply(linear: Linear, x: Array) -> Array:
        return x + linear("w2", jax.nn.gelu(linear("w1", x), approximate=False))

    return Architecture(_normal({"w1": (dim, hidden), "w2": (hidden, dim)}), apply, {"w1": "in", "w2": "out"})


def gated(dim: int, expansion: int = 4) -> Architecture:
    """M(x) = x + LN((gelu(x W_1) * x W_3) W_2) (ATLAS' gated memory, with the residual's LN of `mlp`)."""

    def apply(linear: Linear, x: Array) -> Array:
        h = jax.nn.gelu(linear("w1", x), approximate=False) * linear("w3", x)
        return x + layer_norm(linear("w2", h))

    return Architecture(_normal(_gated_shapes(dim, expansion)), apply, {"w1": "in", "w3": "in", "w2": "out"})


def swiglu(dim: int, expansion: int = 4) -> Architecture:
    """M(x) = (silu(x W_1) * x W_3) W_2 (LaCT's fast weights)."""

    def apply(linear: Linear, x: Array) -> Array:
        return linear("w2", jax.nn.silu(linear("w1", x)) * linear("w3", x))

    return Architecture(_normal(_gated_shapes(dim, expansion)), apply, {"w1": "in", "w3": "in", "w2": "out"})


def _gated_shapes(dim: int, expansion: int) -> dict[str, tuple[int, int]]:
    hidden = expansion * dim
    return {"w1": (dim, hidden), "w2": (hidden, dim), "w3": (dim, hidden)}


def ttt_linear(dim: int) -> Architecture:
    """f(x) = x + LN(x W + b) (TTT, arXiv 2407.04620): the bias is the weight of a constant input. W: [dim, dim]."""

    def apply(linear: Linear, x: Array) -> Array:
        return x + layer_norm(linear("w", x) + linear("b", jnp.ones_like(x[..., :1])))

    weights = _normal({"w": (dim, dim)})
    return Architecture(lambda key: weights(key) | {"b": jnp.zeros((1, dim))}, apply, {"w": "in"})


def ttt_mlp(dim: int, expansion: int = 4) -> Architecture:
    """f(x) = x + LN(gelu(x W_1 + b_1) W_2 + b_2) (TTT). W_1: [dim, expansion dim], W_2: [expansion dim, dim]."""
    hidden = expansion * dim

    def apply(linear: Linear, x: Array) -> Array:
        one = jnp.ones_like(x[..., :1])
        h = jax.nn.gelu(linear("w1", x) + linear("b1", one), approximate=False)
        return x + layer_norm(linear("w2", h) + linear("b2", one))

    weights = _normal({"w1": (dim, hidden), "w2": (hidden, dim)})

    def init(key: Array) -> Weights:
        return weights(key) | {"b1": jnp.zeros((1, hidden)), "b2": jnp.zeros((1, dim))}

    return Architecture(init, apply, {"w1": "in", "w2": "out"})
