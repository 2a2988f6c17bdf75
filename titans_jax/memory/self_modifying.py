"""Memories that make what they are written with: self-modifying Titans (Nested Learning, Eq 83-88).

Five memories M_b read one input x_t [D]. Their keys, values and gates are theirs to say, and their targets their own:

    k_t, v_t, rate_t, keep_t = M_key(x_t), M_value(x_t), M_rate(x_t), M_keep(x_t)       vhat_b,t = M_b(v_t)
    y_t = M_memory(q_t), before the write                                               M_b <- write(k_t, vhat_b,t)

for every b alike. All that is written in a chunk is made by the memories as they were when it began, so a chunk is the
matmuls of the five memories' rule; `presets.dgd` is the paper's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from titans_jax.memory.api import miras
from titans_jax.memory.base import Gates, Info, Restart, Rule, Span, State, Weights, dense, state_axes
from titans_jax.memory.scan import by_chunks

MEMORIES = ("key", "value", "rate", "keep", "memory")
_AXES = state_axes(0)


class Readout(NamedTuple):
    """How M_rate(x) and M_keep(x) [D] become gates, sigmoid(kernel . M(x) + bias). kernel: [2, D]; bias: [2]."""

    kernel: Array
    bias: Array


class SelfModifying(NamedTuple):
    """Pure functions for one sequence and one head, of a `State` whose leaves have a first axis of the five MEMORIES.

    init: weights [5, in, out] -> State.
    update: (State, q[T, D], x[T, D], momentum[T], Readout, reset=None) -> y[T, D], State, (Info, Gates), for any T
    and any split; Info is of the last memory, which y was read from.
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
    held: bool = False,
) -> SelfModifying:
    """Five memories of a rule that write each other.

    Args:
      rule, chunk, clip, implementation, matmul_dtype: as `miras` has them. Chunk says also when keys, values and
        gates renew.
      max_rate: the largest step.
      through_targets: whether training's gradient goes through vhat_b.
      held: whether the last memory alone is written, and those that say its keys, values and gates stay as they began.

    Raises:
      What `miras` raises.
    """
    memory = miras(rule, chunk=chunk, clip=clip, implementation=implementation, matmul_dtype=matmul_dtype)

    def all_of(weights: Weights, x: Array) -> Array:
        """[5, T, D]: what each memory says to x."""
        return jax.vmap(lambda weights: rule.architecture.apply(dense(weights), x))(weights)

    def write(state: State, tokens: tuple[Array, ...], readout: Readout, span: Span | None) -> Any:
        """Tokens of one chunk."""
        q, x, momentum = tokens
        said = all_of(state.anchor, x)
        key, value = said[0], said[1]
        key *= lax.rsqrt(jnp.square(key).sum(-1, keepdims=True) + 1e-6)
        signal = (said[2:4] * readout.kernel[:, None]).sum(-1) + readout.bias[:, None]
        rate, keep = jax.nn.sigmoid(signal)
        gates = Gates(max_rate * rate, momentum, keep)
        learns = jax.tree.map(lambda leaf: leaf[-1:] if leaf.ndim else leaf, state) if held else state
        targets = all_of(learns.anchor, value)
        if not through_targets:
            targets = lax.stop_gradient(targets)

        def one(state: State, target: Array) -> tuple[Array, State, Info]:
            return memory.update(state, jnp.roll(q, -1, 0), key, target, gates, span=span)

        y, new, info = jax.vmap(one, in_axes=(_AXES, 0), out_axes=(0, _AXES, 0))(learns, targets)
        if held:
            new = jax.tree.map(lambda old, new: jnp.append(old[:-1], new, 0) if new.ndim else new, state, new)
        # row t of y was read with q_{t+1} after the write of t: all but the first row of the call
        first = 0 if span is None else span.first
        last = jax.tree.map(lambda leaf: leaf[-1] if leaf.ndim else leaf, state)
        begun = memory.read(last, lax.dynamic_slice_in_dim(q, first, 1))
        y = lax.dynamic_update_slice_in_dim(jnp.roll(y[-1], 1, 0), begun, first, 0)
        return new, (y, (jax.tree.map(lambda leaf: leaf[-1], info), gates))

    def update(
        state: State, q: Array, x: Array, momentum: Array, readout: Readout, reset: Restart | None = None
    ) -> tuple[Array, State, tuple[Info, Gates]]:
        dtype = jax.tree.leaves(state.dual)[0].dtype
        tokens = tuple(leaf.astype(dtype) for leaf in (q, x, momentum))

        def chunk_of(state: State, tokens: Any, span: Span | None) -> tuple[State, Any]:
            return write(state, tokens, readout, span)

        (y, seen), state = by_chunks(chunk_of, state, tokens, chunk=chunk, reset=reset)
        return y.astype(q.dtype), state, seen

    return SelfModifying(jax.vmap(memory.init, out_axes=_AXES), update)
