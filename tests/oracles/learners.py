"""More published recurrences by hand, as in `recurrences`: windows, several writes, least squares, Muon, LaCT."""

import math

import numpy as np

from tests.oracles.recurrences import decay, end_chunk, gelu, gelu_slope, layer_norm, layer_norm_back, matrix_memory


@matrix_memory
def hgrn2(M, S, anchor, k, v, rate, momentum, keep):
    return keep @ M + (1 - np.diag(keep))[:, None] * v, S


@matrix_memory
def longhorn(M, S, anchor, k, v, rate, momentum, keep):
    """The minimum of ||M - keep M'||^2 + rate ||k M - v||^2, from its normal equations."""
    return np.linalg.solve(np.eye(len(M)) + rate * k.T @ k, keep @ M + rate * k.T @ v), S


@matrix_memory
def deltaproduct(M, S, anchor, k, v, rate, momentum, keep):
    M = keep @ M
    for key, value, beta in zip(k[0], v[0], rate, strict=True):
        M = M - beta * np.outer(key, key @ M - value)
    return M, S


def mesa(weights, q, k, v, rate, momentum, keep, chunk, clip=None):
    base, ys = weights, []
    for t in range(len(k)):
        kept = np.mean(keep[t])
        H = kept * weights["h"] + rate[t] * np.outer(k[t], k[t])
        G = kept * weights["g"] + rate[t] * np.outer(k[t], v[t])
        ys.append(q[t] @ np.linalg.inv(H + np.eye(len(H))) @ G)
        weights = {"g": G, "h": H}
        if (t + 1) % chunk == 0:
            weights, _ = end_chunk(weights, base, [], clip)
            base = weights
    return np.array(ys), weights


def newton_schulz(S):
    """What five steps do to a matrix they do to its singular values."""
    U, s, V = np.linalg.svd(S, full_matrices=False)
    s = s / np.sqrt((S * S).sum() + 1e-14)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return U * s @ V


def itself(x):
    return x


def monomials(x):
    return np.array([*x, *(x[i] * x[j] for i in range(len(x)) for j in range(i, len(x)))])


def exponential(x):
    second = [x[i] * x[j] * math.sqrt(0.5 if i == j else 1.0) for i in range(len(x)) for j in range(i, len(x))]
    return np.array([*x, *second, 1.0])


class DeepMemory:
    """x + LN(gelu(phi(x) W1) W2); its loss' derivative by the prediction is error(prediction, value)."""

    def __init__(self, phi, error):
        self.phi, self.error = phi, error

    def read(self, weights, x):
        return x + layer_norm(gelu(self.phi(x) @ weights["w1"]) @ weights["w2"])

    def gradient(self, weights, k, v):
        inner = self.phi(k) @ weights["w1"]
        out = gelu(inner) @ weights["w2"]
        delta = layer_norm_back(out, self.error(k + layer_norm(out), v))
        back = (weights["w2"] @ delta) * gelu_slope(inner)
        return {"w1": np.outer(self.phi(k), back), "w2": np.outer(gelu(inner), delta)}

    def decay(self, weights, keep):
        if self.phi is itself:
            return decay(weights, keep)
        return {"w1": np.mean(keep) * weights["w1"], "w2": weights["w2"] * keep}


class MatrixMemory:
    """x W with the Hebbian write."""

    def read(self, weights, x):
        return x @ weights["w"]

    def gradient(self, weights, k, v):
        return {"w": -np.outer(k, v)}

    def decay(self, weights, keep):
        return {"w": np.broadcast_to(keep, len(weights["w"]))[:, None] * weights["w"]}


def l2(prediction, value):
    return 2 * (prediction - value)


def dot(prediction, value):
    return -value


def omega(memory, window, muon=None):
    """G_t = sum of the last tokens' weighted gradients at the chunk's start; then descent, or `muon` per token, chunk.

    Of a chunk's orthogonalised step the chunk's own tokens read nothing.
    """

    def oracle(weights, q, k, v, rate, momentum, keep, chunk, clip=None, weight=None):
        base, ys = weights, []
        weight = np.ones(len(k)) if weight is None else weight
        S = {name: np.zeros_like(w) for name, w in weights.items()}
        for t in range(len(k)):
            G = {name: np.zeros_like(w) for name, w in weights.items()}
            for i in range(max(0, t - window + 1), t + 1):
                g = memory.gradient(base, k[i], v[i])
                G = {name: G[name] + weight[i] * g[name] for name in G}
            S = {name: momentum[t] * S[name] - G[name] for name in G}
            weights = memory.decay(weights, keep[t])
            ends = (t + 1) % chunk == 0
            step = {name: newton_schulz(S[name]) if muon else -G[name] for name in G}
            moved = {name: weights[name] + rate[t] * step[name] for name in G}
            if muon != "chunk":
                weights = moved
            ys.append(memory.read(weights, q[t]))
            if ends:
                base, _ = end_chunk(moved, base, [], clip)
                weights = base
        return np.array(ys), weights

    return oracle


def lact(weights, q, k, v, rate, momentum, keep, chunk, clip=None):
    """SwiGLU by -<f(k), v>: a chunk's rated gradients and what remains of the last sum, orthogonalised and added."""
    first, base, ys = weights, weights, []
    S = {name: np.zeros_like(w) for name, w in weights.items()}
    for t in range(len(k)):
        g = swiglu_gradient(base, k[t], v[t])
        remains = momentum[t] if t % chunk == 0 else 1.0
        S = {name: remains * S[name] - rate[t] * g[name] for name in g}
        kept = np.broadcast_to(keep[t], len(k[t]))
        scale = {"w1": kept[:, None], "w3": kept[:, None], "w2": kept[None, :]}
        weights = {name: first[name] + scale[name] * (weights[name] - first[name]) for name in g}
        ys.append(swiglu(weights, q[t])[0])
        if (t + 1) % chunk == 0:
            weights, _ = end_chunk({n: weights[n] + newton_schulz(S[n]) for n in g}, base, [], clip)
            length = {n: np.linalg.norm(first[n], axis=0) / np.linalg.norm(weights[n], axis=0) for n in g}
            base = weights = {n: weights[n] * length[n] for n in g}
    return np.array(ys), weights


def swiglu(weights, x):
    a, b = x @ weights["w1"], x @ weights["w3"]
    h = a / (1 + np.exp(-a)) * b
    return h @ weights["w2"], a, b, h


def swiglu_gradient(weights, k, v):
    _, a, b, h = swiglu(weights, k)
    gate = 1 / (1 + np.exp(-a))
    back = -weights["w2"] @ v
    slope = gate + a * gate * (1 - gate)
    return {"w1": np.outer(k, back * b * slope), "w3": np.outer(k, back * a * gate), "w2": np.outer(h, -v)}


ORACLES = {
    "hgrn2": hgrn2,
    "longhorn": longhorn,
    "deltaproduct": deltaproduct,
    "mesa": mesa,
    "swla": omega(MatrixMemory(), 4),
    "dla": omega(DeepMemory(itself, dot), 1),
    "omeganet": omega(DeepMemory(monomials, l2), 4),
    "atlas": omega(DeepMemory(monomials, l2), 4, muon="chunk"),
    "deep_transformer": omega(DeepMemory(exponential, dot), 1),
    "dot": omega(DeepMemory(exponential, l2), 4),
    "lact": lact,
}
