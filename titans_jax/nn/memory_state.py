"""The state of a memory layer: one memory per head, or TNT's several."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from titans_jax.memory.chunk_end import initial_state, new_stream
from titans_jax.memory.stream import bounded
from titans_jax.memory.tnt import TNTState, TNTWeights, tnt_axes, tnt_new_stream, tnt_weights
from titans_jax.memory.types import Rule, from_origin, readable, state_axes
from titans_jax.nn.config import MemoryConfig, memory_of, rule_of


class MemoryState(NamedTuple):
    """The state of a memory layer.

    memory: a `State` or `TNTState` of leaves [B, H, ...]; steps are scalars.
    conv: the convolution's last inputs, or None.
    """

    memory: Any
    conv: Array | None


class LayerInfo(NamedTuple):
    """The fields of `memory.Info`, and the gates (means over channels and writes), each [B, H, T]."""

    surprise: Array
    grad_norm: Array
    momentum_norm: Array
    weight_norm: Array
    clipped: Array
    rate: Array
    momentum: Array
    keep: Array


def axes_of(config: MemoryConfig, axes: Any, step: Any = None) -> Any:
    """A tree like a memory's state, with `axes` for its arrays and `step` for its steps."""
    return tnt_axes(axes, len(config.local_chunks), step) if config.local_chunks else state_axes(axes, step)


def first_duals(config: MemoryConfig, key: Array) -> Any:
    """The initial weights of a head as duals (see `Retention.lift`); any number is valid."""
    rule = rule_of(config)
    if config.local_chunks:
        return tnt_weights(rule, key, len(config.local_chunks))
    return rule.retention.lift(rule.architecture.init(key))


def first_state(config: MemoryConfig, duals: Any) -> Any:
    """The initial state [1, H, ...] of the memories, from duals [H, ...] of `first_duals`."""
    start = memory_of(config).init if config.local_chunks else functools.partial(initial_state, rule_of(config))
    axes = axes_of(config, 0)
    state = jax.vmap(jax.vmap(start, out_axes=axes), in_axes=None, out_axes=axes, axis_size=1)(duals)
    return jax.tree.map(jnp.asarray, state)


def restarted(config: MemoryConfig, state: Any) -> Any:
    """The state of a new stream whose initial weights are those of `state`."""
    return (tnt_new_stream if config.local_chunks else new_stream)(rule_of(config), state)


def bounded_step(state: Any, period: int, most: int) -> Any:
    """The state, its count of tokens `stream.bounded`."""
    if isinstance(state, TNTState):
        return state._replace(global_memory=bounded_step(state.global_memory, period, most))
    return state._replace(step=bounded(state.step, period, most))


def take_snapshot(rule: Rule, state: Any) -> Any:
    """The part of a state that a read needs, with the current weights."""
    if isinstance(state, TNTState):
        main, *local = (take_snapshot(rule, each) for each in (state.global_memory, *state.local_memories))
        return TNTState(main, tuple(local), state.pi, (), state.pi)
    return readable(rule, state, from_origin(state))


def as_tuple(weights: Any) -> Any:
    """A layer's parameters as the weights of `Memory.init`."""
    if "global_memory" in weights:
        return TNTWeights(as_tuple(weights["global_memory"]), tuple(map(as_tuple, weights["local_memories"])))
    return {name: w[...] for name, w in weights.items()}


def duals(state: Any) -> Any:
    """The arrays of a memory's state that its writes change."""
    if isinstance(state, TNTState):
        return duals(state.global_memory), tuple(map(duals, state.local_memories)), state.pi
    return state.dual


def named_weights(state: Any) -> dict[str, Array]:
    """A memory's duals, origin + dual, by name. TNT's names are global_w1, local_0_w1, ..., pi."""
    if not isinstance(state, TNTState):
        return from_origin(state)
    parts = {"global": state.global_memory} | {f"local_{i}": local for i, local in enumerate(state.local_memories)}
    named = {f"{part}_{name}": w for part, s in parts.items() for name, w in from_origin(s).items()}
    return named | {"pi": state.pi}
