"""Generation: the prompt is read in segments, then one token at a time, at constant cost and with a state of one size.

B rows of a batch, T tokens, V vocabulary.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from numpy.typing import ArrayLike

from titans_jax.nn import LM

Stop = Callable[[int, int], bool]


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn: temperature first, then the filters, each on what the one before left.

    temperature: 0 takes the likeliest token. top_k: only the k likeliest. top_p: the fewest tokens that hold this
    much probability. min_p: only tokens at least this many times as likely as the likeliest.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 1")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} is {value}; it must be above 0 and at most 1")


def keep_top_k(logits: Array, k: int) -> Array:
    """Logits [..., V] with all but the k largest (and their equals) at -inf.

    >>> keep_top_k(jnp.array([1.0, 3.0, 2.0]), 2).tolist()
    [-inf, 3.0, 2.0]
    """
    least = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][..., -1:]
    return jnp.where(logits >= least, logits, -jnp.inf)


def keep_top_p(logits: Array, p: float) -> Array:
    """Logits [..., V] with -inf outside the smallest set of likeliest tokens whose probabilities reach p.

    >>> keep_top_p(jnp.log(jnp.array([0.5, 0.3, 0.2])), 0.6)[2].tolist()
    -inf
    """
    order = jnp.argsort(-logits, axis=-1)
    sorted_ = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
    before = jnp.cumsum(sorted_, axis=-1) - sorted_
    rank = jnp.argsort(order, axis=-1)
    # The likeliest token stays even where rounding says that nothing is needed.
    return jnp.where((jnp.take_along_axis(before, rank, axis=-1) < p) | (rank == 0), logits, -jnp.inf)


def keep_min_p(logits: Array, p: float) -> Array:
    """Logits [..., V] with -inf where a token is less than p times as likely as the likeliest.

    >>> keep_min_p(jnp.log(jnp.array([0.6, 0.3, 0.1])), 0.4)[2].tolist()
    -inf
    """
    return jnp.where(logits >= logits.max(-1, keepdims=True) + jnp.log(p), logits, -jnp.inf)


def draw(logits: Array, keys: Array, sampling: Sampling) -> Array:
    """One token a row, int32 [B], from logits [B, V] and a key a row [B]; the keys are not used at temperature 0."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / sampling.temperature
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p is not None:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p is not None:
        logits = keep_min_p(logits, sampling.min_p)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _advance(graphdef: Any, params: Any, state: Any, tokens: Array) -> tuple[Array, Any]:
    """Read tokens [B, T]; the logits [B, V] that follow the last one, and the state."""
    logits, state, _ = nnx.merge(graphdef, params)(tokens, state)
    return logits[:, -1], state


@partial(jax.jit, static_argnums=(0, 2))
def _begin(graphdef: Any, params: Any, batch: int) -> Any:
    return nnx.merge(graphdef, params).init_state(batch)


def first_state(graphdef: Any, params: Any, batch: int) -> Any:
    """The state of so many rows before their first token, to be given away to a call.

    A copy, because a first state may share arrays with the parameters.
    """
    return jax.tree.map(partial(jnp.array, copy=True), _begin(graphdef, params, batch))


@partial(jax.jit, static_argnums=3)
def _draw(logits: Array, keys: Array, index: Array, sampling: Sampling) -> Array:
    return draw(logits, jax.vmap(jax.random.fold_in, (0, None))(keys, index), sampling)


