"""How good a trained model is, and how we know."""

from titans_jax.evaluation.perplexity import RESETS, evaluate

__all__ = ["RESETS", "evaluate"]
