"""The types every memory is made of.

Notation, used throughout `titans_jax.memory` (one sequence, one head; rows are tokens, weights are [in, out]):

    T        tokens of a call                  D          size of a key, query or value
    b        chunk: tokens per anchor          n          1 + the learner's traces
    q, k, v  query, key, value   [T, D]        rate       theta: step of the test-time gradient   [T]
    A        dual: the memory in the           momentum   eta: how much of the last step remains  [T]
             retention's coordinates           keep       1 - alpha: how much memory remains      [T] or [T, D]
    W        weights = link(A)                 S          trace: the learner's momentum
    home     what A returns to as it forgets, 0 where there is none
    anchor   A at the last chunk boundary      g          gradient of the attentional bias at link(anchor)
    C        [b, b] what step j left at t      delta      cotangent at a matrix' output; g = input^T delta

    S_t = momentum_t S_{t-1} - rate_t g_t      A_t = keep_t A_{t-1} + S_t      W_t = link(A_t)      y_t = M(W_t; q_t)
    with a home: A_t = keep_t A_{t-1} + (1 - keep_t) home + S_t
    with a link that is not the identity and acts at chunk ends: W_t = keep_t W_{t-1} + S_t inside a chunk
    with a window of c tokens: sum_{t-c < i <= t} weight_i g_i in place of g_t, all at the weights where g_t is taken
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
from jax import Array

Weights = dict[str, Array]
Linear = Callable[[str, Array], Array]


class Gates(NamedTuple):
    """What the network says about each token's write.

    rate: [T] step size, >= 0; [T, m] where the learner writes m times a token. momentum: [T] in [0, 1].
    keep: [T], or [T, D] for a decay of its own per channel.
    threshold: None, or [T] > 0: where a bias that has one turns robust, in place of its own delta.
    weight: gamma, [T] >= 0: what a token counts in every window that holds it, None for 1; see `Learner.window`.
    """

    rate: Array
    momentum: Array
    keep: Array
    threshold: Array | None = None
    weight: Array | None = None


class Window(NamedTuple):
    """Tokens of which gradients are taken: key, value [., D], weight [., 1], and threshold [.] where the bias has one.

    A state holds the last c - 1, of weight 0 before the first.
    """

    key: Array
    value: Array
    weight: Array
    threshold: Array | None = None


class State(NamedTuple):
    """What a memory carries from call to call: of one size for ever.

    dual: weights in the retention's coordinates. learner: the traces, a tuple of trees like `dual`.
    anchor: the dual at the last chunk boundary; gradients are taken at its link. step: tokens read, int32 scalar.
    home: the dual to which what is forgotten returns, or None where that is zero.
    weights: W where the retention carries them beside the dual, or None where they are link(dual).
    window: the last tokens, for a learner that takes their gradients again; or None.
    """

    dual: Weights
    learner: tuple[Weights, ...]
    anchor: Weights
    step: Array
    home: Weights | None = None
    weights: Weights | None = None
    window: Window | None = None


def state_axes(each: Any, step: Any = None) -> State:
    """A State that holds, in place of arrays, `each` (a vmap axis, logical axes) for every field but its step."""
    return State(**{field: step if field == "step" else each for field in State._fields})


class Info(NamedTuple):
    """What there is to look at, not carried.

    surprise: [T] attentional bias of each token at the weights its gradient was taken at.
    grad_norm: [T] Frobenius norm of each token's gradient, of its own alone where there is a window.
    momentum_norm, weight_norm: [T] norms of the first trace and of the dual.
    clipped: [T] 1.0 where the clip cut a chunk's end, else 0.0.
    anchors: None, or where a residual was given [chunks, in, out] the weights that each chunk began with.

    The recurrent engine has momentum_norm, weight_norm and clipped after every token; chunked and exact have them after
    the last token that the call has in a chunk, and repeat them over that chunk's tokens of the call.
    """

    surprise: Array
    grad_norm: Array
    momentum_norm: Array
    weight_norm: Array
    clipped: Array
    anchors: Weights | None = None


class Span(NamedTuple):
    """The rows of a call that are tokens: `length` of them from row `first` on; the others are passed over."""

    first: Array | int
    length: Array | int


class Restart(NamedTuple):
    """Where a memory begins anew: where `mask` [T] holds and a chunk begins it is `state` again; step runs on."""

    mask: Array
    state: State


class Architecture(NamedTuple):
    """A network of fast weights, written once over the way its weights act.

    init: key -> weights. apply: (linear, x[T, D]) -> y[T, D], where `linear(name, x)` applies the weight of that name.
    channels: the axis ("in" or "out") of each weight on which a keep per channel acts; where absent, its mean acts.
    linear: the name of the single weight of a memory that is one matrix, else None.
    gain: about how far a step moves the output: the largest eigenvalue of J J^T, J = dM/dW at a unit input.
    dim: D, where the network says it: a learner with a window must know.
    write: (linear, k[T, D], v[T, D]) -> pairs of a prediction and what it should be, both [T, .], of which the losses
    add up; None is [(apply(linear, k), v)].
    fixed: weights for which not every number will do: what they begin with has no gradient, so training leaves it.
    """

    init: Callable[[Array], Weights]
    apply: Callable[[Linear, Array], Array]
    channels: dict[str, str]
    linear: str | None = None
    gain: float = 1.0
    dim: int | None = None
    write: Callable[[Linear, Array, Array], list[tuple[Array, Array]]] | None = None
    fixed: tuple[str, ...] = ()


class Bias(NamedTuple):
    """The attentional bias: the loss of which the gradient writes the memory.

    loss: (prediction[D], value[D]) -> scalar. slope: s where the gradient is s (prediction - value), else None.
    curvature: about how fast the gradient grows with the error; 0 where it does not depend on it.
    threshold: whether the loss takes a token's `Gates.threshold` as a third argument, where there is one.
    """

    loss: Callable[..., Array]
    slope: float | None = None
    curvature: float = 1.0
    threshold: bool = False


class Retention(NamedTuple):
    """The coordinates in which forgetting is a product: weights = link(dual), link(lift(weights)) = weights.

    home: whether what is forgotten returns to the dual that `init` was given, instead of to zero.
    every: where a link that is not the identity acts: at the end of a "chunk", inside of which the weights move as the
    dual does (MIRAS' recipe), or at each "token".
    end: (dual, home) -> the dual with which the next chunk begins, None for the dual as it is.
    """

    lift: Callable[[Weights], Weights]
    link: Callable[[Weights], Weights]
    identity: bool = False
    home: bool = False
    every: str = "chunk"
    end: Callable[[Weights, Weights], Weights] | None = None

    @property
    def carries_weights(self) -> bool:
        """Whether a state holds weights that are not, inside a chunk, the link of its dual."""
        return not self.identity and self.every == "chunk"


class Learner(NamedTuple):
    """The recurrence of one token, linear in the state z = (dual, trace 1, ..., trace n-1) and in the gradient.

    transition: (Gates of one token, position in its chunk) -> F [n, n], G [n], for z_t = F z_{t-1} + G g_t.
    traces: n - 1. gradient: where g_t is taken: at the chunk's "anchor"; at the "previous" token's weights; at those
    weights "decayed" by this token's transition; or, "erasing", at the anchor, with k_t^T k_t W_{t-1} added on the
    matrices that read the key (see `delta`). longest: tokens of the longest chunk it serves, None for any.
    inputs: (k [T, D], Gates) -> the key and gates that the memory learns by, where it reads others than it is given.
    size: (Gates) -> sigma, where the dual moves by sigma NS5(S), S the trace, and by no gradient of its own: after
    every "token" or at every "chunk"'s end, by the gates of its last token, as `per` says.
    writes: m; k and v are [T, m, D], a token's rows are written one after the other, and it forgets before the first.
    window: c; g_t is the sum of weight_i g_i over the last c tokens, all taken at the same weights (ATLAS' Omega rule).
    """

    transition: Callable[[Gates, Array], tuple[Array, Array]]
    traces: int
    gradient: str = "anchor"
    longest: int | None = None
    inputs: Callable[[Array, Gates], tuple[Array, Gates]] | None = None
    size: Callable[[Gates], Array] | None = None
    per: str = "chunk"
    writes: int = 1
    window: int = 1


class Rule(NamedTuple):
    """MIRAS' four choices: what the memory is, what it minimises, how it forgets, how it learns."""

    architecture: Architecture
    bias: Bias
    retention: Retention
    learner: Learner


class Update(Protocol):
    """Write a call's tokens and read after each write; see `titans_jax.memory.miras`."""

    def __call__(
        self,
        state: State,
        q: Array,
        k: Array,
        v: Array,
        gates: Gates,
        *,
        span: Span | None = None,
        reset: Restart | None = None,
        residual: Weights | None = None,
    ) -> tuple[Array, State, Info]:
        """q, k, v: [T, D]; residual: [chunks, in, out]. Returns y [T, D], the new state and what there is to see.

        Where the learner writes m times a token, k and v are [T, m, D] and gates.rate is [T, m].
        """
        ...


class Memory(NamedTuple):
    """Three pure functions for one sequence and one head; batch and heads by `jax.vmap`.

    init: weights -> State. read: (State, q[T, D]) -> y[T, D], without a write.
    update: (State, q[T, D], k[T, D], v[T, D], Gates) -> y[T, D], State, Info, for any T and any split.
    """

    init: Callable[[Weights], State]
    read: Callable[[State, Array], Array]
    update: Update


def dense(weights: Weights) -> Linear:
    """The plain action of weights: `linear(name, x) = x @ weights[name]`."""
    return lambda name, x: x @ weights[name]


def losses(rule: Rule, linear: Linear, tokens: Window) -> Array:
    """[T] what the attentional bias says of each token's write."""
    write, apply = rule.architecture.write, rule.architecture.apply
    k, v = tokens.key, tokens.value
    pairs = [(apply(linear, k), v)] if write is None else write(linear, k, v)
    bound = () if tokens.threshold is None else (tokens.threshold,)
    return functools.reduce(jax.numpy.add, [jax.vmap(rule.bias.loss)(*pair, *bound) for pair in pairs])


def norm(tree: Weights) -> Array:
    """Frobenius norm over all leaves, with a gradient at zero."""
    return jax.numpy.sqrt(sum(jax.numpy.vdot(x, x) for x in jax.tree.leaves(tree)) + 1e-30)
