"""What the clip at a chunk's end leaves, and its gradients, which do not ask for what was clipped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from titans_jax.memory.boundary import _bounded, _scale, _scaled

KEYS = jax.random.split(jax.random.key(0), 3)


def clipped(x, bound):
    size = jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(x)))
    return jax.tree.map(lambda leaf: leaf * jnp.minimum(1.0, bound / size), x)


@pytest.mark.parametrize("bound", [0.7, 100.0, None])
def test_what_a_bound_leaves_has_its_gradients_of_two_orders(bound):
    x = {"a": jax.random.normal(KEYS[0], (2, 3)), "b": jax.random.normal(KEYS[1], (4,))}
    to = {"a": jax.random.normal(KEYS[2], (2, 3)), "b": jnp.arange(4.0)}

    def said(x):
        scale = _scale(x, bound)
        left, scale = _bounded(bound, x, _scaled(x, scale), scale)
        return sum(jnp.vdot(jnp.sin(left[n]), to[n]) for n in to) + scale**2

    def meant(x):
        left = x if bound is None else clipped(x, bound)
        return sum(jnp.vdot(jnp.sin(left[n]), to[n]) for n in to) + (left["a"][0, 0] / x["a"][0, 0]) ** 2

    def second(f):
        return jax.grad(lambda x: sum(jnp.vdot(g, g) for g in jax.tree.leaves(jax.grad(f)(x))))

    for f in (lambda f: f, jax.grad, second):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), f(said)(x), f(meant)(x))


def test_what_is_not_finite_is_gone_and_has_no_gradient():
    x = {"a": jnp.array([1.0, jnp.inf])}

    def said(x):
        scale = _scale(x, 1.0)
        return _bounded(1.0, x, _scaled(x, scale), scale)[0]["a"].sum()

    assert said(x) == 0
    np.testing.assert_array_equal(jax.grad(said)(x)["a"], 0)
