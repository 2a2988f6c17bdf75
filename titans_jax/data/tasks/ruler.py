"""Numbers by name, in the style of RULER (Hsieh et al. 2024, arXiv 2404.06654).

These are its kinds of task, in our own sentences; the hay is the corpus.
"""

import numpy as np

from titans_jax.data.tasks.base import Question, asked
from titans_jax.data.tasks.passkey import random_key

NAMES = (
    *("Ada", "Ben", "Cleo", "Dora", "Egon", "Fay", "Gus", "Hana", "Ivo", "Jana", "Kurt", "Lena", "Milo"),
    *("Nora", "Otto", "Pia", "Quinn", "Rosa", "Sven", "Tess", "Ulla", "Vera", "Wim", "Xenia", "Yuri", "Zoe"),
)


def numbers(
    rng: np.random.Generator, size: int, hay: str, keys: int = 1, values: int = 1, queries: int = 1
) -> Question:
    """So many names (`keys`) with so many numbers each (`values`); the question is for some of the names (`queries`).

    The answer has the numbers of a name in the order of the text.
    """
    names = [NAMES[i] for i in rng.permutation(len(NAMES))[:keys]]
    pairs = [(name, random_key(rng, 4)) for name in names for _ in range(values)]
    pairs = [pairs[i] for i in rng.permutation(len(pairs))]
    chosen = [names[i] for i in rng.permutation(keys)[:queries]]
    answer = "".join(f" {number}" for name in chosen for other, number in pairs if other == name) + "."
    question = f"Which number has {' and '.join(chosen)}?"
    facts = [f"The number of {name} is {number}." for name, number in pairs]
    return asked(rng, size, hay, facts, question, answer)


def variables(rng: np.random.Generator, size: int, hay: str) -> Question:
    """Two chains of assignments; the question is which variables have the value of one of them."""
    letters = [chr(ord("A") + i) for i in rng.permutation(26)[:6]]
    chains = [(random_key(rng, 4), letters[:3]), (random_key(rng), letters[3:])]
    steps = [[f"Let {a} = {b}." for a, b in zip(chain, [value, *chain], strict=False)] for value, chain in chains]
    facts = [steps[chain].pop(0) for chain in rng.permutation([0, 0, 0, 1, 1, 1])]
    value, chain = chains[int(rng.integers(2))]
    question, answer = f"Which letters are {value}?", " " + " ".join(chain) + "."
    return asked(rng, size, hay, facts, question, answer)
