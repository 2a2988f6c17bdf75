"""`miras`: from a rule to a memory."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from titans_jax.memory.chunk_end import initial_state
from titans_jax.memory.chunked import chunked
from titans_jax.memory.engine import Engine, Tokens
from titans_jax.memory.matmul import MATMULS
from titans_jax.memory.recurrent import recurrent
from titans_jax.memory.stream import Stream, Valid, bounded, streaming
from titans_jax.memory.triangular import delta, exact
from titans_jax.memory.types import Gates, Info, Learner, Memory, Reset, Rule, State, Weights, current, initial_read
from titans_jax.memory.unroll import unroll

IMPLEMENTATIONS = {"exact": exact, "delta": delta, "chunked": chunked, "recurrent": recurrent}  # tried in this order
READ_AT = ("after", "before", "chunk_start")


def miras(
    rule: Rule,
    *,
    chunk: int,
    implementation: str | None = None,
    clip: float | None = 1.0,
    matmul_dtype: str = "float32",
    read_at: str = "after",
) -> Memory:
    """The memory that a rule describes (MIRAS, arXiv 2504.13173; the recurrence at the top of `memory.types`).

    Args:
      rule: architecture, attentional bias, retention and learner; see `titans_jax.memory.PRESETS`.
      chunk: tokens between two anchors of the gradient, >= 1. It is part of the mathematics: use the same value to
        train, stream and decode. Where the learner takes fresh gradients it bounds only the reach of the clip.
      implementation: "exact", "delta", "chunked" or "recurrent". None takes the first that serves the rule, and
        "recurrent" for a call of one token.
      clip: the largest Frobenius norm of a chunk's change, and of the momentum at its end. None is the paper, which
        does not stay finite on hostile streams.
      matmul_dtype: "bfloat16" rounds both factors of a chunk's products, for devices that multiply it faster; sums and
        results keep their dtype. States, gates, decays and calls of one token are not rounded. Gradients are then
        those of reverse mode.
      read_at: which weights y_t is read from: those "after" token t's write (Titans Eq 15), those "before" it, or
        those of the "chunk_start".

    Returns:
      A `Memory` for one sequence and one head. Arithmetic is float32 (float64 if the inputs are) whatever the inputs'
      dtype; y has the dtype of q.

    Raises:
      ValueError: a chunk below 1 or longer than the learner serves, a clip not above 0, an unknown implementation or
        dtype, a window below 1 or with an architecture of unknown dim; by update: shapes that do not fit.
      NotImplementedError: no implementation serves the rule. The reason of each is given.

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
    learner, rows = rule.learner, chunk * rule.learner.writes_per_token
    _check_rule(rule, chunk, clip)
    many, single = engines(rule, rows, implementation, clip, matmul_dtype, read_at)
    run = streaming(rule, many, single, rows)
    if learner.writes_per_token > 1:
        run = _several_writes(run, learner.writes_per_token, chunk)

    def init(weights: Weights) -> State:
        weights = jax.tree.map(lambda w: w.astype(jnp.promote_types(w.dtype, jnp.float32)), weights)
        return initial_state(rule, rule.retention.lift(weights))

    def read(state: State, q: Array) -> Array:
        x = q.astype(_dtype(state))
        return (rule.architecture.apply(current(rule, state), x) - initial_read(rule, state, x)).astype(q.dtype)

    def update(
        state: State,
        q: Array,
        k: Array,
        v: Array,
        gates: Gates,
        *,
        valid: Valid | None = None,
        reset: Reset | None = None,
        residual: Weights | None = None,
    ) -> tuple[Array, State, Info]:
        _check_call(learner, q, k, v, gates, chunk, valid, residual)
        tokens = prepared(rule, jax.tree.map(lambda x: x.astype(_dtype(state)), Tokens(q, k, v, gates)))
        (y, info), state, anchors = run(state, tokens, valid, reset, residual)
        return (y - initial_read(rule, state, tokens.q)).astype(q.dtype), state, info._replace(anchors=anchors)

    return Memory(init, read, update)


