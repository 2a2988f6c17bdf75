"""What the engines share: the grid of chunks, a memory's state as components, and the chunk's end."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from titans_jax.memory.base import (
    Gates,
    Info,
    Restart,
    Retention,
    Rule,
    Span,
    State,
    Weights,
    Window,
    norm,
)
from titans_jax.memory.muon import orthogonal_step


class Call(NamedTuple):
    """What an engine is called with beside the state: the arguments of `base.Update`, in the state's dtype."""

    q: Array
    k: Array
    v: Array
    gates: Gates
    span: Span | None
    reset: Restart | None
    residual: Weights | None


Engine = Callable[[State, Call], tuple[Array, State, Info]]


def place(tree: Any, first: Array | int, rows: int) -> Any:
    """Lay every leaf's [T, ...] from row `first` on into [rows, ...] zeros."""

    def one(x: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(jnp.zeros((rows, *x.shape[1:]), x.dtype), x, first, 0)

    return jax.tree.map(one, tree)


def chunks_of(rows: int, chunk: int, span: Span | None) -> int:
    """The chunks that a call of so many rows lies on: with a span they fill them, without one they begin anywhere."""
    return (rows + 2 * (chunk - 1)) // chunk if span is None else rows // chunk


def grid(length: int, chunk: int, step: Array) -> tuple[int, Span]:
    """Rows, a whole number of chunks, that hold a call of `length` tokens at any offset, and its span on them."""
    return chunk * chunks_of(length, chunk, None), Span(step % chunk, length)


def real_rows(span: Span, rows: int) -> Array:
    """[rows] bool: which of them are tokens."""
    row = jnp.arange(rows)
    return (row >= span.first) & (row < span.first + span.length)


def covers(span: Span, rows: int) -> bool:
    """Whether it is known beforehand that every row is a token, so that the call begins and ends with a chunk."""
    return isinstance(span.first, int) and isinstance(span.length, int) and span == (0, rows)


def within(real: Array) -> Span:
    """The span of a chunk's rows that are tokens; they lie together."""
    return Span(jnp.argmax(real), real.sum())


def lay(tokens: Any, chunk: int, step: Array, span: Span | None) -> tuple[Any, Array, Span, Callable[[Any], Any]]:
    """Lay a call's leaves [T, ...] on the grid of chunks, where they lie already if they have a span.

    Returns them [chunks, chunk, ...], which rows are tokens [chunks, chunk], their span, and the way back to [T, ...].
    """
    T = jax.tree.leaves(tokens)[0].shape[0]
    rows, inside = (T, span) if span is not None else grid(T, chunk, step)
    laid = tokens if span is not None else place(tokens, inside.first, rows)

    def back(out: Any) -> Any:
        out = jax.tree.map(lambda x: x.reshape(rows, *x.shape[2:]), out)
        return out if span is not None else jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, inside.first, T), out)

    laid = jax.tree.map(lambda x: x.reshape(-1, chunk, *x.shape[1:]), laid)
    return laid, real_rows(inside, rows).reshape(-1, chunk), inside, back


def begin(rule: Rule, dual: Weights) -> State:
    """The state of a memory that begins with this dual, each leaf an array of its own so that all may be donated."""
    dual = {name: lax.stop_gradient(w) if name in rule.architecture.fixed else w for name, w in dual.items()}
    traces = tuple(jax.tree.map(jnp.zeros_like, dual) for _ in range(rule.learner.traces))
    anchor, home = (jax.tree.map(lambda x: x + 0, dual) for _ in range(2))
    step, weights = jnp.zeros((), jnp.int32), _carried(rule.retention, dual)
    return State(dual, traces, anchor, step, home if rule.retention.home else None, weights, _nothing_seen(rule, dual))


def _nothing_seen(rule: Rule, like: Weights) -> Window | None:
    if rule.learner.window == 1:
        return None
    assert rule.architecture.dim is not None
    dtype, size = jax.tree.leaves(like)[0].dtype, (rule.learner.window - 1, rule.architecture.dim)
    return Window(jnp.zeros(size, dtype), jnp.zeros(size, dtype), jnp.zeros((size[0], 1), dtype))


