"""The example of a made-up task, and how it becomes a row of a batch."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from titans_jax.data.tokenizer import Tokenizer


class Question(NamedTuple):
    """The model reads context + question; the answer should follow."""

    context: str
    question: str
    answer: str


class Row(NamedTuple):
    """inputs, targets: int32 [T]. mask: float32 [T], 1 where a target counts."""

    inputs: NDArray[np.int32]
    targets: NDArray[np.int32]
    mask: NDArray[np.float32]


TextTask = Callable[[np.random.Generator, int, str], Question]
"""(rng, size, hay) -> a question of at most `size` characters, answer included; its facts are hidden in the hay."""

TokenTask = Callable[[np.random.Generator, int], Row]
"""(rng, length) -> a row of `length` tokens, ids below 255."""


def asked(rng: np.random.Generator, size: int, hay: str, facts: list[str], question: str, answer: str) -> Question:
    """Hides facts at random positions between the words of a text, in their order, and asks for them at its end.

    Args:
      rng: decides where in the hay the text starts, and where the facts go.
      size: characters of all, question and answer included.
      hay: the text around the facts; after its end it repeats.
      facts: sentences.

    Raises ValueError: the facts are longer than the room, or there is no hay.
    """
    if not hay:
        raise ValueError("there is no hay: the task needs a text to hide its facts in")
    room = size - len(question) - len(answer)  # of the facts, the text between them and a newline at the end
    size = room - 1 - sum(len(fact) + 1 for fact in facts)
    if size < 0:
        raise ValueError(f"the task's facts do not fit into {room} characters; raise data.sequence by {-size}")
    start = int(rng.integers(len(hay)))
    text = (hay[start:] + hay * (size // len(hay) + 1))[:size]
    positions = np.sort(rng.uniform(size=len(facts))) * size
    parts, end = [], 0
    for fact, position in zip(facts, positions, strict=True):
        cut = max(end, text.rfind(" ", 0, int(position) + 1) + 1)  # after a word
        parts += [text[end:cut], fact, " "]
        end = cut
    return Question("".join([*parts, text[end:], "\n"]), question, answer)


def text_row(question: Question, tokenizer: Tokenizer, length: int) -> Row | None:
    """Returns the row of a question, None if it is longer than `length`.

    The row begins with the separator. The mask is 1 on the answer's tokens, also where the context has the question
    with its answer.
    """
    asked, answer = question.question, tokenizer.encode(question.answer)
    texts = [part + asked for part in (question.context + asked).split(asked + question.answer)]
    texts[-1] = texts[-1].removesuffix(asked)
    pieces = [part for text in texts for part in (tokenizer.encode(text), answer)]
    tokens = np.concatenate([[tokenizer.separator], *pieces]).astype(np.int32)
    if len(tokens) > length + 1:
        return None
    row = np.full(length + 1, tokenizer.separator, np.int32)
    row[: len(tokens)] = tokens
    mask = np.zeros(length, np.float32)
    for end in np.cumsum([len(piece) for piece in pieces])[1::2]:
        mask[end - len(answer) : end] = 1
    return Row(row[:-1], row[1:], mask)
