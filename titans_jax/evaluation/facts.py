"""Texts that tell a fact at their beginning, with controls and twins: what an audit reads."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from titans_jax.data import Tokenizer
from titans_jax.evaluation.haystack import Hay, Needle


class Facts(NamedTuple):
    """Texts, each with a fact of its own.

    texts: int32 [B, T]. controls: the same with other text in place of the fact. twins: with another key in the fact.
    question: int32 [Q], of all. answers: int32 [B, A].
    fact_end: the index after the fact's last token.
    answer_start: the index of the answer's first token in the fact; None if the fact has other tokens.
    """

    texts: NDArray[np.int32]
    controls: NDArray[np.int32]
    twins: NDArray[np.int32]
    question: NDArray[np.int32]
    answers: NDArray[np.int32]
    fact_end: int
    answer_start: int | None


def size(needle: Needle, tokenizer: Tokenizer) -> int:
    """The length of a text that holds the separator, the needle and the question, and no hay."""
    needle = needle.filled(np.random.default_rng(0))
    return 1 + sum(len(tokenizer.encode(part)) for part in (needle.text + " ", "\n" + needle.question))


def make_facts(hay: Hay, needle: Needle, length: int, samples: int, seed: int) -> Facts:
    """Texts of `length` tokens, question included, that begin with their fact.

    Keys that take another number of tokens than the first one are left out, so that all texts have one length.
    Raises ValueError as `Hay.row`, and where too few keys are as long as the first.
    """
    encode = hay.tokenizer.encode
    question = encode("\n" + needle.question)
    made: list[tuple[NDArray, ...]] = []
    for sample in range(100 * samples):
        rng = np.random.default_rng((seed, sample))
        one = needle.filled(rng)
        row, count = hay.row(one, length, 0.0, rng)
        other = needle.filled(rng)
        text, fact, changed = row[: -count - len(question)], encode(one.text + " "), encode(other.text + " ")
        end = 1 + len(fact)
        control = np.concatenate([row[:1], row[end : 2 * end - 1], text[end:]])
        twin = np.concatenate([row[:1], changed, text[end:]]).astype(np.int32)
        parts = (text, control, twin, row[-count:], fact)
        sizes = [len(part) for part in (text, control, text, *parts[3:])]
        same = not made or [len(part) for part in made[0]] == sizes
        if same and [len(part) for part in parts] == sizes and one != other:
            made.append(parts)
        if len(made) == samples:
            texts, controls, twins, answers, facts = map(np.stack, zip(*made, strict=True))
            return Facts(texts, controls, twins, question, answers, end, _place(facts, answers))
    raise ValueError(f"digits: few keys of {needle.digits} digits take as many tokens as the first; give fewer digits")


def _place(facts: NDArray[np.int32], answers: NDArray[np.int32]) -> int | None:
    """The index of the answers in rows of the separator and the facts; None if not all have them at one place."""
    windows = np.lib.stride_tricks.sliding_window_view(facts, answers.shape[1], axis=1)
    found = (windows == answers[:, None]).all((0, 2))
    return 1 + int(found.argmax()) if found.any() else None
