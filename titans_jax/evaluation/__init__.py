"""How good a trained model is, and how we know; what goes on inside it."""

from titans_jax.evaluation.answers import Answers, score_answers
from titans_jax.evaluation.following import Following, curves, load_state
from titans_jax.evaluation.haystack import Hay, Needle, find_needles
from titans_jax.evaluation.inside import Inside, Reading, read, watch
from titans_jax.evaluation.perplexity import RESETS, Scores, evaluate, score
from titans_jax.evaluation.positions import by_position
from titans_jax.evaluation.relevance import CUTS, relevance

__all__ = [
    "CUTS",
    "RESETS",
    "Answers",
    "Following",
    "Hay",
    "Inside",
    "Needle",
    "Reading",
    "Scores",
    "by_position",
    "curves",
    "evaluate",
    "find_needles",
    "load_state",
    "read",
    "relevance",
    "score",
    "score_answers",
    "watch",
]
