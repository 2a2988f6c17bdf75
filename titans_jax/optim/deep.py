"""The optimizers of Nested Learning (arXiv 2512.24695): descent, and momenta that are memories of the gradients.

Weights are [..., in, out], with any leading axes. The paper's are [out, in], so its products are transposed here.
"""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from titans_jax.nearest import require_known

PyTree = Any
Value = Literal["gradient", "ones"]


def gradient_descent(rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Gradient descent: W <- W - rate g (Eq 1), which is argmin_X <X, g> + |X - W|^2 / (2 rate) (Eq 2).

    >>> optimizer = gradient_descent(0.1)
    >>> step, _ = optimizer.update(jnp.ones(2), optimizer.init(jnp.zeros(2)))
    >>> step.tolist() == (-0.1 * jnp.ones(2)).tolist()
    True
    """
    return optax.scale_by_learning_rate(rate)


def momentum_descent(rate: optax.ScalarOrSchedule, momentum: float = 0.9) -> optax.GradientTransformation:
    """Momentum: m <- momentum m - rate g, W <- W + m (Eq 33). Momentum 1 gives Eq 10-13, with -m for m.

    >>> optimizer = momentum_descent(0.5, momentum=0.5)
    >>> step, state = optimizer.update(jnp.ones(1), optimizer.init(jnp.zeros(1)))
    >>> optimizer.update(jnp.ones(1), state)[0].tolist()
    [-0.75]
    """
    return optax.chain(optax.scale_by_learning_rate(rate), optax.trace(momentum))


class LeaderState(NamedTuple):
    """The state of `follow_the_regularised_leader`.

    start: the initial parameters, float32.
    total: the sum of the gradients.
    count: the number of updates, int32.
    """

    start: PyTree
    total: PyTree
    count: jax.Array  # type: ignore[assignment]  # optax' name for it, and the name of a method of tuple


def follow_the_regularised_leader(rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Follow the regularised leader: W_{t+1} = W_0 - rate_t sum_{s<=t} g_s (Eq 3).

    That is argmin_W sum_{s<=t} <W, g_s> + |W - W_0|^2 / (2 rate_t). At a constant rate it equals gradient descent; a
    new rate scales all past gradients. Nothing else may change the parameters.
    Raises ValueError: update without params.

    >>> optimizer, w = follow_the_regularised_leader(0.5), jnp.array([2.0])
    >>> optimizer.update(jnp.ones(1), optimizer.init(w), w)[0].tolist()
    [-0.5]
    """

    def init(params: PyTree) -> LeaderState:
        start = jax.tree.map(lambda p: jnp.array(p, jnp.promote_types(p.dtype, jnp.float32)), params)
        return LeaderState(start, optax.tree.zeros_like(start), jnp.zeros((), jnp.int32))

    def update(gradients: PyTree, state: LeaderState, params: PyTree | None = None) -> tuple[PyTree, LeaderState]:
        if params is None:
            raise ValueError("follow_the_regularised_leader: update needs params, as updates are differences to them")
        step = rate(state.count) if callable(rate) else rate
        total = jax.tree.map(jnp.add, state.total, gradients)
        leader = jax.tree.map(lambda start, g: start - step * g, state.start, total)
        updates = jax.tree.map(lambda w, p: (w - p).astype(p.dtype), leader, params)
        return updates, LeaderState(state.start, total, optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)


def delta_gradient_descent(rate: float) -> optax.GradientTransformationExtraArgs:
    """Delta gradient descent: W <- (I - rate' x^T x) W - rate' g, rate' = rate / (1 + rate |x|^2).

    It is argmin_Y |x Y + e|^2 / 2 + |Y - W|^2 / (2 rate), where e is the error at the output and g = x^T e. For several
    rows X, (I + rate X^T X)^-1 replaces 1 / (1 + rate |x|^2). For unit x, rate' is the paper's rate / (1 + rate).

    Call update(g, state, params, inputs=inputs). g is the sum over rows; inputs is a tree like params of the layers'
    inputs [..., rows, in]. If g is the mean, divide the inputs by the root of the number of rows.
    Raises ValueError: update without params or inputs.

    >>> optimizer, w, x = delta_gradient_descent(1.0), jnp.array([[3.0], [5.0]]), jnp.array([[1.0, 0.0]])
    >>> step, _ = optimizer.update(jnp.zeros((2, 1)), optimizer.init(w), w, inputs=x)
    >>> (w + step).tolist()                                             # without error, half of x W is erased
    [[1.5], [5.0]]
    """

    def update(
        gradients: PyTree, state: optax.EmptyState, params: PyTree | None = None, *, inputs: PyTree | None = None
    ) -> tuple[PyTree, optax.EmptyState]:
        if params is None or inputs is None:
            raise ValueError("delta_gradient_descent: update needs params and inputs, each layer's [..., rows, in]")

        def one(g: jax.Array, w: jax.Array, x: jax.Array) -> jax.Array:
            gradient = x.mT @ (x @ w) + g
            gram = jnp.eye(x.shape[-2], dtype=x.dtype) + rate * x @ x.mT
            # (I + rate X^T X)^-1 by Woodbury: the system has the size of the rows, not of the inputs
            return -rate * (gradient - rate * x.mT @ jnp.linalg.solve(gram, x @ gradient))

        return jax.tree.map(one, gradients, params, inputs), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def scale_by_delta_momentum(momentum: float = 0.9, erase: float = 1.0) -> optax.GradientTransformation:
    """Delta momentum: m <- (momentum I - erase g g^T / |g|^2) m + g (Eq 48-49).

    The paper prints g g^T without the division by |g|^2, which diverges for |g| > sqrt(1 + momentum). The update is +m,
    in the gradient's dtype; m is float32.

    >>> transformation = scale_by_delta_momentum(momentum=1.0)
    >>> g, state = jnp.array([[2.0]]), transformation.init(jnp.zeros((1, 1)))
    >>> for _ in range(3): m, state = transformation.update(g, state)
    >>> m.tolist()                                                      # the sum would be 6
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
    """The network of each matrix, float32.

    first: [..., out, width].
    second: [..., width, out].
    origin: the initial `first`.
    """

    first: PyTree
    second: PyTree
    origin: PyTree


def scale_by_deep_momentum(
    momentum: float = 0.9, rate: float = 0.1, *, width: int = 64, value: Value = "gradient", seed: int = 0
) -> optax.GradientTransformation:
    """Deep momentum gradient descent: the momentum is a network of the gradient's rows (Eq 50).

    With u = g / rms(g), m(u) = tanh(u A / sqrt(out)) B / sqrt(width), and m_0 the initial weights (A normal, B zero):

        m <- m_0 + momentum (m - m_0) + rate grad_m <m(u), value>;  the update is +m(u)

    value "gradient" is u: m(u) then approximates a sum of past gradients, weighted by similarity to u. "ones" is Eq 50
    as printed: m(u) is then equal in all outputs and is no descent direction. Two changes are ours: u is normalised, as
    m(u) would grow with |g|^3; and m decays to m_0, as m(u) would vanish with A. The update is in the gradient's dtype;
    the network is float32.
    Raises ValueError: an unknown value.

    >>> transformation = scale_by_deep_momentum()
    >>> g = jax.random.normal(jax.random.key(0), (4, 4))
    >>> m, state = transformation.update(g, transformation.init(g))
    >>> bool(jnp.vdot(m, g) > 0)
    True
    """
    require_known("deep_momentum.value", value, get_args(Value))

    def init(params: PyTree) -> DeepMomentumState:
        leaves, treedef = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(seed), max(len(leaves), 1))
        shapes = [(*p.shape[:-2], p.shape[-1], width) for p in leaves]
        drawn = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=False)]
        origin = jax.tree.unflatten(treedef, drawn)
        second = jax.tree.map(lambda a: jnp.zeros_like(a.mT), origin)
        return DeepMomentumState(jax.tree.map(lambda a: a + 0, origin), second, origin)

    def apply(first: jax.Array, second: jax.Array, u: jax.Array) -> jax.Array:
        return jnp.tanh(u @ first / u.shape[-1] ** 0.5) @ second / width**0.5

    def update(gradients: PyTree, state: DeepMomentumState, params: PyTree | None = None) -> Any:
        del params
        u = jax.tree.map(_unit, _float32(gradients))

        def learn(first: jax.Array, second: jax.Array, origin: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array]:
            target = u if value == "gradient" else jnp.ones_like(u)
            a, b = jax.grad(lambda a, b: jnp.vdot(apply(a, b, u), target), (0, 1))(first, second)
            return origin + momentum * (first - origin) + rate * a, momentum * second + rate * b

        learned = jax.tree.map(learn, *state, u)
        first, second = (jax.tree.map(lambda _, pair, i=i: pair[i], u, learned) for i in range(2))
        updates = jax.tree.map(apply, first, second, u)
        return _like(updates, gradients), DeepMomentumState(first, second, state.origin)

    return optax.GradientTransformation(init, update)


def _unit(g: jax.Array) -> jax.Array:
    return g / (jnp.sqrt(jnp.mean(g * g, axis=(-2, -1), keepdims=True) + 1e-30))


def _float32(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _like(updates: PyTree, gradients: PyTree) -> PyTree:
    return jax.tree.map(lambda u, g: u.astype(g.dtype), updates, gradients)
