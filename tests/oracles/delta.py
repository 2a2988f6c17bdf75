"""Delta gradient descent by hand in float64 numpy, as in `recurrences`: the matrix, and x + gelu(x W1) W2."""

import numpy as np

from tests.oracles.recurrences import end_chunk, gelu, gelu_slope


def diagonal(keep, size):
    return np.eye(size) * keep


def dgd_linear(weights, q, k, v, rate, momentum, keep, chunk, clip=None):
    M = anchor = weights["w"]
    ys = []
    for t in range(len(k)):
        key = k[t][None]
        decay = diagonal(keep[t], len(M)) - rate[t] * key.T @ key
        M = decay @ M - rate[t] * key.T @ (key @ anchor - v[t][None])
        ys.append(q[t] @ M)
        if (t + 1) % chunk == 0:
            ended, _ = end_chunk({"w": M}, {"w": anchor}, [], clip)
            M = anchor = ended["w"]
    return np.array(ys), {"w": M}


def network(weights, x):
    return x + gelu(x @ weights["w1"]) @ weights["w2"]


def gradient(weights, x, target):
    """Of ||M(x) - target||^2 / 2."""
    before = x @ weights["w1"]
    error = network(weights, x) - target
    return {
        "w1": np.outer(x, (weights["w2"] @ error) * gelu_slope(before)),
        "w2": np.outer(gelu(before), error),
    }


def dgd(weights, q, k, v, rate, momentum, keep, chunk, clip=None, to_origin=False):
    """The matrix decay on w1 alone. to_origin: keep takes W - W_0 and the erasing W itself."""
    start = weights if to_origin else {name: np.zeros_like(w) for name, w in weights.items()}
    anchor, ys = weights, []
    for t in range(len(k)):
        g, D = gradient(anchor, k[t], v[t]), len(k[t])
        w1, w2 = weights["w1"], weights["w2"]
        kept1 = start["w1"] + diagonal(keep[t], D) @ (w1 - start["w1"])
        kept2 = start["w2"] + (w2 - start["w2"]) @ diagonal(keep[t], D)
        weights = {
            "w1": kept1 - rate[t] * np.outer(k[t], k[t]) @ w1 - rate[t] * g["w1"],
            "w2": kept2 - rate[t] * g["w2"],
        }
        ys.append(network(weights, q[t]))
        if (t + 1) % chunk == 0:
            weights, _ = end_chunk(weights, anchor, [], clip)
            anchor = weights
    return np.array(ys), weights


def self_modifying(weights, q, x, kernel, bias, max_rate, chunk, clip, learns=range(5)):
    """Five memories x + gelu(x W1) W2 that make keys, values, gates and targets; y_t is read before the write of t.

    learns: which of them are written.
    """
    anchors, ys = list(weights), []
    weights = list(weights)
    for t in range(len(q)):
        key, value, *signals = (network(anchors[i], x[t]) for i in range(4))
        key = key / np.sqrt((key * key).sum() + 1e-6)
        rate, keep = (1 / (1 + np.exp(-(kernel[i] @ signals[i] + bias[i]))) for i in range(2))
        rate *= max_rate
        ys.append(network(weights[4], q[t]))
        for i in learns:
            g = gradient(anchors[i], key, network(anchors[i], value))
            w1, w2 = weights[i]["w1"], weights[i]["w2"]
            w1 = keep * w1 - rate * np.outer(key, key) @ w1 - rate * g["w1"]
            weights[i] = {"w1": w1, "w2": keep * w2 - rate * g["w2"]}
        if (t + 1) % chunk == 0:
            weights = [end_chunk(w, anchor, [], clip)[0] for w, anchor in zip(weights, anchors, strict=True)]
            anchors = list(weights)
    return np.array(ys), weights
