"""How well a model finds needles, by length and by position in the sequence."""

from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from titans_jax.data import Needles
from titans_jax.metrics import Progress
from titans_jax.needle.model import TitanMin
from titans_jax.needle.samples import in_order

BINS = 10


class Predictions(NamedTuple):
    """For each sample, in the samples' order.

    length: of the sample. position: of the needle. predicted: the model's answer, with the probability confidence.
    nll: the negative logarithm of the probability of the true position, in nats.
    """

    length: NDArray[np.int32]
    position: NDArray[np.int32]
    predicted: NDArray[np.int32]
    confidence: NDArray[np.float32]
    nll: NDArray[np.float32]


def predict(model: TitanMin, samples: Needles, batch: int = 32, bar: Progress | None = None) -> Predictions:
    """The model's answers, with progress at `bar`; its memory starts from its initial weights in every sequence."""
    graphdef, params = nnx.split(model)
    count = len(samples.length)
    predicted, confidence, nll = np.zeros(count, np.int32), np.zeros(count, np.float32), np.zeros(count, np.float32)
    for part in in_order(samples, batch):
        found = np.asarray(log_probabilities(graphdef, params, part.tokens))
        predicted[part.rows] = found.argmax(1)
        confidence[part.rows] = np.exp(found.max(1))
        nll[part.rows] = -found[np.arange(len(found)), part.position]
        if bar is not None:
            bar.advance(len(np.unique(part.rows)), tokens=part.tokens.size)
    return Predictions(samples.length, samples.position, predicted, confidence, nll)


@jax.jit(static_argnums=0)
def log_probabilities(graphdef: Any, params: Any, tokens: jax.Array) -> jax.Array:
    """Tokens [B, T] -> the logarithm of each position's probability, [B, T]."""
    return jax.nn.log_softmax(nnx.merge(graphdef, params)(tokens)[0])


def score(found: Predictions) -> dict[str, Any]:
    """accuracy, loss (nats), mean_distance (positions), acc_by_L, and acc_by_pos_bin: by tenth of the sequence.

    >>> five = np.array([0, 3, 4, 9, 2])
    >>> found = Predictions(np.full(5, 10), five, np.array([0, 3, 4, 8, 2]), np.ones(5), np.full(5, 0.5))
    >>> scores = score(found)
    >>> scores["accuracy"], scores["mean_distance"], scores["acc_by_L"], scores["acc_by_pos_bin"][9]
    (0.8, 0.2, {'10': 0.8}, 0.0)
    """
    right = found.predicted == found.position
    bins = found.position * BINS // found.length
    return {
        "accuracy": float(right.mean()),
        "loss": float(found.nll.mean()),
        "mean_distance": float(abs(found.predicted - found.position).mean()),
        "acc_by_L": {str(length): float(right[found.length == length].mean()) for length in np.unique(found.length)},
        "acc_by_pos_bin": [float(right[bins == i].mean()) if (bins == i).any() else None for i in range(BINS)],
    }
