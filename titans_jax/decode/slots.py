"""Continuous batching: many texts at once, each in a slot with its own state and position.

A text takes a slot as soon as one is free. Each round first reads one whole segment of every new prompt; then one
compiled step advances all other slots by a token, which is the prompt's next one or a drawn one. So texts of every
length share two programs, and a new text delays the others by one segment per round.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax
from numpy.typing import ArrayLike, NDArray

from titans_jax import sharding
from titans_jax.compiling import ONCE
from titans_jax.decode.rows import advance, check_tokens, copied, first_state, unrolled
from titans_jax.decode.sampling import Filters, Sampling, draw, filters
from titans_jax.nn import LM


class Request(NamedTuple):
    """A text to continue.

    prompt: int [T], T >= 1.
    length: how many tokens to write.
    key: needed unless the temperature is 0; token i is drawn with fold_in(key, i).
    stop: called with each new token; True ends the text with that token.
    """

    prompt: ArrayLike
    length: int
    sampling: Sampling = Sampling()
    key: Array | None = None
    stop: Callable[[int], bool] | None = None


@dataclass
class _Text:
    """A request in its slot. ahead: the unread part of its prompt. state: its own while it is read in segments."""

    number: int
    request: Request
    ahead: NDArray[np.int32]
    state: Any
    drawn: int = 0


def serve(model: LM, requests: Iterable[Request], *, slots: int, segment: int = 64) -> Iterator[tuple[int, int]]:
    """Yield (number of the request, token) as tokens are drawn, for up to `slots` requests at a time.

    Requests start in order, as slots become free. A text's tokens do not depend on the other texts, except for
    rounding. A text whose logits are not finite ends with the token -1, and the others go on.

    Raises ValueError, when the request starts, for a prompt that is empty or has a token outside the vocabulary, a
    negative length, or sampling without a key.
    """
    graphdef, params = nnx.split(model)
    start, waiting = first_state(graphdef, params, 1), enumerate(requests)
    texts: list[_Text | None] = [None] * slots
    fast, convert = unrolled(model)
    writing = nnx.split(fast)
    (states, keys, logits), unused = _empty(*writing, slots), jax.random.key(0)
    while True:
        for slot, text in enumerate(texts):
            if text is None:
                texts[slot] = text = _next_text(model, waiting, start)
            if text is None or text.state is None:
                continue
            if len(text.ahead) > segment:
                _, text.state = advance(graphdef, params, text.state, text.ahead[None, :segment])
                text.ahead = text.ahead[segment:]
            else:
                key = unused if text.request.key is None else text.request.key
                states, keys = _put(*writing, states, keys, np.int32(slot), convert(text.state), key)
                text.state = None
        if not any(texts):
            return
        running = {slot: text for slot, text in enumerate(texts) if text is not None and text.state is None}
        if running:
            forced, index, rules = _inputs(texts)
            tokens, states, logits = _step(*writing, states, logits, forced, keys, index, rules)
            drawn = np.asarray(tokens).tolist()
        for slot, text in running.items():
            if len(text.ahead):
                text.ahead = text.ahead[1:]
                continue
            text.drawn += 1
            yield text.number, drawn[slot]
            lost = drawn[slot] < 0
            stopped = lost or text.request.stop is not None and text.request.stop(drawn[slot])
            if stopped or text.drawn == text.request.length:
                texts[slot] = None


def _next_text(model: LM, waiting: Iterator[tuple[int, Request]], start: Any) -> _Text | None:
    """The next request that asks for at least one token, in its first state; None if there is none."""
    for number, request in waiting:
        prompt = np.asarray(request.prompt, np.int32)
        _check(model, prompt, request)
        if request.length:
            return _Text(number, request, prompt, copied(start))
    return None


def _check(model: LM, prompt: NDArray[np.int32], request: Request) -> None:
    if prompt.ndim != 1 or not len(prompt):
        raise ValueError(f"a prompt has shape {list(prompt.shape)}; it must be [T] with at least one token")
    check_tokens(prompt, model.config.vocab_size)
    if request.length < 0:
        raise ValueError(f"length is {request.length}; it must be 0 or more tokens")
    if request.key is None and request.sampling.temperature != 0:
        raise ValueError("sampling needs a key; give one, or temperature=0")


def _inputs(texts: list[_Text | None]) -> tuple[NDArray[np.int32], NDArray[np.int32], Filters]:
    """For each slot: the prompt's next token, -1 to draw one; how many were drawn; and the sampling options."""
    greedy = Sampling(temperature=0)
    forced = [text.ahead[0] if text and len(text.ahead) else -1 for text in texts]
    drawn = [text.drawn if text else 0 for text in texts]
    return (
        np.array(forced, np.int32),
        np.array(drawn, np.int32),
        filters([text.request.sampling if text else greedy for text in texts]),
    )


def batch_axes(graphdef: Any, params: Any) -> Any:
    """The batch axis of each leaf of a model's state; -1 for leaves without one, such as the count of tokens.

    The state of all slots has its axis of slots there, so that an axis of layers stays first.
    """
    model = nnx.merge(graphdef, params)
    one, two = (jax.eval_shape(lambda rows=rows: model.init_state(rows)) for rows in (1, 2))
    return jax.tree.map(lambda a, b: next((i for i in range(a.ndim) if a.shape[i] != b.shape[i]), -1), one, two)


@partial(jax.jit, static_argnums=(0, 2), compiler_options=ONCE)
def _empty(graphdef: Any, params: Any, slots: int) -> tuple[Any, Array, Array]:
    """States, keys and logits of empty slots, on the parameters' devices, as `_step` returns them."""
    model = nnx.merge(graphdef, params)

    def every(axis: int, x: Array) -> Array:
        return jnp.repeat(jnp.expand_dims(x, axis), slots, axis)

    states = jax.tree.map(every, batch_axes(graphdef, params), model.init_state(1))
    return states, jax.random.split(jax.random.key(0), slots), jnp.zeros((slots, model.config.vocab_size))


@partial(jax.jit, static_argnums=0, donate_argnums=(2, 3))
def _put(
    graphdef: Any, params: Any, states: Any, keys: Array, slot: Array, state: Any, key: Array
) -> tuple[Any, Array]:
    """Put the state and key of one text into its slot."""

    def one(axis: int, every: Array, own: Array) -> Array:
        own = jnp.expand_dims(own, axis)
        return lax.dynamic_update_slice_in_dim(every, own, slot, axis % every.ndim)

    return jax.tree.map(one, batch_axes(graphdef, params), states, state), keys.at[slot].set(key)


@partial(jax.jit, static_argnums=0, donate_argnums=(2, 3))
def _step(
    graphdef: Any, params: Any, states: Any, logits: Array, forced: Array, keys: Array, index: Array, rules: Filters
) -> tuple[Array, Any, Array]:
    """Advance every slot by one token, from its prompt or drawn from its logits: tokens, states, logits."""
    drawn = draw(logits, jax.vmap(jax.random.fold_in)(keys, index), rules)
    tokens = jnp.where(forced >= 0, forced, drawn)
    model, axes = nnx.merge(graphdef, params), batch_axes(graphdef, params)

    def one(state: Any, token: Array) -> tuple[Any, Array]:
        logits, state, _ = model(token[None, None], state)
        return state, sharding.constrain(logits[0, 0])

    states, logits = jax.vmap(one, in_axes=(axes, 0), out_axes=(axes, 0))(states, tokens)
    return tokens, states, logits
