"""The types of every memory, and the notation.

Notation of `titans_jax.memory` (one sequence, one head; rows are tokens, weights are [in, out]):

    T        tokens of a call                  D          size of a key, query or value
    b        chunk: tokens per anchor          n          1 + the learner's traces
    q, k, v  query, key, value   [T, D]        rate       theta: step of the test-time gradient   [T]
    A        dual, relative to the origin      momentum   eta: how much of the last step remains  [T]
    origin   what the dual is relative to      keep       1 - alpha: how much memory remains      [T] or [T, D]
    W        weights = link(origin + A)        S          trace: the learner's momentum
    anchor   origin + A at the chunk's start   g          gradient of the attentional bias at link(anchor)
    a        input of a matrix [T, in]         delta      cotangent at its output [T, out]; g = a^T delta

    S_t = momentum_t S_{t-1} - rate_t g_t      A_t = keep_t A_{t-1} + S_t      y_t = M(W_t; q_t)
    link at chunk ends: W_t = keep_t W_{t-1} + S_t inside a chunk, W = link(A) at its end
    window of c tokens: sum_{t-c < i <= t} weight_i g_i in place of g_t, all at the same weights
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import Array

Weights = dict[str, Array]
Linear = Callable[[str, Array], Array]


class Gates(NamedTuple):
    """What the network decides about each token's write.

    rate: [T] step size, >= 0; [T, m] where the learner writes m times a token. momentum: [T] in [0, 1].
    keep: [T], or [T, D] for one decay per channel.
    threshold: None, or [T] > 0: the error at which a robust bias becomes linear, in place of its own delta.
    weight: None for 1, or [T] >= 0: the token's weight in every window that contains it; see `Learner.window`.
    """

    rate: Array
    momentum: Array
    keep: Array
    threshold: Array | None = None
    weight: Array | None = None


class Window(NamedTuple):
    """Tokens whose gradients are taken: key, value [., D], weight [., 1], threshold [.] where the bias has one.

    A state with a window holds the last c - 1 tokens, with weight 0 before the first token.
    """

    key: Array
    value: Array
    weight: Array
    threshold: Array | None = None


class State(NamedTuple):
    """What a memory carries from call to call. Its size is constant.

    dual: A, the weights in the retention's coordinates, relative to the origin.
    traces: a tuple of trees like `dual`. anchor: origin + dual at the last chunk boundary.
    step: number of tokens read, int32 scalar; above 2^30 its remainder by the chunk alone goes on (`stream.bounded`).
    origin: the dual at the stream's start where forgetting returns to it, or None for an origin of zero.
    weights: W, where the link acts at chunk ends only, or None where W = link(origin + dual).
    window: the last tokens, for a learner with a window, or None.
    initial: W_0, for a rule with relative reads whose origin is zero, or None.
    """

    dual: Weights
    traces: tuple[Weights, ...]
    anchor: Weights
    step: Array
    origin: Weights | None = None
    weights: Weights | None = None
    window: Window | None = None
    initial: Weights | None = None


def state_axes(axes: Any, step: Any = None) -> State:
    """A State of `axes` (a vmap axis, or logical axes) in every field but the step."""
    return State(**{field: step if field == "step" else axes for field in State._fields})


class Info(NamedTuple):
    """What can be observed of a call and is not carried.

    surprise: [T] attentional bias of each token, at the weights where its gradient was taken.
    grad_norm: [T] Frobenius norm of each token's own gradient.
    momentum_norm, weight_norm: [T] norms of the first trace and of origin + dual.
    clipped: [T] 1.0 where the clip changed something at a chunk's end, else 0.0.
    anchors: None, or [chunks, in, out] the weights at each chunk's start, where the call has a residual.

    "recurrent" reports momentum_norm, weight_norm and clipped after every token. The other implementations report their
    values after the chunk's last token of the call, for all tokens of that chunk.
    """

    surprise: Array
    grad_norm: Array
    momentum_norm: Array
    weight_norm: Array
    clipped: Array
    anchors: Weights | None = None


class Reset(NamedTuple):
    """Replace the memory by `state` at chunk starts where `mask` [T] is true.

    The step is not replaced, and forgetting still returns to the stream's origin.
    """

    mask: Any
    state: Any


class Architecture(NamedTuple):
    """A network of fast weights, written once over the way its weights act.

    init: key -> weights. apply: (linear, x[T, D]) -> y[T, D], where `linear(name, x)` applies the weight of that name.
    channels: the axis ("in" or "out") of each weight on which a keep per channel acts; other weights use its mean.
    linear: the name of the only weight of a memory that is one matrix, else None.
    gain: the largest eigenvalue of J J^T, J = dM/dW at a unit input: about how far a step moves the output.
    normed: whether M(x) - x is layer-normed, so that no step makes the output large.
    dim: D, which a learner with a window needs.
    write: None for [(apply(linear, k), v)], or (linear, k[T, D], v[T, D]) -> pairs of a prediction and its target,
    both [T, .]; their losses are summed.
    frozen: weights whose initial value has no gradient, because only some values are valid.
    """

    init: Callable[[Array], Weights]
    apply: Callable[[Linear, Array], Array]
    channels: dict[str, str]
    linear: str | None = None
    gain: float = 1.0
    normed: bool = False
    dim: int | None = None
    write: Callable[[Linear, Array, Array], list[tuple[Array, Array]]] | None = None
    frozen: tuple[str, ...] = ()


class Bias(NamedTuple):
    """The attentional bias: the loss whose gradient writes the memory.

    loss: (prediction[D], value[D]) -> scalar. slope: s where the gradient is s (prediction - value), else None.
    curvature: about how fast the gradient grows with the error; 0 where it does not depend on it.
    threshold: whether the loss takes `Gates.threshold` as an optional third argument.
    """

    loss: Callable[..., Array]
    slope: float | None = None
    curvature: float = 1.0
    threshold: bool = False


class Retention(NamedTuple):
    """The coordinates in which forgetting is a product: weights = link(dual), link(lift(weights)) = weights.

    to_origin: whether forgetting returns to the dual at the stream's start, instead of to zero.
    every: where a link that is not the identity acts: at each "token", or at each "chunk"'s end (MIRAS' recipe; inside
    a chunk the weights then follow the dual's recurrence).
    end: None, or (dual, first dual) -> the dual with which the next chunk starts.
    """

    lift: Callable[[Weights], Weights]
    link: Callable[[Weights], Weights]
    identity: bool = False
    to_origin: bool = False
    every: str = "chunk"
    end: Callable[[Weights, Weights], Weights] | None = None

    @property
    def carries_weights(self) -> bool:
        """Whether a state carries W beside the dual: inside a chunk W is not the link of the dual."""
        return not self.identity and self.every == "chunk"


class Learner(NamedTuple):
    """One token's step: (z, g, gates, position) -> z, with z = (dual A, trace S, ...) and g the gradient.

    step: must be linear in (z, g). gates: `Gates` of one token. position: the token's row in its chunk.
    traces: the number of traces.
    grad_at: where g_t is taken: at the "chunk_start" weights; at the "previous" token's weights; at those weights
    "decayed" by this token's step; or "delta_decay", at the chunk start, with k_t^T k_t W_{t-1} added on the matrices
    that read the key (see `triangular`).
    max_chunk: the longest chunk that the step serves, None for any.
    inputs: None, or (k [T, D], Gates) -> the key and gates that the step uses in their place.
    orthogonalise: None, or after which "token" or "chunk" A + scale(gates) NS5(S) replaces A.
    scale: Gates -> the size of an orthogonalised step.
    writes_per_token: m; k and v are [T, m, D], written one after the other. The first write of a token decays.
    window: c; g_t is the sum of weight_i g_i over the last c tokens, all at the same weights (ATLAS' Omega rule).
    """

    step: Callable[[tuple[Array, ...], Array, Gates, Array], tuple[Array, ...]]
    traces: int = 0
    grad_at: str = "chunk_start"
    max_chunk: int | None = None
    inputs: Callable[[Array, Gates], tuple[Array, Gates]] | None = None
    orthogonalise: str | None = None
    scale: Callable[[Gates], Array] = lambda gates: gates.rate
    writes_per_token: int = 1
    window: int = 1


class Rule(NamedTuple):
    """MIRAS' four choices: what the memory is, what it minimises, how it forgets, how it learns.

    relative: whether reads are of what was learned, y_t = M(W_t; q_t) - M(W_0; q_t), in place of y_t = M(W_t; q_t).
    """

    architecture: Architecture
    bias: Bias
    retention: Retention
    learner: Learner
    relative: bool = False


class Memory(NamedTuple):
    """Three pure functions for one sequence and one head; batch and heads by `jax.vmap`.

    init: weights -> State. read: (State, q[T, D]) -> y[T, D], without a write.
    update: (State, q[T, D], k[T, D], v[T, D], Gates, *, valid, reset, residual) -> y[T, D], State, Info, where
      valid: None for T tokens at any offset; or [T] bool for rows that lie on the grid of chunks already (T a multiple
        of the chunk, the first token in row state.step % chunk, valid rows together). A numpy mask is known while
        tracing: `np.ones(T, bool)` is a call of whole chunks.
      reset: None, or a `Reset`.
      residual: None, or weights [chunks, in, out] that are added where each chunk's gradients are taken: as many as
        the call's grid has, T // chunk with `valid`, else `stream.grid_of(T, chunk, state.step).chunks`.
    """

    init: Callable[[Any], Any]
    read: Callable[[Any, Array], Array]
    update: Callable[..., tuple[Array, Any, Info]]


def from_origin(state: State) -> Weights:
    """origin + dual."""
    return state.dual if state.origin is None else jax.tree.map(jax.numpy.add, state.origin, state.dual)


def current_weights(rule: Rule, state: State) -> Weights:
    """W_t."""
    return rule.retention.link(from_origin(state)) if state.weights is None else state.weights


def dense(weights: Weights) -> Linear:
    """The plain action of weights: `linear(name, x) = x @ weights[name]`."""
    return lambda name, x: x @ weights[name]


def current(rule: Rule, state: State) -> Linear:
    """The action of W_t. Origin and dual act one by one: for few rows x that reads less than their sum."""
    if (origin := state.origin) is None:
        return dense(current_weights(rule, state))
    return lambda name, x: x @ origin[name] + x @ state.dual[name]


def initial_weights(rule: Rule, state: State) -> Weights | None:
    """W_0 for a rule with relative reads, else None. An origin is W_0, since its link is the identity."""
    return (state.origin or state.initial) if rule.relative else None


def initial_read(rule: Rule, state: State, q: Array) -> Array | float:
    """M(W_0; q) [T, D], which relative reads subtract; 0 for other reads."""
    weights = initial_weights(rule, state)
    return 0.0 if weights is None else rule.architecture.apply(dense(weights), q)


def readable(rule: Rule, state: State, dual: Weights) -> State:
    """The part of a state that a read needs, with this dual, relative to zero, in place of origin + dual."""
    return State(dual, (), dual, state.step, initial=initial_weights(rule, state))


def losses(rule: Rule, linear: Linear, tokens: Window) -> Array:
    """The attentional bias of each token. Returns [T]."""
    write, apply = rule.architecture.write, rule.architecture.apply
    k, v = tokens.key, tokens.value
    pairs = [(apply(linear, k), v)] if write is None else write(linear, k, v)
    threshold = () if tokens.threshold is None else (tokens.threshold,)
    return functools.reduce(jax.numpy.add, [jax.vmap(rule.bias.loss)(*pair, *threshold) for pair in pairs])


def norm(tree: Weights) -> Array:
    """Frobenius norm over all leaves, with a gradient at zero."""
    return jax.numpy.sqrt(sum(jax.numpy.vdot(x, x) for x in jax.tree.leaves(tree)) + 1e-30)


def norms(state: State) -> tuple[Array, Array]:
    """The norms of the first trace, 0 without any, and of origin + dual."""
    size = norm(from_origin(state))
    return norm(state.traces[0]) if state.traces else jax.numpy.zeros_like(size), size


def select(condition: Array, new: Any, old: Any) -> Any:
    """`jnp.where` over trees."""
    return jax.tree.map(lambda x, y: jax.numpy.where(condition, x, y), new, old)
