"""Facts in a text: a row tells a key and mentions it again later, so that training rewards a memory.

    ... in the harbour. The key: 481. He came ... the white whale. The key: 481. And the ship ...

Places and key are random. Every token has the weight 1 in the loss, and the key of a later mention WEIGHT: it alone
depends on what was told.
"""

import numpy as np
from numpy.typing import NDArray

from titans_jax.data.tasks.passkey import random_key
from titans_jax.data.tokenizer import Tokenizer

QUESTION, ANSWER = "The key:", " {key}."
FACT = QUESTION + ANSWER
MENTIONS, WEIGHT = 5, 6


def tell(
    tokens: NDArray[np.int32], tokenizer: Tokenizer, rng: np.random.Generator
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Write a fact MENTIONS times, or as often as it fits, over tokens [T + 1]; returns them, and weights [T]."""
    encode, key = tokenizer.encode, f" {random_key(rng)}"
    parts = encode(" " + QUESTION), encode(key), encode(". ")
    mention = np.concatenate(parts)
    count = min(MENTIONS, len(tokens) // len(mention))
    room = len(tokens) - count * len(mention)
    starts = np.sort(rng.integers(0, room + 1, count)) + np.arange(count) * len(mention)
    tokens, weights = tokens.copy(), np.ones(len(tokens), np.float32)
    for i, start in enumerate(starts):
        tokens[start : start + len(mention)] = mention
        first = start + len(parts[0])
        weights[first : first + len(parts[1])] = WEIGHT if i else 1
    return tokens, weights[1:]
