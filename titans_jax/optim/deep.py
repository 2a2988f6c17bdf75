"""Nested Learning's optimizers (arXiv 2512.24695): descent, and momenta that are memories of the gradients.

Weights are [..., in, out], stacked over any leading axes; the paper's are [out, in], so its products stand transposed.
"""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

PyTree = Any
Value = Literal["gradient", "ones"]


def gradient_descent(rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """W <- W - rate g (Eq 1), which is argmin_X <X, g> + |X - W|^2 / (2 rate) (Eq 2).

    >>> optimizer = gradient_descent(0.1)
    >>> step, _ = optimizer.update(jnp.ones(2), optimizer.init(jnp.zeros(2)))
    >>> step.tolist() == (-0.1 * jnp.ones(2)).tolist()
    True
    """
    return optax.scale_by_learning_rate(rate)


def momentum_descent(rate: optax.ScalarOrSchedule, momentum: float = 0.9) -> optax.GradientTransformation:
    """m <- momentum m - rate g, W <- W + m (Eq 33). With momentum 1, which forgets nothing, Eq 10-13 (with -m for m).

    >>> optimizer = momentum_descent(0.5, momentum=0.5)
    >>> step, state = optimizer.update(jnp.ones(1), optimizer.init(jnp.zeros(1)))
    >>> optimizer.update(jnp.ones(1), state)[0].tolist()
    [-0.75]
    """
    return optax.chain(optax.scale_by_learning_rate(rate), optax.trace(momentum))


class LeaderState(NamedTuple):
    """start: the first parameters, float32. total: the sum of the gradients. count: updates so far, int32."""

    start: PyTree
    total: PyTree
    count: jax.Array  # type: ignore[assignment]  # the name optax gives it, which tuple's method bears too


def follow_the_regularised_leader(rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """W_{t+1} = argmin_W sum_{s<=t} <W, g_s> + |W - W_0|^2 / (2 rate_t) = W_0 - rate_t sum_{s<=t} g_s (Eq 3).

    At a constant rate it is gradient descent; a rate that changes acts on all of the past. The parameters move by these
    updates alone.

    Raises:
        ValueError: update without params.

    >>> optimizer, w = follow_the_regularised_leader(0.5), jnp.array([2.0])
    >>> optimizer.update(jnp.ones(1), optimizer.init(w), w)[0].tolist()
    [-0.5]
    """

    def init(params: PyTree) -> LeaderState:
        start = jax.tree.map(lambda p: jnp.array(p, jnp.promote_types(p.dtype, jnp.float32)), params)
        return LeaderState(start, optax.tree.zeros_like(start), jnp.zeros((), jnp.int32))

    def update(gradients: PyTree, state: LeaderState, params: PyTree | None = None) -> tuple[PyTree, LeaderState]:
        if params is None:
            raise ValueError("follow_the_regularised_leader: update needs params, whose distance to W_0 it closes")
        now = rate(state.count) if callable(rate) else rate
        total = jax.tree.map(jnp.add, state.total, gradients)
        leader = jax.tree.map(lambda start, g: start - now * g, state.start, total)
        updates = jax.tree.map(lambda w, p: (w - p).astype(p.dtype), leader, params)
        return updates, LeaderState(state.start, total, optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)


def delta_gradient_descent(rate: float) -> optax.GradientTransformationExtraArgs:
    """W <- (I - rate' x^T x) W - rate' g, rate' = rate / (1 + rate |x|^2): the layer forgets what x held.

    It is argmin_Y |x Y + e|^2 / 2 + |Y - W|^2 / (2 rate), e the error at the output and g = x^T e. For inputs of
    several rows, (I + rate X^T X)^-1 in place of 1 / (1 + rate |x|^2). (The paper's rate / (1 + rate) is this for unit
    x.) update(g, state, params, inputs=...) takes a tree like params, of each layer's inputs [..., rows, in]; g is the
    sum over the rows: for a mean, divide the inputs by the root of their number.

    Raises:
        ValueError: update without params or inputs.

    >>> optimizer, w, x = delta_gradient_descent(1.0), jnp.array([[3.0], [5.0]]), jnp.array([[1.0, 0.0]])
    >>> step, _ = optimizer.update(jnp.zeros((2, 1)), optimizer.init(w), w, inputs=x)
    >>> (w + step).tolist()                                             # no error: half of what x reads is erased
    [[1.5], [5.0]]
    """

    def update(
        gradients: PyTree, state: optax.EmptyState, params: PyTree | None = None, *, inputs: PyTree | None = None
    ) -> tuple[PyTree, optax.EmptyState]:
        if params is None or inputs is None:
            raise ValueError("delta_gradient_descent: update needs params and inputs, each layer's [..., rows, in]")

        def one(g: jax.Array, w: jax.Array, x: jax.Array) -> jax.Array:
            pull = x.mT @ (x @ w) + g
            gram = jnp.eye(x.shape[-2], dtype=x.dtype) + rate * x @ x.mT
            return -rate * (pull - rate * x.mT @ jnp.linalg.solve(gram, x @ pull))  # (I + rate X^T X)^-1 by Woodbury

        return jax.tree.map(one, gradients, params, inputs), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def scale_by_delta_momentum(momentum: float = 0.9, erase: float = 1.0) -> optax.GradientTransformation:
    """m <- (momentum I - erase g g^T / |g|^2) m + g: what the momentum held under g is replaced (Eq 48-49).

    As printed, with g g^T not divided by |g|^2, it diverges for gradients longer than sqrt(1 + momentum). The update is
    +m, in the gradient's dtype; m is float32.

    >>> transformation = scale_by_delta_momentum(momentum=1.0)
    >>> g, state = jnp.array([[2.0]]), transformation.init(jnp.zeros((1, 1)))
    >>> for _ in range(3): m, state = transformation.update(g, state)
    >>> m.tolist()                                                      # not the sum, 6: the pair is already there
    [[2.0]]
    """

    def init(params: PyTree) -> optax.TraceState:
        return optax.TraceState(optax.tree.zeros_like(params, dtype=jnp.float32))

    def update(gradients: PyTree, state: optax.TraceState, params: PyTree | None = None) -> Any:
        del params

        def one(m: jax.Array, g: jax.Array) -> jax.Array:
            square = jnp.sum(g * g, axis=(-2, -1), keepdims=True) + 1e-30
            return momentum * m - erase / square * g @ (g.mT @ m) + g

        trace = jax.tree.map(one, state.trace, _float32(gradients))
        return _like(trace, gradients), optax.TraceState(trace)

    return optax.GradientTransformation(init, update)


class DeepMomentumState(NamedTuple):
    """The network of every matrix: first and origin [..., out, width], second [..., width, out], float32."""

    first: PyTree
    second: PyTree
    origin: PyTree


def scale_by_deep_momentum(
    momentum: float = 0.9, rate: float = 0.1, *, width: int = 64, value: Value = "gradient", seed: int = 0
) -> optax.GradientTransformation:
    """Deep momentum gradient descent: the momentum is a network of the gradient's rows, trained as it goes (Eq 50).

    With u = g / rms(g), m(u) = tanh(u A / sqrt(out)) B / sqrt(width), m_0 its weights at the start (A normal, B zero):

        m <- m_0 + momentum (m - m_0) + rate grad_m <m(u), value>;  the update is +m(u)

    value "gradient" is u: the network answers a gradient with those it has seen that are like it, and follows them.
    "ones" is Eq 50 as printed; its answers are alike in every output, whatever the gradient's, so it is no descent.
    Ours besides: u is of one size (or m(u) is of the gradient's cube), and m returns to m_0 (forgetting A, it would
    fall silent). The update is in the gradient's dtype; the network is float32.

    Raises:
        ValueError: an unknown value.

    >>> transformation = scale_by_deep_momentum()
    >>> g = jax.random.normal(jax.random.key(0), (4, 4))
    >>> m, state = transformation.update(g, transformation.init(g))
    >>> bool(jnp.vdot(m, g) > 0)
    True
    """
    if value not in get_args(Value):
        raise ValueError(f"deep_momentum: value {value!r} is unknown; known are {', '.join(get_args(Value))}")

    def init(params: PyTree) -> DeepMomentumState:
        leaves, treedef = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(seed), max(len(leaves), 1))
        shapes = [(*p.shape[:-2], p.shape[-1], width) for p in leaves]
        drawn = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=False)]
        origin = jax.tree.unflatten(treedef, drawn)
        second = jax.tree.map(lambda a: jnp.zeros_like(a.mT), origin)
        return DeepMomentumState(jax.tree.map(lambda a: a + 0, origin), second, origin)

    def answer(first: jax.Array, second: jax.Array, u: jax.Array) -> jax.Array:
        return jnp.tanh(u @ first / u.shape[-1] ** 0.5) @ second / width**0.5

    def update(gradients: PyTree, state: DeepMomentumState, params: PyTree | None = None) -> Any:
        del params
        u = jax.tree.map(_unit, _float32(gradients))

        def learn(first: jax.Array, second: jax.Array, origin: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array]:
            wanted = u if value == "gradient" else jnp.ones_like(u)
            a, b = jax.grad(lambda a, b: jnp.vdot(answer(a, b, u), wanted), (0, 1))(first, second)
            return origin + momentum * (first - origin) + rate * a, momentum * second + rate * b

        learned = jax.tree.map(learn, *state, u)
        first, second = (jax.tree.map(lambda _, pair, i=i: pair[i], u, learned) for i in range(2))
        updates = jax.tree.map(answer, first, second, u)
        return _like(updates, gradients), DeepMomentumState(first, second, state.origin)

    return optax.GradientTransformation(init, update)


def _unit(g: jax.Array) -> jax.Array:
    return g / (jnp.sqrt(jnp.mean(g * g, axis=(-2, -1), keepdims=True) + 1e-30))


def _float32(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _like(updates: PyTree, gradients: PyTree) -> PyTree:
    return jax.tree.map(lambda u, g: u.astype(g.dtype), updates, gradients)
