"""How good a trained model is, and how we know; what goes on inside it."""

from titans_jax.evaluation.answers import Answers, score_answers
from titans_jax.evaluation.following import Following, curves, load_state
from titans_jax.evaluation.haystack import Hay, Needle, find_needles
from titans_jax.evaluation.inside import Inside, Reading, read, watch
from titans_jax.evaluation.perplexity import RESETS, Scores, evaluate, score
from titans_jax.evaluation.positions import by_position
from titans_jax.evaluation.relevance import CUTS, relevance
from titans_jax.evaluation.scenarios import draw_reading, run_scenario
from titans_jax.evaluation.surprise import FOUND, anomaly_scores, percentile_of_others, precision_recall

__all__ = [
    "CUTS",
    "FOUND",
    "RESETS",
    "Answers",
    "Following",
    "Hay",
    "Inside",
    "Needle",
    "Reading",
    "Scores",
    "anomaly_scores",
    "by_position",
    "curves",
    "draw_reading",
    "evaluate",
    "find_needles",
    "load_state",
    "percentile_of_others",
    "precision_recall",
    "read",
    "relevance",
    "run_scenario",
    "score",
    "score_answers",
    "watch",
]
