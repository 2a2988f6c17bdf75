"""Series that surprise: a pattern with anomalies, a wave that changes its frequency; and four scenarios of them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Series = NDArray[np.float32]
Mask = NDArray[np.bool_]


def generate_repeating_with_anomalies(
    pattern: Sequence[float], repeats: int, anomaly_indices: Sequence[int], anomaly_value: float
) -> tuple[Series, Mask]:
    """Returns a pattern said `repeats` times with one value in place of others: series [T], and where they are [T].

    Raises:
      ValueError: an empty pattern, repeats below 1, or an index outside the series.

    >>> series, mask = generate_repeating_with_anomalies([1, 2], 2, [1], 9)
    >>> series.tolist(), mask.tolist()
    ([1.0, 9.0, 1.0, 2.0], [False, True, False, False])
    """
    length = len(pattern) * repeats
    if length < 1 or not all(0 <= index < length for index in anomaly_indices):
        raise ValueError(f"anomaly_indices: {list(anomaly_indices)}; each must be 0 or more and below {length}, the "
                         f"length of {len(pattern)} values {repeats} times, which must be at least 1")  # fmt: skip
    series, mask = np.tile(np.asarray(pattern, np.float32), repeats), np.zeros(length, bool)
    mask[list(anomaly_indices)] = True
    series[mask] = anomaly_value
    return series, mask


def generate_frequency_shift(
    length: int, base_freq: float, shifted_freq: float, shift_at: int
) -> tuple[Series, NDArray[np.int64]]:
    """Returns a sine that has another frequency from step `shift_at` on: series [length], and that step [1].

    Frequencies are in cycles a step. The phase goes on where it was: no value tells of the shift, only their order.

    Raises:
      ValueError: not 0 < shift_at < length.

    >>> series, shifts = generate_frequency_shift(6, 0.25, 0.5, shift_at=3)
    >>> np.abs(series).round(3).tolist(), shifts.tolist()
    ([0.0, 1.0, 0.0, 1.0, 1.0, 1.0], [3])
    """
    if not 0 < shift_at < length:
        raise ValueError(f"shift_at: {shift_at}; it must be above 0 and below the length, {length}")
    step = np.arange(length)
    cycles = base_freq * np.minimum(step, shift_at) + shifted_freq * np.maximum(step - shift_at, 0)
    return np.sin(2 * np.pi * cycles).astype(np.float32), np.array([shift_at])


class Scenario(NamedTuple):
    """A series, and how a memory reads it: once, or several times to compare.

    make: () -> series [T] and a mask [T] of the steps to mark, each a `mark`. learned: the step from which on the
    pattern has been seen twice. readings: by name, each one's momentum and forget rate. shows: what of several
    readings is compared, "momentum" or "weight_norm".
    """

    title: str
    make: Callable[[], tuple[Series, Mask]]
    learned: int
    mark: str = "anomaly"
    readings: Mapping[str, tuple[float, float]] = MappingProxyType({"momentum 0.9, forget rate 0.01": (0.9, 0.01)})
    shows: str | None = None


def _marked_shift(length: int, base_freq: float, shifted_freq: float, shift_at: int) -> tuple[Series, Mask]:
    series, shifts = generate_frequency_shift(length, base_freq, shifted_freq, shift_at)
    return series, np.isin(np.arange(length), shifts)


_SPIKES = functools.partial(generate_repeating_with_anomalies, (1, 2, 3, 4), 15, (12, 30, 45), 80)
SCENARIOS = {
    "1": Scenario(
        "A repeating pattern with anomalies",
        functools.partial(generate_repeating_with_anomalies, (1, 2, 3), 20, (14, 35, 50), 99),
        learned=6,
    ),
    "2": Scenario(
        "A wave that changes its frequency",
        functools.partial(_marked_shift, 200, 0.05, 0.2, 100),
        learned=40,
        mark="shift",
    ),
    "3": Scenario(
        "Momentum carries surprise on",
        _SPIKES,
        learned=8,
        readings={f"momentum {momentum}": (momentum, 0.01) for momentum in (0.0, 0.5, 0.9, 0.99)},
        shows="momentum",
    ),
    "4": Scenario(
        "Forgetting bounds the memory",
        _SPIKES,
        learned=8,
        readings={f"forget rate {rate}": (0.9, rate) for rate in (0.0, 0.005, 0.02, 0.1)},
        shows="weight_norm",
    ),
}