def unit_rate(rule: Rule, chunk: int, momentum: float = 0.0, equal: int | None = None) -> float:
    """The rate at which `equal` equal tokens of a chunk, with keys of unit length, are learned in one step.

    equal: None for the whole chunk.

    1 / (curvature gain slope sum_j |grad_bj| equal / chunk): the bias' curvature, the architecture's gain and the
    retention's mean dW/dA, both at the initial weights, and the unrolled weight of the chunk's gradients on its last
    row (of one gradient, where gradients are fresh). At several times this rate, equal tokens can make a deep memory
    overshoot at every chunk. A matrix with the dot bias, which does not correct errors, has the unit 1; an
    orthogonalised step one that moves the output by about 1.

    >>> from titans_jax.memory import presets, unit_rate
    >>> unit_rate(presets.deltanet(64), chunk=16)
    1.0
    >>> 1 / unit_rate(presets.titans(64), chunk=16)  # 2 (of the loss) x 512 (of the network) x 16
    16384.0
    """
    gain, learner = rule.architecture.gain, rule.learner
    if gain == 1 and not rule.bias.curvature:
        return 1.0
    if learner.orthogonalise is not None:
        return 1 / (gain**0.5 * (equal or chunk if learner.orthogonalise == "token" else 1))
    b = chunk if learner.grad_at in ("chunk_start", "delta_decay") else 1
    with jax.ensure_compile_time_eval():
        gates = Gates(jnp.ones(b), momentum * jnp.ones(b), jnp.ones(b))
        grads = jax.jit(lambda gates: unroll(learner, gates, None).last_grad[0])  # eagerly it compiles for seconds
        slope = 1.0 if rule.retention.identity else float(jax.jit(lambda: _slope(rule))())
        weight = min(equal or b, b) / b * float(jnp.abs(grads(gates)).sum())
        return 1 / (max(rule.bias.curvature, 1.0) * gain * slope * weight)


def _slope(rule: Rule) -> Array:
    """The mean diagonal entry of dW/dA at initial weights, estimated with a random vector of signs."""
    duals = rule.retention.lift(rule.architecture.init(jax.random.key(0)))
    signs = jax.tree.map(lambda a: jax.random.rademacher(jax.random.key(1), a.shape, a.dtype), duals)
    _, pushed = jax.jvp(rule.retention.link, (duals,), (signs,))
    return (ravel_pytree(signs)[0] * ravel_pytree(pushed)[0]).mean()


def unit_clip(rule: Rule, chunk: int, dim: int) -> float:
    """The norm of the change that writes a chunk of distinct tokens in full: sqrt(chunk dim / gain).

    Their keys are orthonormal, and the output changes by a vector of norm sqrt(dim) at each.

    >>> from titans_jax.memory import presets, unit_clip
    >>> unit_clip(presets.deltanet(64), chunk=16, dim=64), unit_clip(presets.titans(64), chunk=32, dim=64)
    (32.0, 2.0)
    """
    return (chunk * dim / rule.architecture.gain) ** 0.5


def _dtype(state: State) -> jnp.dtype:
    return jax.tree.leaves(state.dual)[0].dtype


def prepared(rule: Rule, tokens: Tokens) -> Tokens:
    """The key and gates as the learner and the bias use them."""
    q, k, v, gates = tokens
    if rule.learner.inputs is not None:
        k, gates = rule.learner.inputs(k, gates)
    if rule.learner.window > 1 and gates.weight is None:
        gates = gates._replace(weight=jnp.ones_like(gates.momentum))
    if not rule.bias.threshold:
        gates = gates._replace(threshold=None)
    return Tokens(q, k, v, gates)


def _several_writes(run: Stream, writes: int, chunk: int) -> Stream:
    """Every write as a row of its own. A token decays before its first write and reads after its last."""

    def repeated(x: Array | np.ndarray | None) -> Any:
        return None if x is None else (np if isinstance(x, np.ndarray) else jnp).repeat(x, writes)

    def update(state: State, tokens: Tokens, valid: Valid | None, reset: Reset | None, residual: Weights | None) -> Any:
        q, k, v, gates = tokens
        rows = gates.rate.size

        def first(gate: Array) -> Array:
            return jnp.ones((rows, *gate.shape[1:]), gate.dtype).at[::writes].set(gate)

        keep, momentum = first(gates.keep), first(gates.momentum)
        gates = Gates(gates.rate.reshape(rows), momentum, keep, repeated(gates.threshold))
        wide = Tokens(jnp.repeat(q, writes, axis=0), k.reshape(rows, -1), v.reshape(rows, -1), gates)
        if reset is not None:
            reset = reset._replace(mask=repeated(reset.mask))
        step = bounded(state.step, chunk)
        row = step % chunk
        out, state, _ = run(state._replace(step=row * writes), wide, repeated(valid), reset, None)
        step = step - row + state.step // writes
        return jax.tree.map(lambda x: x[writes - 1 :: writes], out), state._replace(step=step), None

    return update


