"""Made-up series with a known surprise: a repeating pattern with anomalies, and a wave that changes its frequency."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Series = NDArray[np.float32]
Mask = NDArray[np.bool_]


def generate_repeating_with_anomalies(
    pattern: Sequence[float], repeats: int, anomaly_indices: Sequence[int], anomaly_value: float
) -> tuple[Series, Mask]:
    """Repeat a pattern and replace some of its values by an anomaly.

    Returns the series [T], and a mask [T] of the anomalies.
    Raises ValueError: an empty pattern, repeats below 1, or an index outside the series.

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
    """Make a sine wave whose frequency changes at step `shift_at`.

    Frequencies are in cycles per step. The phase is continuous, so no single value reveals the shift.
    Returns the series [length], and the step of the shift [1].
    Raises ValueError: not 0 < shift_at < length.

    >>> series, shifts = generate_frequency_shift(6, 0.25, 0.5, shift_at=3)
    >>> np.abs(series).round(3).tolist(), shifts.tolist()
    ([0.0, 1.0, 0.0, 1.0, 1.0, 1.0], [3])
    """
    if not 0 < shift_at < length:
        raise ValueError(f"shift_at: {shift_at}; it must be above 0 and below the length, {length}")
    step = np.arange(length)
    cycles = base_freq * np.minimum(step, shift_at) + shifted_freq * np.maximum(step - shift_at, 0)
    return np.sin(2 * np.pi * cycles).astype(np.float32), np.array([shift_at])
