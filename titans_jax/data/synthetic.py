"""Made-up sequences that test a memory: a needle to find, pairs to recall; functions of a seed."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PAD, NEEDLE, NEEDLE_VOCAB = 0, 127, 128


class Needles(NamedTuple):
    """Needle samples. tokens: int32 [count, max(lengths)]. length, position: int32 [count]."""

    tokens: NDArray[np.int32]
    length: NDArray[np.int32]
    position: NDArray[np.int32]


def check_seed(field: str, seed: int) -> int:
    """Returns the seed. Raises ValueError unless it is in [0, 2**32): JAX keeps 32 bits, so others have its numbers."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"{field}={seed} must be in [0, 2**32)")
    return seed


def needles(seed: int, count: int, lengths: tuple[int, ...] = (64, 128, 256)) -> Needles:
    """Makes random sequences with one NEEDLE each; the label is its position.

    Args:
      seed: the samples are a function of it, of `count` and of `lengths`.
      count: number of samples.
      lengths: each sample's length is drawn from these.

    Returns: tokens 1..126 as hay, NEEDLE = 127 once per row at `position` < `length`, and PAD = 0 from `length` on.
    Raises ValueError: count or a length is below 1.
    """
    if count < 1 or not lengths or min(lengths) < 1:
        raise ValueError(f"needles need count >= 1 and lengths >= 1, got count={count}, lengths={lengths}")
    rng = np.random.default_rng(seed)
    length = rng.choice(np.asarray(lengths, np.int32), count)
    tokens = rng.integers(1, NEEDLE, (count, max(lengths)), dtype=np.int32)
    position = rng.integers(0, length, dtype=np.int32)
    tokens[np.arange(count), position] = NEEDLE
    tokens[np.arange(tokens.shape[1]) >= length[:, None]] = PAD
    return Needles(tokens, length, position)


def needle_splits(
    seed: int = 42, sizes: tuple[int, ...] = (8000, 1000, 1000), lengths: tuple[int, ...] = (64, 128, 256)
) -> tuple[Needles, ...]:
    """Makes disjoint sets of needle samples, by default 8,000 to train, 1,000 to validate and 1,000 to test.

    Raises ValueError: a size or a length is below 1.
    """
    if not sizes or min(sizes) < 1:
        raise ValueError(f"sizes must be at least 1, got {sizes}")
    samples = needles(seed, sum(sizes), lengths)
    bounds = np.cumsum((0, *sizes))
    return tuple(
        Needles(*(field[begin:end] for field in samples)) for begin, end in zip(bounds[:-1], bounds[1:], strict=True)
    )


def recall(seed: int, batch: int, *, pairs: int, queries: int, symbols: int = 64) -> dict[str, NDArray]:
    """Makes associative recall: pairs of a key and a value, then some of the keys again, in random order.

    The task MQAR of Zoology (Arora et al. 2023): it needs a memory that binds each value to its key.

    Args:
      seed: the batch is a function of it and of the sizes.
      batch: rows.
      pairs: pairs in a row, with distinct keys.
      queries: how many of the keys come again, each once.
      symbols: keys are 1..symbols, values symbols+1..2*symbols; 0 is not used, so the vocabulary is 2*symbols + 1.

    Returns: a batch as of `train_batches`, T = 2*(pairs + queries) - 1; the mask is 1 on the values of the queries.
    Raises ValueError: not 1 <= queries <= pairs <= symbols, or batch < 1.
    """
    if not (batch >= 1 and 1 <= queries <= pairs <= symbols):
        raise ValueError(
            "recall needs batch >= 1 and 1 <= queries <= pairs <= symbols, "
            f"got {batch=}, {queries=}, {pairs=}, {symbols=}"
        )
    rng = np.random.default_rng(seed)
    keys = rng.permuted(np.tile(np.arange(1, symbols + 1), (batch, 1)), axis=1)[:, :pairs]
    values = rng.integers(symbols + 1, 2 * symbols + 1, keys.shape)
    asked = rng.permuted(np.tile(np.arange(pairs), (batch, 1)), axis=1)[:, :queries]
    shown = np.stack([keys, values], axis=-1)
    again = np.take_along_axis(shown, asked[..., None], axis=1)
    rows = np.concatenate([shown, again], axis=1).reshape(batch, -1).astype(np.int32)
    mask = np.zeros((batch, rows.shape[1] - 1), np.float32)
    mask[:, 2 * pairs :: 2] = 1
    return {"inputs": rows[:, :-1], "targets": rows[:, 1:], "mask": mask, "reset": np.zeros(mask.shape, bool)}
