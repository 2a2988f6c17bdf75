"""How well a trained model predicts, recalls and answers; and what its layers do while it reads."""

from titans_jax.evaluation.ablation import CUTS, ablate
from titans_jax.evaluation.haystack import Hay, Needle, find_needles
from titans_jax.evaluation.introspect import Reading, read, watch
from titans_jax.evaluation.loglikelihood import TargetScores, score_targets
from titans_jax.evaluation.perplexity import RESETS, Scores, by_position, evaluate, score
from titans_jax.evaluation.stream_evaluator import StreamEvaluator, curves, load_state

__all__ = [
    "CUTS",
    "Hay",
    "Needle",
    "RESETS",
    "Reading",
    "Scores",
    "StreamEvaluator",
    "TargetScores",
    "ablate",
    "by_position",
    "curves",
    "evaluate",
    "find_needles",
    "load_state",
    "read",
    "score",
    "score_targets",
    "watch",
]
