"""What every layer of a model attended to, and what its memory did, token by token.

`watch` wraps each block of a model. The parameters, states and logits stay the same; a call of one token returns each
layer's `nn.Introspection` in place of its info.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from numpy.typing import NDArray

from titans_jax.decode import first_state
from titans_jax.nn import LM, Attended, Introspection, LayerInfo, Remembered
from titans_jax.nn.blocks import Activations, Block
from titans_jax.nn.memory_state import named_weights


class Watched(nnx.Module):
    """A block whose calls of one token return its `Introspection`; longer calls, which `InnerLoop` makes, its info.

    The arrays of all layers must have the same shapes: attention is padded to `width` tokens, and a part that the block
    does not have is nan.
    """

    def __init__(self, block: Block, width: int) -> None:
        self.block, self.width = block, width

    @property
    def memory(self) -> Any:
        """The block's; the model reads its shapes."""
        return self.block.memory

    def init_state(self, batch: int) -> Any:
        """The block's."""
        return self.block.init_state(batch)

    def __call__(self, stream: Activations, state: Any) -> tuple[Activations, Any, Any]:
        """The block's call."""
        out, after, info = self.block(stream, state)
        if stream.x.shape[1] > 1:
            return out, after, info
        attention, memory = self.block.introspect(stream, state, after, info)
        config, batch = self.block.config, len(stream.x)
        if attention is None:
            unknown = jnp.full((batch, config.heads, self.width), jnp.nan)
            attention = Attended(unknown, unknown, jnp.full((batch, config.heads), jnp.nan))
        if memory is None:
            blank = jnp.full((batch, config.memory.heads), jnp.nan)
            vector = jnp.full((batch, config.memory.heads, config.memory.head_dim), jnp.nan)
            memory = Remembered(LayerInfo(*[blank] * len(LayerInfo._fields)), blank, vector, vector, vector)
        tokens, read = (
            jnp.pad(x, [(0, 0), (0, 0), (0, self.width - x.shape[2])]) for x in (attention.tokens, attention.read)
        )
        return out, after, Introspection(Attended(tokens, read, attention.key), memory)


def watch(model: LM) -> LM:
    """The same model; its calls of one token return an `Introspection` of leaves [layers, ...] in place of the info."""
    watched = nnx.merge(*nnx.split(model))
    width = max(1, *(block.view for block in watched.blocks))
    watched.blocks = nnx.List([Watched(block, width) for block in watched.blocks])  # type: ignore[misc]  # act as blocks
    return watched


class Reading(NamedTuple):
    """A text as a model read it.

    tokens: [T].
    logits: [T, vocab], after each token.
    attention: leaves [layers, H, T, ...], nan in layers without attention; None if no layer has any.
    memory: leaves [layers, H, T] and [layers, H, T, D], nan in layers without a memory; None if no layer has one.
    ends: how many tokens were read when the fast weights were kept, 0 first.
    weights: for each of `ends`, the fast weights of each layer that has some, {layer: {name: [heads, in, out]}}: the
      dual, in the retention's coordinates.
    """

    tokens: NDArray[np.int32]
    logits: NDArray[np.float32]
    attention: Attended | None
    memory: Remembered | None
    ends: list[int]
    weights: list[dict[int, dict[str, NDArray]]]


@partial(jax.jit, static_argnums=0)
def _step(graphdef: Any, params: Any, token: Array, state: Any) -> Any:
    return nnx.merge(graphdef, params)(token, state)


def read(model: LM, tokens: Iterable[int]) -> Reading:
    """Read a text token by token, as generation does; keep every introspection, and fast weights at each chunk's end.

    Raises ValueError without tokens.
    """
    graphdef, params = nnx.split(watch(model))
    state = first_state(graphdef, params, 1)
    inputs, outputs, ends, weights = [], [], [0], [fast_weights(model, state)]
    for count, token in enumerate(tokens, 1):
        logits, state, found = _step(graphdef, params, np.array([[token]], np.int32), state)
        inputs.append(token)
        outputs.append((logits[0, 0], found))
        if count % model.config.memory.chunk == 0:
            ends.append(count)
            weights.append(fast_weights(model, state))
    if not inputs:
        raise ValueError("there is nothing to read; give at least one token")
    if ends[-1] != len(inputs):
        ends.append(len(inputs))
        weights.append(fast_weights(model, state))
    logits, found = zip(*jax.device_get(outputs), strict=True)
    attention, memory = jax.tree.map(lambda *x: np.stack([one[:, 0] for one in x], 2), *found)
    has_attention = any(block.view for block in model.blocks)
    return Reading(
        np.array(inputs, np.int32),
        np.stack(logits),
        attention if has_attention else None,
        memory if weights[0] else None,
        ends,
        weights,
    )


def fast_weights(model: LM, state: Any) -> dict[int, dict[str, NDArray]]:
    """The first row's fast weights in a state, {layer: {name: [heads, in, out]}}; hope's five memories as heads."""
    found: dict[int, dict[str, NDArray]] = {}
    blocks = getattr(state, "now", state).blocks
    for place, (block, block_state) in enumerate(zip(model.blocks, blocks, strict=True)):
        if (memory := block.parts(block_state)[0]) is None:
            continue
        dual = jax.device_get(named_weights(memory.memory))
        for repeat in range(model.config.repeats):
            weights = {name: w[repeat, 0].reshape(-1, *w.shape[-2:]) for name, w in dual.items()}
            found[place + repeat * len(blocks)] = weights
    return dict(sorted(found.items()))
