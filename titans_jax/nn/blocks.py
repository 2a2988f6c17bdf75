"""The layers of a model, of one signature: (stream, state) -> (stream, state, info).

LMM, MAG, MAL and the transformer are a few lines each; MAC, whose attention reads the memory and whose memory is
written with what attention found, runs segment by segment in `nn.mac`.
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
from titans_jax.nn.memory import MemoryLayer
from titans_jax.nn.memory_state import LayerInfo


class Activations(NamedTuple):
    """What flows from layer to layer.

    x: [B, T, E]. age: [B, T] tokens since the document began. reset: None, or [B, T] bool where one begins.
    values: the first attention layer's, or None. learned: [B, H, chunks, in, out] of the memory below, or None.
    aligned: whether the call is known, while it is traced, to begin and end where chunks and segments do.
    """

    x: Array
    age: Array
    reset: Array | None
    values: Values | None
    learned: Weights | None
    aligned: bool = False


class Block(nnx.Module):
    """Mix over time, then SwiGLU, each on a normalised input and added to the stream."""

    attention: Any = None
    memory: Any = None

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.norm = RMSNorm(config.dim)
        self.add_network(rngs)

    def add_network(self, rngs: nnx.Rngs) -> None:
        """Make what follows the mixing."""
        config = self.config
        self.mlp_norm = RMSNorm(config.dim)
        hidden = 8 * round(config.ff_mult * config.dim / 8)
        scale = (2 * config.depth) ** -0.5
        self.mlp = SwiGLU(config.dim, hidden, dtype=config.dtype, scale=scale, rngs=rngs)

    def init_state(self, batch: int) -> Any:
        """What the layer carries before the first token."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it carries")

    def mix(self, stream: Activations, state: Any) -> tuple[Activations, Any, LayerInfo | None]:
        """The part that looks over time."""
        raise NotImplementedError(f"{type(self).__name__} does not mix over time")

    def __call__(self, stream: Activations, state: Any) -> tuple[Activations, Any, LayerInfo | None]:
        """Any T at any offset; the state is of fixed size."""
        stream, state, info = self.mix(stream, state)
        x = stream.x + self.mlp(self.mlp_norm(stream.x))
        return stream._replace(x=x), state, info

    @property
    def view(self) -> int:
        """How many tokens the attention sees, the newest included; 0 without attention."""
        return self.attention.view if self.attention else 0

    def parts(self, state: Any) -> tuple[Any, Any]:
        """The `MemoryState` and the `KV` in the layer's state; None for a part that the layer lacks."""
        return None, None

    def attention_input(self, stream: Activations, memory: Any) -> Array:
        """What the attention reads, [B, T, E], with the memory in this state."""
        return self.norm(stream.x)

    def introspect(self, stream: Activations, before: Any, after: Any, info: Any) -> Introspection:
        """What the layer did with the one token of a call, from the call's stream, its two states and its info."""
        (memory, cache), (later, _) = self.parts(before), self.parts(after)
        attention = remember = None
        if self.attention:
            x = self.attention_input(stream, memory)
            attention = attended(self.attention, x, cache, stream.age, stream.values)
        if self.memory:
            remember = remembered(self.memory, self.norm(stream.x), stream.age, memory, later, info)
        return Introspection(attention, remember)


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
        """The cache."""
        return None, state


class LMM(Block):
    """x + M(norm(x)): the memory alone."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        self.memory = MemoryLayer(config, persistent=config.persistent, rngs=rngs)

    def init_state(self, batch: int) -> Any:
        """The memory."""
        return self.memory.init_state(batch)

    def mix(self, stream: Activations, state: Any) -> tuple[Activations, Any, LayerInfo]:
        """The memory alone."""
        y, state, info, learned = _remember(self.memory, self.norm(stream.x), stream, state)
        return stream._replace(x=stream.x + y, learned=learned), state, info

    def parts(self, state: Any) -> tuple[Any, Any]:
        """The memory."""
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
        """The memory, then attention over what it gave."""
        memory, cache = state
        stream, memory, info = super().mix(stream, memory)
        y, cache, values = self.attention(
            self.attention_norm(stream.x), cache, stream.age, stream.values, aligned=stream.aligned
        )
        return stream._replace(x=stream.x + y, values=values), (memory, cache), info

    def parts(self, state: Any) -> tuple[Any, Any]:
        """Both."""
        return state

    def attention_input(self, stream: Activations, memory: Any) -> Array:
        """What the memory gave."""
        return self.attention_norm(LMM.mix(self, stream, memory)[0].x)


class MAG(LMM):
    """Memory as a gate (Titans Eq 26-28): y = x + Attn(norm(x)), then y + sigmoid(RMSNorm(y)) * RMSNorm(M(norm(x))).

    As in MAC, attention has the residual connection that "all blocks" have (section 4.4) and the equations leave out.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        self.attention = Attention(config, rngs=rngs)
        self.gating = Gating(config.dim)

    def init_state(self, batch: int) -> Any:
        """The memory and the attention's cache."""
        return super().init_state(batch), self.attention.init_state(batch)

    def mix(self, stream: Activations, state: Any) -> tuple[Activations, Any, LayerInfo]:
        """Attention and memory side by side."""
        memory, cache = state
        x = self.norm(stream.x)
        attended, cache, values = self.attention(x, cache, stream.age, stream.values, aligned=stream.aligned)
        m, memory, info, learned = _remember(self.memory, x, stream, memory)
        y = stream.x + attended
        return stream._replace(x=y + self.gating(y, m), values=values, learned=learned), (memory, cache), info

    def parts(self, state: Any) -> tuple[Any, Any]:
        """Both."""
        return state


class Gating(nnx.Module):
    """The papers' (x): sigmoid(RMSNorm(y)) * RMSNorm(m), each with gains of its own.

    The gain of m begins at 0.1: embeddings begin at 0.02, and a memory that knows nothing yet must not drown them.
    """

    def __init__(self, dim: int) -> None:
        self.gate = RMSNorm(dim)
        self.value = RMSNorm(dim, scale=0.1)

    def __call__(self, y: Array, m: Array) -> Array:
        """y, m: [B, T, E]."""
        return jax.nn.sigmoid(self.gate(y)) * self.value(m)


def _remember(memory: MemoryLayer, x: Array, stream: Activations, state: Any) -> Any:
    valid = np.ones(x.shape[1], bool) if stream.aligned else None
    return memory(x, state, stream.age, valid=valid, reset=stream.reset, residual=stream.learned)


def no_values(config: ModelConfig, batch: int, length: int) -> Values:
    """Before the first attention layer."""
    shape = (batch, length, config.heads, config.head_dim)
    first = sharding.constrain(jnp.zeros(shape, config.dtype), "batch", None, "heads", None)
    return Values(first, jnp.zeros((), bool))
