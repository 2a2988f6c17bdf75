"""HOPE: self-modifying memories and a continuum memory system (Nested Learning Eq 79-97)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from titans_jax import sharding
from titans_jax.memory import Info, Reset, State, Weights
from titans_jax.memory.self_modifying import MEMORIES, Readout, SelfModifying, self_modifying
from titans_jax.memory.types import state_axes
from titans_jax.nn.blocks import Activations, Block, Transformer
from titans_jax.nn.cms import CMS, CMSState
from titans_jax.nn.config import ModelConfig, clip_of, max_rate_of, rule_of
from titans_jax.nn.introspect import Introspection, memory_change
from titans_jax.nn.layers import (
    Conv,
    Linear,
    RMSNorm,
    broadcast_batch,
    l2_normalise,
    logit,
    merge_heads,
    param,
    split_heads,
)
from titans_jax.nn.memory_state import LayerInfo, MemoryState
from titans_jax.sharding import BATCH_HEADS


class SelfModifyingLayer(nnx.Module):
    """y = W_O(RMSNorm(M_{t-1}(q_t)) * silu(x W_g)), M one of five memories (`memory.self_modifying`).

    q and the memories' input z are SiLU(conv(x W)), q l2-normalised. The memories make keys, values, rates and decays
    from z. Their initial weights are parameters, [H, 5, in, out].
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        c = config.memory
        self.config, self.dtype = c, config.dtype
        self.max_rate = max_rate_of(c)
        size = c.heads * c.head_dim
        self.inputs = Linear(config.dim, 2 * size, ("embed", "heads"), dtype=config.dtype, rngs=rngs)
        self.conv = Conv(c.conv, 2 * size) if c.conv else None
        gate = functools.partial(Linear, config.dim, axes=("embed", None), scale=0.1, rngs=rngs)
        self.momentum = gate(c.heads, bias=logit(c.momentum))
        self.rate = GateReadout(c.heads, c.head_dim, 0.0, rngs=rngs)
        self.keep = GateReadout(c.heads, c.head_dim, logit(1 - c.forget), rngs=rngs)
        self.norm = RMSNorm(c.head_dim)
        self.gate = Linear(config.dim, size, ("embed", "heads"), dtype=config.dtype, rngs=rngs)
        scale = (2 * config.depth) ** -0.5
        self.out = Linear(size, config.dim, ("heads", "embed"), dtype=config.dtype, scale=scale, rngs=rngs)
        keys = jax.random.split(rngs.params(), (c.heads, len(MEMORIES)))
        fast = jax.vmap(jax.vmap(functools.partial(_init_weights, config)))(keys)
        self.fast = nnx.Dict({name: param(w, "heads", None, None, None) for name, w in fast.items()})

    @property
    def memories(self) -> SelfModifying:
        """The pure functions of one sequence and one head."""
        c = self.config
        return self_modifying(
            rule_of(c),
            chunk=c.chunk,
            max_rate=self.max_rate,
            clip=clip_of(c),
            implementation=c.implementation,
            matmul_dtype=c.matmul_dtype,
            frozen=c.frozen,
        )

    def reset_state(self) -> State:
        """The memories' state [H, 5, ...] at a document's start."""
        weights = {name: w[...] for name, w in self.fast.items()}
        state = jax.vmap(self.memories.init, out_axes=state_axes(0))(weights)
        return state._replace(step=jnp.asarray(state.step))

    def init_state(self, batch: int) -> MemoryState:
        """The state before the first token."""
        start = self.reset_state()
        memory = jax.tree.map(lambda x: broadcast_batch(x[None], batch, *BATCH_HEADS) if x.ndim else x, start)
        return MemoryState(memory, self.conv.init_state(batch, self.dtype) if self.conv else None)

    def __call__(self, x: Array, state: MemoryState, age: Array, reset: Array | None) -> tuple[Array, Any, LayerInfo]:
        """Read and write x [B, T, E]. age, reset: [B, T], as for `MemoryMixer`. Returns y, the state and the info."""
        inputs, conv, heads = self.inputs(x), state.conv, self.config.heads
        if self.conv is not None:
            assert conv is not None, "the state lacks the convolution's inputs"
            inputs, conv = self.conv(inputs, conv, age)
        q, z = jnp.split(split_heads(jax.nn.silu(inputs), heads), 2, -1)
        momentum = split_heads(jax.nn.sigmoid(self.momentum(x.astype(jnp.float32))), heads)[..., 0]
        y, memory, (info, gates) = self._update(state.memory, (l2_normalise(q), z, momentum), reset)
        y = merge_heads(self.norm(y)) * jax.nn.silu(self.gate(x))
        return self.out(y), MemoryState(memory, conv), LayerInfo(*info[:5], *gates[:3])

    def _update(self, state: State, tokens: tuple[Array, ...], reset: Array | None) -> tuple[Array, State, Any]:
        """`SelfModifying.update` over batch and heads; all sequences are at the same step."""
        start = None if reset is None else Reset(reset, self.reset_state())
        rate, keep = self.rate, self.keep
        kernel = jnp.stack([rate.kernel[...], keep.kernel[...]], 1)
        readout = Readout(kernel, jnp.stack([rate.bias[...], keep.bias[...]], 1))

        def one(state: State, tokens: Any, readout: Readout, start: Any) -> tuple[Array, State, tuple[Info, Any]]:
            return self.memories.update(state, *tokens, readout, start)

        axes, heads = state_axes(BATCH_HEADS, ()), BATCH_HEADS[1:]
        start_axes = None if start is None else Reset(BATCH_HEADS[:1], state_axes(heads, ()))
        inputs = (axes, BATCH_HEADS, heads, start_axes)
        arguments = (state, tokens, readout, start)
        return sharding.vmap_batch_heads(one, arguments, inputs, (BATCH_HEADS, axes, BATCH_HEADS))


