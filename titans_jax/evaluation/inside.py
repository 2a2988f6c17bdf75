"""Inside a model: what every layer attended to, and what its memory did, token by token.

A watched model is the model with each block wrapped. It has the same parameters, calls, states and logits; only what
its calls give to see is more. The forward pass knows nothing of it: what a block did with a token is worked out from
its state before and after, by the block's own parts. Attention is linear in the values that it reads, so the derivative
of its output by a value is the weight with which the value was read, masks, positions and caches included.
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
from titans_jax.memory.base import norm
from titans_jax.nn import LM, Look, MemoryLayer, MemoryState, ModelConfig
from titans_jax.nn.attention import KV, Attention, by_slot, by_token
from titans_jax.nn.blocks import LMM, MAL, Block, Stream
from titans_jax.nn.mac import MAC


class Attended(NamedTuple):
    """How attention read one token's context; nan in layers without attention.

    tokens, read: [B, H, W] the weight on the token so far back, 0 for itself, and on what MAC's memory gave for that
    token; what is missing to 1 went to the persistent tokens. W is the longest view of any layer. key: [B, H] norm of
    the token's own key.
    """

    tokens: Array
    read: Array
    key: Array


class Remembered(NamedTuple):
    """What the memory did with one token, each [B, H]; nan in layers without a memory.

    look: `nn.Look`. change: norm of what the token changed in the fast weights. key, value: norms of what was written,
    the key's before it is normalised; nan in hope, whose memories make their own.
    """

    look: Look
    change: Array
    key: Array
    value: Array


class Inside(NamedTuple):
    """What there is to see of a layer: None where the model has no attention, or no memory, in any layer."""

    attention: Attended | None
    memory: Remembered | None


class Watched(nnx.Module):
    """A block that shows its `Inside` for calls of one token. `InnerLoop` makes longer ones, which show a `Look`."""

    def __init__(self, block: Block) -> None:
        self.block = block

    @property
    def memory(self) -> Any:
        """The block's, which the model asks for the shapes of."""
        return self.block.memory  # type: ignore[attr-defined]

    def init_state(self, batch: int) -> Any:
        """The block's."""
        return self.block.init_state(batch)

    def __call__(self, stream: Stream, state: Any) -> tuple[Stream, Any, Any]:
        """The block's, with more to see."""
        out, after, look = self.block(stream, state)
        if stream.x.shape[1] > 1:
            return out, after, look
        attended, written = _attended(self.block, stream, state, after)
        return out, after, Inside(attended, _remembered(self.block, written, stream, state, after, look))


def watch(model: LM) -> LM:
    """The same model, whose calls of one token show `Inside`, stacked [layers, ...], in place of a `Look`."""
    watched = nnx.merge(*nnx.split(model))
    watched.blocks = nnx.List([Watched(block) for block in watched.blocks])  # type: ignore[misc]  # act as blocks
    return watched


def view(config: ModelConfig) -> int:
    """How many tokens back any layer's attention can look, itself included; 0 without attention."""
    kinds = {"full": config.context, "sliding": config.window, "segmented": config.segment}
    sizes = {"mac": config.segment, "lmm": 0, "hope": 0}
    return max(sizes.get(name, kinds[config.attention]) for name in config.pattern)


def _attended(block: Any, stream: Stream, before: Any, after: Any) -> tuple[Attended | None, Array]:
    """How the token's attention went, and what its memory read."""
    width, x = view(block.config), block.norm(stream.x)
    if isinstance(block, MAC):
        return _in_segment(block, x, stream, before, after)
    if not width:
        return None, x
    if not isinstance(getattr(block, "attention", None), Attention):
        blank = jnp.full((len(x), block.config.heads, width), jnp.nan)
        return Attended(blank, blank, blank[..., 0]), x
    seen = block.attention_norm(LMM.mix(block, stream, before[0])[0].x) if isinstance(block, MAL) else x
    cache = find(KV, before)
    q, k, v, _ = block.attention.projections.qkv(seen, stream.values)

    def attend(v: Array, cached: Array) -> Array:
        return block.attention.attend(q, k, by_token(v), cache._replace(values=cached), stream.age)[0]

    own, cached = read_weights(attend, by_slot(v), cache.values)
    slot = jnp.arange(cached.shape[-1])
    at = {"full": cache.step, "segmented": cache.step % len(slot), "sliding": len(slot)}[block.config.attention]
    tokens = _by_distance(jnp.concatenate([own, cached], -1), jnp.concatenate([jnp.zeros(1, int), at - slot]), width)
    return Attended(tokens, jnp.zeros_like(tokens), _norms(k[:, 0])), x


