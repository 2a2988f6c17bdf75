"""Surprise as an anomaly score, and how well it finds the anomalies."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

THRESHOLD = 5.0
"""A step counts as an anomaly where its score is above this."""


def anomaly_scores(surprise: ArrayLike, *, window: int = 20, recent: int = 5) -> NDArray[np.float64]:
    """Divide each step's surprise by what is usual, judged from earlier steps alone.

    Usual is the 90th percentile of the last `window` surprises, or the largest of the last `recent` if that is more:
    steps right after an anomaly are predicted from it, and must not count as further anomalies.

    Args:
      surprise: [T], 0 or more.
      window, recent: steps.

    Returns scores [T]; the first one is 0.

    Raises ValueError: surprise is not [T] or somewhere negative, or not 1 <= recent <= window.

    >>> anomaly_scores([1, 1, 2, 1, 90, 9, 1, 1], window=3, recent=2).round(1).tolist()
    [0.0, 1.0, 2.0, 0.5, 45.0, 0.1, 0.0, 0.0]
    """
    values = np.asarray(surprise, np.float64)
    if values.ndim != 1 or not 1 <= recent <= window:
        raise ValueError(f"anomaly_scores: surprise {values.shape}, window {window}, recent {recent}; "
                         "expected surprise [T] and 1 <= recent <= window")  # fmt: skip
    if (values < 0).any():
        raise ValueError("anomaly_scores: surprise is below 0; expected an error, and dot products are none")
    if len(values) < 2:
        return np.zeros(len(values))
    padded = np.concatenate([np.full(window, np.nan), values[:-1]])
    before = np.lib.stride_tricks.sliding_window_view(padded, window)[1:]  # [T - 1, window]
    usual = np.maximum(np.nanquantile(before, 0.9, axis=1), np.nanmax(before[:, -recent:], axis=1))
    return np.concatenate([[0.0], values[1:] / np.maximum(usual, 1e-30)])


def precision_recall(predicted: ArrayLike, mask: ArrayLike) -> tuple[float, float]:
    """Compare predicted anomalies with the true ones.

    predicted, mask: [T] bool. Returns precision, the share of predicted steps that are in the mask, and recall, the
    share of the mask that was predicted; either is nan where there is nothing to divide by. Raises ValueError if
    lengths differ.

    >>> precision_recall([True, True, False, False], [True, False, False, True])
    (0.5, 0.5)
    """
    positive, true = np.asarray(predicted, bool), np.asarray(mask, bool)
    if positive.shape != true.shape:
        raise ValueError(f"predicted and mask: shapes {positive.shape} and {true.shape}; expected the same [T]")
    hits = float((positive & true).sum())
    precision, recall = (hits / x.sum() if x.any() else float("nan") for x in (positive, true))
    return float(precision), float(recall)


def percentile_of_others(surprise: ArrayLike, mask: ArrayLike, first: int = 0, percent: float = 99.0) -> float:
    """A percentile of the surprise of ordinary steps: those from `first` on that are not in the mask.

    surprise, mask: [T].

    >>> percentile_of_others([9, 1, 2, 50, 3], [False, False, False, True, False], first=1, percent=50)
    2.0
    """
    values, others = np.asarray(surprise, np.float64), ~np.asarray(mask, bool)
    return float(np.percentile(values[first:][others[first:]], percent))
