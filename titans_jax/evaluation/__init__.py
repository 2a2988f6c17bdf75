"""How good a trained model is, and how we know."""

from titans_jax.evaluation.answers import Scores, score
from titans_jax.evaluation.haystack import Hay, Needle, find_needles
from titans_jax.evaluation.perplexity import RESETS, evaluate

__all__ = ["RESETS", "Hay", "Needle", "Scores", "evaluate", "find_needles", "score"]
