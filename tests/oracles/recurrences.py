"""The published recurrences, written out by hand in float64 numpy: token by token, gradients derived on paper.

Nothing here knows titans_jax. Every oracle takes weights, q, k, v [T, D], rate and momentum [T], keep [T] or [T, D],
the chunk and the clip (None: the paper), starts at a chunk's start with no momentum, and returns y [T, D] and the last
weights. A keep per channel multiplies the first matrix' rows and the last one's columns, its mean what lies between.
"""

import math

import numpy as np

erf = np.vectorize(math.erf)


def gelu(x):
    return x * (1 + erf(x / 2**0.5)) / 2


def gelu_slope(x):
    return (1 + erf(x / 2**0.5)) / 2 + x * np.exp(-x * x / 2) / (2 * np.pi) ** 0.5


def layer_norm(x):
    x = x - x.mean()
    return x / np.sqrt((x * x).mean() + 1e-6)


def layer_norm_back(x, dy):
    """From the cotangent of layer_norm(x) to that of x."""
    centred = x - x.mean()
    inverse = 1 / np.sqrt((centred * centred).mean() + 1e-6)
    y = centred * inverse
    return inverse * (dy - dy.mean() - y * (dy * y).mean())


def residual_mlp(weights, x):
    """x + LN(gelu(... gelu(x W1) ...) Wn), the weights named w1 .. wn, with biases b1 .. bn where there are any.

    A bias b_i is a weight of the constant 1 / sqrt(D), D channels of the input of W_i.
    """
    h = x
    for i in range(1, depth(weights) + 1):
        h = (h if i == 1 else gelu(h)) @ weights[f"w{i}"] + bias(weights, i)
    return x + layer_norm(h)


def residual_mlp_gradient(weights, x, target, scale):
    """The gradient of scale ||M(x) - target||^2, by hand."""
    return residual_mlp_back(weights, x, lambda y: 2 * scale * (y - target))


def residual_mlp_back(weights, x, slope):
    """The gradient of a loss of M(x) with slope(M(x)) for its gradient, by hand."""
    n, before, after = depth(weights), [x], []
    for i in range(1, n + 1):
        after.append(before[-1] @ weights[f"w{i}"] + bias(weights, i))
        before.append(gelu(after[-1]))
    delta, gradient = layer_norm_back(after[-1], slope(x + layer_norm(after[-1]))), {}
    for i in range(n, 0, -1):
        gradient[f"w{i}"] = np.outer(before[i - 1], delta)
        if f"b{i}" in weights:
            gradient[f"b{i}"] = delta[None] / np.sqrt(len(weights[f"w{i}"]))
        if i > 1:
            delta = (weights[f"w{i}"] @ delta) * gelu_slope(after[i - 2])
    return gradient


def depth(weights):
    return sum(name.startswith("w") for name in weights)


def bias(weights, i):
    return weights[f"b{i}"][0] / np.sqrt(len(weights[f"w{i}"])) if f"b{i}" in weights else 0.0


def decay(weights, keep):
    """keep * W for every matrix of a residual MLP."""
    if np.ndim(keep) == 0:
        return {name: keep * w for name, w in weights.items()}
    last, kept = f"w{depth(weights)}", {name: keep.mean() * w for name, w in weights.items()}
    kept[last] = weights[last] * keep[None, :]
    kept["w1"] = keep[:, None] * weights["w1"]
    return kept


def size(tree):
    return math.sqrt(sum((x * x).sum() for x in tree.values()))


def cut(tree, bound):
    return {name: x * min(1.0, bound / max(size(tree), 1e-300)) for name, x in tree.items()}


def end_chunk(weights, base, traces, clip):
    """Bound what the chunk changed, and each momentum."""
    if clip is None:
        return weights, traces
    moved = cut({name: weights[name] - base[name] for name in weights}, clip)
    return {name: base[name] + moved[name] for name in weights}, [cut(trace, clip) for trace in traces]


