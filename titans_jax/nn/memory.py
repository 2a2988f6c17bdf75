"""A neural memory as a layer: projections and gates, one memory a head, and the output projection."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from titans_jax import sharding
from titans_jax.memory import Gates, Info, Memory, Reset, Rule, State, Weights
from titans_jax.nn.config import ModelConfig, memory_of, rule_of
from titans_jax.nn.layers import Linear, RMSNorm, Valid, l2_normalise, merge_heads, param, split_heads
from titans_jax.nn.memory_inputs import QKV, WriteGates
from titans_jax.nn.memory_state import (
    LayerInfo,
    MemoryState,
    as_tuple,
    axes_of,
    first_duals,
    first_state,
    restarted,
    spread,
)
from titans_jax.sharding import BATCH_HEADS


class MemoryLayer(nnx.Module):
    """y = W_O(RMSNorm(M_t(q_t)) * silu(x W_g)), M_t written with (k_t, v_t) under data-dependent gates.

    q and k are l2-normalised. The memory's initial weights are parameters, in the retention's coordinates.
    With persistent tokens, a stream's memory reads them before its first token (Titans Eq 28-29).
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
        """The configuration's rule; a module's static parts must be hashable, so it is not stored."""
        return rule_of(self.config)

    @property
    def memory(self) -> Memory:
        """The pure functions of one sequence and one head."""
        return memory_of(self.config)

    def initial(self) -> Any:
        """The learned initial weights [H, in, out], as duals."""
        return as_tuple(self.fast)

    def init_state(self, batch: int) -> MemoryState:
        """The state before the first token: at a chunk's start, after the persistent tokens."""
        state = MemoryState(first_state(self.config, self.initial()), self.qkv.init_state(1))
        if self.persistent is not None:
            count, chunk = self.persistent.shape[0], self.config.chunk
            rows = -(-count // chunk) * chunk
            tokens = jnp.pad(self.persistent[...], [(0, rows - count), (0, 0)])[None].astype(self.dtype)
            _, state, _, _ = self.write(tokens, state, jnp.arange(rows)[None], valid=np.arange(rows) < count)
            state = state._replace(memory=restarted(self.config, state.memory))
        memory = jax.tree.map(lambda x: spread(x, batch, *BATCH_HEADS) if x.ndim else x, state.memory)
        return MemoryState(memory, None if state.conv is None else spread(state.conv, batch, "batch", None, "heads"))

    def modulate_gates(self, gates: Gates, state: State, k: Array, v: Array) -> Gates:
        """The gates with which k, v [B, H, T, D] are written to a memory in `state`. Here they are unchanged."""
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
        """Write and read x [B, T, E]; arguments and results as for `write`, with y [B, T, E] in place of the reads."""
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
        """Write x [B, T, E], and read after each token: the part that runs in a stream's order.

        Args:
          age: [B, T].
          valid: None, or [T] bool, which rows are tokens; see `memory.miras`.
          reset: None, or [B, T] bool, where the memory starts again (at a chunk's start).
          residual: None, or [B, H, chunks, in, out], what the memory below has learned.

        Returns:
          reads [B, H, T, D], the state, info, and with a residual what this memory has learned.
        """
        (q, k, v), conv = self.qkv(x, state.conv, age, valid)
        q, k = l2_normalise(q), l2_normalise(k)
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
        """[B, H, T, D] -> [B, T, H D], normalised by head."""
        return merge_heads(self.norm(y))

    def retrieve(self, state: Any, q: Array) -> Array:
        """Read q [B, H, T, D] from memories in `state`, without a write."""
        axes = axes_of(self.config, BATCH_HEADS, ())
        return sharding.vmap_batch_heads(self.memory.read, (state, q), (axes, BATCH_HEADS), BATCH_HEADS)

    def reset_state(self) -> Any:
        """The state [H, ...] of a memory whose document starts."""
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
        """`memory.update` over batch and heads; every sequence is at the same step."""
        axes = axes_of(self.config, BATCH_HEADS, ())
        start = None if reset is None else Reset(reset, self.reset_state())
        start_axes = None if reset is None else Reset(BATCH_HEADS[:1], axes_of(self.config, BATCH_HEADS[1:], ()))
        known = valid if isinstance(valid, np.ndarray) else None  # on a mesh, arguments are not constants

        def one(state: Any, tokens: Any, valid: Any, reset: Any, residual: Any) -> tuple[Array, Any, Info]:
            valid = valid if known is None else known
            return self.memory.update(state, *tokens, valid=valid, reset=reset, residual=residual)

        arguments = (state, tokens, None if known is not None else valid, start, residual)
        inputs = (axes, BATCH_HEADS, (), start_axes, BATCH_HEADS)
        return sharding.vmap_batch_heads(one, arguments, inputs, (BATCH_HEADS, axes, BATCH_HEADS))


class Retrieve(nnx.Module):
    """h = W(RMSNorm(M*(q))), q = l2(SiLU(x W_Q)): a read without a write (Titans Eq 21)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        size = config.memory.heads * config.memory.head_dim
        self.query = Linear(config.dim, size, ("embed", "heads"), dtype=config.dtype, rngs=rngs)
        self.out = Linear(size, config.dim, ("heads", "embed"), dtype=config.dtype, rngs=rngs)

    def __call__(self, q: Array, state: Any, layer: MemoryLayer) -> Array:
        """q: [B, T, H D] from `query`; state: of a memory of `layer`. Returns h [B, T, E]."""
        q = l2_normalise(split_heads(jax.nn.silu(q), layer.config.heads))
        return self.out(layer.merge_heads(layer.retrieve(state, q)))


def _parameters(duals: Any) -> nnx.Dict:
    if isinstance(duals, dict):
        return nnx.Dict({name: param(w, "heads", None, None) for name, w in duals.items()})
    return nnx.Dict(
        global_memory=_parameters(duals.global_memory), local_memories=nnx.List(map(_parameters, duals.local_memories))
    )
