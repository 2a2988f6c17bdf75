"""Feature maps phi for a memory's keys and queries: more room in a matrix than its keys have (ATLAS, 2505.23735)."""

import collections
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

MOST = 16384  # features; 128 channels have 8,384 monomials of degree 2 and less


class Features(NamedTuple):
    """A map phi of vectors [T, dim] to features [T, size], of which the first dim stand for the vector itself."""

    size: int
    phi: Callable[[Array], Array]


def polynomial(dim: int, degree: int = 2) -> Features:
    """Every monomial of degrees 1 to `degree` in dim variables: binomial(dim + degree, degree) - 1 of them.

    Raises ValueError for a degree below 1, or one of more than 16,384 monomials.

    >>> features = polynomial(2, degree=2)
    >>> features.size, features.phi(jnp.array([[2.0, 3.0]])).tolist()
    (5, [[2.0, 3.0, 4.0, 6.0, 9.0]])
    """
    monomials = _monomials(dim, degree)
    return Features(sum(map(len, monomials)), lambda x: jnp.concatenate([_products(x, m) for m in monomials], -1))


def exponential(dim: int, degree: int = 2, coefficients: Sequence[float] | Array | None = None) -> Features:
    """The terms of exp: <phi(x), phi(y)> = sum_{i=0}^degree a_i (x . y)^i, a_i = 1/i! unless given.

    coefficients: a_0 .. a_degree, each above 0; a traced array where they are learned. The constant comes last.
    Raises ValueError as `polynomial`.

    >>> features = exponential(1, degree=3)
    >>> phi = features.phi(jnp.array([[1.0]]))
    >>> features.size, round(float((phi * phi).sum()), 3)                   # 1 + 1 + 1/2 + 1/6
    (4, 2.667)
    """
    monomials = _monomials(dim, degree)

    def phi(x: Array) -> Array:
        a = jnp.asarray([1 / math.factorial(i) for i in range(degree + 1)] if coefficients is None else coefficients)
        a = a.astype(x.dtype)
        # (x . y)^i has every monomial of degree i as often as there are orders of its variables
        counts = [jnp.asarray([_orders(m) for m in of_degree], x.dtype) for of_degree in monomials]
        terms = [jnp.sqrt(a[i] * counts[i - 1]) * _products(x, monomials[i - 1]) for i in range(1, degree + 1)]
        return jnp.concatenate([*terms, jnp.broadcast_to(jnp.sqrt(a[0]), (*x.shape[:-1], 1))], -1)

    return Features(sum(map(len, monomials)) + 1, phi)


def _monomials(dim: int, degree: int) -> list[list[tuple[int, ...]]]:
    """The monomials of each degree from 1, as the variables that they multiply."""
    if degree < 1 or math.comb(dim + degree, degree) - 1 > MOST:
        raise ValueError(f"degree: {degree} of {dim} variables; at least 1, and at most {MOST} monomials")
    return [list(itertools.combinations_with_replacement(range(dim), d)) for d in range(1, degree + 1)]


def _products(x: Array, monomials: list[tuple[int, ...]]) -> Array:
    return functools.reduce(jnp.multiply, [x[..., jnp.asarray(i)] for i in zip(*monomials, strict=True)])


def _orders(monomial: tuple[int, ...]) -> int:
    """In how many orders these variables can stand."""
    return math.factorial(len(monomial)) // math.prod(map(math.factorial, collections.Counter(monomial).values()))
