"""What a made-up task gives, and how it becomes a row of a batch."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from titans_jax.data.tokenizer import Tokenizer


class Question(NamedTuple):
    """A text to read and what is asked about it: context + question is read, answer is what should follow."""

    context: str
    question: str
    answer: str


class Row(NamedTuple):
    """Tokens in, tokens wanted, and where they count: int32, int32 and float32 [T]."""

    inputs: NDArray[np.int32]
    targets: NDArray[np.int32]
    mask: NDArray[np.float32]


TextTask = Callable[[np.random.Generator, int, str], Question]
"""(rng, size, hay) -> a question of `size` characters at most, answer included; hay is text to hide things in."""

TokenTask = Callable[[np.random.Generator, int], Row]
"""(rng, length) -> a row of `length` tokens, ids below 255."""


def hidden(rng: np.random.Generator, facts: list[str], room: int, hay: str) -> str:
    """Returns `room` characters of hay with facts among its words, in their order, at random places, and a line's end.

    Args:
      rng: where in the hay the text begins, and where the facts go.
      facts: sentences.
      room: characters, facts included.
      hay: the text around them; it begins anew where it ends.

    Raises:
      ValueError: the facts are longer than the room, or there is no hay.
    """
    if not hay:
        raise ValueError("there is no hay: the task needs a text to hide its facts in")
    left = room - 1 - sum(len(fact) + 1 for fact in facts)
    if left < 0:
        raise ValueError(f"the task's facts do not fit into {room} characters; raise data.sequence by {-left}")
    start = int(rng.integers(len(hay)))
    text = (hay[start:] + hay * (left // len(hay) + 1))[:left]
    places = np.sort(rng.uniform(size=len(facts))) * left
    parts, end = [], 0
    for fact, place in zip(facts, places, strict=True):
        cut = max(end, text.rfind(" ", 0, int(place) + 1) + 1)  # after a word
        parts += [text[end:cut], fact, " "]
        end = cut
    return "".join([*parts, text[end:], "\n"])


def text_row(question: Question, tokenizer: Tokenizer, length: int) -> Row | None:
    """Returns the row that asks a question, None for one that is longer than the row.

    It begins as documents do, and the mask is 1 on the answer's tokens; where the context has the question and its
    answer too, on those as well.
    """
    asked, answer = question.question, tokenizer.encode(question.answer)
    told = [part + asked for part in (question.context + asked).split(asked + question.answer)]
    told[-1] = told[-1].removesuffix(asked)
    pieces = [part for text in told for part in (tokenizer.encode(text), answer)]
    tokens = np.concatenate([[tokenizer.separator], *pieces]).astype(np.int32)
    if len(tokens) > length + 1:
        return None
    row = np.full(length + 1, tokenizer.separator, np.int32)
    row[: len(tokens)] = tokens
    mask = np.zeros(length, np.float32)
    for end in np.cumsum([len(piece) for piece in pieces])[1::2]:
        mask[end - len(answer) : end] = 1
    return Row(row[:-1], row[1:], mask)
