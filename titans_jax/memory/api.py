"""`miras`: from a rule to a memory."""

import jax
import jax.numpy as jnp
from jax import Array

from titans_jax.memory.base import Gates, Info, Memory, Restart, Rule, Span, State, Weights, dense
from titans_jax.memory.chunked import chunked
from titans_jax.memory.delta import delta
from titans_jax.memory.exact import exact
from titans_jax.memory.recurrent import recurrent
from titans_jax.memory.scan import Call, Engine, chunks_of

IMPLEMENTATIONS = {"exact": exact, "delta": delta, "chunked": chunked, "recurrent": recurrent}  # tried in this order


def miras(rule: Rule, *, chunk: int, implementation: str | None = None, clip: float | None = 1.0) -> Memory:
    """The memory that a rule describes (MIRAS, arXiv 2504.13173, as the recurrence at the top of `memory.base`).

    Args:
      rule: architecture, attentional bias, retention and learner; see `titans_jax.memory.PRESETS`.
      chunk: tokens between two anchors of the gradient, >= 1. It is part of the mathematics, not of the execution:
        keep it at decode. Where the learner takes fresh gradients it bounds only how far the clip reaches.
      implementation: "exact", "delta", "chunked" or "recurrent"; None takes the first that serves the rule, and steps
        token by token where a call has one.
      clip: Frobenius norm that one chunk may move the memory, and that momentum may carry over its end, at most.
        None is the paper, which is not finite on hostile streams.

    Returns:
      Memory(init, read, update) for one sequence and one head. Arithmetic is float32 (float64 if the inputs are)
      whatever the inputs' dtype; y has the dtype of q.
      update takes, beside state, q, k, v [T, D] and Gates: `span`, where only some rows are tokens (the rows then lie
      on the grid of chunks, T a multiple of chunk, the first token at `state.step % chunk`); `restart`, where the
      memory begins anew; `residual` [chunks, in, out], added to the weights at which each chunk's gradients are taken:
      T // chunk of them with a span, (T + 2 chunk - 2) // chunk without, as many as T tokens at any offset can touch.

    Raises:
      ValueError: a chunk below 1 or longer than the learner serves, a clip not above 0, an unknown implementation; and
        by update, shapes that do not fit.
      NotImplementedError: no implementation serves the rule; each one's reason is given.

    >>> import jax, jax.numpy as jnp
    >>> from titans_jax.memory import Gates, miras, presets
    >>> rule = presets.titans(dim=8)
    >>> memory = miras(rule, chunk=4)
    >>> state = memory.init(rule.architecture.init(jax.random.key(0)))
    >>> q, k, v = jax.random.normal(jax.random.key(1), (3, 6, 8))
    >>> gates = Gates(rate=jnp.full(6, 0.1), momentum=jnp.full(6, 0.9), keep=jnp.full(6, 0.99))
    >>> y, state, info = memory.update(state, q, k, v, gates)
    >>> y.shape, int(state.step), info.surprise.shape
    ((6, 8), 6, (6,))
    """
    if chunk < 1:
        raise ValueError(f"chunk: {chunk} tokens; it must be at least 1")
    if rule.learner.longest is not None and chunk > rule.learner.longest:
        raise ValueError(f"chunk: {chunk} tokens; this learner has offsets for {rule.learner.longest} at most")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip: {clip}; it must be above 0, or None for no clip")
    engine = _engine(rule, chunk, implementation, clip)
    stepwise = recurrent(rule, chunk, clip)

    def init(weights: Weights) -> State:
        weights = jax.tree.map(lambda w: w.astype(jnp.promote_types(w.dtype, jnp.float32)), weights)
        dual = rule.retention.lift(weights)
        # traces and anchor are arrays of their own, so that a caller may donate the whole state
        traces = tuple(jax.tree.map(jnp.zeros_like, dual) for _ in range(rule.learner.traces))
        anchor = jax.tree.map(lambda x: x + 0, rule.retention.link(dual))
        home = jax.tree.map(lambda x: x + 0, dual) if rule.retention.home else None
        return State(dual, traces, anchor, jnp.zeros((), jnp.int32), home)

    def read(state: State, q: Array) -> Array:
        weights = rule.retention.link(state.dual)
        dtype = jax.tree.leaves(weights)[0].dtype
        return rule.architecture.apply(dense(weights), q.astype(dtype)).astype(q.dtype)

    def update(
        state: State,
        q: Array,
        k: Array,
        v: Array,
        gates: Gates,
        *,
        span: Span | None = None,
        restart: Restart | None = None,
        residual: Weights | None = None,
    ) -> tuple[Array, State, Info]:
        _check(q, k, v, gates, chunk, span, residual)
        dtype = jax.tree.leaves(state.dual)[0].dtype

        def cast(x: Array) -> Array:
            return x.astype(dtype)

        call = Call(cast(q), cast(k), cast(v), jax.tree.map(cast, gates), span, restart, residual)
        run = stepwise if implementation is None and k.shape[0] == 1 else engine
        y, state, info = run(state, call)
        return y.astype(q.dtype), state, info

    return Memory(init, read, update)


def _engine(rule: Rule, chunk: int, implementation: str | None, clip: float | None) -> Engine:
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation: {implementation!r}; known are {', '.join(IMPLEMENTATIONS)}, or None")
    reasons = []
    for name in [implementation] if implementation else IMPLEMENTATIONS:
        try:
            return IMPLEMENTATIONS[name](rule, chunk, clip)
        except NotImplementedError as reason:
            reasons.append(f"{name}: {reason}")
    raise NotImplementedError("; ".join(reasons))


def _check(q: Array, k: Array, v: Array, gates: Gates, chunk: int, span: Span | None, residual: Weights | None) -> None:
    T = k.shape[0]
    if k.ndim != 2 or not q.shape == k.shape == v.shape:
        raise ValueError(
            f"q, k, v: shapes {q.shape}, {k.shape}, {v.shape}; each must be [T, D], all the same (vmap the rest)"
        )
    for name, gate in gates._asdict().items():
        if gate.shape != (T,) and not (name == "keep" and gate.shape == k.shape):
            raise ValueError(f"gates.{name}: shape {gate.shape}; it must be [{T}]" + " or [T, D]" * (name == "keep"))
    if span is not None and T % chunk:
        raise ValueError(f"span: {T} rows; a call with a span lies on the grid of chunks, a multiple of {chunk}")
    chunks = chunks_of(T, chunk, span)
    for name, shift in (residual or {}).items():
        if shift.shape[0] != chunks:
            raise ValueError(
                f"residual[{name!r}]: {shift.shape[0]} chunks; {T} rows in chunks of {chunk} have {chunks}"
            )
