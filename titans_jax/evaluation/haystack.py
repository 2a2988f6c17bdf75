"""A needle in a haystack: a sentence hidden at some depth of a long text, and a question about it at the end."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from titans_jax.data import Tokenizer, facts
from titans_jax.data.tasks.passkey import ANSWER, DIGITS, NEEDLE, QUESTION, random_key
from titans_jax.evaluation.loglikelihood import endings, score_targets
from titans_jax.nn import LM

Cell = dict[str, float]


@dataclass(frozen=True)
class Needle:
    """The hidden sentence, the question and its answer; `{key}` stands for random digits, new in each sample."""

    text: str = NEEDLE
    question: str = QUESTION
    answer: str = ANSWER
    digits: int = DIGITS

    def __post_init__(self) -> None:
        if not self.answer:
            raise ValueError("the answer is empty; give the text that should follow the question")
        if self.digits < 1:
            raise ValueError(f"digits is {self.digits}; a key needs at least 1")

    def filled(self, rng: np.random.Generator) -> "Needle":
        """The same with a random key in place of `{key}`."""
        key = random_key(rng, self.digits)
        text, question, answer = (part.replace("{key}", key) for part in (self.text, self.question, self.answer))
        return Needle(text, question, answer, self.digits)


FACT = Needle(facts.FACT, facts.QUESTION, facts.ANSWER)
"""The needle of training text with `data.facts`."""


class Hay:
    """A text as tokens, and the positions where its words start; after its end it repeats."""

    def __init__(self, documents: Iterable[str], tokenizer: Tokenizer) -> None:
        words = re.findall(r"\S+\s*", "\n".join([*documents, ""]))
        if not words:
            raise ValueError("the haystack has no words")
        pieces = tokenizer.encode_batch(words)
        self.tokenizer, self.tokens = tokenizer, np.concatenate(pieces)
        self.starts = np.cumsum([0, *map(len, pieces[:-1])])

    def row(self, needle: Needle, length: int, depth: float, rng: np.random.Generator) -> tuple[NDArray, int]:
        """A row of tokens: separator, hay, needle, hay, question, answer.

        depth: from 0 to 1, how much of the hay is in front of the needle, rounded to whole words.
        Returns the tokens [length + answer], and the length of the answer. Raises ValueError where needle and question
        are longer than the row.
        """
        encode = self.tokenizer.encode
        hidden, asked, answer = encode(needle.text + " "), encode("\n" + needle.question), encode(needle.answer)
        room = length - 1 - len(hidden) - len(asked)
        if room < 0:
            raise ValueError(
                f"a length of {length} tokens has no room for needle and question; give at least {length - room}"
            )
        start = self.starts[rng.integers(len(self.starts))]
        hay = self.tokens[(start + np.arange(room)) % len(self.tokens)]
        repeats = len(self.tokens) * np.arange(room // len(self.tokens) + 1)[:, None]
        ends = (self.starts - start) % len(self.tokens) + repeats
        ends = ends[ends <= room]
        cut = ends[np.abs(ends - depth * room).argmin()]
        parts = [[self.tokenizer.separator], hay[:cut], hidden, hay[cut:], asked, answer]
        return np.concatenate(parts).astype(np.int32), len(answer)


def find_needles(
    model: LM,
    hay: Hay,
    needle: Needle,
    *,
    length: int,
    depths: Sequence[float],
    samples: int,
    seed: int = 0,
    segment: int = 512,
    on_tokens: Callable[[int], object] = lambda count: None,
) -> list[Cell]:
    """Test every depth of one length, in one batch.

    Args:
      length: tokens in front of the answer, question included.
      samples: rows of each depth; every depth has the same keys and the same hay.
      segment: tokens read at a time.
      on_tokens: called with the number of tokens read since the last call.

    Returns a cell for each depth: exact (share of samples whose greedy answer is right), accuracy (of the answer's
    tokens, each after the right ones before it), log_likelihood (mean of the answer, nats) and samples.

    Raises ValueError: needle and question do not fit into the length, or the rows not into full attention.
    """
    rows = []
    for depth in depths:
        for sample in range(samples):
            rng = np.random.default_rng((seed, length, sample))
            rows.append(hay.row(needle.filled(rng), length, depth, rng))
    tokens, mask = endings(rows, hay.tokenizer.separator)
    scores = score_targets(model, tokens[:, :-1], tokens[:, 1:], mask, segment=segment, on_tokens=on_tokens)
    by_depth = (x.reshape(len(depths), samples) for x in (scores.exact, *scores))
    return [
        {
            "depth": float(depth),
            "exact": float(exact.mean()),
            "accuracy": float(right.sum() / counted.sum()),
            "log_likelihood": float(likelihood.mean()),
            "samples": samples,
        }
        for depth, exact, likelihood, right, counted in zip(depths, *by_depth, strict=True)
    ]


def row_size(hay: Hay, needle: Needle, length: int) -> int:
    """How many tokens the model reads for one sample: all but the last one of the answer.

    Raises ValueError where needle and question do not fit into the length.
    """
    row, _ = hay.row(needle.filled(np.random.default_rng(0)), length, 0.0, np.random.default_rng(0))
    return len(row) - 1