def _in_segment(block: MAC, x: Array, stream: Stream, before: Any, after: Any) -> tuple[Attended, Array]:
    """`_attended` of MAC."""
    width, at = view(block.config), before.memory.memory.step % block.config.segment
    q, k, _, _ = block.projections.qkv(x, stream.values)

    def attend(values: Array) -> Array:
        return block.attend(q, stream.age, after.near._replace(values=values), at).reshape(q.shape)

    (weights,) = read_weights(attend, after.near.values)
    back = at - jnp.arange(block.config.segment)
    read, seen = (_by_distance(half, back, width) for half in jnp.split(weights, 2, -1))
    y = stream.x + block.projections.out(attend(after.near.values).reshape(*x.shape[:2], -1))
    return Attended(seen, read, _norms(k[:, 0])), block.memory_norm(y)


def read_weights(attend: Any, *values: Array) -> tuple[Array, ...]:
    """The weights [B, H, slots] with which one query reads each of the values [B, H, D, slots].

    attend: values -> y [B, 1, H, D], linear in them and alike in every channel.
    """
    y, pull = jax.vjp(attend, *values)
    return tuple(x[:, :, 0].astype(jnp.float32) for x in pull(jnp.zeros_like(y).at[..., 0].set(1)))


def _by_distance(weights: Array, back: Array, width: int) -> Array:
    """[B, H, slots], of tokens `back` [slots] before this one -> [B, H, width]; what lies ahead has no weight."""
    back = jnp.where(back < 0, width, back)
    return jnp.zeros((*weights.shape[:2], width)).at[..., back].add(weights, mode="drop")


def _remembered(block: Any, x: Array, stream: Stream, before: Any, after: Any, look: Look | None) -> Remembered | None:
    if set(block.config.pattern) <= {"transformer", "hope_attention"}:
        return None
    if look is None:
        blank = jnp.full((len(x), block.config.memory.heads), jnp.nan)
        return Remembered(Look(*[blank] * len(Look._fields)), blank, blank, blank)
    old, new = find(MemoryState, before), find(MemoryState, after)
    change = jax.tree.map(jnp.subtract, new.memory.dual, old.memory.dual)
    look = jax.tree.map(lambda x: x[..., 0].astype(jnp.float32), look)
    key = value = jnp.full_like(look.surprise, jnp.nan)
    if isinstance(block.memory, MemoryLayer):
        (_, k, v), _ = block.memory.project(x, old.conv, stream.age)
        key, value = (_norms(x[:, :, 0]).reshape(*key.shape, -1).mean(-1) for x in (k, v))
    return Remembered(look, jax.vmap(jax.vmap(norm))(change), key, value)


def find(kind: type, state: Any) -> Any:
    """The part of a block's state that is of this kind."""
    return next(x for x in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, kind)) if isinstance(x, kind))


def _norms(x: Array) -> Array:
    return jnp.sqrt(jnp.square(x.astype(jnp.float32)).sum(-1))


class Reading(NamedTuple):
    """A text as a model read it.

    tokens: [T]; logits: [T, vocab], after each. attention, memory: as `Inside`, of leaves [layers, H, T, ...]. ends:
    tokens read when the fast weights were kept, 0 first. weights: for each of `ends`, the fast weights of each layer
    that has some, {layer: {name: [heads, in, out]}} (the dual, in the retention's coordinates).
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
    """Read a text token by token, as generation does, and keep what is to be seen; fast weights at every chunk's end.

    Raises ValueError without tokens.
    """
    graphdef, params = nnx.split(watch(model))
    state = first_state(graphdef, params, 1)
    given, seen, ends, weights = [], [], [0], [fast_weights(model.config, state)]
    for count, token in enumerate(tokens, 1):
        logits, state, inside = _step(graphdef, params, np.array([[token]], np.int32), state)
        given.append(token)
        seen.append((logits[0, 0], inside))
        if count % model.config.memory.chunk == 0:
            ends.append(count)
            weights.append(fast_weights(model.config, state))
    if not given:
        raise ValueError("there is nothing to read; give at least one token")
    if ends[-1] != len(given):
        ends.append(len(given))
        weights.append(fast_weights(model.config, state))
    every = jax.device_get(seen)
    logits = np.stack([one for one, _ in every])
    inside = jax.tree.map(lambda *x: np.stack([one[:, 0] for one in x], 2), *(one for _, one in every))
    return Reading(np.array(given, np.int32), logits, inside.attention, inside.memory, ends, weights)


def fast_weights(config: ModelConfig, state: Any) -> dict[int, dict[str, NDArray]]:
    """The first row's, of a model's state: {layer: {name: [heads, in, out]}}; hope's five memories count as heads."""
    found: dict[int, dict[str, NDArray]] = {}
    for place, block in enumerate(getattr(state, "now", state).blocks):
        if config.pattern[place] in ("transformer", "hope_attention"):
            continue
        dual = jax.device_get(find(MemoryState, block).memory.dual)
        for row in range(len(next(iter(dual.values())))):
            one = {name: w[row, 0].reshape(-1, *w.shape[-2:]) for name, w in dual.items()}
            found[place + row * len(config.pattern)] = one
    return dict(sorted(found.items()))
