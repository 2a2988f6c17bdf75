"""How a memory forgets: the coordinates in which what is kept is a product keep_t A_{t-1}."""

from titans_jax.memory.base import Retention


def decay() -> Retention:
    """W = A: weight decay, keep_t = 1 - alpha_t (Titans Eq 13)."""
    return Retention(lift=lambda weights: weights, link=lambda dual: dual, identity=True)
