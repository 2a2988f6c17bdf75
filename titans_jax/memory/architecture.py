"""What a memory is: small networks written over `linear(name, x)`, so that one text serves every engine.

The engines act through `linear`: plainly, with taps that record the gradients' rank-one factors, or as the weights of
every token at once. A network may use anything on [T, D] that treats each row alone.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from titans_jax.memory.features import Features
from titans_jax.memory.types import Architecture, Linear, Weights


def layer_norm(x: Array) -> Array:
    """(x - mean) / sqrt(var + 1e-6) over the last axis, without affine. [..., D] -> [..., D]."""
    x = x - x.mean(-1, keepdims=True)
    return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def gelu(x: Array) -> Array:
    """x Phi(x), exact (Hendrycks and Gimpel). By erf, whose value and derivatives cost less than those of erfc."""
    return 0.5 * x * (1 + lax.erf(x * 0.5**0.5))


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
        dim=dim,
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
            h = linear(name, gelu(h))
        return x + layer_norm(h)

    shapes = dict(zip(names, zip(sizes[:-1], sizes[1:], strict=True), strict=True))
    gain = float(depth * sizes[-2])
    return Architecture(_normal(shapes), apply, {names[-1]: "out"} | {names[0]: "in"}, dim=dim, gain=gain, normed=True)


def residual(dim: int, expansion: int = 4) -> Architecture:
    """M(x) = x + gelu(x W_1) W_2 (the memories of self-modifying Titans, arXiv 2512.24695)."""
    hidden = expansion * dim

    def apply(linear: Linear, x: Array) -> Array:
        return x + linear("w2", gelu(linear("w1", x)))

    shapes = {"w1": (dim, hidden), "w2": (hidden, dim)}
    return Architecture(_normal(shapes), apply, {"w1": "in", "w2": "out"}, dim=dim, gain=2.0)


def gated(dim: int, expansion: int = 4) -> Architecture:
    """M(x) = x + LN((gelu(x W_1) * x W_3) W_2) (ATLAS' gated memory, with the residual's LN of `mlp`)."""

    def apply(linear: Linear, x: Array) -> Array:
        h = gelu(linear("w1", x)) * linear("w3", x)
        return x + layer_norm(linear("w2", h))

    shapes, channels = _gated_shapes(dim, expansion), {"w1": "in", "w3": "in", "w2": "out"}
    return Architecture(_normal(shapes), apply, channels, dim=dim, gain=3.0 * expansion * dim, normed=True)


def swiglu(dim: int, expansion: int = 4) -> Architecture:
    """M(x) = (silu(x W_1) * x W_3) W_2 (LaCT's fast weights)."""

    def apply(linear: Linear, x: Array) -> Array:
        return linear("w2", jax.nn.silu(linear("w1", x)) * linear("w3", x))

    return Architecture(_normal(_gated_shapes(dim, expansion)), apply, {"w1": "in", "w3": "in", "w2": "out"}, dim=dim)


def _gated_shapes(dim: int, expansion: int) -> dict[str, tuple[int, int]]:
    hidden = expansion * dim
    return {"w1": (dim, hidden), "w2": (hidden, dim), "w3": (dim, hidden)}


def biased(inner: Architecture) -> Architecture:
    """`inner` with x W + b / sqrt(D) for each x W, x: [T, D] (TTT, arXiv 2407.04620); b is 0 at first.

    A bias is the weight of a constant input. Keys have unit length, so the constant has the size of one of their
    channels: a write with the constant 1 would answer all keys with half of what it answers its own.
    """

    def apply(linear: Linear, x: Array) -> Array:
        def with_bias(name: str, x: Array) -> Array:
            return linear(name, x) + linear(f"b{name[1:]}", jnp.full_like(x[..., :1], x.shape[-1] ** -0.5))

        return inner.apply(with_bias, x)

    def init(key: Array) -> Weights:
        weights = inner.init(key)
        return weights | {f"b{name[1:]}": jnp.zeros((1, w.shape[1])) for name, w in weights.items()}

    return inner._replace(init=init, apply=apply)


def featured(inner: Architecture, features: Features) -> Architecture:
    """`inner` with phi(x) in place of x wherever a weight acts on the input itself (ATLAS): a residual stays x.

    It begins as inner does: the weights of the features beyond x are zero. A keep per channel of the input does not fit
    the features; those matrices forget by its mean. Raises ValueError where no matrix is known to act on the input.
    """
    wide = {name for name, axis in inner.channels.items() if axis == "in"}
    if not wide:
        raise ValueError("features: no weight of this network says in `channels` that it acts on the input")

    def init(key: Array) -> Weights:
        weights = inner.init(key)
        rows = {name: (0, features.size - w.shape[0]) if name in wide else (0, 0) for name, w in weights.items()}
        return {name: jnp.pad(w, [rows[name], (0, 0)]) for name, w in weights.items()}

    def apply(linear: Linear, x: Array) -> Array:
        phi = features.phi(x)
        return inner.apply(lambda name, h: linear(name, phi if name in wide else h), x)

    channels = {name: axis for name, axis in inner.channels.items() if name not in wide}
    return inner._replace(init=init, apply=apply, channels=channels, linear=None)


def mesa(dim: int, ridge: float = 1.0, iterations: int = 32) -> Architecture:
    """M(q) = q (H + ridge I)^-1 G (Mesa, arXiv 2506.05233): with the dot bias G sums k^T v and H sums k^T k.

    So M is the matrix that minimises sum_i c_i ||k_i M - v_i||^2 + ridge ||M||^2 over all that was read, c_i = rate_i
    and the keeps since: Newton's step on the whole history. Solved a row by conjugate gradients, exact from
    `iterations` >= dim on. H must stay symmetric, so that both matrices forget by the mean of a keep per channel, and
    positive, so that what it begins with is not learned.
    G, H: [dim, dim], empty at first.
    """

    def apply(linear: Linear, x: Array) -> Array:
        return linear("g", _conjugate_gradients(lambda p: linear("h", p) + ridge * p, x, iterations))

    def write(linear: Linear, k: Array, v: Array) -> list[tuple[Array, Array]]:
        return [(linear("g", k), v), (linear("h", k), k)]

    empty = jnp.zeros((dim, dim))
    init = lambda key: {"g": empty, "h": empty + 0}  # noqa: E731
    return Architecture(init, apply, channels={}, dim=dim, write=write, frozen=("h",))


def _conjugate_gradients(matrix: Callable[[Array], Array], b: Array, iterations: int) -> Array:
    """x with matrix(x) = b, every row [D] of b with a positive definite matrix of its own; its gradient is a solve."""

    def dot(x: Array, y: Array) -> Array:
        return (x * y).sum(-1, keepdims=True)

    def ratio(x: Array, y: Array) -> Array:
        return jnp.where(y > 0, x / jnp.where(y > 0, y, 1), 0)

    def solve(matrix: Callable[[Array], Array], b: Array) -> Array:
        def step(_: int, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            x, r, p = carry
            Ap = matrix(p)
            size = ratio(dot(r, r), dot(p, Ap))
            rest = r - size * Ap
            return x + size * p, rest, rest + ratio(dot(rest, rest), dot(r, r)) * p

        return jax.lax.fori_loop(0, iterations, step, (jnp.zeros_like(b), b, b))[0]

    return jax.lax.custom_linear_solve(matrix, b, solve, symmetric=True)