def engines(
    rule: Rule, chunk: int, implementation: str | None, clip: float | None, matmul_dtype: str, read_at: str
) -> tuple[Engine, Engine | None]:
    """The engine for calls of many tokens, and the one for calls of one token, None where it is the same."""
    if matmul_dtype not in MATMULS:
        raise ValueError(f"matmul_dtype: {matmul_dtype!r}; known are {', '.join(MATMULS)}")
    if read_at not in READ_AT:
        raise ValueError(f"read_at: {read_at!r}; known are {', '.join(READ_AT)}")
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation: {implementation!r}; known are {', '.join(IMPLEMENTATIONS)}, or None")
    reasons = []
    for name in [implementation] if implementation else IMPLEMENTATIONS:
        try:
            many = IMPLEMENTATIONS[name](rule, chunk, clip, matmul_dtype, read_at)
            single = recurrent(rule, chunk, clip, "float32", read_at)
            return many, single if implementation in (None, "recurrent") else None
        except NotImplementedError as reason:
            reasons.append(f"{name}: {reason}")
    raise NotImplementedError("; ".join(reasons))


def _check_rule(rule: Rule, chunk: int, clip: float | None) -> None:
    learner, retention = rule.learner, rule.retention
    if not isinstance(chunk, (int, np.integer)) or chunk < 1:
        raise ValueError(f"chunk: {chunk!r} tokens; it must be an integer, at least 1")
    if learner.max_chunk is not None and chunk > learner.max_chunk:
        raise ValueError(f"chunk: {chunk} tokens; this learner has offsets for {learner.max_chunk} at most")
    if learner.window < 1 or learner.window > 1 and rule.architecture.dim is None:
        raise ValueError(f"window: {learner.window}; it must be at least 1, and above 1 the architecture needs a dim")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip: {clip}; it must be above 0, or None for no clip")
    if retention.to_origin and not retention.identity:
        raise ValueError("retention: to_origin needs the identity as link")
    if rule.bias.threshold and learner.window > 1:
        raise NotImplementedError("window: it does not carry the thresholds of its tokens")
    if learner.orthogonalise == "token" and retention.carries_weights:
        raise NotImplementedError("muon at every token needs a link at every token, or the identity")


def _check_call(
    learner: Learner,
    q: Array,
    k: Array,
    v: Array,
    gates: Gates,
    chunk: int,
    valid: Valid | None,
    residual: Weights | None,
) -> None:
    T, m = k.shape[0], learner.writes_per_token
    if q.ndim != 2 or not k.shape == v.shape == (q.shape if m == 1 else (len(q), m, q.shape[1])):
        each = "each must be [T, D]" if m == 1 else f"they must be [T, D], [T, {m}, D] and [T, {m}, D]"
        raise ValueError(f"q, k, v: shapes {q.shape}, {k.shape}, {v.shape}; {each}, all the same (vmap the rest)")
    for name, gate in gates._asdict().items():
        shape = (T, m) if name == "rate" and m > 1 else (T,)
        if gate is not None and jnp.shape(gate) != shape and not (name == "keep" and jnp.shape(gate) == q.shape):
            raise ValueError(
                f"gates.{name}: shape {jnp.shape(gate)}; it must be {list(shape)}" + " or [T, D]" * (name == "keep")
            )
    if gates.weight is not None and learner.window == 1:
        raise ValueError("gates.weight: this learner has no window for tokens to have a weight in; it must be None")
    if residual is not None and m > 1:
        raise NotImplementedError(f"residual: not where the learner writes {m} times a token")
    if valid is not None and (valid.shape != (T,) or T % chunk):
        raise ValueError(f"valid: shape {valid.shape} for {T} rows; it must be [T], T a multiple of the chunk {chunk}")
