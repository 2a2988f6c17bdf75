"""How good a trained model is, and how we know."""

from titans_jax.evaluation.answers import Scores, score
from titans_jax.evaluation.haystack import Hay, Needle, find_needles
from titans_jax.evaluation.perplexity import RESETS, evaluate
from titans_jax.evaluation.scenarios import draw_reading, run_scenario
from titans_jax.evaluation.surprise import FOUND, anomaly_scores, percentile_of_others, precision_recall

__all__ = [
    "FOUND",
    "Hay",
    "Needle",
    "RESETS",
    "Scores",
    "anomaly_scores",
    "draw_reading",
    "evaluate",
    "find_needles",
    "percentile_of_others",
    "precision_recall",
    "run_scenario",
    "score",
]
