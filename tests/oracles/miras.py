"""MIRAS' recurrences (arXiv 2504.13173) by hand in float64 numpy, as in `recurrences`: biases and links.

Equation numbers are the paper's. A bias here is its gradient by the prediction, (r, threshold) -> [D], r = M(k) - v.
Every oracle starts at the dual A_0 and returns y and the last dual.
"""

import numpy as np

from tests.oracles.recurrences import decay, end_chunk, residual_mlp, residual_mlp_back

A = 10.0  # of the smooth sign


def smooth_abs(r):
    return np.sqrt(r**2 + 1e-6)


def l2(r, threshold):
    return 2 * r


def l1(r, threshold):
    """Eq 12."""
    return np.tanh(A * r)


def lp(p):
    """Eq 11."""
    return lambda r, threshold: p * np.tanh(A * r) * smooth_abs(r) ** (p - 1)


def huber_of_coordinates(r, threshold):
    """Eq 14."""
    return np.where(np.abs(r) <= threshold, r, threshold * np.sign(r))


def huber_of_norm(r, threshold):
    """Eq 15."""
    size = np.sqrt((r**2).sum())
    return r if size <= threshold else threshold * r / size


def mixture(r, threshold):
    """Eq 16."""
    return l2(r, None) if np.sqrt((r**2).sum()) <= threshold else threshold * l1(r, None)


def value_shift(radius):
    """Eq 17."""
    return lambda r, threshold: r + radius * r / np.sqrt((r**2).sum() + 1e-6)


def same(a):
    return a


def soft_threshold(g):
    """Eq 22-23."""
    return lambda a: np.where(a > g, a - g, np.where(a < -g, a + g, 0.0))


def mirror(q):
    return lambda a: np.sign(a) * np.abs(a) ** (q - 1) / (np.abs(a) ** q).sum() ** ((q - 2) / q)


def literal(q):
    """Eq 24."""
    return lambda a: a / (np.abs(a) ** q).sum() ** ((q - 2) / q)


def softmax(scale):
    """Eq 21; scale None is the fan-in."""

    def link(a):
        e = np.exp(a)
        return (len(a) if scale is None else scale) * e / e.sum(0)

    return link


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def miras(predict, back, bias, link, every="chunk"):
    """A_t = keep A_{t-1} - rate g, g at the chunk's start. W_t: link(A_t) at every token; or as A_t inside a chunk."""

    def oracle(weights, q, k, v, rate, momentum, keep, chunk, clip=None, threshold=None):
        dual, ys = weights, []
        base, anchor = dual, linked(dual)
        weights = anchor
        for t in range(len(k)):
            delta = 1.0 if threshold is None else threshold[t]
            g = back(anchor, k[t], lambda y, t=t, delta=delta: bias(y - v[t], delta))
            dual, moved = decay(dual, keep[t]), decay(weights, keep[t])
            dual = {name: dual[name] - rate[t] * g[name] for name in g}
            moved = {name: moved[name] - rate[t] * g[name] for name in g}
            weights = linked(dual) if every == "token" else moved
            ys.append(predict(weights, q[t]))
            if (t + 1) % chunk == 0:
                dual, _ = end_chunk(dual, base, [], clip)
                base, anchor = dual, linked(dual)
                weights = anchor
        return np.array(ys), dual

    def linked(dual):
        return {name: link(a) for name, a in dual.items()}

    return oracle


def mlp(bias, link, every="chunk"):
    """With a residual MLP for a memory."""
    return miras(residual_mlp, residual_mlp_back, bias, link, every)


def matrix(bias, link, every="chunk"):
    """With one matrix for a memory; its decay is one number."""
    return miras(
        lambda weights, x: x @ weights["w1"],
        lambda weights, x, slope: {"w1": np.outer(x, slope(x @ weights["w1"]))},
        bias,
        link,
        every,
    )


def memora_in_weights(weights, q, k, v, rate, keep):
    """Eq 27 as printed, token by token: W_t = c softmax(keep log W_{t-1} - rate grad l2(W_{t-1})), c the fan-in."""
    ys = []
    for t in range(len(k)):
        g = residual_mlp_back(weights, k[t], lambda y, t=t: l2(y - v[t], None))
        weights = {n: softmax(None)(keep[t] * np.log(w) - rate[t] * g[n]) for n, w in weights.items()}
        ys.append(residual_mlp(weights, q[t]))
    return np.array(ys), weights


ORACLES = {
    "moneta": mlp(lp(3), mirror(4)),
    "yaad": mlp(huber_of_norm, same),
    "memora": mlp(l2, softmax(None)),
}
