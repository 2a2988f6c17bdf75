"""Nested Learning's optimizers against its equations in float64 numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from titans_jax.optim import (
    OptimConfig,
    build,
    delta_gradient_descent,
    follow_the_regularised_leader,
    gradient_descent,
    momentum_descent,
    scale_by_deep_momentum,
    scale_by_delta_momentum,
)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


GRADIENTS = [draw(3, 4, seed=t) for t in range(5)]


def run(transformation, gradients, start=None):
    """The parameters after each update, in float64."""
    params = jnp.asarray(draw(*gradients[0].shape, seed=99) if start is None else start)
    state, seen = transformation.init(params), []
    for gradient in gradients:
        updates, state = transformation.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(np.asarray(params))
    return seen


def minimiser(objective, at):
    """The minimiser of a quadratic, by one Newton step."""
    flat = lambda x: objective(x.reshape(at.shape))
    x = np.ravel(at)
    slope, curvature = jax.jit(lambda x: (jax.grad(flat)(x), jax.hessian(flat)(x)))(x)
    return (x - np.linalg.solve(curvature, slope)).reshape(at.shape)


def test_equations_1_2_and_3_agree_at_a_constant_rate():
    W = W0 = draw(3, 4, seed=99)
    leader, descent = (run(make(0.3), GRADIENTS) for make in (follow_the_regularised_leader, gradient_descent))
    for t, g in enumerate(GRADIENTS):
        proximal = minimiser(lambda X, W=W, g=g: jnp.vdot(X, g) + jnp.sum((X - W) ** 2) / (2 * 0.3), draw(3, 4))
        regularised = minimiser(
            lambda X, t=t: sum(jnp.vdot(X, g) for g in GRADIENTS[: t + 1]) + jnp.sum((X - W0) ** 2) / (2 * 0.3), W0
        )
        W = W - 0.3 * g
        for other in (proximal, regularised, leader[t], descent[t]):
            np.testing.assert_allclose(other, W, rtol=1e-9, atol=1e-9)


def test_a_new_rate_scales_past_gradients_of_the_leader_and_not_of_descent():
    schedule = lambda t: 0.3 / (t + 1)
    W0 = draw(3, 4, seed=99)
    leader, descent = (run(make(schedule), GRADIENTS) for make in (follow_the_regularised_leader, gradient_descent))
    np.testing.assert_allclose(leader[-1], W0 - 0.3 / 5 * sum(GRADIENTS), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(descent[-1], W0 - sum(0.3 / (t + 1) * g for t, g in enumerate(GRADIENTS)), rtol=1e-5)


def test_momentum_equals_equation_33_and_with_momentum_1_equations_10_and_11():
    W = X = draw(3, 4, seed=99)
    m, n = np.zeros((3, 4)), np.zeros((3, 4))
    forgets, adds = (run(momentum_descent(0.1, a), GRADIENTS) for a in (0.6, 1.0))
    for t, g in enumerate(GRADIENTS):
        m = 0.6 * m - 0.1 * g
        W = W + m
        n = n + 0.1 * g  # 11, which is argmin_n -<n, g> + |n - n_t|^2 / (2 rate) (13)
        X = X - n  # 10
        np.testing.assert_allclose(forgets[t], W, rtol=1e-12)
        np.testing.assert_allclose(adds[t], X, rtol=1e-12)


def test_delta_gradient_descent_minimises_the_error_near_the_weights():
    W, rate = draw(3, 4, seed=1), 0.7
    for rows in (1, 2, 5):
        X, E = draw(rows, 3, seed=2), draw(rows, 4, seed=3)
        optimizer = delta_gradient_descent(rate)
        step, _ = optimizer.update(X.T @ E, optimizer.init(W), W, inputs=X)
        wanted = minimiser(lambda Y, X=X, E=E: jnp.sum((X @ Y + E) ** 2) / 2 + jnp.sum((Y - W) ** 2) / (2 * rate), W)
        np.testing.assert_allclose(W + step, wanted, rtol=1e-9)
        if rows == 1:  # W (I - rate' x x^T) - rate' g in the paper's order
            scaled = rate / (1 + rate * np.sum(X**2))
            np.testing.assert_allclose(W + step, W - scaled * X.T @ X @ W - scaled * X.T @ E, rtol=1e-12)
    stacked = {"layers": np.stack([W, 2 * W])}, {"layers": np.stack([X, -X])}
    both, _ = optimizer.update({"layers": np.stack([X.T @ E] * 2)}, optax.EmptyState(), stacked[0], inputs=stacked[1])
    np.testing.assert_allclose(both["layers"][0], step, rtol=1e-12)


def delta_momentum(gradients, a, c, normalised=True):
    m = np.zeros(gradients[0].shape)
    for g in gradients:
        m = m.T  # the paper's order: [out, in]
        size = np.sum(g**2) if normalised else 1.0
        m = (m @ (a * np.eye(g.shape[0]) - c * g @ g.T / size) + g.T).T
        yield m


def test_delta_momentum_equals_equation_49_normalised():
    transformation = scale_by_delta_momentum(0.8, 0.6)
    seen = run(transformation, GRADIENTS, np.zeros((3, 4)))
    moved = np.diff([np.zeros((3, 4)), *seen], axis=0)
    np.testing.assert_allclose(moved, list(delta_momentum(GRADIENTS, 0.8, 0.6)), rtol=1e-5, atol=1e-6)
    twice = [np.stack([g, 7 * g]) for g in GRADIENTS]  # a stack: each matrix by its own norm
    both = run(transformation, twice, np.zeros((2, 3, 4)))
    np.testing.assert_allclose(both[-1][0], seen[-1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(both[-1][1], 7 * seen[-1], rtol=1e-5, atol=1e-5)


def test_delta_momentum_is_stable_where_the_printed_equation_diverges():
    gradients = [3 * draw(3, 4, seed=t) for t in range(40)]
    printed = list(delta_momentum(gradients, 0.9, 1.0, normalised=False))[-1]
    moved = np.diff(run(scale_by_delta_momentum(0.9), gradients), axis=0)[-1]
    assert np.linalg.norm(printed) > 1e20 and np.linalg.norm(moved) < 1e3


def deep_momentum(gradients, A, a, rate, value):
    """Eq 50 with the network's gradients by hand."""
    origin, B = A, np.zeros(A.shape[::-1])
    (n_out, width) = A.shape
    for g in gradients:
        u = g / np.sqrt(np.mean(g**2))
        wanted = u if value == "gradient" else np.ones_like(u)
        hidden = np.tanh(u @ A / n_out**0.5)
        back = wanted @ B.T / width**0.5 * (1 - hidden**2)
        A = origin + a * (A - origin) + rate * u.T @ back / n_out**0.5
        B = a * B + rate * hidden.T @ wanted / width**0.5
        yield np.tanh(u @ A / n_out**0.5) @ B / width**0.5


