"""A scan that is differentiated with hindsight is `lax.scan`, and a clip's gradient asks for no products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from titans_jax.memory import Gates, Span, hindsight, miras, presets

KEYS = jax.random.split(jax.random.key(0), 6)


def step(matrix, power, state, x, after):
    """Counts in integers, looks at a matrix from outside, and trusts `after` for a value but not for its gradient."""
    (h, count), (x, odd) = state, x
    new = jnp.tanh(matrix @ h + x)
    if after is not None:
        (known, _), told = after
        new = new + lax.stop_gradient(known - new)
        np.testing.assert_array_equal(told.shape, ())
    return (new, count + 1), (new * jnp.where(odd, 2.0, count), count), new.sum() ** power


def total(scan, matrix, h, xs, odd):
    (h, count), (y, counts) = scan(matrix, (h, jnp.zeros((), jnp.int32)), (xs, odd))
    return (y * jnp.cos(y)).sum() + (h * count * counts.sum()).sum()


def hindseen(matrix, state, xs):
    return hindsight.scan(lambda *given: step(matrix, 2, *given), state, xs)


def plain(matrix, state, xs):
    return lax.scan(lambda state, x: step(matrix, 2, state, x, None)[:2], state, xs)


ARGUMENTS = (
    0.5 * jax.random.normal(KEYS[0], (3, 3)),
    jax.random.normal(KEYS[1], (3,)),
    jax.random.normal(KEYS[2], (7, 3)),
    jnp.arange(7) % 2 == 1,
)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint], ids=["as it is", "jit", "checkpoint"])
def test_values_and_gradients_are_those_of_scan(wrap):
    found, wanted = (
        jax.value_and_grad(wrap(lambda *floats, scan=scan: total(scan, *floats, ARGUMENTS[3])), (0, 1, 2))(
            *ARGUMENTS[:3]
        )
        for scan in (hindseen, plain)
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), found, wanted)


def test_rows_of_a_batch_are_scanned_apart():
    several = [jnp.stack([x, 0.5 * x]) for x in ARGUMENTS[1:3]]

    def gradients(scan):
        slope = jax.grad(lambda *floats: total(scan, *floats, ARGUMENTS[3]), (0, 1, 2))
        return jax.vmap(slope, (None, 0, 0))(ARGUMENTS[0], *several)

    found, wanted = gradients(hindseen), gradients(plain)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), found, wanted)


def memory_loss(clip, length=16):
    rule = presets.titans(8)
    memory = miras(rule, chunk=4, clip=clip)
    weights = rule.architecture.init(KEYS[0])
    q, k, v = jax.random.normal(KEYS[1], (3, length, 8))
    gates = Gates(jnp.full(length, 0.1), jnp.full(length, 0.9), jnp.full(length, 0.99))

    def loss(weights, q, k, v, gates):
        y, _, _ = memory.update(memory.init(weights), q, k, v, gates, span=Span(0, length))
        return (y * jnp.cos(y)).sum()

    return loss, (weights, q, k, v, gates)


def test_the_gradient_of_the_clip_makes_no_product_again():
    def products(clip):
        loss, arguments = memory_loss(clip)
        return jax.jit(jax.grad(loss, (0, 1, 2, 3, 4))).lower(*arguments).compile().as_text().count(" dot(")

    assert 0 < products(clip=1e-3) <= products(clip=None)


def test_a_hessian_times_a_vector_through_a_clip_is_that_of_differences():
    loss, (weights, *rest) = memory_loss(clip=0.05, length=8)
    direction = jax.tree.map(lambda w: jax.random.normal(KEYS[2], w.shape), weights)
    gradient = jax.grad(lambda weights: loss(weights, *rest))
    forward = jax.jit(lambda w: jax.jvp(gradient, (w,), (direction,))[1])(weights)
    reverse = jax.jit(jax.grad(lambda w: sum(jnp.vdot(gradient(w)[n], direction[n]) for n in direction)))(weights)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3), forward, reverse)

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), (weights, direction, rest))
        slope = jax.jit(jax.grad(lambda weights: loss(weights, *wide[2])))
        ahead, behind = (slope(jax.tree.map(lambda w, d, s=s: w + s * d, *wide[:2])) for s in (1e-5, -1e-5))
        difference = jax.tree.map(lambda x, y: (x - y) / 2e-5, ahead, behind)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3), forward, difference)
