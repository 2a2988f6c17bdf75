"""A pass key in a dull text, in the style of Mohtashami and Jaggi (2023, arXiv 2305.16300)."""

import numpy as np

from titans_jax.data.tasks.base import Question, asked

NOISE = "Hay lay in the barn. Rain fell on the road. A cat slept all day. Time went by and nothing came of it. "
NEEDLE = "The pass key is {key}. Keep it in mind: {key} is the pass key."
QUESTION = "What is the pass key? The pass key is"
ANSWER = " {key}."
DIGITS = 3
ASKED = 6


def random_key(rng: np.random.Generator, digits: int = DIGITS) -> str:
    """Returns a random number with this many digits."""
    return str(rng.integers(10 ** (digits - 1), 10**digits))


def passkey(rng: np.random.Generator, size: int, hay: str) -> Question:
    """A number somewhere in the text, and the question for it at the end; the hay is NOISE.

    The text also has the question with its answer on the way, ASKED times in all, so that a row teaches more.

    >>> made = passkey(np.random.default_rng(0), 500, "")
    >>> text = made.context + made.question + made.answer
    >>> len(text), text.count(made.question + made.answer), made.answer
    (500, 6, ' 865.')
    """
    key = random_key(rng)
    answer = ANSWER.format(key=key)
    facts = [NEEDLE.format(key=key), *[QUESTION + answer] * (ASKED - 1)]
    return asked(rng, size, NOISE, facts, QUESTION, answer)
