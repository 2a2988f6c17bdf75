"""The rows of the papers' tables: each a `Rule`, a line each."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from jax import Array

from titans_jax.memory import architecture, bias, features, learner, retention
from titans_jax.memory.types import Architecture, Retention, Rule, Weights


def titans(dim: int, depth: int = 2, expansion: int = 4, order: int = 1, to_origin: bool = False) -> Rule:
    """Titans' LMM (Eq 12-15): residual MLP, ||M(k) - v||^2, weight decay, momentum. to_origin: `retention.decay`."""
    return Rule(architecture.mlp(dim, depth, expansion), bias.l2(), retention.decay(to_origin), learner.momentum(order))


def titans_linear(dim: int, grad_at: str = "chunk_start") -> Rule:
    """Titans with a matrix for a memory (Eq 12-15); grad_at="previous" takes fresh gradients (Eq 10 as printed)."""
    return Rule(architecture.linear(dim), bias.l2(), retention.decay(), learner.momentum(1, grad_at))


def linear_attention(dim: int) -> Rule:
    """M_t = keep_t M_{t-1} + rate_t k_t^T v_t (Titans Eq 4-5 where both are 1; keep [T, D]: gated linear attention)."""
    return Rule(architecture.linear(dim), bias.dot(), retention.decay(), learner.gradient_descent())


def swla(dim: int, window: int = 4) -> Rule:
    """M_t = keep_t M_{t-1} + rate_t sum_{t-c<i<=t} weight_i k_i^T v_i (ATLAS' sliding window linear attention)."""
    return Rule(architecture.linear(dim), bias.dot(), retention.decay(), learner.gradient_descent(window=window))


def dla(dim: int, depth: int = 2, expansion: int = 4, to_origin: bool = False) -> Rule:
    """A_t = keep_t A_{t-1} + rate_t grad <M(k_t), v_t>: the Hebbian write of a deep memory (ATLAS' DLA)."""
    return Rule(
        architecture.mlp(dim, depth, expansion), bias.dot(), retention.decay(to_origin), learner.gradient_descent()
    )


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
        architecture.linear(dim),
        bias.l2(0.5),
        retention.decay(),
        learner.gradient_descent("decayed", writes_per_token=writes),
    )


def longhorn(dim: int) -> Rule:
    """M_t = argmin ||M - keep_t M_{t-1}||^2 + rate_t ||M(k_t) - v_t||^2 (Longhorn, arXiv 2407.14207; keep 1)."""
    return Rule(architecture.linear(dim), bias.l2(0.5), retention.decay(), learner.implicit())


def dgd_linear(dim: int) -> Rule:
    """M_t = (keep_t I - rate_t k_t^T k_t) M_{t-1} - rate_t k_t^T (k_t M_anchor - v_t) (Nested Learning Eq 93)."""
    return Rule(architecture.linear(dim), bias.l2(0.5), retention.decay(), learner.gradient_descent("delta_decay"))


def dgd(dim: int, expansion: int = 4, to_origin: bool = False) -> Rule:
    """Delta gradient descent of M(x) = x + gelu(x W_1) W_2: W_1 decays by the matrix, W_2 by keep_t alone."""
    network, descent = architecture.residual(dim, expansion), learner.gradient_descent("delta_decay")
    return Rule(network, bias.l2(0.5), retention.decay(to_origin), descent)


def ttt_linear(dim: int, offsets: Sequence[float] | None = None) -> Rule:
    """TTT-Linear (arXiv 2407.04620): f(x) = x + LN(x W + b), 1/2 ||f(k) - v||^2 in mini-batches, v the value itself."""
    network = architecture.biased(architecture.mlp(dim, 1))
    return Rule(network, bias.l2(0.5), retention.decay(), learner.averaged(offsets))


def ttt_mlp(dim: int, expansion: int = 4, offsets: Sequence[float] | None = None) -> Rule:
    """TTT-MLP (arXiv 2407.04620): f(x) = x + LN(gelu(x W_1 + b_1) W_2 + b_2), as `ttt_linear`."""
    network = architecture.biased(architecture.mlp(dim, 2, expansion))
    return Rule(network, bias.l2(0.5), retention.decay(), learner.averaged(offsets))


def moneta(dim: int, p: float = 3.0, q: float = 4.0, depth: int = 2, expansion: int = 4, map: str = "mirror") -> Rule:
    """Moneta (MIRAS Eq 24): ||M(k) - v||_p^p, weights kept in the norm l_q; map="literal" is the link as printed."""
    network = architecture.mlp(dim, depth, expansion)
    return Rule(network, bias.lp(p), retention.lq(q, map), learner.gradient_descent())


def yaad(dim: int, depth: int = 2, expansion: int = 4, form: str = "norm", to_origin: bool = False) -> Rule:
    """Yaad (MIRAS Eq 26): Huber's loss with delta_t a gate, weight decay; form="mixture" is Eq 16 as printed."""
    network = architecture.mlp(dim, depth, expansion)
    return Rule(network, bias.huber(form=form), retention.decay(to_origin), learner.gradient_descent())


