"""The rows of the papers' tables: each a `Rule`, a line each."""

from collections.abc import Callable, Sequence

from jax import Array

from titans_jax.memory import architecture, bias, features, learner, retention
from titans_jax.memory.base import Architecture, Retention, Rule, Weights


def titans(dim: int, depth: int = 2, expansion: int = 4, order: int = 1, home: bool = False) -> Rule:
    """Titans' LMM (Eq 12-15): residual MLP, ||M(k) - v||^2, weight decay, momentum; see `retention.decay` for home."""
    return Rule(architecture.mlp(dim, depth, expansion), bias.l2(), retention.decay(home), learner.momentum(order))


def titans_linear(dim: int, gradient: str = "anchor") -> Rule:
    """Titans with a matrix for a memory (Eq 12-15); gradient="previous" takes fresh gradients (Eq 10 as printed)."""
    return Rule(architecture.linear(dim), bias.l2(), retention.decay(), learner.momentum(1, gradient))


def linear_attention(dim: int) -> Rule:
    """M_t = keep_t M_{t-1} + rate_t k_t^T v_t (Titans Eq 4-5 where both are 1; keep [T, D]: gated linear attention)."""
    return Rule(architecture.linear(dim), bias.dot(), retention.decay(), learner.gradient_descent())


def swla(dim: int, window: int = 4) -> Rule:
    """M_t = keep_t M_{t-1} + rate_t sum_{t-c<i<=t} weight_i k_i^T v_i (ATLAS' sliding window linear attention)."""
    return Rule(architecture.linear(dim), bias.dot(), retention.decay(), learner.gradient_descent(window=window))


def dla(dim: int, depth: int = 2, expansion: int = 4, home: bool = False) -> Rule:
    """A_t = keep_t A_{t-1} + rate_t grad <M(k_t), v_t>: the Hebbian write of a deep memory (ATLAS' DLA)."""
    return Rule(architecture.mlp(dim, depth, expansion), bias.dot(), retention.decay(home), learner.gradient_descent())


def retnet(dim: int) -> Rule:
    """M_t = keep M_{t-1} + k_t^T v_t, keep a constant of the head (RetNet, arXiv 2307.08621): the caller's gates."""
    return linear_attention(dim)


def gla(dim: int) -> Rule:
    """M_t = diag(keep_t) M_{t-1} + k_t^T v_t, keep [T, D] (Gated Linear Attention, arXiv 2312.06635)."""
    return linear_attention(dim)


def mamba2(dim: int) -> Rule:
    """M_t = keep_t M_{t-1} + rate_t k_t^T v_t, a scalar keep (Mamba-2's state space dual, arXiv 2405.21060)."""
    return linear_attention(dim)


def hgrn2(dim: int) -> Rule:
    """M_t = diag(keep_t) M_{t-1} + (1 - keep_t)^T v_t, keep [T, D] (HGRN2, arXiv 2404.07904): k and rate go unread."""
    return linear_attention(dim)._replace(learner=learner.complement())


def mesa(dim: int, ridge: float = 1.0) -> Rule:
    """M_t = (sum_i c_i k_i^T k_i + ridge I)^-1 sum_i c_i k_i^T v_i (Mesa, arXiv 2506.05233): least squares so far."""
    return Rule(architecture.mesa(dim, ridge), bias.dot(), retention.decay(), learner.gradient_descent())


def deltanet(dim: int) -> Rule:
    """M_t = (I - rate_t k_t^T k_t) M_{t-1} + rate_t k_t^T v_t (DeltaNet; keep 1), loss 1/2 ||M(k) - v||^2."""
    return Rule(architecture.linear(dim), bias.l2(0.5), retention.decay(), learner.gradient_descent("previous"))