@pytest.mark.parametrize("value", ["gradient", "ones"])
def test_deep_momentum_equals_equation_50_with_decay_to_the_origin(value):
    transformation = scale_by_deep_momentum(0.8, 0.3, width=6, value=value)
    origin = np.asarray(transformation.init(jnp.zeros((3, 4))).origin, np.float64)
    moved = np.diff([np.zeros((3, 4)), *run(transformation, GRADIENTS, np.zeros((3, 4)))], axis=0)
    np.testing.assert_allclose(moved, list(deep_momentum(GRADIENTS, origin, 0.8, 0.3, value)), rtol=1e-4, atol=1e-5)


def test_value_gradient_descends_and_value_ones_moves_all_outputs_equally():
    target = draw(3, 4, seed=7)
    target[:, 2:] *= -1
    for value, falls in (("gradient", True), ("ones", False)):
        transformation = optax.chain(scale_by_deep_momentum(value=value), optax.scale_by_learning_rate(0.05))
        w = jnp.zeros((3, 4))
        state = transformation.init(w)
        step = jax.jit(lambda w, state, update=transformation.update: update(w - target, state))
        for _ in range(100):
            updates, state = step(w, state)
            w = w + updates
        assert (np.sum((w - target) ** 2) < 0.1 * np.sum(target**2)) == falls
        assert np.allclose(updates, updates[:, :1], atol=1e-6) != falls


@pytest.mark.parametrize("make", [scale_by_delta_momentum, scale_by_deep_momentum])
def test_zero_gradients_give_no_update_and_a_finite_state(make):
    transformation = make()
    zero = jnp.zeros((2, 3, 4), jnp.bfloat16)
    state = transformation.init(zero)
    for gradient in (zero, zero + 1, zero):
        updates, state = transformation.update(gradient, state)
        assert updates.dtype == jnp.bfloat16
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((updates, state)))
    assert not np.any(transformation.update(zero, transformation.init(zero))[0])


def test_missing_arguments_are_refused():
    w = jnp.zeros((2, 2))
    for make in (delta_gradient_descent, follow_the_regularised_leader):
        with pytest.raises(ValueError, match=f"{make.__name__}: update needs params"):
            make(0.1).update(w, make(0.1).init(w))
    with pytest.raises(ValueError, match="deep_momentum.value: 'one' is unknown; known are .*; did you mean ones"):
        scale_by_deep_momentum(value="one")


@pytest.mark.parametrize(
    ("name", "direct"), [("delta_momentum", scale_by_delta_momentum), ("deep_momentum", scale_by_deep_momentum)]
)
def test_build_uses_it_for_kernels_and_adam_for_vectors(name, direct):
    gradient = {"kernel": draw(2, 3, 4).astype(np.float32), "scale": draw(4, seed=1).astype(np.float32)}
    config = OptimConfig(name=name, peak_rate=0.1, schedule="constant", warmup=0, clip=None, weight_decay=0.0, b1=0.7)
    for b1 in (0.7, 0.2):
        transformation = build(dataclasses.replace(config, b1=b1), steps=5)
        state, mine = transformation.init(gradient), direct(b1).init(gradient["kernel"])
        for _ in range(2):
            updates, state = transformation.update(gradient, state, gradient)
            wanted, mine = direct(b1).update(gradient["kernel"], mine)
        np.testing.assert_allclose(updates["kernel"], -0.1 * wanted, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(np.abs(updates["scale"]), 0.1, rtol=1e-3)
