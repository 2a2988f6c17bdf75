"""How good a trained model is, and how we know; what goes on inside it."""

from titans_jax.evaluation.inside import Inside, Reading, read, watch
from titans_jax.evaluation.perplexity import RESETS, Scores, evaluate, score
from titans_jax.evaluation.positions import by_position
from titans_jax.evaluation.relevance import CUTS, relevance

__all__ = [
    "CUTS",
    "RESETS",
    "Inside",
    "Reading",
    "Scores",
    "by_position",
    "evaluate",
    "read",
    "relevance",
    "score",
    "watch",
]
