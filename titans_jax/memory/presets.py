"""The rows of the papers' tables: each a `Rule`, a line each."""

from collections.abc import Callable, Sequence

from titans_jax.memory import architecture, bias, learner, retention
from titans_jax.memory.base import Rule


def titans(dim: int, depth: int = 2, expansion: int = 4, order: int = 1, home: bool = False) -> Rule:
    """Titans' LMM (Eq 12-15): residual MLP, ||M(k) - v||^2, weight decay, momentum; see `retention.decay` for home."""
    return Rule(architecture.mlp(dim, depth, expansion), bias.l2(), retention.decay(home), learner.momentum(order))


def titans_linear(dim: int, gradient: str = "anchor") -> Rule:
    """Titans with a matrix for a memory (Eq 12-15); gradient="previous" takes fresh gradients (Eq 10 as printed)."""
    return Rule(architecture.linear(dim), bias.l2(), retention.decay(), learner.momentum(1, gradient))


def linear_attention(dim: int) -> Rule:
    """M_t = keep_t M_{t-1} + rate_t k_t^T v_t (Titans Eq 4-5 where both are 1; keep [T, D]: gated linear attention)."""
    return Rule(architecture.linear(dim), bias.dot(), retention.decay(), learner.gradient_descent())


def deltanet(dim: int) -> Rule:
    """M_t = (I - rate_t k_t^T k_t) M_{t-1} + rate_t k_t^T v_t (DeltaNet; keep 1), loss 1/2 ||M(k) - v||^2."""
    return Rule(architecture.linear(dim), bias.l2(0.5), retention.decay(), learner.gradient_descent("previous"))


def gated_deltanet(dim: int) -> Rule:
    """M_t = keep_t (I - rate_t k_t^T k_t) M_{t-1} + rate_t k_t^T v_t (Gated DeltaNet), loss 1/2 ||M(k) - v||^2."""
    return Rule(architecture.linear(dim), bias.l2(0.5), retention.decay(), learner.gradient_descent("decayed"))


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


PRESETS: dict[str, Callable[..., Rule]] = {
    rule.__name__: rule
    for rule in (
        titans,
        titans_linear,
        linear_attention,
        deltanet,
        gated_deltanet,
        dgd_linear,
        dgd,
        ttt_linear,
        ttt_mlp,
    )
}
