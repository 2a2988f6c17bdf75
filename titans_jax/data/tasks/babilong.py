"""Facts hidden in a book, in the style of BABILong (Kuratov et al. 2024, arXiv 2406.10149).

These are its first two kinds of question, in our own sentences; the hay is the corpus.
"""

import numpy as np

from titans_jax.data.tasks.base import Question, asked

PEOPLE = ("Daniel", "Emma", "Jacob", "Lucy", "Peter", "Sophie")
PLACES = ("attic", "cellar", "garden", "kitchen", "library", "stable")
THINGS = ("apple", "candle", "hammer", "kettle", "letter", "violin")


def person(rng: np.random.Generator, size: int, hay: str) -> Question:
    """People walk about; where is one of them? The last fact about that person is the answer."""
    walks = [(PEOPLE[i], PLACES[j]) for i, j in zip(rng.integers(6, size=4), rng.integers(6, size=4), strict=True)]
    who, _ = walks[int(rng.integers(4))]
    answer = [place for person, place in walks if person == who][-1]
    return asked(rng, size, hay, [f"{a} walked to the {b}." for a, b in walks], f"Where is {who}?", f" {answer}.")


def thing(rng: np.random.Generator, size: int, hay: str) -> Question:
    """Someone takes a thing and walks on, others walk too; where is the thing? The answer needs two facts."""
    who, other = (PEOPLE[i] for i in rng.permutation(6)[:2])
    what = THINGS[int(rng.integers(6))]
    before, after, elsewhere = (PLACES[i] for i in rng.permutation(6)[:3])
    facts = [f"{who} walked to the {before}.", f"{who} took the {what}.", f"{who} walked to the {after}."]
    facts.insert(int(rng.integers(4)), f"{other} walked to the {elsewhere}.")
    return asked(rng, size, hay, facts, f"Where is the {what}?", f" {after}.")
