"""A memory of a real-valued series: it predicts each value from the ones before; its error is the surprise."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from titans_jax.memory import architecture, presets
from titans_jax.memory.api import miras, unit_rate
from titans_jax.memory.types import Gates, Info, Rule, State, Weights, current_weights


class Projections(NamedTuple):
    """Random and fixed, for the keys.

    frequency: [context D, memory_dim]. phase: [memory_dim].
    """

    frequency: Array
    phase: Array


class SeriesState(NamedTuple):
    """What is carried from call to call.

    past: [context, D], the last values; zeros before the first.
    """

    memory: State
    past: Array
    projections: Projections


class SeriesRecord(NamedTuple):
    """What a memory did over the T steps of a series.

    prediction: [T, D] of each value, made before the value was read.
    surprise: [T], the rule's loss before the write; a squared error is that of the prediction.
    momentum: [T], norm of the first trace S_t: what this and past surprises write.
    weight_norm, clipped: [T], see `Info`.
    gates: [T] each, the arguments of the call.
    weights: None, or the weights after each step, every leaf [T, in, out].
    """

    prediction: Array
    surprise: Array
    momentum: Array
    weight_norm: Array
    clipped: Array
    gates: Gates
    weights: Weights | None


class SeriesMemory(NamedTuple):
    """A memory of a series.

    init: key -> SeriesState.
    process: (state, series [T, D], momentum=0.9, forget_rate=0.01, rate=0.05, snapshots=False) -> SeriesRecord,
      SeriesState. momentum and forget_rate are in [0, 1], rate is in unit rates; each is a number or [T].
    """

    init: Callable[[Array], SeriesState]
    process: Callable[..., tuple[SeriesRecord, SeriesState]]


def series_rule(memory_dim: int = 16, hidden_dim: int = 64) -> Rule:
    """Titans' rule (squared error, momentum, weight decay) on M(x) = x + gelu(x W_1) W_2, without the layer norm.

    A layer norm would fix the length of M(x) - x whatever is predicted, and no surprise could fall to zero. The weights
    decay to zero, as in the paper: a rate far below forget_rate forgets everything for good.
    Raises ValueError where hidden_dim is not a multiple of memory_dim.
    """
    if hidden_dim < 1 or hidden_dim % memory_dim:
        raise ValueError(f"hidden_dim: {hidden_dim}; it must be a multiple of memory_dim, {memory_dim}")
    network = architecture.residual(memory_dim, hidden_dim // memory_dim)
    return presets.titans(memory_dim)._replace(architecture=network)


def series_memory(
    rule: Rule,
    input_dim: int = 1,
    *,
    context: int = 2,
    scale: float = 1.0,
    chunk: int = 1,
    clip: float | None = 1.0,
) -> SeriesMemory:
    """A memory that learns to predict a series x_t [D] from the values before, step by step.

        k_t = l2(cos([x_{t-context}, ..., x_{t-1}] F / scale + phase))      v_t = x_t P      x^_t = M_{t-1}(k_t) P^T

    F and phase are random; the rows of P are orthonormal, so a squared error is that of the series itself. Surprise
    grows without bound with the distance between a value and its prediction. Every key has length 1, as Titans' keys
    do: values much closer than scale share a key, values farther apart do not (random features of a Gaussian kernel).
    So an anomaly is detected when it arrives, and does not enlarge later keys. Its gradient disturbs some later steps,
    limited by the clip and the momentum.

    Args:
      rule: see `series_rule` and `PRESETS`; its architecture's dim is memory_dim, above input_dim.
      input_dim: D.
      context: how many values before a step make its key.
      scale: the distance at which two values get different keys.
      chunk: steps between anchors; 1 is the papers' recurrence, longer chunks run faster and learn more slowly.
      clip: as in `miras`.

    Returns SeriesMemory(init, process). process is jitted and causal; a split series gives the same record and state.
    With snapshots it keeps the weights of every step, T times the size of the memory.

    Raises ValueError: input_dim below 1 or not below memory_dim, a context below 1, a scale not above 0; from process,
    a series not [T, D].

    >>> memory = series_memory(series_rule(), input_dim=1)
    >>> pattern = jnp.tile(jnp.array([1.0, 2.0, 3.0]), 20)[:, None]
    >>> record, state = memory.process(memory.init(jax.random.key(42)), pattern)
    >>> bool(record.surprise[-3:].mean() < 0.01 * record.surprise[:3].mean())
    True
    """
    dim = rule.architecture.dim
    if dim is None or not 1 <= input_dim < dim:
        raise ValueError(f"input_dim: {input_dim}; it must be at least 1 and below the memory's size, {dim}")
    if context < 1:
        raise ValueError(f"context: {context}; a prediction needs at least 1 value before it")
    if not scale > 0:
        raise ValueError(f"scale: {scale}; it must be above 0")
    waves, position = jnp.arange(1, input_dim + 1), jnp.arange(dim) + 0.5
    cosines = jnp.sqrt(2 / dim) * jnp.cos(jnp.pi / dim * waves[:, None] * position)  # P; mean 0, as after a layer norm
    engine = "recurrent" if chunk == 1 else None
    memory, unit = miras(rule, chunk=chunk, implementation=engine, clip=clip), unit_rate(rule, chunk)

    @jax.jit
    def init(key: Array) -> SeriesState:
        fast, frequency, phase = jax.random.split(key, 3)
        projections = Projections(
            jax.random.normal(frequency, (context * input_dim, dim)) / scale,
            jax.random.uniform(phase, (dim,), maxval=2 * jnp.pi),
        )
        return SeriesState(memory.init(rule.architecture.init(fast)), jnp.zeros((context, input_dim)), projections)

    def step(state: State, token: tuple[Array, Array, Array, Gates]) -> tuple[State, tuple[Array, Info, Weights]]:
        read, state, info = memory.update(state, *token)
        return state, (read, info, current_weights(rule, state))

    @functools.partial(jax.jit, static_argnames="snapshots")
    def process(
        state: SeriesState,
        series: Array,
        *,
        momentum: ArrayLike = 0.9,
        forget_rate: ArrayLike = 0.01,
        rate: ArrayLike = 0.05,
        snapshots: bool = False,
    ) -> tuple[SeriesRecord, SeriesState]:
        if series.ndim != 2 or series.shape[1] != input_dim:
            raise ValueError(f"series: shape {series.shape}; it must be [T, {input_dim}]")
        T = len(series)
        rates, momenta, keeps = (jnp.broadcast_to(x, T) for x in (unit * rate, momentum, 1 - forget_rate))
        gates = Gates(rates, momenta, keeps)
        values = jnp.concatenate([state.past, series])
        keys = _keys(values, context, state.projections)
        first = memory.read(state.memory, keys[:1])
        tokens = (keys[1:], *_writes(rule, keys[:-1], series @ cosines, gates))
        if snapshots:
            end, (read, info, weights) = jax.lax.scan(step, state.memory, jax.tree.map(lambda x: x[:, None], tokens))
            read, info = jax.tree.map(lambda x: x[:, 0], (read, info))
        else:
            (read, end, info), weights = memory.update(state.memory, *tokens), None
        prediction = jnp.concatenate([first, read[:-1]]) @ cosines.T
        fields = (info.surprise, info.momentum_norm, info.weight_norm, info.clipped)
        return SeriesRecord(prediction, *fields, gates, weights), state._replace(memory=end, past=values[T:])

    return SeriesMemory(init, process)


def _keys(values: Array, context: int, projections: Projections) -> Array:
    """[context + T, D] -> [T + 1, memory_dim]: the key of each step, and of the next one."""
    steps = len(values) - context + 1
    lags = jnp.concatenate([values[i : i + steps] for i in range(context)], axis=-1)
    keys = jnp.cos(lags @ projections.frequency + projections.phase)
    return keys / jnp.linalg.norm(keys, axis=-1, keepdims=True)


def _writes(rule: Rule, k: Array, v: Array, gates: Gates) -> tuple[Array, Array, Gates]:
    """Keys, values and gates of each token's writes; a rule with several writes divides the rate among them."""
    m = rule.learner.writes_per_token
    if m == 1:
        return k, v, gates
    rate = jnp.repeat(gates.rate[:, None] / m, m, axis=1)
    several_k, several_v = (jnp.repeat(x[:, None], m, axis=1) for x in (k, v))
    return several_k, several_v, gates._replace(rate=rate)