def gated_deltanet(dim: int) -> Rule:
    """M_t = keep_t (I - rate_t k_t^T k_t) M_{t-1} + rate_t k_t^T v_t (Gated DeltaNet), loss 1/2 ||M(k) - v||^2."""
    return Rule(architecture.linear(dim), bias.l2(0.5), retention.decay(), learner.gradient_descent("decayed"))


def deltaproduct(dim: int, writes: int = 2) -> Rule:
    """M_t = prod_j (I - rate_tj k_tj^T k_tj) keep_t M_{t-1} + ...: delta steps for k, v [T, writes, D] (DeltaProduct).

    arXiv 2502.10297, with a keep as its gated form has; loss 1/2 ||M(k) - v||^2.
    """
    return Rule(
        architecture.linear(dim), bias.l2(0.5), retention.decay(), learner.gradient_descent("decayed", writes=writes)
    )


def longhorn(dim: int) -> Rule:
    """M_t = argmin ||M - keep_t M_{t-1}||^2 + rate_t ||M(k_t) - v_t||^2 (Longhorn, arXiv 2407.14207; keep 1)."""
    return Rule(architecture.linear(dim), bias.l2(0.5), retention.decay(), learner.implicit())


def rwkv7(dim: int) -> Rule:
    """M_t = (diag(keep_t) - rate_t k_t^T k_t) M_{t-1} + rate_t k_t^T v_t, keep [T, D] (RWKV-7, arXiv 2503.14456).

    Of RWKV-7 it has the decay by channel and the delta rule; there the removed key and the written one may differ, and
    each channel has a rate: here they are one key and one rate, which makes the write a gradient.
    """
    return deltanet(dim)


def dgd_linear(dim: int) -> Rule:
    """M_t = (keep_t I - rate_t k_t^T k_t) M_{t-1} - rate_t k_t^T (k_t M_anchor - v_t) (Nested Learning Eq 93)."""
    return Rule(architecture.linear(dim), bias.l2(0.5), retention.decay(), learner.gradient_descent("erasing"))


def dgd(dim: int, expansion: int = 4, home: bool = False) -> Rule:
    """Delta gradient descent of M(x) = x + gelu(x W_1) W_2: W_1 decays by the matrix, W_2 by keep_t alone."""
    network, descent = architecture.residual(dim, expansion), learner.gradient_descent("erasing")
    return Rule(network, bias.l2(0.5), retention.decay(home), descent)


def ttt_linear(dim: int, offsets: Sequence[float] | None = None) -> Rule:
    """TTT-Linear (arXiv 2407.04620): f(x) = x + LN(x W + b), 1/2 ||f(k) - v||^2 in mini-batches, v the value itself."""
    return Rule(architecture.ttt_linear(dim), bias.l2(0.5), retention.decay(), learner.averaged(offsets))


def ttt_mlp(dim: int, expansion: int = 4, offsets: Sequence[float] | None = None) -> Rule:
    """TTT-MLP (arXiv 2407.04620): f(x) = x + LN(gelu(x W_1 + b_1) W_2 + b_2), as `ttt_linear`."""
    return Rule(architecture.ttt_mlp(dim, expansion), bias.l2(0.5), retention.decay(), learner.averaged(offsets))


def moneta(dim: int, p: float = 3.0, q: float = 4.0, depth: int = 2, expansion: int = 4, map: str = "mirror") -> Rule:
    """Moneta (MIRAS Eq 24): ||M(k) - v||_p^p, weights kept in the norm l_q; map="literal" is the link as printed."""
    network = architecture.mlp(dim, depth, expansion)
    return Rule(network, bias.lp(p), retention.lq(q, map), learner.gradient_descent())


def yaad(dim: int, depth: int = 2, expansion: int = 4, form: str = "norm", home: bool = False) -> Rule:
    """Yaad (MIRAS Eq 26): Huber's loss with delta_t a gate, weight decay; form="mixture" is Eq 16 as printed."""
    network = architecture.mlp(dim, depth, expansion)
    return Rule(network, bias.huber(form=form), retention.decay(home), learner.gradient_descent())


