"""Titan-Min: a model that finds a needle among random tokens, with its training, evaluation and export."""

from titans_jax.needle.config import NeedleConfig
from titans_jax.needle.evaluate import Predictions, predict, score
from titans_jax.needle.export import export
from titans_jax.needle.model import TitanBlock, TitanMin
from titans_jax.needle.pipeline import ablate, evaluate, run, write_predictions
from titans_jax.needle.trainer import load, train

__all__ = [
    "NeedleConfig",
    "Predictions",
    "TitanBlock",
    "TitanMin",
    "ablate",
    "evaluate",
    "export",
    "load",
    "predict",
    "run",
    "score",
    "train",
    "write_predictions",
]