def memora(
    dim: int, depth: int = 2, expansion: int = 4, scale: float | Array | None = None, every: str = "chunk"
) -> Rule:
    """Memora (MIRAS Eq 27): W_t = scale softmax(keep log W_{t-1} - rate grad ||M(k) - v||^2), from positive weights."""
    kept, network = retention.kl(scale, every=every), architecture.mlp(dim, depth, expansion)
    return Rule(_within(network, kept), bias.l2(), kept, learner.gradient_descent())


def _within(network: Architecture, kept: Retention) -> Architecture:
    """The network with initial weights in the range of the retention's link."""

    def init(key: Array) -> Weights:
        return kept.link(network.init(key))

    return network._replace(init=init)


def omeganet(
    dim: int, depth: int = 2, expansion: int = 4, window: int = 4, degree: int = 2, to_origin: bool = False
) -> Rule:
    """M_t = keep_t M_{t-1} - rate_t sum_{t-c<i<=t} weight_i grad ||M(phi(k_i)) - v_i||^2, phi monomials (ATLAS)."""
    return Rule(
        architecture.featured(architecture.mlp(dim, depth, expansion), features.polynomial(dim, degree)),
        bias.l2(),
        retention.decay(to_origin),
        learner.gradient_descent(window=window),
    )


def atlas(
    dim: int,
    depth: int = 2,
    expansion: int = 4,
    window: int = 4,
    degree: int = 2,
    to_origin: bool = False,
    every: str = "chunk",
) -> Rule:
    """OmegaNet's gradients G_t: S_t = momentum_t S_{t-1} - G_t, M_t = keep_t M_{t-1} + rate_t NS5(S_t) (ATLAS).

    every: "token" as written here, or orthogonalised once a "chunk"; see `learner.muon`.
    """
    return omeganet(dim, depth, expansion, window, degree, to_origin)._replace(
        learner=learner.muon(every, window=window)
    )


def deep_transformer(dim: int, depth: int = 2, expansion: int = 4, degree: int = 2, to_origin: bool = False) -> Rule:
    """A_t = keep_t A_{t-1} + rate_t grad <M(phi(k)), v>, phi the terms of exp (ATLAS' DeepTransformers)."""
    network = architecture.featured(architecture.mlp(dim, depth, expansion), features.exponential(dim, degree))
    return dla(dim, depth, expansion, to_origin)._replace(architecture=network)


def dot(
    dim: int, depth: int = 2, expansion: int = 4, window: int = 4, degree: int = 2, to_origin: bool = False
) -> Rule:
    """Deep Omega Transformer (ATLAS): OmegaNet with the terms of exp for phi."""
    network = architecture.featured(architecture.mlp(dim, depth, expansion), features.exponential(dim, degree))
    return omeganet(dim, depth, expansion, window, degree, to_origin)._replace(architecture=network)


def lact(dim: int, expansion: int = 4) -> Rule:
    """W = norm(W + NS5(sum_i rate_i grad <f(k_i), v_i>)) a chunk, f a SwiGLU (LaCT, arXiv 2505.23884); keep 1."""
    return Rule(architecture.swiglu(dim, expansion), bias.dot(), retention.renormalised(), learner.large_chunk())


# fmt: off
ROWS = (
    titans, titans_linear, linear_attention, swla, dla, hgrn2, mesa, deltanet, gated_deltanet, deltaproduct, longhorn,
    dgd_linear, dgd, ttt_linear, ttt_mlp, moneta, yaad, memora, omeganet, atlas, deep_transformer, dot, lact,
)
# fmt: on


class GateStyle(NamedTuple):
    """How a model makes the gates of a rule.

    keep: "scalar", one per head and token; "channel", one per channel; "fixed", a constant of the head; "tied",
    exp(-a rate) with a > 0 learned by each head. rate: "gated", or "one" for a constant.
    """

    keep: str = "scalar"
    rate: str = "gated"


class Alias(NamedTuple):
    """A rule of another name, with the gates that make it another model."""

    rule: Callable[..., Rule]
    gates: GateStyle


ALIASES = {
    # RetNet (arXiv 2307.08621): M_t = keep M_{t-1} + k_t^T v_t
    "retnet": Alias(linear_attention, GateStyle("fixed", "one")),
    # Gated Linear Attention (arXiv 2312.06635): M_t = diag(keep_t) M_{t-1} + k_t^T v_t
    "gla": Alias(linear_attention, GateStyle("channel", "one")),
    # Mamba-2 (arXiv 2405.21060): M_t = exp(-a rate_t) M_{t-1} + rate_t k_t^T v_t
    "mamba2": Alias(linear_attention, GateStyle("tied")),
    # RWKV-7 (arXiv 2503.14456): M_t = (diag(keep_t) - rate_t k_t^T k_t) M_{t-1} + rate_t k_t^T v_t. There the removed
    # key may differ from the written one, and each channel has a rate; here one key and one rate make it a gradient.
    "rwkv7": Alias(deltanet, GateStyle("channel")),
}
PRESETS: dict[str, Callable[..., Rule]] = {rule.__name__: rule for rule in ROWS} | {
    name: alias.rule for name, alias in ALIASES.items()
}
GATES = {"hgrn2": GateStyle("channel")} | {name: alias.gates for name, alias in ALIASES.items()}
"""The gates of rules that need others than `GateStyle()`."""