def memora(
    dim: int, depth: int = 2, expansion: int = 4, scale: float | Array | None = None, every: str = "chunk"
) -> Rule:
    """Memora (MIRAS Eq 27): W_t = scale softmax(keep log W_{t-1} - rate grad ||M(k) - v||^2), from positive weights."""
    kept, network = retention.kl(scale, every=every), architecture.mlp(dim, depth, expansion)
    return Rule(_within(network, kept), bias.l2(), kept, learner.gradient_descent())


def _within(network: Architecture, kept: Retention) -> Architecture:
    """The network, begun with weights that a retention of bounded range can hold."""

    def init(key: Array) -> Weights:
        return kept.link(network.init(key))

    return network._replace(init=init)


def omeganet(
    dim: int, depth: int = 2, expansion: int = 4, window: int = 4, degree: int = 2, home: bool = False
) -> Rule:
    """M_t = keep_t M_{t-1} - rate_t sum_{t-c<i<=t} weight_i grad ||M(phi(k_i)) - v_i||^2, phi monomials (ATLAS)."""
    return Rule(
        architecture.featured(architecture.mlp(dim, depth, expansion), features.polynomial(dim, degree)),
        bias.l2(),
        retention.decay(home),
        learner.gradient_descent(window=window),
    )


def atlas(
    dim: int,
    depth: int = 2,
    expansion: int = 4,
    window: int = 4,
    degree: int = 2,
    home: bool = False,
    per: str = "chunk",
) -> Rule:
    """OmegaNet's gradients G_t: S_t = momentum_t S_{t-1} - G_t, M_t = keep_t M_{t-1} + rate_t NS5(S_t) (ATLAS).

    per: "token" as written here, or orthogonalised once a "chunk"; see `learner.muon`.
    """
    return omeganet(dim, depth, expansion, window, degree, home)._replace(learner=learner.muon(per, window=window))


def deep_transformer(dim: int, depth: int = 2, expansion: int = 4, degree: int = 2, home: bool = False) -> Rule:
    """A_t = keep_t A_{t-1} + rate_t grad <M(phi(k)), v>, phi the terms of exp (ATLAS' DeepTransformers)."""
    network = architecture.featured(architecture.mlp(dim, depth, expansion), features.exponential(dim, degree))
    return dla(dim, depth, expansion, home)._replace(architecture=network)


def dot(dim: int, depth: int = 2, expansion: int = 4, window: int = 4, degree: int = 2, home: bool = False) -> Rule:
    """Deep Omega Transformer (ATLAS): OmegaNet with the terms of exp for phi."""
    network = architecture.featured(architecture.mlp(dim, depth, expansion), features.exponential(dim, degree))
    return omeganet(dim, depth, expansion, window, degree, home)._replace(architecture=network)


def lact(dim: int, expansion: int = 4) -> Rule:
    """W = norm(W + NS5(sum_i rate_i grad <f(k_i), v_i>)) a chunk, f a SwiGLU (LaCT, arXiv 2505.23884); keep 1."""
    return Rule(architecture.swiglu(dim, expansion), bias.dot(), retention.renormalised(), learner.large_chunk())


ROWS = (
    titans,
    titans_linear,
    linear_attention,
    retnet,
    gla,
    mamba2,
    swla,
    dla,
    hgrn2,
    mesa,
    deltanet,
    gated_deltanet,
    deltaproduct,
    longhorn,
    rwkv7,
    dgd_linear,
    dgd,
    ttt_linear,
    ttt_mlp,
    moneta,
    yaad,
    memora,
    omeganet,
    atlas,
    deep_transformer,
    dot,
    lact,
)
PRESETS: dict[str, Callable[..., Rule]] = {rule.__name__: rule for rule in ROWS}
PER_CHANNEL = ("gla", "hgrn2", "rwkv7")
"""Those whose papers have a decay of its own for every channel, keep [T, D]."""