def prefill(model: LM, tokens: ArrayLike, *, segment: int = 64) -> tuple[Array, Any]:
    """Read prompts of one length, int32 [B, T]: the logits [B, V] that follow them and the state to go on from.

    The prompt is read `segment` tokens at a time and its remainder one by one, so prompts of every length share two
    compiled shapes. Raises ValueError for a prompt that is empty or holds a token outside the vocabulary.
    """
    tokens = np.asarray(tokens, np.int32)
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise ValueError(f"prompts have shape {tokens.shape}; they must be [B, T] with at least one row and one token")
    vocabulary = model.config.vocab_size
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        wrong = tokens[(tokens < 0) | (tokens >= vocabulary)][0]
        raise ValueError(f"the prompt holds token {wrong}, outside the model's vocabulary of {vocabulary}")
    graphdef, params = nnx.split(model)
    state = first_state(graphdef, params, len(tokens))
    whole = tokens.shape[1] // segment * segment
    widths = [segment] * (whole // segment) + [1] * (tokens.shape[1] - whole)
    for end, width in zip(np.cumsum(widths), widths, strict=True):
        logits, state = _advance(graphdef, params, state, tokens[:, end - width : end])
    return logits, state


def stream(
    model: LM, tokens: ArrayLike, sampling: Sampling, *, keys: Array | None = None, segment: int = 64
) -> Iterator[Array]:
    """Go on from prompts of one length [B, T] for ever: one array of tokens int32 [B] at a time.

    keys [B] is one key a row, so that a row's tokens do not depend on the rows beside it; None only at temperature 0.
    """
    logits, state = prefill(model, tokens, segment=segment)
    graphdef, params = nnx.split(model)
    if keys is None:
        if sampling.temperature != 0:
            raise ValueError("sampling needs a key; give one, or temperature=0")
        keys = jax.random.split(jax.random.key(0), len(logits))
    for index in itertools.count():
        token = _draw(logits, keys, np.int32(index), sampling)
        yield token
        logits, state = _advance(graphdef, params, state, token[:, None])


def generate(
    model: LM,
    prompt: ArrayLike | Sequence[Sequence[int]],
    *,
    length: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    key: Array | None = None,
    stop: Stop | None = None,
    segment: int = 64,
) -> Any:
    """The next `length` tokens after each prompt, without the prompt.

    prompt: an array [B, T], which gives an int32 array [B, length]; or a list of B prompts of any lengths, which
    gives a list of B int32 arrays. stop: called as stop(row, token) as each token of a row is drawn; True ends the
    row, that token included (in an array, -1 fills what is left). key: for any temperature but 0; row i draws from
    fold_in(key, i). The filters are those of `Sampling`.

    Raises ValueError for an empty prompt, a token outside the vocabulary, or sampling options out of range.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p)
    ragged = isinstance(prompt, list | tuple)
    rows = [np.asarray(row, np.int32) for row in (prompt if ragged else np.asarray(prompt))]  # type: ignore[union-attr]
    if length < 0:
        raise ValueError(f"length is {length}; it must be 0 or more tokens")
    keys = None if key is None else jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(len(rows)))
    written: list[list[int]] = [[] for _ in rows]
    # Rows of one length share a batch; a batch of unequal prompts would need padding, which the memory would read.
    for same in {len(row): None for row in rows}:
        members = [i for i, row in enumerate(rows) if len(row) == same]
        tokens = np.stack([rows[i] for i in members])
        following = stream(
            model, tokens, sampling, keys=None if keys is None else keys[np.array(members)], segment=segment
        )
        for i, line in zip(members, _collect(following, members, length, stop), strict=True):
            written[i] = line
    if ragged:
        return [np.array(line, np.int32) for line in written]
    return np.array([line + [-1] * (length - len(line)) for line in written], np.int32).reshape(len(rows), length)


def _collect(following: Iterator[Array], rows: list[int], length: int, stop: Stop | None) -> list[list[int]]:
    """Take `length` tokens of each of these rows, or fewer where `stop` says so."""
    if stop is None:  # nothing is looked at until the end, so the device never waits for the host
        taken = list(itertools.islice(following, length))
        return np.stack(taken, axis=1).tolist() if taken else [[] for _ in rows]
    lines: dict[int, list[int]] = {row: [] for row in rows}
    running = set(rows)
    for tokens in itertools.islice(following, length):
        for row, token in zip(rows, np.asarray(tokens).tolist(), strict=True):
            if row in running:
                lines[row].append(token)
                if stop(row, token):
                    running.remove(row)
        if not running:
            break
    return list(lines.values())


class Text:
    """A row's text while its tokens arrive: what is sure is handed on, half a letter or half a stop text waits.

    decode: token ids -> text. stop: texts before which the row ends.

    >>> text = Text(lambda ids: bytes(ids).decode(errors="replace"), stop=["end"])
    >>> [text.add(byte) for byte in "é en. end".encode()], text.ended, text.shown
    (['', 'é', ' ', '', '', 'en.', ' ', '', '', ''], True, 'é en. ')
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        if "" in stop:
            raise ValueError("a stop text is empty; give at least one letter")
        self.decode, self.stop = decode, tuple(stop)
        self.shown, self.ended = "", False
        self._tokens: list[int] = []
        self._waiting = ""

    def add(self, token: int) -> str:
        """Take a token; the text that is sure by now and was not handed on before."""
        self._tokens.append(token)
        text = self.decode(self._tokens)
        if text.endswith("\ufffd") and len(self._tokens) < 4:  # perhaps the first bytes of a letter of up to four
            return ""
        self._tokens = []
        return self._hand_on(self._waiting + text)

    def finish(self) -> str:
        """What was still waiting: there are no more tokens."""
        rest = "" if self.ended else self._waiting + self.decode(self._tokens)
        self._tokens, self._waiting, self.shown = [], "", self.shown + rest
        return rest

    def _hand_on(self, text: str) -> str:
        cuts = [text.find(stop) for stop in self.stop if stop in text]
        self.ended = bool(cuts)
        keep = min(cuts, default=len(text))
        if not cuts:
            starts = (n for n in range(len(text), 0, -1) if any(stop.startswith(text[-n:]) for stop in self.stop))
            keep -= next(starts, 0)
        self._waiting = "" if cuts else text[keep:]
        self.shown += text[:keep]
        return text[:keep]