def _carried(retention: Retention, dual: Weights) -> Weights | None:
    return retention.link(dual) if retention.carries_weights else None


def sources(state: State) -> list[Weights]:
    """What W_t is made of: W_0 (the dual where the link is the identity), the traces, the home where there is one."""
    first = state.dual if state.weights is None else state.weights
    return [first, *state.learner, *([] if state.home is None else [state.home])]


def components(state: State) -> list[Weights]:
    """z: all that the recurrence moves; where the weights come first, the dual comes last."""
    return sources(state) + ([] if state.weights is None else [state.dual])


def moving(state: State) -> list[int]:
    """The components that change, in the order of `moved`."""
    last = len(components(state)) - 1
    return [*range(1 + len(state.learner)), *([] if state.weights is None else [last])]


def moved(state: State, z: list[Weights], step: Array) -> State:
    """The state after so many steps, its moving components z."""
    first, traces, last = z[0], tuple(z[1 : 1 + len(state.learner)]), z[-1]
    if state.weights is None:
        return state._replace(dual=first, learner=traces, step=step)
    return state._replace(weights=first, learner=traces, dual=last, step=step)


def seen(state: State, k: Array, v: Array, gates: Gates, real: Array) -> tuple[Window, State]:
    """The tokens of which a chunk's rows take gradients, [c-1 + b]: the window's and its own; the window moved on."""
    weight = jnp.ones_like(k[:, :1]) if gates.weight is None else gates.weight[:, None]
    own = Window(k, v, weight, gates.threshold)
    if state.window is None:
        return own, state
    first, count, size = jnp.argmax(real), real.sum(), len(state.window.weight)

    def both(before: Array, own: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(jnp.concatenate([jnp.zeros_like(before), own]), before, first, 0)

    tokens = jax.tree.map(both, state.window, own)
    window = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, first + count, size), tokens)
    return tokens, state._replace(window=window)


def combine(coefficients: Array, axis: str | None, leaves: list[Array]) -> Array:
    """sum_i coefficients[i] leaves[i], for scalars [n] or, with an axis, channels [n, D] on that side of [in, out]."""
    shape = {None: (1, 1), "in": (-1, 1), "out": (1, -1)}[axis]
    return sum(c.reshape(shape) * leaf for c, leaf in zip(coefficients, leaves, strict=True))


def boundary(rule: Rule, state: State, gates: Gates, clip: float | None) -> tuple[State, Array]:
    """End a chunk of which the last token had these gates; returns the state and whether anything was cut.

    What the learner does once a chunk comes first. Then the clip bounds what the chunk may change and what momentum may
    carry: A -> anchor + (A - anchor) min(1, clip/|A - anchor|) and S -> S min(1, clip/|S|), but no S of which only the
    directions count. It acts at the chunk's end only, so it is causal and the same under any split. A chunk that is not
    finite is undone, and leaves no token in a window. `clip=None` is the paper. It bounds the dual: what that means for
    the weights is said with each retention. Then the retention's end, the anchor, and weights carried beside the dual.
    """
    learner, retention, cut = rule.learner, rule.retention, jnp.zeros((), bool)
    if learner.size is not None and learner.per == "chunk":
        state = orthogonal_step(state, learner.size(gates))
    if clip is not None:
        change = jax.tree.map(jnp.subtract, state.dual, state.anchor)
        finite = jnp.isfinite(norm(change))
        window = jax.tree.map(lambda x: jnp.where(finite, x, 0), state.window)
        change, cut = _shrink(change, clip)
        traces = [_shrink(trace, clip if learner.size is None else None) for trace in state.learner]
        cut = jnp.stack([cut, *(c for _, c in traces)]).any()
        dual = jax.tree.map(jnp.add, state.anchor, change)
        state = state._replace(dual=dual, learner=tuple(t for t, _ in traces), window=window)
    if retention.end is not None:
        assert state.home is not None
        state = state._replace(dual=retention.end(state.dual, state.home))
    return begun(retention, state), cut


