"""Surprise as an anomaly score, and how well it finds what was hidden."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

FOUND = 5.0
"""The anomaly score above which a step counts as found."""


def anomaly_scores(surprise: ArrayLike, *, window: int = 20, wake: int = 5) -> NDArray[np.float64]:
    """How many times what is usual each step's surprise is, judged by the steps before alone.

    Usual is the 90th percentile of the last `window` surprises, or the largest of the last `wake` if that is more: what
    follows an anomaly is predicted from it, and is no second one. surprise: [T], >= 0. Returns [T], 0 for the first.

    Raises:
      ValueError: surprise is not [T] or somewhere negative, or not 1 <= wake <= window.

    >>> anomaly_scores([1, 1, 2, 1, 90, 9, 1, 1], window=3, wake=2).round(1).tolist()
    [0.0, 1.0, 2.0, 0.5, 45.0, 0.1, 0.0, 0.0]
    """
    values = np.asarray(surprise, np.float64)
    if values.ndim != 1 or not 1 <= wake <= window:
        found = f"surprise {values.shape}, window {window}, wake {wake}"
        raise ValueError(f"anomaly_scores: {found}; expected surprise [T] and 1 <= wake <= window")
    if (values < 0).any():
        raise ValueError(
            "anomaly_scores: surprise below 0; expected a loss that is an error, which dot products are not"
        )
    if len(values) < 2:
        return np.zeros(len(values))
    padded = np.concatenate([np.full(window, np.nan), values[:-1]])
    before = np.lib.stride_tricks.sliding_window_view(padded, window)[1:]  # of the steps from the second on
    usual = np.maximum(np.nanquantile(before, 0.9, axis=1), np.nanmax(before[:, -wake:], axis=1))
    return np.concatenate([[0.0], values[1:] / np.maximum(usual, 1e-30)])


def precision_recall(found: ArrayLike, mask: ArrayLike) -> tuple[float, float]:
    """Precision, the share of steps found that are in the mask, and recall, the share of the mask that was found.

    found, mask: [T] bool. Either is nan where there is nothing to divide by. Raises ValueError if lengths differ.

    >>> precision_recall([True, True, False, False], [True, False, False, True])
    (0.5, 0.5)
    """
    one, other = np.asarray(found, bool), np.asarray(mask, bool)
    if one.shape != other.shape:
        raise ValueError(f"found and mask: shapes {one.shape} and {other.shape}; expected the same [T]")
    hits = float((one & other).sum())
    return tuple(hits / count if (count := int(x.sum())) else float("nan") for x in (one, other))  # type: ignore[return-value]


def percentile_of_others(surprise: ArrayLike, mask: ArrayLike, first: int = 0, percent: float = 99.0) -> float:
    """A percentile of the surprise [T] of the steps from `first` on that are not in the mask [T].

    >>> percentile_of_others([9, 1, 2, 50, 3], [False, False, False, True, False], first=1, percent=50)
    2.0
    """
    values, others = np.asarray(surprise, np.float64), ~np.asarray(mask, bool)
    return float(np.percentile(values[first:][others[first:]], percent))
