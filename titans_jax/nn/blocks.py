"""The blocks LMM, MAG, MAL and the transformer. All blocks are (stream, state) -> (stream, state, info).

MAC is in `nn.mac`, HOPE in `nn.hope`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from titans_jax import sharding
from titans_jax.memory import Weights
from titans_jax.nn.attention import Attention, Values
from titans_jax.nn.config import ModelConfig
from titans_jax.nn.introspect import Introspection, attended, remembered
from titans_jax.nn.layers import RMSNorm, SwiGLU
from titans_jax.nn.memory import MemoryMixer
from titans_jax.nn.memory_state import LayerInfo


class Activations(NamedTuple):
    """What a layer passes to the next one.

    x: [B, T, E].
    age: [B, T], tokens since the document's start.
    reset: None, or [B, T] bool, true at a document's first token.
    values: the first attention layer's, or None.
    learned: None, or [B, H, chunks, in, out], what the memory below has learned, for the weight residual.
    aligned: whether tracing knows that the call starts and ends at the boundaries of chunks and segments.
    """

    x: Array
    age: Array
    reset: Array | None
    values: Values | None
    learned: Weights | None
    aligned: bool = False


class Block(nnx.Module):
    """A mixer over time, then a SwiGLU, each with a pre-norm and a residual connection."""

    attention: Any = None
    memory: Any = None

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.norm = RMSNorm(config.dim)
        self.add_network(rngs)

    def add_network(self, rngs: nnx.Rngs) -> None:
        """Make the network that follows the mixer."""
        config = self.config
        self.mlp_norm = RMSNorm(config.dim)
        hidden = 8 * round(config.ff_mult * config.dim / 8)
        scale = (2 * config.depth) ** -0.5
        self.mlp = SwiGLU(config.dim, hidden, dtype=config.dtype, scale=scale, rngs=rngs)

    def init_state(self, batch: int) -> Any:
        """The layer's state before the first token."""
        raise NotImplementedError(f"{type(self).__name__}.init_state")

    def mix(self, stream: Activations, state: Any) -> tuple[Activations, Any, LayerInfo | None]:
        """The mixer over time: attention, memory or both."""
        raise NotImplementedError(f"{type(self).__name__}.mix")

    def __call__(self, stream: Activations, state: Any) -> tuple[Activations, Any, LayerInfo | None]:
        """Read T tokens, T >= 1, from any state."""
        stream, state, info = self.mix(stream, state)
        x = stream.x + self.mlp(self.mlp_norm(stream.x))
        return stream._replace(x=x), state, info

    @property
    def view(self) -> int:
        """The most tokens that attention sees, the newest included; 0 without attention."""
        return self.attention.view if self.attention else 0

    def parts(self, state: Any) -> tuple[Any, Any]:
        """The `MemoryState` and the `KV` in the layer's state, or None."""
        return None, None

    def attention_input(self, stream: Activations, memory: Any) -> Array:
        """The input of attention [B, T, E] while the memory is in this state."""
        return self.norm(stream.x)

    def introspect(self, stream: Activations, before: Any, after: Any, info: Any) -> Introspection:
        """What the layer did in a call of one token.

        stream: the call's input.
        before, after: the layer's state before and after the call.
        info: the call's.
        """
        (memory, cache), (memory_after, _) = self.parts(before), self.parts(after)
        attention = memory_part = None
        if self.attention:
            x = self.attention_input(stream, memory)
            attention = attended(self.attention, x, cache, stream.age, stream.values)
        if self.memory:
            memory_part = remembered(self.memory, self.norm(stream.x), stream.age, memory, memory_after, info)
        return Introspection(attention, memory_part)


class Transformer(Block):
    """x + Attn(norm(x))."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        self.attention = Attention(config, rngs=rngs)

    def init_state(self, batch: int) -> Any:
        """The attention's cache."""
        return self.attention.init_state(batch)

    def mix(self, stream: Activations, state: Any) -> tuple[Activations, Any, None]:
        """Attention alone."""
        y, state, values = self.attention(self.norm(stream.x), state, stream.age, stream.values, aligned=stream.aligned)
        return stream._replace(x=stream.x + y, values=values), state, None

    def parts(self, state: Any) -> tuple[Any, Any]:
        """The attention's cache."""
        return None, state


