"""A text without an end, as a value in and a value out: what is carried has one size, however much was read.

Every token is scored by logits that were made before it was an input: the state holds back the last token it was
given, and reads it together with those that come next. So scores do not depend on where a text is cut into calls.

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

from titans_jax.nn import LM


class StreamState(NamedTuple):
    """What a stream carries. model: the model's state. last: int32 [B], a token that was scored and not yet read."""

    model: Any
    last: Array


class Scores(NamedTuple):
    """What was said of a call's tokens.

    nll: [B, T] nats. correct: [B, T] bool, whether a token was the likeliest. surprise: [layers, B, T], the memories'
    mean loss on the token before each, as it was read; None where the model has no memory that is written.
    """

    nll: Array
    correct: Array
    surprise: Array | None


def begin(model: LM, separator: int, *, batch: int = 1) -> StreamState:
    """The state of streams before their first token, which follows a separator.

    Raises ValueError for a model that has a slot for every token of its context.
    """
    if model.config.grows:
        raise ValueError(
            f"model.attention is full, over model.context = {model.config.context} tokens, and a stream has no end; "
            "stream a model whose attention is sliding or segmented"
        )
    return fork(_begin(*nnx.split(model), batch, separator))  # what begins may share arrays with the parameters


@partial(jax.jit, static_argnums=(0, 2))
def _begin(graphdef: Any, params: Any, batch: int, separator: Array) -> StreamState:
    # All of it where the parameters are, as what `_read` returns is: another place would be another program.
    return StreamState(nnx.merge(graphdef, params).init_state(batch), jnp.full(batch, separator, jnp.int32))


def fork(state: StreamState) -> StreamState:
    """The same state in arrays of its own: either may be read on from, and the other does not change."""
    return jax.tree.map(partial(jnp.array, copy=True), state)


def read(model: LM, state: StreamState, tokens: ArrayLike, *, aligned: bool = False) -> tuple[StreamState, Scores]:
    """Read tokens int32 [B, T], T >= 1, and score each before anything learns from it; the state given is used up.

    aligned: a promise that what was read so far is a multiple of T, which `LM` has a faster way for.
    """
    return _read(*nnx.split(model), state, jnp.asarray(tokens, jnp.int32), aligned)


@partial(jax.jit, static_argnums=(0, 4), donate_argnums=2)
def _read(graphdef: Any, params: Any, state: StreamState, tokens: Array, aligned: bool) -> tuple[StreamState, Scores]:
    inputs = jnp.concatenate([state.last[:, None], tokens[:, :-1]], 1)
    logits, after, look = nnx.merge(graphdef, params)(inputs, state.model, aligned=aligned)
    scores = Scores(
        nll=optax.softmax_cross_entropy_with_integer_labels(logits, tokens),
        correct=jnp.argmax(logits, -1) == tokens,
        surprise=None if look is None else look.surprise.mean(2),
    )
    return StreamState(after, tokens[:, -1]), scores
