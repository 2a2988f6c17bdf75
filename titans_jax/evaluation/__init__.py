"""How good a trained model is, and how we know."""

from titans_jax.evaluation.perplexity import RESETS, evaluate
from titans_jax.evaluation.scenarios import draw_reading, run_scenario
from titans_jax.evaluation.surprise import FOUND, anomaly_scores, percentile_of_others, precision_recall

__all__ = [
    "FOUND",
    "RESETS",
    "anomaly_scores",
    "draw_reading",
    "evaluate",
    "percentile_of_others",
    "precision_recall",
    "run_scenario",
]
