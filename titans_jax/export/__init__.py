"""A trained model for others: safetensors with a model card, and functions that run without this library."""

from titans_jax.export.card import model_card
from titans_jax.export.stablehlo import PLATFORMS, functions, write

__all__ = ["PLATFORMS", "functions", "model_card", "write"]
