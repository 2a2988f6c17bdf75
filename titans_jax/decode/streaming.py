"""An endless text as a value in and a value out: what is carried has one size, however much was read.

The logits that score a token were made before the model read it: the state keeps the last token of a call back, and the
next call reads it first. So scores do not depend on where a text is cut into calls.

B rows of a batch, T tokens of a call.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from numpy.typing import ArrayLike

from titans_jax.compiling import ONCE
from titans_jax.decode.rows import copied
from titans_jax.nn import LM


class StreamState(NamedTuple):
    """What a stream carries.

    model: the model's state.
    last: int32 [B], a token that was scored and not yet read.
    """

    model: Any
    last: Array


class Scores(NamedTuple):
    """Scores of a call's tokens.

    nll: [B, T], nats.
    correct: [B, T] bool, whether a token was the likeliest.
    surprise: [layers, B, T], each memory's mean loss on the input before the token; None for a model without memories.
    """

    nll: Array
    correct: Array
    surprise: Array | None


def init(model: LM, separator: int, *, batch: int = 1) -> StreamState:
    """The state of streams before their first token, which follows a separator.

    Raises ValueError for a model with full attention: it has a slot for every token of its context.
    """
    if model.config.grows:
        raise ValueError(
            f"model.attention is full, over model.context = {model.config.context} tokens, and a stream has no end; "
            "stream a model whose attention is sliding or segmented"
        )
    return fork(_init(*nnx.split(model), batch, separator))  # a first state may share arrays with the parameters


@partial(jax.jit, static_argnums=(0, 2), compiler_options=ONCE)
def _init(graphdef: Any, params: Any, batch: int, separator: Array) -> StreamState:
    # On the parameters' devices, as the states that `_read` returns: on others, `_read` would compile again.
    return StreamState(nnx.merge(graphdef, params).init_state(batch), jnp.full(batch, separator, jnp.int32))


def fork(state: StreamState) -> StreamState:
    """A copy: each of the two can be read on from, without changing the other."""
    return copied(state)


def read(model: LM, state: StreamState, tokens: ArrayLike, *, aligned: bool = False) -> tuple[StreamState, Scores]:
    """Score tokens and read them. The arrays of the state are donated: `fork` it first to keep it.

    tokens: int32 [B, T], T >= 1.
    aligned: a promise that the number of tokens read so far is a multiple of T, which is faster.
    """
    return _read(*nnx.split(model), state, jnp.asarray(tokens, jnp.int32), aligned)


@partial(jax.jit, static_argnums=(0, 4), donate_argnums=2)
def _read(graphdef: Any, params: Any, state: StreamState, tokens: Array, aligned: bool) -> tuple[StreamState, Scores]:
    inputs = jnp.concatenate([state.last[:, None], tokens[:, :-1]], 1)
    logits, after, info = nnx.merge(graphdef, params)(inputs, state.model, aligned=aligned)
    scores = Scores(
        nll=optax.softmax_cross_entropy_with_integer_labels(logits, tokens),
        correct=jnp.argmax(logits, -1) == tokens,
        surprise=None if info is None else info.surprise.mean(2),
    )
    return StreamState(after, tokens[:, -1]), scores
