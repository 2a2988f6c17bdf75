"""How far apart two results may be. There are two kinds of tolerance, and no third.

Float64 against float64, or float32 where rounding is far below: `close`, with a number. The number is at least three
times the largest error seen on ten seeds; most are a thousand times it.

Float32 where rounding is amplified: `as_precise`, without a number. The program under test may have three times the
rounding error of the program that it is held to, both measured against that program in float64. Medians over ten seeds
are compared: the errors of one seed differ by factors of five, by luck; the medians by less than two.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

MARGIN = 3.0
SEEDS = range(10)
ROUNDING = float(np.finfo(np.float32).eps) / 2


def errors(got: Any, want: Any, what: str = "") -> dict[str, float]:
    """Of each array the largest error, relative to 1 + the largest entry of the wanted. All must be finite."""
    found = {}
    paths = jax.tree_util.tree_leaves_with_path(want)
    for (path, b), a in zip(paths, jax.tree.leaves(got), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        label = what + jax.tree_util.keystr(path)
        assert a.shape == b.shape, label
        assert np.isfinite(a).all() and np.isfinite(b).all(), f"{label} is not finite"
        if a.size:
            found[label] = float(np.abs(a - b).max() / (1 + np.abs(b).max()))
    return found


def close(got: Any, want: Any, tolerance: float, what: str = "") -> None:
    """Every entry finite, and within the tolerance of the wanted, relative to 1 + the array's largest."""
    for label, error in errors(got, want, what).items():
        assert error <= tolerance, f"{label}: off by {error:.1e}"


def as_precise(got: Sequence[Any], reference: Sequence[Any], exact: Sequence[Any], what: str) -> None:
    """One result a seed: of the program under test and of its reference in float32, and of the reference in float64."""
    found, allowed = (
        np.median([max(errors(x, y, what).values()) for x, y in zip(results, exact, strict=True)])
        for results in (got, reference)
    )
    assert found <= MARGIN * max(allowed, ROUNDING), f"{what}: off by {found:.1e}, the reference by {allowed:.1e}"