class LMM(Block):
    """x + M(norm(x)): the memory alone."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        self.memory = MemoryMixer(config, persistent=config.persistent, rngs=rngs)

    def init_state(self, batch: int) -> Any:
        """The memory's state."""
        return self.memory.init_state(batch)

    def mix(self, stream: Activations, state: Any) -> tuple[Activations, Any, LayerInfo]:
        """The memory alone."""
        y, state, info, learned = _call_memory(self.memory, self.norm(stream.x), stream, state)
        return stream._replace(x=stream.x + y, learned=learned), state, info

    def parts(self, state: Any) -> tuple[Any, Any]:
        """The memory's state."""
        return state, None


class MAL(LMM):
    """Memory as a layer (Titans Eq 29-31): x + M(norm(x)), then x + Attn(norm(x))."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        self.attention_norm = RMSNorm(config.dim)
        self.attention = Attention(config, rngs=rngs)

    def init_state(self, batch: int) -> Any:
        """The memory and the attention's cache."""
        return super().init_state(batch), self.attention.init_state(batch)

    def mix(self, stream: Activations, state: Any) -> tuple[Activations, Any, LayerInfo]:
        """The memory, then attention over its output."""
        memory, cache = state
        stream, memory, info = super().mix(stream, memory)
        y, cache, values = self.attention(
            self.attention_norm(stream.x), cache, stream.age, stream.values, aligned=stream.aligned
        )
        return stream._replace(x=stream.x + y, values=values), (memory, cache), info

    def parts(self, state: Any) -> tuple[Any, Any]:
        """The memory's state and the attention's cache."""
        return state

    def attention_input(self, stream: Activations, memory: Any) -> Array:
        """The memory's output."""
        return self.attention_norm(LMM.mix(self, stream, memory)[0].x)


class MAG(LMM):
    """Memory as a gate (Titans Eq 26-28): y = x + Attn(norm(x)), then y + sigmoid(RMSNorm(y)) * RMSNorm(M(norm(x))).

    Attention has a residual connection, as in MAC: section 4.4 gives all blocks one, which Eq 26-28 omit.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        self.attention = Attention(config, rngs=rngs)
        self.gating = Gating(config.dim)

    def init_state(self, batch: int) -> Any:
        """The memory and the attention's cache."""
        return super().init_state(batch), self.attention.init_state(batch)

    def mix(self, stream: Activations, state: Any) -> tuple[Activations, Any, LayerInfo]:
        """Attention and memory in parallel."""
        memory, cache = state
        x = self.norm(stream.x)
        attended, cache, values = self.attention(x, cache, stream.age, stream.values, aligned=stream.aligned)
        m, memory, info, learned = _call_memory(self.memory, x, stream, memory)
        y = stream.x + attended
        return stream._replace(x=y + self.gating(y, m), values=values, learned=learned), (memory, cache), info

    def parts(self, state: Any) -> tuple[Any, Any]:
        """The memory's state and the attention's cache."""
        return state


class Gating(nnx.Module):
    """The gate of Titans Eq 25 and 28: sigmoid(RMSNorm(y)) * RMSNorm(m). Each norm has its own gain."""

    def __init__(self, dim: int) -> None:
        self.gate = RMSNorm(dim)
        self.value = RMSNorm(dim)

    def __call__(self, y: Array, m: Array) -> Array:
        """y, m: [B, T, E]."""
        return jax.nn.sigmoid(self.gate(y)) * self.value(m)


def _call_memory(memory: MemoryMixer, x: Array, stream: Activations, state: Any) -> Any:
    valid = np.ones(x.shape[1], bool) if stream.aligned else None
    return memory(x, state, stream.age, valid=valid, reset=stream.reset, residual=stream.learned)


def no_values(config: ModelConfig, batch: int, length: int) -> Values:
    """The `Values` before the first attention layer: zeros."""
    shape = (batch, length, config.heads, config.head_dim)
    first = sharding.constrain(jnp.zeros(shape, config.dtype), "batch", None, "heads", None)
    return Values(first, jnp.zeros((), bool))
