"""How a memory forgets: the coordinates in which what is kept is a product keep_t A_{t-1}.

Each retention is a lift (weights to dual) and a link (dual to weights, W = link(A)), of every matrix [..., in, out] by
itself. `every`: the link acts at each chunk's end, inside of which the weights move as the dual does (MIRAS' own
recipe); or at each "token", as the equations are printed, which needs every token's weights: by recurrent alone.

The clip of `miras` bounds what a chunk changes in A. Equation numbers are MIRAS' (after arXiv 2504.13173 v1).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from titans_jax.memory.types import Retention, Weights


def decay(to_origin: bool = False) -> Retention:
    """W = A: weight decay, keep_t = 1 - alpha_t (Titans Eq 13).

    to_origin: decay the change since the stream's start, W_t = W_0 + A_t with A_t = keep_t A_{t-1} + S_t, so that the
    trained initial network stays. With decay to zero, a memory behind a layer norm shrinks until its gradients, which
    grow as 1/|W|, make its streams chaotic (our choice; MIRAS section 3.2 allows any centre).
    """
    return Retention(lift=lambda weights: weights, link=lambda dual: dual, identity=True, to_origin=to_origin)


def elastic_net(threshold: float, every: str = "chunk") -> Retention:
    """W = sign(A) max(0, |A| - threshold): decay and an l1 penalty, so that small weights are none (Eq 22-23).

    W moves at most as far as A, and so at most as far as the clip.
    """
    if threshold < 0:
        raise ValueError(f"threshold: {threshold}; it must be at least 0")

    def lift(w: Array) -> Array:
        return w + threshold * jnp.sign(w)

    def link(a: Array) -> Array:
        return jnp.sign(a) * jnp.maximum(0.0, jnp.abs(a) - threshold)

    return _retention(lift, link, every)


def lq(q: float, map: str = "mirror", every: str = "chunk") -> Retention:
    """Weights kept small in the norm ||A||_q = (sum |A|^q)^(1/q) of each matrix, q >= 2 (variant 4; Moneta, Eq 24).

    map: "mirror" is the gradient of ||A||_q^2 / 2, W = sign(A) |A|^(q-1) / ||A||_q^(q-2), of degree 1: the clip bounds
    what W changes up to a factor of q - 1. "literal" is Eq 24 as printed, W = A / ||A||_q^(q-2), of degree 3 - q: at
    q = 4 twice the dual is half the weights, and a dual near zero, which the clip does not prevent, is weights without
    bound. At q = 3 it keeps nothing of their size.
    """
    maps = {"mirror": (_mirror(q / (q - 1) if q > 1 else 1.0), _mirror(q)), "literal": _literal(q)}
    if map not in maps:
        raise ValueError(f"map: {map!r}; known are {', '.join(maps)}")
    if q < 2:
        raise ValueError(f"q: {q}; it must be at least 2")
    if map == "literal" and q == 3:
        raise ValueError("q: 3; the literal map would give all weights the norm 1: no dual is that of any others")
    return _retention(*maps[map], every)


def kl(scale: float | Array | None = None, hard: bool = True, every: str = "chunk") -> Retention:
    """Positive weights, kept near the last ones in relative entropy: A are their logarithms.

    hard: columns stay on the scaled simplex, W = scale softmax(A) over the input axis, the step
    W_t = scale softmax(keep log W_{t-1} - rate grad) (Eq 19-21, Memora's Eq 27; exact while keep is one number for a
    column, since a softmax does not see what is added to all). scale: the sum of a column, None for the fan-in.
    Soft: W = exp(A), W_t = W_{t-1}^keep * exp(-rate grad), the one f-divergence (Eq 18) of which the steps add up in
    fixed coordinates; scale and simplex have no part in it, and large A overflow.

    The clip bounds how far the logarithms of weights go. Weights to begin with must be positive, of the columns' sum.
    """

    def total(w: Array) -> float | Array:
        return w.shape[-2] if scale is None else scale

    if not hard:
        return _retention(jnp.log, jnp.exp, every)
    return _retention(lambda w: jnp.log(w / total(w)), lambda a: total(a) * jax.nn.softmax(a, axis=-2), every)


def logistic(every: str = "chunk") -> Retention:
    """W = sigmoid(A), W_t = sigmoid(keep logit(W_{t-1}) - rate grad): weights in (0, 1) (variant 5).

    It is the Bregman divergence of F(W) = W log W + (1 - W) log(1 - W); any other is `Retention(F', inverse of F')`.
    The clip bounds how far the logits go, and so four times how far W does.
    """
    return _retention(lambda w: jnp.log(w) - jnp.log1p(-w), jax.nn.sigmoid, every)


def _retention(lift: Callable[[Array], Array], link: Callable[[Array], Array], every: str) -> Retention:
    if every not in ("chunk", "token"):
        raise ValueError(f"every: {every!r}; known are chunk, token")

    def each(function: Callable[[Array], Array]) -> Callable[[Weights], Weights]:
        return lambda tree: jax.tree.map(function, tree)

    return Retention(each(lift), each(link), every=every)


def _size(x: Array, q: float) -> Array:
    """||x||_q of every matrix [..., in, out], kept as [..., 1, 1], with a gradient at zero."""
    return (_power(jnp.abs(x), q).sum((-2, -1), keepdims=True) + 1e-30) ** (1 / q)


def _power(x: Array, exponent: float) -> Array:
    """sign(x) |x|^exponent, its gradient 0 at 0."""
    return jnp.where(x == 0, 0.0, jnp.sign(x) * jnp.abs(jnp.where(x == 0, 1.0, x)) ** exponent)


def _mirror(q: float) -> Callable[[Array], Array]:
    """The gradient of ||x||_q^2 / 2; that of 1/p + 1/q = 1 undoes it."""

    def gradient(x: Array) -> Array:
        size = _size(x, q)
        return size * _power(x / size, q - 1)

    return gradient


def _literal(q: float) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """W = A / ||A||_q^(q-2), and A = W ||W||_q^((q-2)/(3-q))."""

    def scaled(exponent: float) -> Callable[[Array], Array]:
        return lambda x: x * _size(x, q) ** exponent

    return scaled((q - 2) / (3 - q) if q != 3 else 0.0), scaled(2 - q)


def renormalised() -> Retention:
    """At every chunk's end each unit's incoming weights get their first norm (LaCT); decay is to the origin."""

    def squares(w: Array) -> Array:
        return jnp.square(w).sum(0, keepdims=True) + 1e-12

    def end(dual: Weights, first: Weights) -> Weights:
        return jax.tree.map(lambda w, w0: w * jnp.sqrt(squares(w0) / squares(w)), dual, first)

    return decay(to_origin=True)._replace(end=end)