def titans(weights, q, k, v, rate, momentum, keep, chunk, clip=None, order=1, to_origin=False):
    """Eq 13-15, gradients at the chunk's start: S = momentum S - rate g, W = keep W + S; of order 2, S drives S2.

    to_origin: W - W_0 decays.
    """
    start = weights if to_origin else {name: np.zeros_like(w) for name, w in weights.items()}
    traces = [{name: np.zeros_like(w) for name, w in weights.items()} for _ in range(order)]
    base, ys = weights, []
    for t in range(len(k)):
        g = residual_mlp_gradient(base, k[t], v[t], 1.0)
        push = {name: -rate[t] * g[name] for name in g}
        for i in range(order):
            push = {name: momentum[t] * traces[i][name] + push[name] for name in g}
            traces[i] = push
        kept = decay({name: weights[name] - start[name] for name in g}, keep[t])
        weights = {name: start[name] + kept[name] + push[name] for name in g}
        ys.append(residual_mlp(weights, q[t]))
        if (t + 1) % chunk == 0:
            weights, traces = end_chunk(weights, base, traces, clip)
            base = weights
    return np.array(ys), weights


def matrix_memory(step):
    """Drive one step of a matrix memory, (M, S, anchor, k, v, rate, momentum, diag(keep)) -> M, S, over the tokens."""

    def oracle(weights, q, k, v, rate, momentum, keep, chunk, clip=None):
        M = base = weights["w"]
        S, ys, eye = np.zeros_like(M), [], np.eye(len(M))
        for t in range(len(k)):
            M, S = step(M, S, base, k[t][None], v[t][None], rate[t], momentum[t], eye * keep[t])
            ys.append(q[t] @ M)
            if (t + 1) % chunk == 0:
                ended, (trace,) = end_chunk({"w": M}, {"w": base}, [{"w": S}], clip)
                M = base = ended["w"]
                S = trace["w"]
        return np.array(ys), {"w": M}

    return oracle


@matrix_memory
def titans_linear(M, S, anchor, k, v, rate, momentum, keep):
    """||k M - v||^2 at the chunk's start: its gradient is 2 k^T (k M - v)."""
    S = momentum * S - 2 * rate * k.T @ (k @ anchor - v)
    return keep @ M + S, S


@matrix_memory
def titans_linear_fresh(M, S, anchor, k, v, rate, momentum, keep):
    """Eq 10 as printed: the gradient at M_{t-1}."""
    S = momentum * S - 2 * rate * k.T @ (k @ M - v)
    return keep @ M + S, S


@matrix_memory
def linear_attention(M, S, anchor, k, v, rate, momentum, keep):
    return keep @ M + rate * k.T @ v, S


@matrix_memory
def deltanet(M, S, anchor, k, v, rate, momentum, keep):
    """M = (I - rate k^T k) M + rate k^T v where keep is 1; elsewhere keep takes the place of I."""
    return (keep - rate * k.T @ k) @ M + rate * k.T @ v, S


@matrix_memory
def gated_deltanet(M, S, anchor, k, v, rate, momentum, keep):
    return (np.eye(len(M)) - rate * k.T @ k) @ keep @ M + rate * k.T @ v, S


def ttt(weights, q, k, v, rate, momentum, keep, chunk, clip=None, offsets=None):
    """Mini-batches: W_t = W_0 - max(0, 1/(t+1) + offsets_t) sum_{i<=t} rate_i grad 1/2 ||f(k_i) - v_i||^2 at W_0."""
    base, ys = weights, []
    for t in range(len(k)):
        place = t % chunk
        if place == 0:
            total = {name: np.zeros_like(w) for name, w in weights.items()}
        g = residual_mlp_gradient(base, k[t], v[t], 0.5)
        total = {name: total[name] + rate[t] * g[name] for name in g}
        scale = max(0.0, 1 / (place + 1) + (0.0 if offsets is None else offsets[place]))
        weights = {name: base[name] - scale * total[name] for name in g}
        ys.append(residual_mlp(weights, q[t]))
        if place == chunk - 1:
            weights, _ = end_chunk(weights, base, [], clip)
            base = weights
    return np.array(ys), weights


ORACLES = {
    "titans": titans,
    "titans_linear": titans_linear,
    "linear_attention": linear_attention,
    "deltanet": deltanet,
    "gated_deltanet": gated_deltanet,
    "ttt_linear": ttt,
    "ttt_mlp": ttt,
}
