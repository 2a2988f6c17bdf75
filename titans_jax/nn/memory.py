"""The memory layer: projections, gates, one memory per head, and the output projection."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from titans_jax import sharding
from titans_jax.memory import Gates, Info, Memory, Reset, Rule, State, Weights
from titans_jax.nn.config import ModelConfig, memory_of, rule_of
from titans_jax.nn.layers import Linear, RMSNorm, Valid, broadcast_batch, l2_normalise, merge_heads, param, split_heads
from titans_jax.nn.memory_inputs import QKV, WriteGates
from titans_jax.nn.memory_state import LayerInfo, MemoryState, as_tuple, axes_of, first_duals, first_state, restarted
from titans_jax.sharding import BATCH_HEADS


class MemoryMixer(nnx.Module):
    """y = W_O(RMSNorm(M_t(q_t)) * silu(x W_g)). M_t is M_{t-1} after the write of (k_t, v_t).

    q and k are l2-normalised, and v has the norm sqrt(D) (`sized_values`). Reads are of what was learned,
    M_t(q) - M_0(q) (`relative_read`). The memory's initial weights are parameters, stored as duals (`Retention.lift`).
    A memory with persistent tokens reads them before a stream's first token (Titans Eq 28-29).
    """

    def __init__(self, config: ModelConfig, *, persistent: int = 0, rngs: nnx.Rngs) -> None:
        c = config.memory
        self.config, self.dtype = c, config.dtype
        self.qkv = QKV(config, rngs=rngs)
        self.gates = WriteGates(config, rngs=rngs)
        self.norm = RMSNorm(c.head_dim)
        size, scale = c.heads * c.head_dim, (2 * config.depth) ** -0.5
        self.gate = Linear(config.dim, size, ("embed", "heads"), dtype=config.dtype, rngs=rngs)
        self.out = Linear(size, config.dim, ("heads", "embed"), dtype=config.dtype, scale=scale, rngs=rngs)
        duals = jax.vmap(lambda key: first_duals(c, key))(jax.random.split(rngs.params(), c.heads))
        self.fast = _parameters(duals)
        tokens = jax.random.normal(rngs.params(), (persistent, config.dim))
        self.persistent = param(tokens, None, None) if persistent else None

    @property
    def rule(self) -> Rule:
        """The configuration's rule. It is not stored, since static parts of a module must be hashable."""
        return rule_of(self.config)

    @property
    def memory(self) -> Memory:
        """The pure functions of one sequence and one head."""
        return memory_of(self.config)

    def initial(self) -> Any:
        """The learned initial duals [H, in, out]."""
        return as_tuple(self.fast)

    def init_state(self, batch: int) -> MemoryState:
        """The state before the first token: after the persistent tokens, at a chunk's start."""
        state = MemoryState(first_state(self.config, self.initial()), self.qkv.init_state(1))
        if self.persistent is not None:
            count, chunk = self.persistent.shape[0], self.config.chunk
            rows = -(-count // chunk) * chunk
            tokens = jnp.pad(self.persistent[...], [(0, rows - count), (0, 0)])[None].astype(self.dtype)
            _, state, _, _ = self.write(tokens, state, jnp.arange(rows)[None], valid=np.arange(rows) < count)
            state = state._replace(memory=restarted(self.config, state.memory))
        memory = jax.tree.map(lambda x: broadcast_batch(x, batch, *BATCH_HEADS) if x.ndim else x, state.memory)
        conv = None if state.conv is None else broadcast_batch(state.conv, batch, "batch", None, "heads")
        return MemoryState(memory, conv)

    def modulate_gates(self, gates: Gates, state: State, k: Array, v: Array) -> Gates:
        """The gates for writing k, v [B, H, T, D] to a memory in `state`; a subclass may change them."""
        return gates

    def __call__(
        self,
        x: Array,
        state: MemoryState,
        age: Array,
        *,
        valid: Valid | None = None,
        reset: Array | None = None,
        residual: Weights | None = None,
    ) -> tuple[Array, MemoryState, LayerInfo, Weights | None]:
        """Write and read x [B, T, E]: `write`, with y [B, T, E] in place of the reads."""
        reads, state, info, learned = self.write(x, state, age, valid=valid, reset=reset, residual=residual)
        return self.output(x, reads), state, info, learned

    def write(
        self,
        x: Array,
        state: MemoryState,
        age: Array,
        *,
        valid: Valid | None = None,
        reset: Array | None = None,
        residual: Weights | None = None,
    ) -> tuple[Array, MemoryState, LayerInfo, Weights | None]:
        """Write x to the memory and read after each token.

        Args:
          x: [B, T, E].
          state: the layer's.
          age: [B, T].
          valid: None, or [T] bool, true for rows that are tokens; see `memory.miras`.
          reset: None, or [B, T] bool; the memory is reset where it is true at a chunk's start.
          residual: None, or [B, H, chunks, in, out], what the memory below has learned.

        Returns:
          reads [B, H, T, D], the state, the info, and, given a residual, what this memory has learned.
        """
        (q, k, v), conv = self.qkv(x, state.conv, age, valid)
        q, k = l2_normalise(q), l2_normalise(k)
        v = self.config.head_dim**0.5 * l2_normalise(v) if self.config.sized_values else v
        gates = self.modulate_gates(self.gates(x), state.memory, k, v)
        reads, memory, info = self._update(state.memory, (q, k, v, gates), valid, reset, residual)
        rate, keep = (gate.mean(-1) if gate.ndim == 4 else gate for gate in (gates.rate, gates.keep))
        learned = None
        if residual is not None:
            first = self.rule.retention.link(self.initial())
            learned = jax.tree.map(lambda anchor, w: anchor - w[:, None], info.anchors, first)
        return reads, MemoryState(memory, conv), LayerInfo(*info[:5], rate, gates.momentum, keep), learned

    def output(self, x: Array, reads: Array) -> Array:
        """W_O(RMSNorm(reads) * silu(x W_g)). x: [B, T, E]; reads: [B, H, T, D]. Returns [B, T, E]."""
        return self.out(self.merge_heads(reads) * jax.nn.silu(self.gate(x)))

    def merge_heads(self, y: Array) -> Array:
        """RMSNorm of each head; [B, H, T, D] -> [B, T, H D]."""
        return merge_heads(self.norm(y))

    def retrieve(self, state: Any, q: Array) -> Array:
        """Read the memories in `state` at q [B, H, T, D], without a write."""
        axes = axes_of(self.config, BATCH_HEADS, ())
        return sharding.vmap_batch_heads(self.memory.read, (state, q), (axes, BATCH_HEADS), BATCH_HEADS)

    def reset_state(self) -> Any:
        """The memories' state [H, ...] at a document's start."""
        state = self.init_state(1).memory
        return jax.tree.map(lambda x: x[0] if x.ndim else x, state)

    def _update(
        self,
        state: Any,
        tokens: tuple[Array, Array, Array, Gates],
        valid: Valid | None,
        reset: Array | None,
        residual: Weights | None,
    ) -> tuple[Array, Any, Info]:
        """`memory.update` over batch and heads; all sequences are at the same step."""
        axes = axes_of(self.config, BATCH_HEADS, ())
        start = None if reset is None else Reset(reset, self.reset_state())
        start_axes = None if reset is None else Reset(BATCH_HEADS[:1], axes_of(self.config, BATCH_HEADS[1:], ()))
        # A numpy mask is a constant while tracing; an argument of shard_map would not be.
        known = valid if isinstance(valid, np.ndarray) else None

        def one(state: Any, tokens: Any, valid: Any, reset: Any, residual: Any) -> tuple[Array, Any, Info]:
            valid = valid if known is None else known
            return self.memory.update(state, *tokens, valid=valid, reset=reset, residual=residual)

        arguments = (state, tokens, None if known is not None else valid, start, residual)
        inputs = (axes, BATCH_HEADS, (), start_axes, BATCH_HEADS)
        return sharding.vmap_batch_heads(one, arguments, inputs, (BATCH_HEADS, axes, BATCH_HEADS))


class Retrieve(nnx.Module):
    """A read without a write (Titans Eq 21): h = W(RMSNorm(M*(q))), q = l2(SiLU(x W_Q))."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        size = config.memory.heads * config.memory.head_dim
        self.query = Linear(config.dim, size, ("embed", "heads"), dtype=config.dtype, rngs=rngs)
        self.out = Linear(size, config.dim, ("heads", "embed"), dtype=config.dtype, rngs=rngs)

    def __call__(self, q: Array, state: Any, layer: MemoryMixer) -> Array:
        """Read the memories of `layer` in `state`. q: [B, T, H D] from `query`. Returns h [B, T, E]."""
        q = l2_normalise(split_heads(jax.nn.silu(q), layer.config.heads))
        return self.out(layer.merge_heads(layer.retrieve(state, q)))


def _parameters(duals: Any) -> nnx.Dict:
    if isinstance(duals, dict):
        return nnx.Dict({name: param(w, "heads", None, None) for name, w in duals.items()})
    return nnx.Dict(
        global_memory=_parameters(duals.global_memory), local_memories=nnx.List(map(_parameters, duals.local_memories))
    )
