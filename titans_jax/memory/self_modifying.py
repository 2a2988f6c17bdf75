"""Memories that make their own keys, values and gates: self-modifying Titans (Nested Learning, Eq 83-88).

Five memories M_b read one input x_t [D]; b is one of key, value, rate, keep, memory:

    k_t, v_t, rate_t, keep_t = M_key(x_t), M_value(x_t), M_rate(x_t), M_keep(x_t)       vhat_b,t = M_b(v_t)
    y_t = M_memory(q_t), before the write                                               M_b <- write(k_t, vhat_b,t)

for every b. All keys, values and targets of a chunk are read at the chunk's start, so a chunk is the matmuls of the
five memories' rule; `presets.dgd` is the paper's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from titans_jax.memory.api import engines, miras, prepared
from titans_jax.memory.engine import Engine, Tokens
from titans_jax.memory.stream import streaming
from titans_jax.memory.types import Gates, Info, Reset, Rule, State, Weights, dense, state_axes

MEMORIES = ("key", "value", "rate", "keep", "memory")
_AXES = state_axes(0)


class Readout(NamedTuple):
    """How M_rate(x) and M_keep(x) [D] become gates: sigmoid(kernel . M(x) + bias). kernel: [2, D]; bias: [2]."""

    kernel: Array
    bias: Array


class SelfModifying(NamedTuple):
    """Pure functions for one sequence and one head, of a `State` whose leaves have a first axis of the five MEMORIES.

    init: weights [5, in, out] -> State.
    update: (State, q[T, D], x[T, D], momentum[T], Readout, reset=None) -> y[T, D], State, (Info, Gates), for any T
    and any split; Info is that of the last memory, which y is read from.
    """

    init: Callable[[Weights], State]
    update: Callable[..., tuple[Array, State, tuple[Info, Gates]]]


def self_modifying(
    rule: Rule,
    *,
    chunk: int,
    max_rate: float,
    clip: float | None = 1.0,
    implementation: str | None = None,
    matmul_dtype: str = "float32",
    through_targets: bool = False,
    frozen: bool = False,
) -> SelfModifying:
    """Five memories of a rule that write each other.

    Args:
      rule, chunk, clip, implementation, matmul_dtype: see `miras`. Keys, values and gates change once a chunk.
      max_rate: the largest step.
      through_targets: whether training's gradient flows through vhat_b.
      frozen: whether only the last memory is written, and the other four keep their initial weights.

    Raises:
      NotImplementedError: a rule with several writes a token. What `miras` raises.
    """
    if rule.learner.writes_per_token > 1:
        raise NotImplementedError("self_modifying: the memories make one key and value a token")
    rule = rule._replace(relative=False)  # y_t = M_memory(q_t), the whole read (Eq 83)
    inner = engines(rule, chunk, implementation, clip, matmul_dtype, "before")
    memory = miras(rule, chunk=chunk, clip=clip, implementation=implementation, matmul_dtype=matmul_dtype)

    def reads(weights: Weights, x: Array) -> Array:
        """What each memory reads from x [T, D]: [5, T, D]."""
        return jax.vmap(lambda weights, x: rule.architecture.apply(dense(weights), x), (0, None))(weights, x)

    def writing(engine: Engine, readout: Readout) -> Engine:
        """The engine that writes five memories with what they read from the input."""

        def chunk_step(state: State, tokens: tuple[Array, ...], valid: Array | None, shift: Any, plan: None) -> Any:
            q, x, momentum = tokens
            start = rule.retention.link(state.anchor)
            read = reads(start, x)
            key, value = read[0], read[1]
            key *= lax.rsqrt(jnp.square(key).sum(-1, keepdims=True) + 1e-6)
            rate, keep = jax.nn.sigmoid((read[2:4] * readout.kernel[:, None]).sum(-1) + readout.bias[:, None])
            gates = Gates(max_rate * rate, momentum, keep)
            target = reads(start, value)
            target = target if through_targets else lax.stop_gradient(target)
            learns = slice(-1, None) if frozen else slice(None)
            # The plan depends on the gates alone, which are the same for all five.
            plan = engine.plan(prepared(rule, Tokens(q, key, value, gates)).gates, valid) if engine.plan else None

            def one(state: State, target: Array) -> Any:
                return engine.chunk_step(state, prepared(rule, Tokens(q, key, target, gates)), valid, None, plan)

            part = jax.tree.map(lambda leaf: leaf[learns] if leaf.ndim else leaf, state)
            new, (y, info) = jax.vmap(one, in_axes=(_AXES, 0), out_axes=(_AXES, 0))(part, target[learns])
            if frozen:
                new = jax.tree.map(lambda old, new: jnp.append(old[:-1], new, 0) if new.ndim else new, state, new)
            return new, (y[-1], (jax.tree.map(lambda leaf: leaf[-1], info), gates))

        return Engine(chunk_step)

    def update(
        state: State, q: Array, x: Array, momentum: Array, readout: Readout, reset: Reset | None = None
    ) -> tuple[Array, State, tuple[Info, Gates]]:
        many, single = (None if engine is None else writing(engine, readout) for engine in inner)
        assert many is not None
        run = streaming(rule, many, single, chunk)
        dtype = jax.tree.leaves(state.dual)[0].dtype
        tokens = tuple(leaf.astype(dtype) for leaf in (q, x, momentum))
        (y, observed), state, _ = run(state, tokens, None, reset, None)
        return y.astype(q.dtype), state, observed

    return SelfModifying(jax.vmap(memory.init, out_axes=_AXES), update)