class GateReadout(nnx.Module):
    """A gate of each head from a memory's output: sigmoid(kernel . M(z) + bias). kernel: [H, D]; bias: [H]."""

    def __init__(self, heads: int, head_dim: int, bias: float, *, rngs: nnx.Rngs) -> None:
        self.kernel = param(0.1 * jax.random.normal(rngs.params(), (heads, head_dim)) / head_dim**0.5, "heads", None)
        self.bias = param(jnp.full(heads, bias), "heads")


def _init_weights(config: ModelConfig, key: Array) -> Weights:
    """The initial weights of a memory: its rule's, but random for a linear memory, whose zeros would make zero keys."""
    network = rule_of(config.memory).architecture
    weights = network.init(key)
    if network.linear is None:
        return weights
    return {name: jax.random.normal(key, w.shape) / w.shape[0] ** 0.5 for name, w in weights.items()}


class Nested(Block):
    """A mixer over time, then a CMS in place of the SwiGLU."""

    def add_network(self, rngs: nnx.Rngs) -> None:
        """Make the CMS."""
        self.cms = CMS(self.config, rngs=rngs)

    def mixing_state(self, batch: int) -> Any:
        """The mixer's state before the first token."""
        raise NotImplementedError(f"{type(self).__name__}.mixing_state")

    def init_state(self, batch: int) -> CMSState:
        """The mixer's state and the levels' kernels."""
        return CMSState(self.mixing_state(batch), self.cms.kernels(batch))

    def __call__(self, stream: Activations, state: CMSState) -> tuple[Activations, CMSState, LayerInfo | None]:
        """Read T tokens, T >= 1, from any state; the kernels do not change."""
        stream, mixed, info = self.mix(stream, state.mixed)
        return stream._replace(x=self.cms(stream.x, state.kernels)), state._replace(mixed=mixed), info

    def parts(self, state: CMSState) -> tuple[Any, Any]:
        """The mixer's; the CMS is not shown."""
        return super().parts(state.mixed)


class Hope(Nested):
    """HOPE: x + the self-modifying memory of norm(x), then the CMS."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        self.memory = SelfModifyingLayer(config, rngs=rngs)

    def mixing_state(self, batch: int) -> MemoryState:
        """The memories' state."""
        return self.memory.init_state(batch)

    def mix(self, stream: Activations, state: MemoryState) -> tuple[Activations, MemoryState, LayerInfo]:
        """The memory alone."""
        y, state, info = self.memory(self.norm(stream.x), state, stream.age, stream.reset)
        return stream._replace(x=stream.x + y), state, info

    def parts(self, state: CMSState) -> tuple[Any, None]:
        """The memories' state."""
        return state.mixed, None

    def introspect(self, stream: Activations, before: CMSState, after: CMSState, info: Any) -> Introspection:
        """What the memories changed; they make their keys and values themselves."""
        return Introspection(memory=memory_change(before.mixed, after.mixed, info, self.config.memory.head_dim))


class HopeAttention(Nested, Transformer):
    """HOPE-Attention: x + Attn(norm(x)), then the CMS. With sliding attention and one level it is TTT-E2E."""

    def mixing_state(self, batch: int) -> Any:
        """The attention's cache."""
        return Transformer.init_state(self, batch)