def begun(retention: Retention, state: State) -> State:
    """A state in which a chunk begins: its anchor, and the weights carried beside the dual, are the dual's."""
    return state._replace(anchor=state.dual, weights=_carried(retention, state.dual))


def _shrink(tree: Weights, bound: float | None) -> tuple[Weights, Array]:
    size = norm(tree)
    finite = jnp.isfinite(size)
    tree = jax.tree.map(lambda x: jnp.where(finite, x, 0.0), tree)
    if bound is None:
        return tree, ~finite
    scale = jnp.minimum(1.0, bound / jnp.where(finite, size, 1.0))
    return jax.tree.map(lambda x: x * scale, tree), ~finite | (size > bound)


def where_any(real: Array, run: Callable[[Any], tuple[Any, Any]], state: Any) -> tuple[Any, Any]:
    """run(state), a new state and outputs; where no row is a token, at no cost the old state and outputs of zeros."""
    blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, out_sharding=x.sharding), jax.eval_shape(run, state)[1])
    return lax.cond(real.any(), run, lambda state: (state, blank), state)


def select(condition: Array, new: Any, old: Any) -> Any:
    """`jnp.where` over trees."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), new, old)


def anew(reset: Restart | None, here: Array, state: State) -> State:
    """The state, or where a memory begins anew `here` its beginning; the count of tokens, and the home, stay."""
    if reset is None:
        return state
    return select(here, reset.state._replace(home=state.home), state)._replace(step=state.step)


GROUP = 32
"""Chunks of which a backward pass holds the states at once, where there are more than twice as many."""


def in_groups(run: Callable[[Any, Any], tuple[Any, Any]], state: Any, xs: Any) -> tuple[Any, Any]:
    """run(state, xs of some chunks) -> state, ys on all chunks: of many, group by group.

    The forward pass then keeps a state a group in place of one a chunk, and the backward pass runs a group once more:
    states cost one part in GROUP of the memory, and a second writing, though no second reading, of the time.
    """
    count = jax.tree.leaves(xs)[0].shape[0]
    if count <= 2 * GROUP:
        return run(state, xs)
    whole = count // GROUP * GROUP
    groups = jax.tree.map(lambda x: x[:whole].reshape(-1, GROUP, *x.shape[1:]), xs)
    state, ys = lax.scan(jax.checkpoint(run), state, groups)
    ys = jax.tree.map(lambda y: y.reshape(whole, *y.shape[2:]), ys)
    if count > whole:
        state, rest = run(state, jax.tree.map(lambda x: x[whole:], xs))
        ys = jax.tree.map(lambda *y: jnp.concatenate(y), ys, rest)
    return state, ys


Write = Callable[[State, Any, Span | None], tuple[State, Any]]


def by_chunks(
    write: Write, state: State, tokens: Any, *, chunk: int, span: Span | None = None, reset: Restart | None = None
) -> tuple[Any, State]:
    """Call write(state, tokens, span) -> state, out on one chunk after another, where one depends on all before it.

    tokens: leaves [T, ...], at any offset or, with a span, on the grid; a single token is handed on as it is, with no
    span. `reset` is seen to here. Returns out as leaves [T, ...], and the state.
    """
    T = jax.tree.leaves(tokens)[0].shape[0]
    mask = jnp.zeros(T, bool) if reset is None else reset.mask
    if T == 1 and span is None:
        state, out = write(anew(reset, mask[0] & (state.step % chunk == 0), state), tokens, None)
        return out, state
    laid, real, inside, back = lay((tokens, mask), chunk, state.step, span)
    whole = covers(inside, real.size)

    @jax.checkpoint
    def body(state: State, xs: Any) -> Any:
        (tokens, mask), real = xs
        state = anew(reset, mask[0] & real[0], state)
        if whole:
            return write(state, tokens, Span(0, chunk))
        return where_any(real, lambda state: write(state, tokens, within(real)), state)

    state, out = lax.scan(body, state, (laid, real))
    return back(out), state
