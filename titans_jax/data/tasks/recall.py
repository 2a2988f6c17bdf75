"""Recall and copying with tokens, in the style of MQAR (Arora et al. 2023) and of MAD (Poli et al. 2024).

Ids are below 255. Of MAD's six tasks these are four; its compression and fuzzy recall are not here.
"""

import numpy as np

from titans_jax.data.synthetic import recall
from titans_jax.data.tasks.base import Row

SYMBOLS = 64
MARK = 2 * SYMBOLS + 1


def mqar(rng: np.random.Generator, length: int, symbols: int = SYMBOLS) -> Row:
    """`synthetic.recall`: a quarter of the row shows pairs, a quarter asks for each; filler (0) between."""
    pairs = max(1, min(length // 8, symbols))
    made = recall(int(rng.integers(2**32)), 1, pairs=pairs, queries=pairs, symbols=symbols)
    inputs, targets = np.zeros(length, np.int32), np.zeros(length, np.int32)
    mask = np.zeros(length, np.float32)
    shown, asked = slice(0, 2 * pairs), slice(length - 2 * pairs + 1, length)
    inputs[shown], inputs[asked] = made["inputs"][0, : 2 * pairs], made["inputs"][0, 2 * pairs :]
    targets[asked], mask[asked] = made["targets"][0, 2 * pairs :], made["mask"][0, 2 * pairs :]
    return Row(inputs, targets, mask)


def in_context(rng: np.random.Generator, length: int, noise: float = 0.0) -> Row:
    """Random pairs of a key and its value; a value counts where its key was shown before.

    noise: the share of pairs, about, that are noise, from ids of their own.
    """
    count = length // 2 + 1
    keys = rng.integers(1, 17, count)
    values = rng.integers(SYMBOLS + 1, SYMBOLS + 17, 17)[keys]
    noisy = rng.uniform(size=count) < noise
    pairs = np.stack([keys, values], 1)
    pairs[noisy] = rng.integers(2 * SYMBOLS + 2, 2 * SYMBOLS + 34, (int(noisy.sum()), 2))
    seen = np.array([key in keys[:i][~noisy[:i]] for i, key in enumerate(keys)]) & ~noisy
    tokens, counts = pairs.ravel(), np.stack([np.zeros(count, bool), seen], 1).ravel()
    return _next(tokens[: length + 1], counts[: length + 1])


def selective_copy(rng: np.random.Generator, length: int) -> Row:
    """Symbols scattered among filler (0), then a mark, then the symbols in their order."""
    count = max(1, length // 8)
    symbols = rng.integers(1, SYMBOLS + 1, count)
    tokens = np.zeros(length + 1, int)
    tokens[np.sort(rng.permutation(length - count)[:count])] = symbols
    tokens[length - count] = MARK
    tokens[length - count + 1 :] = symbols
    return _next(tokens, np.arange(length + 1) > length - count)


def memorised(rng: np.random.Generator, length: int) -> Row:
    """Keys and values that are the same in all rows: only weights can know them, no context has them."""
    table = np.random.default_rng(0).integers(SYMBOLS + 1, 2 * SYMBOLS + 1, SYMBOLS + 1)
    keys = rng.integers(1, SYMBOLS + 1, length // 2 + 1)
    tokens = np.stack([keys, table[keys]], 1).ravel()[: length + 1]
    return _next(tokens, np.arange(length + 1) % 2 == 1)


def _next(tokens: np.ndarray, counts: np.ndarray) -> Row:
    tokens = tokens.astype(np.int32)
    return Row(tokens[:-1], tokens[1:], counts[1:].astype(np.float32))
