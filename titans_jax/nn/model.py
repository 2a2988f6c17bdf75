"""The language model: embedding, a scan over layers, logits."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from titans_jax import sharding
from titans_jax.memory.stream import bounded, grid_of
from titans_jax.nn.blocks import LMM, MAG, MAL, Activations, Block, Transformer, no_values
from titans_jax.nn.config import MEMORY_BLOCKS, ModelConfig
from titans_jax.nn.hope import Hope, HopeAttention
from titans_jax.nn.layers import Linear, RMSNorm, gathered, param, positions_of
from titans_jax.nn.mac import MAC
from titans_jax.nn.memory_state import LayerInfo

BLOCKS: dict[str, type[Block]] = {
    "lmm": LMM,
    "mac": MAC,
    "mag": MAG,
    "mal": MAL,
    "transformer": Transformer,
    "hope": Hope,
    "hope_attention": HopeAttention,
}


UNROLLED = 4
"""The most repeats of the pattern that are unrolled. Unrolling saves a tenth of a training step on a CPU, as the
backward pass needs no stack of residuals; scanning more keeps the compile time independent of the depth."""


class LMState(NamedTuple):
    """A stream's state.

    blocks: the states of each block of the pattern, stacked over its layers.
    age: [B], tokens since the document's start.
    """

    blocks: tuple[Any, ...]
    age: Array


class LM(nnx.Module):
    """A language model. `logits, state, info = model(tokens, state)` trains, prefills and decodes.

    The layers of each block of the pattern are stacked, and scanned if there are more than `UNROLLED`.

    >>> import jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> from titans_jax.nn import LM, MemoryConfig, ModelConfig
    >>> memory = MemoryConfig(chunk=8, heads=2, head_dim=8)
    >>> model = LM(ModelConfig(dim=16, depth=2, heads=2, head_dim=8, segment=8, memory=memory), rngs=nnx.Rngs(0))
    >>> state = model.init_state(batch=1)
    >>> logits, state, info = model(jnp.arange(10)[None], state)     # any length at any offset
    >>> logits, state, info = model(jnp.array([[10]]), state)        # the same call decodes
    >>> logits.shape, info.surprise.shape                            # surprise: [layers, B, heads, T]
    ((1, 1, 256), (2, 1, 2, 1))
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        config.check()
        self.config = config
        embedding = jax.random.normal(rngs.params(), (config.vocab_size, config.dim)) * config.dim**-0.5
        self.embedding = param(embedding, "vocab", "embed")
        self.positions = positions_of(config.positions, config.dim, config.segment, config.context, rngs)

        def stack(name: str) -> Block:
            keys = jax.random.split(rngs.params(), config.repeats)
            return jax.vmap(lambda key: BLOCKS[name](config, rngs=nnx.Rngs(key)))(keys)

        self.blocks = nnx.List([stack(name) for name in config.pattern])
        self.norm = RMSNorm(config.dim)
        self.head = Linear(config.dim, config.vocab_size, ("embed", "vocab"), dtype=config.dtype, scale=0.5, rngs=rngs)

    def init_state(self, batch: int) -> LMState:
        """The state before the first token. It depends on the parameters; its size never changes."""
        blocks = tuple(lax.map(lambda block: block.init_state(batch), stack) for stack in self.blocks)
        return LMState(blocks, sharding.constrain(jnp.zeros(batch, jnp.int32), "batch"))

    def __call__(
        self, tokens: Array, state: LMState | None = None, reset: Array | None = None, *, aligned: bool = False
    ) -> tuple[Array, LMState, LayerInfo | None]:
        """Read tokens and predict the next token after each.

        Args:
          tokens: [B, T] int, T >= 1.
          state: of `init_state` or of an earlier call; None at the start of a text.
          reset: None, or [B, T] bool, true at a document's first token. Later tokens do not see earlier documents.
            Memories are reset only at the start of a chunk (MAC: of a segment), so documents must start there.
          aligned: promises that the number of tokens read before is a multiple of T, as in a stream that is read in
            calls of one length. If chunks and segments divide T, the call is then not padded to them.

        Returns:
          logits [B, T, vocab_size] float32; the new state; a `LayerInfo` of leaves [layers, B, H, T], or None without
          a memory.

        Raises:
          ValueError: tokens of another shape or dtype, or, where jit does not hide them, outside of the vocabulary; a
            state of another batch size; full attention over more than `context` tokens in one call.
        """
        tokens = jnp.asarray(tokens)
        if tokens.ndim != 2 or not tokens.shape[1] or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"tokens: {tokens.dtype} of shape {tokens.shape}; they must be integers [batch, tokens]")
        if not isinstance(tokens, jax.core.Tracer) and not 0 <= tokens.min() <= tokens.max() < self.config.vocab_size:
            most = self.config.vocab_size - 1
            raise ValueError(f"tokens: from {tokens.min()} to {tokens.max()}; the vocabulary is from 0 to {most}")
        state = self.init_state(tokens.shape[0]) if state is None else state
        if not isinstance(state, LMState):
            raise ValueError(f"state: {type(state).__name__}; it must be what an earlier call of this model returned")
        if state.age.shape != tokens.shape[:1]:
            raise ValueError(f"state: of {state.age.shape[0]} sequences, but tokens has {tokens.shape[0]}")
        c, (B, T) = self.config, tokens.shape
        age = _ages(bounded(state.age, c.segment if c.positions == "axial" else c.context), reset, T)
        x = self.embed(tokens, age)
        values = no_values(c, B, T) if c.value_residual and c.pattern != ("lmm",) else None
        aligned = aligned and T % self.unit == 0
        learned = self._zero_residual(B, T, aligned) if c.weight_residual else None
        first = Activations(x, age, reset, values, learned, aligned)

        def layer(carry: Any, layers: Any) -> Any:
            stream = first._replace(x=carry[0], values=carry[1], learned=carry[2])
            states, infos = [], []
            for block, block_state in zip(*layers, strict=True):
                stream, block_state, info = gathered(block)(stream, block_state)
                states.append(block_state)
                infos += [] if info is None else [info]
            stacked = jax.tree.map(lambda *x: jnp.stack(x), *infos) if infos else None
            return (stream.x, stream.values, stream.learned), (tuple(states), stacked)

        body = jax.checkpoint(layer) if c.remat else layer
        carry = (first.x, first.values, first.learned)
        (x, _, _), (blocks, info) = lax.scan(
            body, carry, (tuple(self.blocks), state.blocks), unroll=c.repeats <= UNROLLED
        )
        info = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), info)
        logits = self.head(self.norm(x)).astype(jnp.float32)
        return logits, LMState(blocks, age[:, -1] + 1), info

    def by_layer(self) -> "ByLayer":
        """The same model with unstacked layers, for decoding on a CPU; it has its own copy of the parameters.

        It compiles longer. A call does not slice and update stacks of layers, which is half of the time of a single
        token on a CPU.
        """
        c, (graphdef, params) = self.config, nnx.split(self)
        model = nnx.merge(graphdef, params)
        parts = [nnx.split(stack) for stack in self.blocks]
        layers = _layers(tuple(params for _, params in parts), c.repeats)
        graphs = itertools.cycle(graphdef for graphdef, _ in parts)
        model.blocks = nnx.List([nnx.merge(graph, layer) for graph, layer in zip(graphs, layers, strict=False)])
        model.config = dataclasses.replace(c, block=",".join(c.pattern * c.repeats))
        return ByLayer(model)

    def state_by_layer(self, state: Any) -> Any:
        """Convert a state of this model to a state of `by_layer`."""
        return state._replace(blocks=unstacked(state.blocks, self.config.repeats))

    def over_layers(self, act: Callable[[Array], Array], state: Any) -> Any:
        """Apply `act` to each array [layers, ...] of a state."""
        return state._replace(blocks=jax.tree.map(act, state.blocks))

    @property
    def unit(self) -> int:
        """The least common multiple of chunk and segment, in tokens."""
        c = self.config
        segments = "mac" in c.pattern or c.attention == "segmented"
        return math.lcm(c.memory.chunk, c.segment if segments else 1)

    def embed(self, tokens: Array, age: Array) -> Array:
        """[B, T] -> [B, T, E], with axial or learned positions added if the configuration has them."""
        table = sharding.gather(self.embedding[...], "vocab", "embed")
        spec = sharding.out((*tokens.shape, self.config.dim), "batch", None, None)
        x = table.at[tokens].get(out_sharding=spec) * self.config.dim**0.5
        if self.positions is not None:
            x = x + self.positions(age)
        return x.astype(self.config.dtype)

    def _zero_residual(self, batch: int, length: int, aligned: bool) -> Any:
        """The first layer's weight residual: zeros [B, H, chunks, in, out] for the chunks of the call."""
        c = self.config
        size = c.segment if "mac" in c.pattern and length > 1 else c.memory.chunk
        rows = length if aligned else grid_of(length, size, jnp.int32(0)).rows
        chunks = rows // c.memory.chunk if length > 1 else 1
        block = self.blocks[next(i for i, name in enumerate(c.pattern) if name in MEMORY_BLOCKS)]
        fast = block.memory.fast  # stacked [layers, H, in, out]
        return {
            name: sharding.constrain(
                jnp.zeros((batch, w.shape[1], chunks, *w.shape[2:])), "batch", "heads", None, None, None
            )
            for name, w in fast.items()
        }


