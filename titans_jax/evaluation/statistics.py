"""Statistics of a reading: what heads and layers attend to, and what the fast weights learned."""

import numpy as np
from numpy.typing import NDArray

from titans_jax.evaluation.introspect import Reading
from titans_jax.nn import Attended


def square(weights: NDArray) -> NDArray:
    """Weights by distance [..., T, W] -> maps [..., T, T]: row t, column s is the weight of token t on token s.

    >>> square(np.array([[1.0, 0.0], [0.25, 0.75]])).tolist()
    [[1.0, 0.0], [0.75, 0.25]]
    """
    length, width = weights.shape[-2:]
    back = np.arange(length)[:, None] - np.arange(length)
    near = (back >= 0) & (back < width)
    index = np.broadcast_to(np.where(near, back, 0), (*weights.shape[:-1], length))
    return np.where(near, np.take_along_axis(weights, index, -1), 0)


def head_numbers(attended: Attended) -> dict[str, NDArray]:
    """How the heads differ: means over tokens, [layers, heads].

    distance: how far back the weight is, in tokens.
    reach: exp(entropy) of the weights, the effective number of things read at once.
    Both are of the weight on tokens and on what MAC's memory gave for them.
    read, persistent: the share of the weight on MAC's memory, and on the persistent tokens.
    """
    near = attended.tokens + attended.read
    whole = near.sum(-1)
    tiny = np.finfo(near.dtype).tiny
    distance = (near * np.arange(near.shape[-1])).sum(-1) / np.maximum(whole, tiny)
    parts = np.concatenate([attended.tokens, attended.read], -1) / np.maximum(whole, tiny)[..., None]
    reach = np.exp(-(parts * np.log(np.maximum(parts, tiny))).sum(-1))
    numbers = {"distance": distance, "reach": reach, "read": attended.read.sum(-1), "persistent": 1 - whole}
    return {name: values.mean(-1) for name, values in numbers.items()}


def effective_rank(matrix: NDArray) -> float:
    """exp of the entropy of the singular values' shares (Roy and Vetterli, 2007): n for n equal ones, 0 for zeros.

    >>> float(round(effective_rank(np.diag([2.0, 2.0, 0.0])), 6)), effective_rank(np.zeros((3, 2)))
    (2.0, 0.0)
    """
    sizes = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
    if not sizes.sum() > 0:
        return 0.0
    shares = sizes[sizes > 0] / sizes.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def learned(reading: Reading) -> dict[str, dict[int, NDArray]]:
    """How the fast weights changed, by layer, at each of `reading.ends`: means over heads, [ends].

    rank: effective rank of the weights, mean over a memory's matrices.
    change_rank: effective rank of their change since the beginning.
    drift: norm of that change over the norm at the beginning.
    """
    found: dict[str, dict[int, NDArray]] = {"rank": {}, "change_rank": {}, "drift": {}}
    for layer, first in reading.weights[0].items():
        later = [weights[layer] for weights in reading.weights]
        changes = [{name: w - first[name] for name, w in weights.items()} for weights in later]
        initial = _norms(first)
        found["rank"][layer] = np.array([_mean_rank(weights) for weights in later])
        found["change_rank"][layer] = np.array([_mean_rank(change) for change in changes])
        found["drift"][layer] = np.array([(_norms(change) / np.maximum(initial, 1e-30)).mean() for change in changes])
    return found


def _mean_rank(weights: dict[str, NDArray]) -> float:
    return float(np.mean([effective_rank(matrix) for stack in weights.values() for matrix in stack]))


def _norms(weights: dict[str, NDArray]) -> NDArray:
    """[heads] over all of a memory's matrices."""
    return np.sqrt(sum(np.square(w).sum((1, 2)) for w in weights.values()))
