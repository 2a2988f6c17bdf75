"""Short trainings side by side: every rule of memory, every optimizer, in tables that survive an interruption."""

from titans_jax.training.bench.formal import MODELS, compare_formal
from titans_jax.training.bench.optimizers import compare_optimizers
from titans_jax.training.bench.rows import Column, Row, Rows, markdown
from titans_jax.training.bench.rules import compare_rules, default_rules

__all__ = [
    "MODELS",
    "Column",
    "Row",
    "Rows",
    "compare_formal",
    "compare_optimizers",
    "compare_rules",
    "default_rules",
    "markdown",
]
