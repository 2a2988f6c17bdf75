"""`miras`: from a rule to a memory."""

import jax
import jax.numpy as jnp
from jax import Array

from titans_jax.memory.base import Gates, Info, Learner, Memory, Restart, Rule, Span, State, Weights, dense
from titans_jax.memory.chunked import chunked
from titans_jax.memory.delta import delta
from titans_jax.memory.exact import exact
from titans_jax.memory.matmul import MATMULS
from titans_jax.memory.recurrent import recurrent
from titans_jax.memory.response import unroll
from titans_jax.memory.scan import Call, Engine, begin, chunks_of

IMPLEMENTATIONS = {"exact": exact, "delta": delta, "chunked": chunked, "recurrent": recurrent}  # tried in this order


def miras(
    rule: Rule,
    *,
    chunk: int,
    implementation: str | None = None,
    clip: float | None = 1.0,
    matmul_dtype: str = "float32",
) -> Memory:
    """The memory that a rule describes (MIRAS, arXiv 2504.13173, as the recurrence at the top of `memory.base`).

    Args:
      rule: architecture, attentional bias, retention and learner; see `titans_jax.memory.PRESETS`.
      chunk: tokens between two anchors of the gradient, >= 1. It is part of the mathematics, not of the execution:
        keep it at decode. Where the learner takes fresh gradients it bounds only how far the clip reaches.
      implementation: "exact", "delta", "chunked" or "recurrent"; None takes the first that serves the rule, and steps
        token by token where a call has one.
      clip: Frobenius norm that one chunk may move the memory, and that momentum may carry over its end, at most.
        None is the paper, which is not finite on hostile streams.
      matmul_dtype: "bfloat16" rounds both factors of a chunk's products to it, sums and results as they were: for
        devices that multiply it faster. States, gates and decays, and calls of one token, are rounded nowhere.
        Gradients are then those of reverse mode.

    Returns:
      Memory(init, read, update) for one sequence and one head. Arithmetic is float32 (float64 if the inputs are)
      whatever the inputs' dtype; y has the dtype of q.
      update takes, beside state, q, k, v [T, D] and Gates: `span`, where only some rows are tokens (the rows then lie
      on the grid of chunks, T a multiple of chunk, the first token at `state.step % chunk`); `reset`, where the
      memory begins anew; `residual` [chunks, in, out], added to the weights at which each chunk's gradients are taken:
      T // chunk of them with a span, (T + 2 chunk - 2) // chunk without, as many as T tokens at any offset can touch.

    Raises:
      ValueError: a chunk below 1 or longer than the learner serves, a clip not above 0, an unknown implementation or
        dtype, a window below 1 or over keys of unknown size; and by update, shapes that do not fit.
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
    if rule.learner.window < 1 or rule.learner.window > 1 and rule.architecture.dim is None:
        raise ValueError(f"window: {rule.learner.window}; at least 1, and above 1 the architecture must say its dim")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip: {clip}; it must be above 0, or None for no clip")
    if rule.retention.home and not rule.retention.identity:
        raise ValueError("retention: home is a dual to return to; it needs the identity for a link")
    learner = rule.learner
    if rule.bias.threshold and learner.window > 1:
        raise NotImplementedError("window: it does not carry the thresholds of its tokens")
    if learner.size is not None and learner.per == "token" and rule.retention.carries_weights:
        raise NotImplementedError("muon at every token needs a link at every token, or the identity")
    if matmul_dtype not in MATMULS:
        raise ValueError(f"matmul_dtype: {matmul_dtype!r}; known are {', '.join(MATMULS)}")
    engine = _engine(rule, chunk * learner.writes, implementation, clip, matmul_dtype)
    stepwise = recurrent(rule, chunk * learner.writes, clip)

    def init(weights: Weights) -> State:
        weights = jax.tree.map(lambda w: w.astype(jnp.promote_types(w.dtype, jnp.float32)), weights)
        return begin(rule, rule.retention.lift(weights))

    def read(state: State, q: Array) -> Array:
        weights = rule.retention.link(state.dual) if state.weights is None else state.weights
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
        reset: Restart | None = None,
        residual: Weights | None = None,
    ) -> tuple[Array, State, Info]:
        _check(rule.learner, q, k, v, gates, chunk, span, residual)
        dtype = jax.tree.leaves(state.dual)[0].dtype

        def cast(x: Array) -> Array:
            return x.astype(dtype)

        k, gates = cast(k), jax.tree.map(cast, gates)
        if learner.inputs is not None:
            k, gates = learner.inputs(k, gates)
        if learner.window > 1 and gates.weight is None:
            gates = gates._replace(weight=jnp.ones_like(gates.momentum))
        if not rule.bias.threshold:
            gates = gates._replace(threshold=None)
        call = Call(cast(q), k, cast(v), gates, span, reset, residual)
        run = stepwise if implementation is None and k.shape[0] == 1 else engine
        y, state, info = run(state, call) if learner.writes == 1 else _written(run, learner.writes, state, call)
        return y.astype(q.dtype), state, info

    return Memory(init, read, update)


def unit_rate(rule: Rule, chunk: int, momentum: float = 0.0) -> float:
    """The rate at which a chunk of like tokens, with keys of unit length, is learned in one go.

    1 / (curvature gain sum_j |steps_bj|): of the bias, the architecture (about its initial weights) and the learner's
    answer to a chunk of gradients at the anchor, or to one where they are fresh. Several times that, tokens that are
    alike can make a deep memory overshoot, chunk after chunk, and its stream chaotic. A matrix that does not correct
    errors (dot) has a unit of 1; steps of which only the directions count, one that moves the output by about 1.

    >>> from titans_jax.memory import presets, unit_rate
    >>> unit_rate(presets.deltanet(64), chunk=16)
    1.0
    >>> 1 / unit_rate(presets.titans(64), chunk=16)  # 2 (of the loss) x 512 (of the network) x 16
    16384.0
    """
    gain, learner = rule.architecture.gain, rule.learner
    if gain == 1 and not rule.bias.curvature:
        return 1.0
    if learner.size is not None:
        return 1 / (gain**0.5 * (chunk if learner.per == "token" else 1))
    b = chunk if learner.gradient in ("anchor", "erasing") else 1
    with jax.ensure_compile_time_eval():
        ones = jnp.ones(b)
        gates = Gates(ones, momentum * ones, ones)
        answer = unroll(rule, gates, jnp.ones(b, bool), jnp.arange(b)).last_steps[0]
        return 1 / (max(rule.bias.curvature, 1.0) * gain * float(jnp.abs(answer).sum()))


def _written(run: Engine, writes: int, state: State, call: Call) -> tuple[Array, State, Info]:
    """Every write as a token of its own, of which the first forgets and the last is read."""
    rate, momentum, keep, threshold, _ = call.gates
    rows = rate.size

    def first(gate: Array) -> Array:
        return jnp.ones((rows, *gate.shape[1:]), gate.dtype).at[::writes].set(gate)

    span, reset = call.span, call.reset
    wide = Call(
        q=jnp.repeat(call.q, writes, axis=0),
        k=call.k.reshape(rows, -1),
        v=call.v.reshape(rows, -1),
        gates=Gates(
            rate.reshape(rows),
            first(momentum),
            first(keep),
            None if threshold is None else jnp.repeat(threshold, writes),
        ),
        span=span and Span(span.first * writes, span.length * writes),
        reset=reset and reset._replace(mask=jnp.repeat(reset.mask, writes)),
        residual=None,
    )
    y, state, info = run(state._replace(step=state.step * writes), wide)
    y, info = jax.tree.map(lambda x: x[writes - 1 :: writes], (y, info))
    return y, state._replace(step=state.step // writes), info


def _engine(rule: Rule, chunk: int, implementation: str | None, clip: float | None, matmul_dtype: str) -> Engine:
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation: {implementation!r}; known are {', '.join(IMPLEMENTATIONS)}, or None")
    reasons = []
    for name in [implementation] if implementation else IMPLEMENTATIONS:
        try:
            return IMPLEMENTATIONS[name](rule, chunk, clip, matmul_dtype)
        except NotImplementedError as reason:
            reasons.append(f"{name}: {reason}")
    raise NotImplementedError("; ".join(reasons))


def _check(
    learner: Learner,
    q: Array,
    k: Array,
    v: Array,
    gates: Gates,
    chunk: int,
    span: Span | None,
    residual: Weights | None,
) -> None:
    T, m = k.shape[0], learner.writes
    if q.ndim != 2 or not k.shape == v.shape == (q.shape if m == 1 else (len(q), m, q.shape[1])):
        each = "each must be [T, D]" if m == 1 else f"they must be [T, D], [T, {m}, D] and [T, {m}, D]"
        raise ValueError(f"q, k, v: shapes {q.shape}, {k.shape}, {v.shape}; {each}, all the same (vmap the rest)")
    for name, gate in gates._asdict().items():
        shape = (T, m) if name == "rate" and m > 1 else (T,)
        if gate is not None and gate.shape != shape and not (name == "keep" and gate.shape == q.shape):
            raise ValueError(
                f"gates.{name}: shape {gate.shape}; it must be {list(shape)}" + " or [T, D]" * (name == "keep")
            )
    if gates.weight is not None and learner.window == 1:
        raise ValueError("gates.weight: this learner has no window for tokens to have a weight in; it must be None")
    if residual is not None and m > 1:
        raise NotImplementedError(f"residual: not where the learner writes {m} times a token")
    if span is not None and T % chunk:
        raise ValueError(f"span: {T} rows; a call with a span lies on the grid of chunks, a multiple of {chunk}")
    chunks = chunks_of(T, chunk, span)
    for name, shift in (residual or {}).items():
        if shift.shape[0] != chunks:
            raise ValueError(
                f"residual[{name!r}]: {shift.shape[0]} chunks; {T} rows in chunks of {chunk} have {chunks}"
            )
