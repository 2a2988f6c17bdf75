"""Batches of needle samples of one length: no padding is computed, and every length is compiled once."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from titans_jax.data import Needles


class Batch(NamedTuple):
    """tokens: int32 [batch, length] without padding. position: int32 [batch]. rows: int [batch], sample numbers."""

    tokens: NDArray[np.int32]
    position: NDArray[np.int32]
    rows: NDArray[np.int64]


def epoch(samples: Needles, batch: int, *, seed: int, number: int) -> list[Batch]:
    """The batches of epoch `number`, in an order drawn from (seed, number); partial batches are left out.

    Raises ValueError if no length has enough samples for a batch.
    """
    rng = np.random.default_rng((seed, number))
    rows = [rng.permutation(rows) for rows in _by_length(samples)]
    parts = [of_length[start : start + batch] for of_length in rows for start in range(0, len(of_length), batch)]
    full = [part for part in parts if len(part) == batch]
    if not full:
        raise ValueError(f"batch: {batch}; no length has so many of the {len(samples.length)} samples to train on")
    return [_batch(samples, full[i]) for i in rng.permutation(len(full))]


def in_order(samples: Needles, batch: int) -> Iterator[Batch]:
    """Every sample once, length by length; the last batch of a length repeats its last row up to `batch`."""
    for rows in _by_length(samples):
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            yield _batch(samples, np.pad(part, (0, batch - len(part)), mode="edge"))


def _by_length(samples: Needles) -> list[NDArray[np.int64]]:
    return [np.flatnonzero(samples.length == length) for length in np.unique(samples.length)]


def _batch(samples: Needles, rows: NDArray[np.int64]) -> Batch:
    return Batch(samples.tokens[rows, : samples.length[rows[0]]], samples.position[rows], rows)
