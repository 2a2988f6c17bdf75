"""Sequences of one length, all at the same step: a prompt is read in segments, then one token is written at a time.

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

from titans_jax import sharding
from titans_jax.compiling import ONCE
from titans_jax.decode.sampling import Filters, Sampling, draw, filters
from titans_jax.nn import LM
from titans_jax.nn.model import ByLayer


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def advance(graphdef: Any, params: Any, state: Any, tokens: Array) -> tuple[Array, Any]:
    """Read tokens [B, T] after a multiple of T tokens; returns the next token's logits [B, V], and the state."""
    logits, state, _ = nnx.merge(graphdef, params)(tokens, state, aligned=True)
    return sharding.constrain(logits[:, -1], "batch"), state


@partial(jax.jit, static_argnums=(0, 2), compiler_options=ONCE)
def _first_state(graphdef: Any, params: Any, batch: int) -> Any:
    return nnx.merge(graphdef, params).init_state(batch)


DEEPEST = 8
"""The deepest model whose layers are unrolled for writing: each takes about a second to compile."""


def unrolled(model: LM) -> tuple[LM | ByLayer, Callable[[Any], Any]]:
    """The model with its layers unrolled, which writes faster; and what converts a state of `model` for it."""
    if model.config.depth > DEEPEST:
        return model, lambda state: state
    return model.by_layer(), partial(_by_layer, *nnx.split(model))


@partial(jax.jit, static_argnums=0, compiler_options=ONCE)
def _by_layer(graphdef: Any, params: Any, state: Any) -> Any:
    return nnx.merge(graphdef, params).state_by_layer(state)


def first_state(graphdef: Any, params: Any, batch: int) -> Any:
    """The state of `batch` sequences before their first token, in arrays that a call may donate.

    It is a copy, because a first state may share arrays with the parameters.
    """
    return copied(_first_state(graphdef, params, batch))


def copied(tree: Any) -> Any:
    """The same tree in arrays of its own."""
    return jax.tree.map(partial(jnp.array, copy=True), tree)


@jax.jit
def _draw(logits: Array, keys: Array, index: Array, rules: Filters) -> Array:
    return draw(logits, jax.vmap(jax.random.fold_in, (0, None))(keys, index), rules)


def check_tokens(tokens: NDArray[np.int32], vocabulary: int) -> None:
    """Raise ValueError if a prompt, of at least one token, has a token outside the vocabulary."""
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        wrong = tokens[(tokens < 0) | (tokens >= vocabulary)][0]
        raise ValueError(f"the prompt has token {wrong}, outside the model's vocabulary of {vocabulary}")


def prefill(model: LM, tokens: ArrayLike, *, segment: int = 64, state: Any = None) -> tuple[Array, Any]:
    """Read prompts of one length, int32 [B, T]; returns the next token's logits [B, V], and the state.

    state: one before any token, which is used up; None for the model's own.

    The prompts are read `segment` tokens at a time and the remainder one by one, so prompts of every length share two
    compiled shapes. Raises ValueError for a prompt that is empty or has a token outside the vocabulary.
    """
    tokens = np.asarray(tokens, np.int32)
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise ValueError(f"prompts have shape {tokens.shape}; they must be [B, T] with at least one row and one token")
    check_tokens(tokens, model.config.vocab_size)
    graphdef, params = nnx.split(model)
    state = first_state(graphdef, params, len(tokens)) if state is None else state
    whole = tokens.shape[1] // segment * segment
    widths = [segment] * (whole // segment) + [1] * (tokens.shape[1] - whole)
    for end, width in zip(np.cumsum(widths), widths, strict=True):
        logits, state = advance(graphdef, params, state, tokens[:, end - width : end])
    return logits, state


def stream(
    model: LM, tokens: ArrayLike, sampling: Sampling, *, keys: Array | None = None, segment: int = 64
) -> Iterator[Array]:
    """Continue prompts of one length [B, T] without end: yields one array of tokens int32 [B] at a time.

    A row whose logits are not finite gives -1 from then on.

    keys: [B], one key per sequence, so that its tokens do not depend on the others; None only at temperature 0.
    """
    logits, state = prefill(model, tokens, segment=segment)
    fast, convert = unrolled(model)
    state, (graphdef, params) = convert(state), nnx.split(fast)
    if keys is None:
        if sampling.temperature != 0:
            raise ValueError("sampling needs a key; give one, or temperature=0")
        keys = jax.random.split(jax.random.key(0), len(logits))
    rules = filters([sampling] * len(logits))
    lost = jnp.zeros(len(logits), bool)
    for index in itertools.count():
        token = _draw(logits, keys, np.int32(index), rules)
        lost |= token < 0
        token = jnp.where(lost, -1, token)
        yield token
        logits, state = advance(graphdef, params, state, token[:, None])
