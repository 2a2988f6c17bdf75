"""Steps of one length in all directions of a matrix: the trace orthogonalised, as Muon does (Jordan 2024)."""

import jax
import jax.numpy as jnp
from jax import Array

from titans_jax.memory.base import State

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(S: Array, steps: int = 5) -> Array:
    """NS5(S), near to U V^T of S = U D V^T: X = S / |S|, then X = a X + (b X X^T + c (X X^T)^2) X. [in, out]."""
    a, b, c = COEFFICIENTS
    tall = S.shape[0] > S.shape[1]
    X = (S.T if tall else S) / jnp.sqrt(jnp.vdot(S, S) + 1e-14)

    def step(_: int, X: Array) -> Array:
        gram = X @ X.T
        return a * X + (b * gram + c * gram @ gram) @ X

    X = jax.lax.fori_loop(0, steps, step, X)
    return X.T if tall else X


def orthogonal_step(state: State, size: Array) -> State:
    """A + size NS5(S) for every matrix alone."""
    dual = jax.tree.map(lambda A, S: A + size * orthogonalise(S), state.dual, state.learner[0])
    return state._replace(dual=dual)
