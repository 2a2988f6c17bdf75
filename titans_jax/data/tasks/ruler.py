"""Needles by name, in the style of RULER (Hsieh et al. 2024, arXiv 2404.06654).

Its kinds of task, in sentences of our own; each is a `TextTask`, and the hay is the corpus.
"""

import numpy as np

from titans_jax.data.tasks.base import Question, hidden
from titans_jax.data.tasks.passkey import random_key

NAMES = (
    *("Ada", "Ben", "Cleo", "Dora", "Egon", "Fay", "Gus", "Hana", "Ivo", "Jana", "Kurt", "Lena", "Milo"),
    *("Nora", "Otto", "Pia", "Quinn", "Rosa", "Sven", "Tess", "Ulla", "Vera", "Wim", "Xenia", "Yuri", "Zoe"),
)


def single(rng: np.random.Generator, size: int, hay: str) -> Question:
    """Returns one name with one number."""
    return _numbers(rng, size, hay, keys=1, values=1, queries=1)


def multikey(rng: np.random.Generator, size: int, hay: str) -> Question:
    """Returns four names with a number each, of which one is asked for."""
    return _numbers(rng, size, hay, keys=4, values=1, queries=1)


def multivalue(rng: np.random.Generator, size: int, hay: str) -> Question:
    """Returns one name with three numbers, all asked for in the order in which they came."""
    return _numbers(rng, size, hay, keys=1, values=3, queries=1)


def multiquery(rng: np.random.Generator, size: int, hay: str) -> Question:
    """Returns four names with a number each, of which two are asked for."""
    return _numbers(rng, size, hay, keys=4, values=1, queries=2)


def _numbers(rng: np.random.Generator, size: int, hay: str, keys: int, values: int, queries: int) -> Question:
    names = [NAMES[i] for i in rng.permutation(len(NAMES))[:keys]]
    said = [(name, random_key(rng, 4)) for name in names for _ in range(values)]
    said = [said[i] for i in rng.permutation(len(said))]
    asked = [names[i] for i in rng.permutation(keys)[:queries]]
    answer = "".join(f" {number}" for name in asked for other, number in said if other == name) + "."
    question = f"Which number has {' and '.join(asked)}?"
    facts = [f"The number of {name} is {number}." for name, number in said]
    return Question(hidden(rng, facts, size - len(question) - len(answer), hay), question, answer)


def variables(rng: np.random.Generator, size: int, hay: str) -> Question:
    """Returns two chains of assignments; the question is which variables came to hold the value of one of them."""
    letters = [chr(ord("A") + i) for i in rng.permutation(26)[:6]]
    chains = [(random_key(rng, 4), letters[:3]), (random_key(rng), letters[3:])]
    steps = [[f"Let {a} = {b}." for a, b in zip(chain, [value, *chain], strict=False)] for value, chain in chains]
    facts = [steps[chain].pop(0) for chain in rng.permutation([0, 0, 0, 1, 1, 1])]
    value, chain = chains[int(rng.integers(2))]
    question, answer = f"Which letters are {value}?", " " + " ".join(chain) + "."
    return Question(hidden(rng, facts, size - len(question) - len(answer), hay), question, answer)
