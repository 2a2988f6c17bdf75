"""Formal languages: the label of every symbol says whether the text so far is a word, or gives its value.

Symbols are letters and labels are digits, all as bytes. About half of the rows are words, so that a constant answer
scores badly. The mask is 1 everywhere.
"""

import numpy as np
from numpy.typing import NDArray

from titans_jax.data.tasks.base import Row

A, B, ZERO = ord("a"), ord("b"), ord("0")


def parity(rng: np.random.Generator, length: int) -> Row:
    """Letters a and b at random; the label is whether the number of b's is odd.

    >>> row = parity(np.random.default_rng(1), 8)
    >>> bytes(row.inputs.astype(np.uint8)), bytes(row.targets.astype(np.uint8))
    (b'abbbaabb', b'01011101')
    """
    ones = rng.integers(2, size=length)
    return _row(A + ones, np.cumsum(ones) % 2)


def repeated(rng: np.random.Generator, length: int, word: bytes) -> Row:
    """(word)*: the label is 1 after whole copies of the word, and always 0 after a wrong letter.

    Half of the rows have one.
    """
    right = np.resize(np.frombuffer(word, np.uint8), length).astype(int)
    letters = right.copy()
    if rng.integers(2):
        wrong = rng.integers(length)
        letters[wrong] = A + B - letters[wrong]
    whole = np.arange(1, length + 1) % len(word) == 0
    return _row(letters, whole & np.logical_and.accumulate(letters == right))


def counted(rng: np.random.Generator, length: int) -> Row:
    """a^n b^n: runs of a's and b's; the label is 1 where the text so far is n a's and n b's."""
    runs = rng.integers(1, max(2, length // 2), size=4)
    if rng.integers(2):
        runs[1] = runs[0]
    letters = np.resize(np.repeat([A, B, A, B], runs), length)
    bs = np.cumsum(letters == B)
    shape = np.maximum.accumulate(letters) == letters  # no a after a b
    return _row(letters, (2 * bs == np.arange(1, length + 1)) & np.logical_and.accumulate(shape))


def modular(rng: np.random.Generator, length: int) -> Row:
    """Digits 0 to 4 with +, - and * between, computed from left to right; the label is the value modulo 5."""
    digits = rng.integers(5, size=(length + 1) // 2)
    signs = np.frombuffer(b"+-*", np.uint8)[rng.integers(3, size=length // 2)]
    symbols = np.empty(length, int)
    symbols[::2], symbols[1::2] = ZERO + digits, signs
    value, values = int(digits[0]), []
    for i, symbol in enumerate(symbols.tolist()):
        if i and i % 2 == 0:
            value = {"+": value + symbol - ZERO, "-": value - symbol + ZERO, "*": value * (symbol - ZERO)}[
                chr(symbols[i - 1])
            ] % 5
        values.append(value)
    return _row(symbols, np.array(values))


def _row(letters: NDArray, labels: NDArray) -> Row:
    return Row(letters.astype(np.int32), ZERO + labels.astype(np.int32), np.ones(len(letters), np.float32))
