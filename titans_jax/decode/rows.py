"""Rows of one length, all at the same step: a prompt is read in segments, then one token is written at a time.

B rows of a batch, T tokens, V vocabulary.
"""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from numpy.typing import ArrayLike, NDArray

from titans_jax.decode.sampling import Filters, Sampling, draw, filters
from titans_jax.nn import LM
from titans_jax.nn.model import ByLayer


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def advance(graphdef: Any, params: Any, state: Any, tokens: Array) -> tuple[Array, Any]:
    """Read tokens [B, T], all that came before being a multiple of T; the logits [B, V] that follow, and the state."""
    logits, state, _ = nnx.merge(graphdef, params)(tokens, state, aligned=True)
    return logits[:, -1], state


@partial(jax.jit, static_argnums=(0, 2))
def _begin(graphdef: Any, params: Any, batch: int) -> Any:
    return nnx.merge(graphdef, params).init_state(batch)


DEEPEST = 8
"""Layers of the deepest model that writes with each of them written out: one takes about a second to compile."""


def writer(model: LM) -> tuple[LM | ByLayer, Callable[[Any], Any]]:
    """The model as it writes token by token, and what makes of a state that has read a prompt one that it takes."""
    if model.config.depth > DEEPEST:
        return model, lambda state: state
    return model.by_layer(), partial(_by_layer, *nnx.split(model))


@partial(jax.jit, static_argnums=0)
def _by_layer(graphdef: Any, params: Any, state: Any) -> Any:
    return nnx.merge(graphdef, params).state_by_layer(state)


def first_state(graphdef: Any, params: Any, batch: int) -> Any:
    """The state of so many rows before their first token, to be given away to a call.

    A copy, because a first state may share arrays with the parameters.
    """
    return jax.tree.map(partial(jnp.array, copy=True), _begin(graphdef, params, batch))


@jax.jit
def _draw(logits: Array, keys: Array, index: Array, rules: Filters) -> Array:
    return draw(logits, jax.vmap(jax.random.fold_in, (0, None))(keys, index), rules)


def check_tokens(tokens: NDArray[np.int32], vocabulary: int) -> None:
    """Raise ValueError for a prompt's token outside the vocabulary, at least one token being there."""
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        wrong = tokens[(tokens < 0) | (tokens >= vocabulary)][0]
        raise ValueError(f"the prompt holds token {wrong}, outside the model's vocabulary of {vocabulary}")


def prefill(model: LM, tokens: ArrayLike, *, segment: int = 64) -> tuple[Array, Any]:
    """Read prompts of one length, int32 [B, T]: the logits [B, V] that follow them and the state to go on from.

    The prompt is read `segment` tokens at a time and its remainder one by one, so prompts of every length share two
    compiled shapes. Raises ValueError for a prompt that is empty or holds a token outside the vocabulary.
    """
    tokens = np.asarray(tokens, np.int32)
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise ValueError(f"prompts have shape {tokens.shape}; they must be [B, T] with at least one row and one token")
    check_tokens(tokens, model.config.vocab_size)
    graphdef, params = nnx.split(model)
    state = first_state(graphdef, params, len(tokens))
    whole = tokens.shape[1] // segment * segment
    widths = [segment] * (whole // segment) + [1] * (tokens.shape[1] - whole)
    for end, width in zip(np.cumsum(widths), widths, strict=True):
        logits, state = advance(graphdef, params, state, tokens[:, end - width : end])
    return logits, state


def stream(
    model: LM, tokens: ArrayLike, sampling: Sampling, *, keys: Array | None = None, segment: int = 64
) -> Iterator[Array]:
    """Go on from prompts of one length [B, T] for ever: one array of tokens int32 [B] at a time.

    keys [B] is one key a row, so that a row's tokens do not depend on the rows beside it; None only at temperature 0.
    """
    logits, state = prefill(model, tokens, segment=segment)
    one_by_one, as_written = writer(model)
    state, (graphdef, params) = as_written(state), nnx.split(one_by_one)
    if keys is None:
        if sampling.temperature != 0:
            raise ValueError("sampling needs a key; give one, or temperature=0")
        keys = jax.random.split(jax.random.key(0), len(logits))
    rules = filters([sampling] * len(logits))
    for index in itertools.count():
        token = _draw(logits, keys, np.int32(index), rules)
        yield token
        logits, state = advance(graphdef, params, state, token[:, None])