class ByLayer(nnx.Module):
    """An `LM` with unstacked layers. Its states have no axis of layers.

    With such an axis, even of length 1, XLA on CPUs copies donated caches instead of updating them in place. That is a
    third of the time of a token of many sequences.
    """

    def __init__(self, model: LM) -> None:
        self.model = model

    @property
    def config(self) -> ModelConfig:
        """The model's configuration."""
        return self.model.config

    def init_state(self, batch: int) -> Any:
        """As `LM.init_state`."""
        return self.model.over_layers(_drop_axis, self.model.init_state(batch))

    def __call__(self, tokens: Array, state: Any, *, aligned: bool = False) -> tuple[Array, Any, LayerInfo | None]:
        """As `LM`."""
        state = self.model.over_layers(_add_axis, state)
        logits, state, info = self.model(tokens, state, aligned=aligned)
        return logits, self.model.over_layers(_drop_axis, state), info


_add_axis = functools.partial(jnp.expand_dims, axis=0)
_drop_axis = functools.partial(jnp.squeeze, axis=0)


def unstacked(stacks: Sequence[Any], count: int) -> tuple[Any, ...]:
    """Split the stacks [count, ...] of a pattern's blocks into one tree per layer, in the order of the layers."""
    return tuple(
        jax.tree.map(functools.partial(lax.index_in_dim, index=i, keepdims=False), stack)
        for i in range(count)
        for stack in stacks
    )


@functools.partial(jax.jit, static_argnums=1)
def _layers(stacks: Sequence[Any], count: int) -> tuple[Any, ...]:
    return jax.tree.map(_add_axis, unstacked(stacks, count))


def _ages(age: Array, reset: Array | None, length: int) -> Array:
    """The age [B, T] of each token, from the age [B] of the first."""
    index = jnp.arange(length)
    running = age[:, None] + index
    if reset is None:
        return running
    last_reset = lax.cummax(jnp.where(reset, index, -1), axis=1)
    return jnp.where(last_reset >= 0, index - last_reset, running)
