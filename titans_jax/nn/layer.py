"""A memory as a layer of any network, in three lines; a state is made where none is given."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from titans_jax.memory.stream import bounded
from titans_jax.nn.config import MemoryConfig, ModelConfig
from titans_jax.nn.memory import MemoryMixer
from titans_jax.nn.memory_state import LayerInfo, MemoryState


class LayerState(NamedTuple):
    """What a layer carries from call to call. memory: of the mixer; age [B]: tokens that it has read."""

    memory: MemoryState
    age: Array


class MemoryLayer(nnx.Module):
    """Write a sequence to a memory and read it after each token; see `MemoryMixer` for the equations.

    >>> layer = MemoryLayer(dim=32, chunk=8, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 20, 32))
    >>> y, state = layer(x[:, :13])
    >>> rest, state = layer(x[:, 13:], state)  # any split gives the same outputs
    >>> y.shape, rest.shape, state.age.tolist()
    ((2, 13, 32), (2, 7, 32), [20, 20])
    """

    def __init__(
        self,
        dim: int,
        rule: str = "titans",
        *,
        heads: int | None = None,
        chunk: int = 64,
        dtype: str = "float32",
        rngs: nnx.Rngs,
        **options: Any,
    ) -> None:
        """Make the parameters.

        Args:
          dim: size of a token.
          rule: a name in `PRESETS`, or MODULE:FUNCTION of a rule of one's own.
          heads: memories; None for one for each 64 channels. Each has dim / heads channels.
          chunk: tokens of a chunk.
          dtype: of the products of activations. States and gates are float32.
          options: further fields of `MemoryConfig`.

        Raises ValueError, in one line, for invalid values; TypeError for an unknown option.
        """
        heads = max(1, dim // 64) if heads is None else heads
        if heads < 1 or dim % heads:
            raise ValueError(f"heads: {heads} do not divide dim {dim}")
        memory = MemoryConfig(rule=rule, heads=heads, chunk=chunk, **{"head_dim": dim // heads} | options)
        config = ModelConfig(block="lmm", dim=dim, depth=1, dtype=dtype, memory=memory)  # type: ignore[arg-type]
        config.check()
        self.dim, self.mixer = dim, _make(config, rngs)

    def init_state(self, batch: int) -> LayerState:
        """The state before the first token."""
        return LayerState(self.mixer.init_state(batch), jnp.zeros(batch, jnp.int32))

    def __call__(self, x: Array, state: LayerState | None = None) -> tuple[Array, LayerState]:
        """Read x.

        Args:
          x: [B, T, dim], floating.
          state: of an earlier call; None at the start of a sequence.

        Returns y [B, T, dim] of x's dtype, and the state after x. Raises ValueError for other shapes and dtypes.
        """
        y, state, _ = self.with_info(x, state)
        return y, state

    def with_info(self, x: Array, state: LayerState | None = None) -> tuple[Array, LayerState, LayerInfo]:
        """As a call, with the surprise and the gates of each token, [B, heads, T]."""
        x = jnp.asarray(x)
        if x.ndim != 3 or x.shape[-1] != self.dim or not x.shape[1]:
            raise ValueError(f"x: shape {x.shape}; it must be [batch, tokens, {self.dim}], with at least one token")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"x: dtype {x.dtype}; it must be floating, such as float32 or bfloat16")
        state = self.init_state(x.shape[0]) if state is None else state
        if not isinstance(state, LayerState):
            raise ValueError(f"state: {type(state).__name__}; it must be what an earlier call of this layer returned")
        if state.age.shape != x.shape[:1]:
            raise ValueError(f"state: of {state.age.shape[0]} sequences, but x has {x.shape[0]}")
        return _run(*nnx.split(self.mixer), x, state)


def _mixer(config: ModelConfig, rngs: nnx.Rngs) -> MemoryMixer:
    return MemoryMixer(config, rngs=rngs)


_make = nnx.jit(_mixer, static_argnums=0)  # one program, as `_run`


@partial(jax.jit, static_argnums=0)
def _run(graphdef: Any, params: Any, x: Array, state: LayerState) -> tuple[Array, LayerState, LayerInfo]:
    """One program: called operation by operation, a layer compiles three times as long."""
    age = bounded(state.age, 1)[:, None] + jnp.arange(x.shape[1])
    y, memory, info, _ = nnx.merge(graphdef, params)(x, state.memory, age)
    return y.astype(x.dtype), LayerState(memory, age[:, -1] + 1), info
